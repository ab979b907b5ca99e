"""The feature-major layer equals the general block; which models use it; regrouped rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_losses import loss_and_gradient

from lmsi_jax.config import Loss
from lmsi_jax.models.attention import LayerCache, attend_packed
from lmsi_jax.models.params import fuse_projections
from lmsi_jax.models.transformer import angles_of, block, init_params
from lmsi_jax.training import forward
from lmsi_jax.training.forward import regroup_rows
from lmsi_jax.training.losses import token_losses
from lmsi_jax.training.packing import Shape, batches, weighted_row

ROWS, LENGTH, PREFIX = 2, 19, 7


def _inputs(config, seed=0):
    """States, segments, positions, and a prefix' keys and values of 5 tokens in 7."""
    rng = np.random.default_rng(seed)
    segments = np.repeat([[1, 2, 0], [1, 1, 2]], (9, 6, 4), axis=1)
    places = np.arange(LENGTH) + np.where(segments == 2, -4, 5)
    size = (1, config.num_kv_heads, PREFIX, config.head_dim)
    keys, values = (jnp.asarray(rng.normal(size=size), jnp.float32) for _ in range(2))
    x = jnp.asarray(rng.normal(size=(ROWS, LENGTH, config.embed_dim)), jnp.float32)
    return x, jnp.asarray(segments), jnp.asarray(places), keys, values


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("prefix", [False, True])
def test_a_layer_and_its_gradients_are_those_of_the_general_block(micro_config, groups, prefix):
    config = dataclasses.replace(micro_config, num_kv_heads=groups, query_block=8)
    p = fuse_projections(config, init_params(config, jax.random.key(1)))["layer_0"]
    x, segments, places, keys, values = _inputs(config)
    length, angles = jnp.array([5]), angles_of(config, places)

    def general(p, x, keys, values):
        shared = LayerCache(keys, values, length) if prefix else None

        def attend(layer, q, k, v):
            return attend_packed(config, layer, (q, k, v), segments, places, shared)

        return block(config, p, 0, x, angles, attend)

    def feature_major(p, x, keys, values):
        shared = LayerCache(keys, values, length) if prefix else None
        rotation = forward.feature_major_angles(angles[0])
        out = forward.feature_major_block(
            config, p, jnp.moveaxis(x, -1, 0), rotation, segments, shared
        )
        return jnp.moveaxis(out, 0, -1)

    @functools.partial(jax.jit, static_argnums=0)
    def pulled(run, *inputs):
        out, pull = jax.vjp(run, *inputs)
        return out, pull(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    wanted, found = (pulled(run, p, x, keys, values) for run in (general, feature_major))
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(a).max())))


def test_models_that_are_not_palms_block_take_the_general_way(micro_config, micro_params):
    weights = fuse_projections(micro_config, micro_params)
    assert forward.supports_feature_major(micro_config, weights) == (jax.default_backend() == "cpu")
    for change in ({"windows": (4, 0)}, {"attention_softcap": 2.0}):
        assert not forward.supports_feature_major(
            dataclasses.replace(micro_config, **change), weights
        )
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights)
    assert not forward.supports_feature_major(micro_config, narrow)


def _batch(prefix_length):
    rng = np.random.default_rng(3)
    rows = [
        weighted_row((), rng.integers(3, 300, 4).tolist(), rng.integers(3, 300, 9).tolist(), 1.0)
        for _ in range(60)
    ]
    shape = Shape(microbatches=2, rows=4, length=32, prefix_length=prefix_length)
    return next(batches(rows, shape))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_regrouped_rows_have_the_loss_and_gradient_of_the_whole(micro_config, micro_params, rows):
    batch = _batch(0)
    cut = regroup_rows(batch, rows)
    assert cut["tokens"].shape == (8 if rows == 1 else 4, 1 if rows == 1 else 2, 32)
    whole, gradient, _ = loss_and_gradient(micro_config, micro_params, batch, 1)
    parts, sums, _ = loss_and_gradient(micro_config, micro_params, cut, 1)
    assert float(parts) == pytest.approx(float(whole), rel=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(sums), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_rows_behind_a_prefix_stay_together():
    batch = _batch(5)
    assert regroup_rows(batch, 1) is batch


def test_the_gradient_of_the_cross_entropy_is_the_softmax_less_the_target(
    micro_config, micro_params
):
    batch = {name: value[0] for name, value in _batch(0).items()}
    embedding = micro_params["embedding"]

    def total(table):
        params = {**micro_params, "embedding": table}
        return token_losses(micro_config, params, batch, Loss())[1].sum()

    found = jax.grad(total)(embedding)
    step = 1e-2 * np.random.default_rng(0).normal(size=embedding.shape).astype(np.float32)
    apart = float(total(embedding + step) - total(embedding - step))
    assert float((found * step).sum()) * 2 == pytest.approx(apart, rel=2e-2)
