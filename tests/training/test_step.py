"""How a step computes changes nothing but speed and memory; accumulation is the large batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_losses import loss_and_gradient

from lmsi_jax.config import Optimizer, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.transformer import init_params
from lmsi_jax.training.packing import Shape, batches, weighted_row
from lmsi_jax.training.trainer import start, train_step

_loss_and_gradient = jax.jit(loss_and_gradient, static_argnums=(0, 3))


def _batch(microbatches=2, rows=2, prefix=6, seed=0):
    rng = np.random.default_rng(seed)
    shared = tuple(rng.integers(3, 300, prefix).tolist())
    shape = Shape(microbatches=microbatches, rows=rows, length=20, prefix_length=2 * prefix)
    source = [
        weighted_row(
            shared,
            rng.integers(3, 300, rng.integers(2, 7)).tolist(),
            rng.integers(3, 300, rng.integers(2, 7)).tolist(),
            float(n % 3 + 1),
            n % 2,
        )
        for n in range(200)
    ]
    return next(batches(iter(source), shape))


def _assert_near(found, wanted, tolerance=1e-5):
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * scale)


@pytest.fixture(scope="module")
def deep(micro_config):
    """Five layers, so that a loop over two windows leaves one layer over; and its parameters."""
    config = dataclasses.replace(micro_config, num_layers=5, windows=(0, 7))
    return config, init_params(config, jax.random.key(1))


@functools.cache
def _plain(config, prefix):
    params = init_params(config, jax.random.key(1))
    return _loss_and_gradient(config, params, _batch(prefix=prefix), 2)


@pytest.mark.parametrize(
    ("remat", "scan", "prefix"),
    [
        ("layer", False, 6),
        pytest.param("dots", False, 6, marks=pytest.mark.slow),
        pytest.param("none", True, 6, marks=pytest.mark.slow),
        ("none", True, 0),
        ("layer", True, 6),
        pytest.param("dots", True, 0, marks=pytest.mark.slow),
    ],
)
def test_layers_computed_anew_or_in_a_loop_give_the_plain_steps_numbers(deep, remat, scan, prefix):
    config, params = deep
    other = dataclasses.replace(config, remat=remat, scan_layers=scan)
    wanted, gradient, by_group = _plain(config, prefix)
    found = _loss_and_gradient(other, params, _batch(prefix=prefix), 2)
    assert float(found[0]) == pytest.approx(float(wanted), rel=1e-5)
    _assert_near(found[1], gradient)
    np.testing.assert_allclose(found[2], by_group, rtol=1e-5)


def _products(config):
    """Matrix products in the program of a gradient."""
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    traced = jax.make_jaxpr(loss_and_gradient, static_argnums=(0, 3))(config, params, _batch(), 2)
    return str(traced).count("dot_general")


def test_a_scanned_program_does_not_grow_with_depth(micro_config):
    def products(depth, scan):
        return _products(
            dataclasses.replace(micro_config, num_layers=depth, scan_layers=scan, windows=(0, 7))
        )

    assert products(4, True) == products(8, True)
    assert products(8, False) > 1.5 * products(4, False)


def test_rematerialisation_computes_products_again_the_weights_only_with_layer(micro_config):
    none, dots, layer = (
        _products(dataclasses.replace(micro_config, remat=remat))
        for remat in ("none", "dots", "layer")
    )
    assert none < dots < layer


def test_a_way_to_compute_that_does_not_exist_is_refused(micro_config):
    with pytest.raises(LmsiError, match="remat = 'all'"):
        dataclasses.replace(micro_config, remat="all")


# --- accumulation, precision -----------------------------------------------------------------


def _trained(config, params, training, batch, steps=3):
    params, state = start(config, training, params)
    for _ in range(steps):
        params, state, metrics = train_step(config, training, 2, params, state, batch)
    return params, metrics


@pytest.mark.parametrize("name", ["adamw", pytest.param("adafactor", marks=pytest.mark.slow)])
def test_accumulated_microbatches_train_as_the_large_batch(micro_config, micro_params, name):
    batch = _batch(microbatches=4, rows=2)
    large = {
        key: array[:1] if array.ndim < 3 else array.reshape(1, 8, -1)
        for key, array in batch.items()
    }
    assert (batch["prefix"] == batch["prefix"][0]).all()
    training = Training(
        steps=9,
        microbatches=4,
        sequences_per_prefix=2,
        optimizer=Optimizer(name=name, learning_rate=1e-3),
    )
    small, metrics = _trained(micro_config, micro_params, training, batch)
    whole, wanted = _trained(micro_config, micro_params, training, large)
    assert float(metrics["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), small, micro_params)
    assert min(jax.tree.leaves(moved)) > 1e-4


def test_a_step_is_the_gradient_clipped_and_given_to_optaxs_optimiser(micro_config, micro_params):
    """Optax alone, with the papers' settings written out, from the same gradients."""
    batch, rate = _batch(), optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 9, 0.0)
    optimizer = Optimizer(learning_rate=1e-2, warmup_steps=2, decay="cosine", max_grad_norm=0.1)
    training = Training(steps=9, microbatches=2, sequences_per_prefix=2, optimizer=optimizer)
    found, metrics = _trained(micro_config, micro_params, training, batch, steps=4)
    plain = optax.adamw(rate, b1=0.9, b2=0.99, weight_decay=0.0)
    params, state, norms = micro_params, plain.init(micro_params), []
    for _ in range(4):
        _, gradient, _ = _loss_and_gradient(micro_config, params, batch, 2)
        norms.append(np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient))))
        clipped = jax.tree.map(lambda g, by=0.1 / norms[-1]: g * by, gradient)
        updates, state = plain.update(clipped, state, params)
        params = optax.apply_updates(params, updates)
    assert min(norms) > 0.1  # clipping was at work
    assert float(metrics["grad_norm"]) == pytest.approx(norms[-1], rel=1e-4)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_computes_near_float32_and_keeps_float32_masters(micro_config, micro_params):
    """A bfloat16 number is off by up to 2**-9 = 0.2 %: the loss by as much, the norm by 2 %."""
    batch, optimizer = _batch(), Optimizer(learning_rate=1e-6)
    training = Training(steps=9, microbatches=2, sequences_per_prefix=2, optimizer=optimizer)
    narrow = dataclasses.replace(training, compute_dtype="bfloat16")
    _, wanted = _trained(micro_config, micro_params, training, batch, steps=1)
    params, found = _trained(micro_config, micro_params, narrow, batch, steps=1)
    assert float(found["loss"]) != float(wanted["loss"])
    assert float(found["loss"]) == pytest.approx(float(wanted["loss"]), rel=2e-3)
    assert float(found["grad_norm"]) == pytest.approx(float(wanted["grad_norm"]), rel=2e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    # Steps of 1e-6 are kept, which bfloat16 parameters near 0.2 would round away.
    moved = jnp.abs(params["embedding"] - micro_params["embedding"])
    assert 5e-7 < float(moved.max()) < 2e-6
