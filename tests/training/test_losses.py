"""Packed, prefix-shared losses and gradients against each example computed alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import FEW_FAST, of_family
from path_scores import sharp_params
from reference_decoder import reference_logits
from step_losses import loss_and_gradient

from lmsi_jax.models.transformer import init_params
from lmsi_jax.training.packing import Shape, batches, microbatches, weighted_row


def _rows(seed=0, count=9):
    rng = np.random.default_rng(seed)
    prefixes = [(), tuple(rng.integers(3, 300, 7).tolist())]
    return [
        weighted_row(
            prefixes[i % 2],
            rng.integers(3, 300, rng.integers(2, 9)).tolist(),
            rng.integers(3, 300, rng.integers(1, 9)).tolist(),
            float(rng.choice([0.5, 1.0, 4.0])),
            int(i % 3),
        )
        for i in range(count)
    ]


def _stacked(rows, shape):
    return next(batches(rows, shape))


def _alone(rows):
    """One batch with one example per microbatch, and none of its computation shared."""
    whole = [weighted_row((), [*row.prefix, *row.tokens], [], 0.0, row.group) for row in rows]
    for row, source in zip(whole, rows, strict=True):
        row.weights[len(source.prefix) :] = source.weights
    shape = Shape(microbatches=len(rows), rows=1, length=32, prefix_length=0)
    ones = [next(microbatches([row], shape)) for row in whole]
    return {name: np.stack([one[name] for one in ones]) for name in ones[0]}


def _packed(rows):
    """The rows behind shared prefixes, several in a packed sequence."""
    ones = list(microbatches(rows, Shape(microbatches=1, rows=3, length=40, prefix_length=8)))
    return {name: np.stack([one[name] for one in ones]) for name in ones[0]}


def _assert_packing_changes_nothing(config, params):
    rows = _rows()
    loss, gradient, by_group = loss_and_gradient(config, params, _packed(rows), 3)
    alone, gradient_alone, by_group_alone = loss_and_gradient(config, params, _alone(rows), 3)
    assert loss == pytest.approx(float(alone), rel=1e-5)
    np.testing.assert_allclose(by_group, by_group_alone, rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient_alone))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_alone), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


def test_shared_prefixes_and_packing_change_neither_loss_nor_gradient(micro_config, micro_params):
    _assert_packing_changes_nothing(micro_config, micro_params)


# The shared prefix has 7 tokens, a row up to 16: windows shorter than the prefix, as long, longer,
# and longer than all.
@pytest.mark.parametrize(("windows", "groups"), [((3, 0), 1), ((7,), 4), ((12, 40), 2)])
def test_nor_do_they_with_sliding_windows_and_soft_caps(micro_config, windows, groups):
    config = dataclasses.replace(
        micro_config,
        num_kv_heads=groups,
        windows=windows,
        attention_softcap=1.0,
        logits_softcap=2.0,
    )
    _assert_packing_changes_nothing(config, init_params(config, jax.random.key(groups)))


@pytest.mark.parametrize("family", FEW_FAST)
def test_nor_do_they_in_any_family(micro_config, family):
    config = of_family(micro_config, family)
    _assert_packing_changes_nothing(config, sharp_params(config, 2))


@pytest.mark.slow
def test_bfloat16_parameters_give_the_loss_and_gradient_of_float32(micro_config, micro_params):
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), micro_params)
    widened = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    packed = _packed(_rows())
    loss, gradient, _ = loss_and_gradient(micro_config, narrow, packed, 3)
    expected, exact, _ = loss_and_gradient(micro_config, widened, packed, 3)
    # A bfloat16 number is off by up to 2**-9 = 0.2 %; roundings add up, in the gradient to 1 %.
    assert float(loss) == pytest.approx(float(expected), rel=2e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    off = optax.tree.norm(jax.tree.map(jnp.subtract, gradient, exact))
    assert float(off) < 0.02 * float(optax.tree.norm(exact))


def test_loss_is_the_weighted_mean_over_target_tokens(micro_config, micro_params):
    rows = _rows(seed=1, count=4)
    total = weight = 0.0
    for row in rows:
        ids = [*row.prefix, *row.tokens]
        scores = reference_logits(micro_config, micro_params, ids)
        logprobs = scores - scores.max(-1, keepdims=True)
        logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True))
        for at, w in enumerate(row.weights):
            place = len(row.prefix) + at
            total -= w * logprobs[place - 1, ids[place]] if w else 0.0
            weight += w
    loss, _, _ = loss_and_gradient(micro_config, micro_params, _alone(rows), 3)
    assert float(loss) == pytest.approx(total / weight, rel=1e-5)


def test_padding_and_inputs_give_no_gradient(micro_config, micro_params):
    shape = Shape(microbatches=1, rows=1, length=16, prefix_length=0)
    batch = _stacked([weighted_row((), [5, 6, 7], [], 1.0)] * 200, shape)
    _, gradient, _ = loss_and_gradient(micro_config, micro_params, batch, 1)
    assert all(float(jnp.abs(leaf).max()) == 0.0 for leaf in jax.tree.leaves(gradient))
