"""bfloat16 parameters: what stays narrow, what is float32, and how far the result is off."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmsi_jax.models.attention import packed_attention, prefill
from lmsi_jax.models.params import fuse_projections
from lmsi_jax.models.transformer import (
    angles_of,
    hidden_states,
    logits,
    rms_norm,
    rotary_angles,
    rotate,
)
from lmsi_jax.training.losses import token_losses

NARROW = jnp.bfloat16


def _cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


@pytest.fixture(scope="module")
def narrow_params(micro_params):
    return _cast(micro_params, NARROW)


@functools.partial(jax.jit, static_argnums=0)
def _states(config, params):
    """Hidden states and logits of 2 rows of 20 tokens behind a prefix of 10, and its cache."""
    fused = fuse_projections(config, params)
    tokens = jnp.asarray(np.random.default_rng(0).integers(3, 300, (3, 20)))
    shared = prefill(config, fused, tokens[:1, :10], jnp.asarray([10]), None)
    positions = jnp.broadcast_to(10 + jnp.arange(20), (2, 20))
    attend = packed_attention(config, jnp.ones((2, 20), jnp.int32), positions, shared)
    states = hidden_states(config, fused, tokens[1:], angles_of(config, positions), attend)
    return states, logits(config, fused, states), shared


def test_bfloat16_parameters_give_the_float32_result_up_to_their_rounding(
    micro_config, narrow_params
):
    states, scores, _ = _states(micro_config, narrow_params)
    wide, wide_scores, _ = _states(micro_config, _cast(narrow_params, jnp.float32))
    # States have a root mean square of about 1. One rounding to bfloat16 is off by 2**-9 = 0.2 % at
    # most; the roundings on the way add up like a random walk, here to 0.8 %.
    error = jnp.sqrt(jnp.mean((states - wide) ** 2) / jnp.mean(wide**2))
    worst = jnp.abs(states - wide).max()
    assert error < 0.015
    assert worst < 0.1
    assert jnp.sqrt(jnp.mean((scores - wide_scores) ** 2)) < 0.015 * wide_scores.std()


def test_states_and_caches_stay_bfloat16_and_scores_are_float32(micro_config, narrow_params):
    states, scores, shared = _states(micro_config, narrow_params)
    assert states.dtype == NARROW
    assert {leaf.dtype for leaf in (*shared.keys, *shared.values)} == {jnp.dtype(NARROW)}
    assert scores.dtype == jnp.float32


def test_float32_norm_scales_do_not_widen_the_states(micro_config, narrow_params):
    def wide(path, leaf):
        return leaf.astype(jnp.float32) if leaf.ndim == 1 else leaf

    states, _, _ = _states(micro_config, jax.tree_util.tree_map_with_path(wide, narrow_params))
    assert states.dtype == NARROW


def test_queries_keys_and_values_are_bfloat16_in_every_layer(micro_config, narrow_params):
    seen = []

    def attend(layer, q, k, v):
        seen.append((layer, q.dtype, k.dtype, v.dtype))
        return q.astype(jnp.float32)  # as a float32 softmax would give

    tokens = jnp.zeros((1, 3), jnp.int32)
    angles = angles_of(micro_config, tokens)
    hidden_states(
        micro_config, fuse_projections(micro_config, narrow_params), tokens, angles, attend
    )
    assert seen == [(layer, *[NARROW] * 3) for layer in range(micro_config.num_layers)]


def test_no_product_of_matrices_is_widened_forward_or_backward(micro_config, narrow_params):
    size = (2, 70)
    batch = {name: jnp.ones(size, jnp.int32) for name in ("tokens", "segments", "positions")}
    batch |= {"prefix": jnp.ones(8, jnp.int32), "prefix_length": jnp.int32(5)}

    def loss(params):
        return token_losses(micro_config, params, batch)[0].sum()

    text = jax.jit(jax.grad(loss)).lower(narrow_params).as_text()
    operands = re.findall(
        r"dot_general .* : \(tensor<(?!1x\d+xf32>)\S+x(\w+)>, tensor<\S+x(\w+)>\)", text
    )
    assert len(operands) > 20  # without the sums over rows, written as one row's product
    assert set(operands) == {("bf16", "bf16")}


def test_norms_and_rotations_round_once(micro_config):
    x = jax.random.normal(jax.random.key(0), (5, 4, 6), NARROW)
    scale = jax.random.normal(jax.random.key(1), (6,), NARROW)
    exact = rms_norm(x.astype(jnp.float32), scale.astype(jnp.float32), 1e-6)
    np.testing.assert_array_equal(rms_norm(x, scale, 1e-6), exact.astype(NARROW))
    # bfloat16 has no 257, and its cosines are off by 0.2 %.
    angles = rotary_angles(jnp.arange(5) + 257, 6, 10000.0)
    exact = rotate(x.astype(jnp.float32), angles)
    np.testing.assert_array_equal(rotate(x, angles), exact.astype(NARROW))


def test_scores_of_tokens_are_not_rounded_to_bfloat16(micro_config, narrow_params):
    fused = fuse_projections(micro_config, narrow_params)
    states = 30 * jax.random.normal(jax.random.key(0), (7, micro_config.embed_dim), NARROW)
    exact = np.asarray(states, np.float64) @ np.asarray(fused["embedding"], np.float64).T
    np.testing.assert_allclose(logits(micro_config, fused, states), exact, atol=1e-4)
