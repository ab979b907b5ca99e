"""Pairwise losses and gradients, packed, against float64 loops over whole sequences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_losses as reference

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.decoder import init_params
from lmsi_jax.training.packing import Shape, weighted_row
from lmsi_jax.training.preferences import (
    PairRows,
    Preference,
    pair_batches,
    preference_loss_and_gradient,
    scpo_loss,
    sequence_logprobs,
    spin_loss,
)

SHAPE = Shape(microbatches=2, rows=2, length=20, prefix_length=6)
MOST = 3


def _pairs():
    rng = np.random.default_rng(1)
    prefixes = [(), tuple(rng.integers(3, 300, 4).tolist())]

    def row(prefix, asked):
        targets = rng.integers(3, 300, rng.integers(1, 4)).tolist()
        return weighted_row(prefix, asked, targets, 1.0)

    pairs = []
    for number, weight in enumerate((0.25, 1.0, 0.5)):
        prefix, asked = prefixes[number % 2], rng.integers(3, 300, 2).tolist()
        pairs.append(
            PairRows(chosen=row(prefix, asked), rejected=row(prefix, asked), weight=weight)
        )
    return pairs


def _reference_loss(config, params, frozen, pairs, preference):
    total = 0.0
    for pair in pairs:
        own = [reference.sequence_logprob(config, params, r) for r in (pair.chosen, pair.rejected)]
        before = [
            reference.sequence_logprob(config, frozen, r)[0] for r in (pair.chosen, pair.rejected)
        ]
        margin = (own[0][0] - before[0]) - (own[1][0] - before[1])
        loss = math.log1p(math.exp(-preference.beta * margin))
        if preference.form == "scpo":
            loss -= preference.likelihood * own[0][0] / own[0][1]
        total += pair.weight * loss
    return total / len(pairs)


@pytest.mark.parametrize(
    "preference", [Preference(form="spin", beta=0.3), Preference(beta=0.5, likelihood=0.7)]
)
def test_loss_and_gradient(micro_config, micro_params, preference):
    pairs = _pairs()
    frozen = init_params(micro_config, jax.random.key(4))
    (batch,) = pair_batches(pairs, SHAPE, MOST)
    assert batch["segments"].max() > 1  # several sequences share a row
    loss, gradient, metrics = preference_loss_and_gradient(
        micro_config, micro_params, frozen, batch, preference
    )
    value = lambda p: _reference_loss(micro_config, p, frozen, pairs, preference)  # noqa: E731
    assert float(loss) == pytest.approx(value(micro_params), rel=1e-5)
    assert float(metrics["pairs"]) == 3
    direction = reference.random_direction(micro_params)
    expected = reference.slope(value, micro_params, direction)
    size = reference.dot(gradient, gradient) ** 0.5
    assert reference.dot(gradient, direction) == pytest.approx(expected, abs=2e-4 * size, rel=1e-4)


def test_sequence_logprobs_are_by_sequence(micro_config, micro_params):
    pairs = [pair for pair in _pairs() if not pair.chosen.prefix]
    batch = next(pair_batches(pairs, SHAPE, MOST))
    one = {name: value[0] for name, value in batch.items()}
    found = sequence_logprobs(micro_config, micro_params, one, 2 * MOST)
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    expected = [reference.sequence_logprob(micro_config, micro_params, row) for row in rows]
    np.testing.assert_allclose(found.logprobs[:4], [lp for lp, _ in expected], rtol=1e-5)
    assert found.tokens.tolist() == [n for _, n in expected] + [0, 0]
    assert found.logprobs[4:].tolist() == [0, 0]


def test_a_model_equal_to_its_reference_loses_log_two_for_each_pair():
    same = jnp.array([-3.0, -50.0]), jnp.array([-7.0, -1.0])
    np.testing.assert_allclose(spin_loss(*same, same, 0.1), math.log(2), rtol=1e-6)
    found = scpo_loss(
        *same, same, chosen_tokens=jnp.array([3, 10]), weights=jnp.array([1.0, 0.5]), beta=0.5
    )
    np.testing.assert_allclose(found, [math.log(2) + 1.0, 0.5 * (math.log(2) + 5.0)], rtol=1e-6)


def test_far_margins_stay_finite():
    chosen = jnp.array([-1e4, 0.0])
    found = spin_loss(chosen, chosen[::-1], (jnp.zeros(2), jnp.zeros(2)), 0.5)
    np.testing.assert_allclose(found, [5000.0, 0.0], atol=1e-6)


def test_pairs_that_find_no_room_are_spread_over_microbatches():
    row = weighted_row((), [5, 6], list(range(7, 15)), 1.0)
    pairs = [PairRows(chosen=row, rejected=row, weight=n + 1.0) for n in range(3)]
    batches = list(pair_batches(pairs, SHAPE, MOST))
    weights = np.concatenate([batch["pair_weights"].ravel() for batch in batches])
    assert sorted(weights[weights > 0].tolist()) == [1.0, 2.0, 3.0]
    for batch in batches:
        for m in range(2):
            sequences = set(batch["groups"][m][batch["weights"][m] > 0].tolist())
            assert sequences == set(range(2 * int((batch["pair_weights"][m] > 0).sum())))


def test_pairs_that_cannot_be_packed_are_named():
    short = weighted_row((), [5], [6], 1.0)
    long = weighted_row((), [5], [6] * 18, 1.0)
    longer = weighted_row((), [5], [6] * 30, 1.0)
    other = weighted_row((9,), [5], [6], 1.0)
    silent = weighted_row((), [5, 6], [], 1.0)
    one_row = Shape(microbatches=1, rows=1, length=20, prefix_length=6)
    for pair, message in [
        ((short, other), "different prefixes"),
        ((short, longer), "raise length"),
        ((long, long), "raise rows or length"),
        ((short, silent), "without target tokens"),
    ]:
        with pytest.raises(LmsiError, match=message):
            list(pair_batches([PairRows(chosen=pair[0], rejected=pair[1])], one_row, 2))


@pytest.mark.parametrize("changes", [{"form": "dpo"}, {"beta": 0.0}, {"likelihood": -1.0}])
def test_values_out_of_range_are_named(changes):
    with pytest.raises(LmsiError, match=f"Preference.{next(iter(changes))}"):
        Preference(**changes)
