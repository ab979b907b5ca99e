"""The decoder's arithmetic against an independent NumPy forward pass in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES, of_family
from flax import traverse_util
from path_scores import sharp_params
from reference_decoder import reference_logits

from lmsi_jax.config import ModelConfig
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.attention import packed_attention, prefill
from lmsi_jax.models.params import fuse_projections, split_weights, transpose_weights
from lmsi_jax.models.sharding import logical_axes
from lmsi_jax.models.transformer import (
    Decoder,
    angles_of,
    hidden_states,
    init_params,
    logits,
    parameter_shapes,
)


def _logits(config, params, tokens):
    return np.asarray(_jitted_logits(config, params, jnp.asarray(tokens)[None]))[0]


@functools.partial(jax.jit, static_argnums=0)
def _jitted_logits(config, params, tokens):
    fused = fuse_projections(config, params)
    positions = jnp.arange(tokens.shape[1])[None]
    blocked = dataclasses.replace(config, query_block=8)
    attend = packed_attention(blocked, jnp.ones_like(tokens), positions, None)
    states = hidden_states(config, fused, tokens, angles_of(config, positions), attend)
    return logits(config, fused, states)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_logits_equal_a_float64_reference_for_every_kind_of_attention(groups):
    config = ModelConfig(
        vocab_size=50,
        num_layers=2,
        embed_dim=16,
        num_heads=4,
        num_kv_heads=groups,
        head_dim=6,
        mlp_dim=20,
    )
    params = init_params(config, jax.random.key(groups))
    tokens = np.random.default_rng(0).integers(0, 50, 21)
    expected = reference_logits(config, params, tokens)
    np.testing.assert_allclose(_logits(config, params, tokens), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("windows", "attention_softcap", "logits_softcap"),
    [
        ((1,), 0.0, 0.0),
        ((3, 0), 0.0, 0.0),
        ((0, 8, 30), 0.0, 0.0),
        ((0,), 0.5, 0.7),
        ((9, 2), 2.0, 1.0),
    ],
)
def test_logits_equal_the_reference_with_windows_and_soft_caps(
    micro_config, micro_params, windows, attention_softcap, logits_softcap
):
    config = dataclasses.replace(
        micro_config,
        windows=windows,
        attention_softcap=attention_softcap,
        logits_softcap=logits_softcap,
    )
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 21)
    expected = reference_logits(config, micro_params, tokens)
    np.testing.assert_allclose(_logits(config, micro_params, tokens), expected, atol=2e-5)
    assert np.abs(expected - reference_logits(micro_config, micro_params, tokens)).max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_reference_for_every_family(micro_config, family):
    config = of_family(micro_config, family)
    params = sharp_params(config, 1)
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, 21)
    expected = reference_logits(config, params, tokens)
    np.testing.assert_allclose(_logits(config, params, tokens), expected, atol=5e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["apart", "turned"])
def test_weights_give_the_same_states_however_they_lie(micro_config, family, layout):
    config = of_family(micro_config, family)
    params = sharp_params(config, 1)
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, config.vocab_size, (1, 11)))
    positions = jnp.arange(11)[None]
    attend = packed_attention(config, jnp.ones_like(tokens), positions, None)
    angles = angles_of(config, positions)
    joined = fuse_projections(config, params)
    other = (
        transpose_weights(config, joined) if layout == "turned" else split_weights(config, params)
    )
    expected = hidden_states(config, joined, tokens, angles, attend)
    found = hidden_states(config, other, tokens, angles, attend)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("block", "products"), [("parallel", 2), ("sequential", 4)])
def test_a_decoding_layer_has_as_few_products_as_its_block_allows(micro_config, block, products):
    config = dataclasses.replace(micro_config, block=block)
    weights = transpose_weights(
        config, fuse_projections(config, init_params(config, jax.random.key(0)))
    )
    assert len([a for a in weights["layer_0"].values() if a.ndim == 2]) == products


def test_a_window_counts_the_query_s_own_key(micro_config):
    config = dataclasses.replace(micro_config, num_layers=1, windows=(4,))
    params = init_params(config, jax.random.key(0))
    tokens = np.arange(20) + 3
    changed = tokens.copy()
    changed[5] += 100
    differs = (_logits(config, params, tokens) != _logits(config, params, changed)).any(-1)
    assert np.flatnonzero(differs).tolist() == [5, 6, 7, 8]  # 8 opens a block


def test_a_token_never_sees_later_tokens(micro_config, micro_params):
    tokens = np.arange(20) + 3
    changed = tokens.copy()
    changed[12:] += 100
    before = _logits(micro_config, micro_params, tokens)
    after = _logits(micro_config, micro_params, changed)
    np.testing.assert_array_equal(before[:12], after[:12])
    assert np.abs(before[12:] - after[12:]).max() > 1e-3


@pytest.mark.parametrize("family", ["palm", *FAMILIES])
def test_parameter_count_is_the_tree_s(micro_config, family):
    config = micro_config if family == "palm" else of_family(micro_config, family)
    shapes = parameter_shapes(config)
    assert config.parameter_count == sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_and_biases_begin_by_changing_nothing(micro_config, family):
    params = init_params(of_family(micro_config, family), jax.random.key(0))
    neutral = 0.0 if of_family(micro_config, family).norm_plus_one else 1.0
    for name, array in params["layer_1"].items():
        if array.ndim == 1:
            assert set(np.unique(array)) == {0.0 if name.endswith("_bias") else neutral}


@pytest.mark.parametrize("family", ["palm", *FAMILIES])
def test_shapes_and_axes_are_those_that_flax_declares(micro_config, family):
    config = micro_config if family == "palm" else of_family(micro_config, family)
    tokens = jnp.zeros((1, 1), jnp.int32)
    declared = jax.eval_shape(
        lambda: Decoder(config).init(jax.random.key(0), tokens, tokens, lambda layer, q, k, v: q)
    )
    assert parameter_shapes(config) == declared["params"]
    ours = traverse_util.flatten_dict(logical_axes(config))
    theirs = traverse_util.flatten_dict(declared["params_axes"])
    assert ours == {
        (*first, last.removesuffix("_axes")): value.names
        for (*first, last), value in theirs.items()
    }
    assert ours["embedding",] == ("vocab", "embed") and ours["layer_0", "up"] == ("embed", "mlp")


def test_prefilled_caches_hold_the_keys_of_each_real_position(micro_config, micro_params):
    fused = fuse_projections(micro_config, micro_params)
    tokens = jnp.asarray([[5, 6, 7, 0], [5, 6, 7, 8]])
    cache = prefill(micro_config, fused, tokens, jnp.asarray([3, 4]), None)
    first, second = np.asarray(cache.keys[1])
    np.testing.assert_allclose(first[:, :3], second[:, :3], atol=1e-6)


@pytest.mark.parametrize("windows", [(3, 0), (5,), (6, 20)])
def test_a_cache_behind_another_holds_what_the_joined_sequence_s_does(
    micro_config, micro_params, windows
):
    config = dataclasses.replace(micro_config, windows=windows, attention_softcap=1.0)
    fused = fuse_projections(config, micro_params)
    tokens = jnp.asarray(np.random.default_rng(2).integers(3, 300, (1, 12)))
    cached = jax.jit(prefill, static_argnums=0)
    whole = cached(config, fused, tokens, jnp.asarray([12]), None)
    padded = jnp.pad(tokens[:, :5], ((0, 0), (0, 2)))
    before = cached(config, fused, padded, jnp.asarray([5]), None)
    rows = jnp.concatenate([tokens[:, 5:], tokens[:, 5:] + 1])
    after = cached(config, fused, rows, jnp.asarray([7, 7]), before)
    for layer in range(config.num_layers):  # the second layer's keys depend on the first's mask
        np.testing.assert_allclose(after.keys[layer][:1], whole.keys[layer][:, :, 5:], atol=2e-6)
        np.testing.assert_allclose(
            after.values[layer][:1], whole.values[layer][:, :, 5:], atol=2e-6
        )


def test_odd_head_dim_and_uneven_groups_are_refused():
    sizes = {"vocab_size": 8, "num_layers": 1, "embed_dim": 8, "mlp_dim": 8}
    with pytest.raises(LmsiError, match="even"):
        ModelConfig(num_heads=2, head_dim=3, **sizes)
    with pytest.raises(LmsiError, match="multiple"):
        ModelConfig(num_heads=3, num_kv_heads=2, head_dim=4, **sizes)
