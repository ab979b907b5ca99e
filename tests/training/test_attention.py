"""Attention over packed rows behind a shared prefix, against each example computed alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_decoder import reference_logits

from lmsi_jax.config import ModelConfig
from lmsi_jax.models.attention import packed_attention, prefill
from lmsi_jax.models.params import fuse_projections
from lmsi_jax.models.transformer import angles_of, hidden_states, init_params, logits

LENGTH, PREFIX, BLOCK = 24, 12, 8


@functools.partial(jax.jit, static_argnums=0)
def _packed_logits(config, params, prefix, prefix_length, tokens, segments, positions):
    fused = fuse_projections(config, params)
    shared = prefill(config, fused, prefix[None], prefix_length[None], None)
    blocked = dataclasses.replace(config, query_block=BLOCK)
    attend = packed_attention(blocked, segments, positions, shared)
    return logits(
        config, fused, hidden_states(config, fused, tokens, angles_of(config, positions), attend)
    )


@st.composite
def _configs(draw):
    """Multi-query, grouped and multi-head attention, windows below and above all lengths."""
    return ModelConfig(
        vocab_size=50,
        num_layers=draw(st.integers(1, 2)),
        embed_dim=16,
        num_heads=4,
        num_kv_heads=draw(st.sampled_from([1, 2, 4])),
        head_dim=draw(st.sampled_from([2, 6])),
        mlp_dim=20,
        windows=tuple(draw(st.lists(st.integers(0, LENGTH + PREFIX), min_size=1, max_size=3))),
        attention_softcap=draw(st.sampled_from([0.0, 0.5, 3.0])),
        logits_softcap=draw(st.sampled_from([0.0, 1.0])),
    )


def _packed(rng, examples, prefix_length):
    """Tokens, segments and positions [B, LENGTH] of rows with the given lengths of examples."""
    tokens = rng.integers(0, 50, (len(examples), LENGTH))
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, sizes in enumerate(examples):
        at = 0
        for number, size in enumerate(sizes, 1):
            segments[row, at : at + size] = number
            positions[row, at : at + size] = prefix_length + np.arange(size)
            at += size
    return tokens, segments, positions


_SIZES = st.lists(st.integers(1, LENGTH), min_size=1, max_size=4).filter(
    lambda sizes: sum(sizes) <= LENGTH
)


@settings(max_examples=6)
@given(
    config=_configs(),
    prefix_length=st.integers(0, PREFIX),
    examples=st.lists(_SIZES, min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
def test_each_example_is_computed_as_if_it_stood_alone_behind_the_prefix(
    config, prefix_length, examples, seed
):
    rng = np.random.default_rng(seed)
    params = init_params(config, jax.random.key(seed))
    prefix = rng.integers(0, 50, PREFIX)
    tokens, segments, positions = _packed(rng, examples, prefix_length)
    found = _packed_logits(
        config, params, prefix, jnp.int32(prefix_length), tokens, segments, positions
    )
    for row, sizes in enumerate(examples):
        for number in range(1, len(sizes) + 1):
            mine = segments[row] == number
            alone = np.concatenate([prefix[:prefix_length], tokens[row, mine]])
            expected = reference_logits(config, params, alone)[prefix_length:]
            np.testing.assert_allclose(found[row, mine], expected, atol=5e-5)
