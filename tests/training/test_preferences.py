"""Pairwise losses and gradients, packed, against float64 loops over whole sequences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_losses as reference

from lmsi_jax.config import Preference
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.transformer import init_params
from lmsi_jax.training import losses as losses_module
from lmsi_jax.training.forward import parameter_gradients
from lmsi_jax.training.losses import members, pair_groups, pair_sums, scpo_loss, spin_loss
from lmsi_jax.training.packing import Shape, batches, microbatches, pair_row, weighted_row
from lmsi_jax.training.scoring import with_reference

SHAPE = Shape(microbatches=2, rows=2, length=30, prefix_length=6, pairs=True)


def _pairs():
    """(chosen, rejected, weight) of three prompts behind two prefixes."""
    rng = np.random.default_rng(1)
    prefixes = [(), tuple(rng.integers(3, 300, 4).tolist())]

    def row(prefix, asked, weight, group):
        targets = rng.integers(3, 300, rng.integers(1, 4)).tolist()
        return weighted_row(prefix, asked, targets, weight, group)

    pairs = []
    for number, weight in enumerate((0.25, 1.0, 0.5)):
        prompt = prefixes[number % 2], rng.integers(3, 300, 2).tolist()
        pairs.append((*(row(*prompt, weight, number % 2) for _ in range(2)), weight))
    return pairs


def _reference_losses(config, params, frozen, pairs, preference):
    losses = []
    for *both, weight in pairs:
        own = [reference.sequence_logprob(config, params, row) for row in both]
        before = [reference.sequence_logprob(config, frozen, row)[0] for row in both]
        margin = (own[0][0] - before[0]) - (own[1][0] - before[1])
        loss = math.log1p(math.exp(-preference.beta * margin))
        if preference.form == "scpo":
            loss -= preference.likelihood * own[0][0] / own[0][1]
        losses.append(weight * loss)
    return losses


@pytest.mark.parametrize(
    "preference", [Preference(form="spin", beta=0.3), Preference(beta=0.5, likelihood=0.7)]
)
def test_loss_and_gradient(micro_config, micro_params, preference):
    pairs = _pairs()
    frozen = init_params(micro_config, jax.random.key(4))
    rows = [pair_row(*both) for *both, _ in pairs]
    rows = with_reference(micro_config, frozen, rows, SHAPE)
    (batch,) = batches(iter(rows), SHAPE)
    assert batch["segments"].max() == 4  # two pairs share a row

    def objective(weights, one):
        return pair_sums(micro_config, weights, one, 3, preference)

    sums = parameter_gradients(micro_config, micro_params, objective, batch)
    means, gradient = losses_module.normalize_pair_sums(*sums)
    losses = lambda p: _reference_losses(micro_config, p, frozen, pairs, preference)  # noqa: E731
    value = lambda p: sum(losses(p)) / 3  # noqa: E731
    assert float(means.loss) == pytest.approx(value(micro_params), rel=1e-5)
    assert float(means.pairs) == 3
    expected = losses(micro_params)
    by_group = [(expected[0] + expected[2]) / 2, expected[1], math.nan]
    np.testing.assert_allclose(means.by_group, by_group, rtol=1e-5)
    direction = reference.random_direction(micro_params)
    slope = reference.slope(value, micro_params, direction)
    size = reference.dot(gradient, gradient) ** 0.5
    assert reference.dot(gradient, direction) == pytest.approx(slope, abs=2e-4 * size, rel=1e-4)


def test_members_are_summed_by_sequence(micro_config, micro_params):
    pairs = [pair for pair in _pairs() if not pair[0].prefix]
    (one,) = microbatches([pair_row(*both) for *both, _ in pairs], SHAPE)
    found = members(micro_config, micro_params, one)
    assert found.tokens.shape == (2, 30 // 4, 2)
    for number, (*both, _) in enumerate(pairs):
        for side, row in enumerate(both):
            logprob, tokens = reference.sequence_logprob(micro_config, micro_params, row)
            assert float(found.logprobs[0, number, side]) == pytest.approx(logprob, rel=1e-5)
            assert int(found.tokens[0, number, side]) == tokens
    assert int((found.tokens > 0).sum()) == 4
    assert pair_groups(one)[0, :2].tolist() == [0, 0] and (pair_groups(one)[:, 2:] < 0).all()


def test_the_references_numbers_are_those_of_each_pair_alone(micro_config, micro_params):
    pairs = _pairs()
    rows = with_reference(micro_config, micro_params, [pair_row(*p[:2]) for p in pairs], SHAPE)
    for row, (*both, _) in zip(rows, pairs, strict=True):
        expected = [reference.sequence_logprob(micro_config, micro_params, one)[0] for one in both]
        np.testing.assert_allclose(row.reference, expected, rtol=1e-5)


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


def test_the_members_of_a_pair_stay_together():
    row = weighted_row((), [5, 6], list(range(7, 15)), 1.0)
    pair = pair_row(row, row)
    for batch in microbatches([pair] * 5, SHAPE):
        for line in batch["segments"]:
            assert line.max() % 2 == 0
        assert batch["positions"].max() == len(row.tokens) - 1  # both begin at the same place


def test_pairs_that_cannot_be_packed_are_named():
    short = weighted_row((), [5], [6], 1.0)
    long = weighted_row((), [5], [6] * 18, 1.0)
    other = weighted_row((9,), [5], [6], 1.0)
    silent = weighted_row((), [5, 6], [], 1.0)
    with pytest.raises(ValueError, match="different prefixes"):
        pair_row(short, other)
    for row, message in [
        (pair_row(long, long), "a row has 38 tokens, a packed sequence 30"),
        (pair_row(short, silent), "without target tokens"),
        (short, "pairs and single rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(microbatches([row], SHAPE))


@pytest.mark.parametrize(
    "changes", [{"form": "dpo"}, {"beta": 0.0}, {"likelihood": -1.0}, {"threshold": 2}]
)
def test_values_out_of_range_are_named(changes):
    with pytest.raises(LmsiError, match=f"Preference.{next(iter(changes))}"):
        Preference(**changes)
