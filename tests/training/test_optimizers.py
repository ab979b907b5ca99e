"""Schedules against their formulas, optimisers against hand-written updates and Optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmsi_jax.config import Optimizer
from lmsi_jax.errors import LmsiError
from lmsi_jax.training.optimizers import learning_rate_schedule, transformation

RATE, STEPS, WARM = 0.2, 50, 10


def _wanted(decay, share, step):
    if step < WARM:
        return RATE * step / WARM
    done, rest = step - WARM, STEPS - WARM
    if decay == "cosine":
        return RATE * 0.5 * (1 + np.cos(np.pi * done / rest))
    if decay == "linear":
        falling = int(rest * share)
        return RATE * (1 - np.clip((done - (rest - falling)) / falling, 0, 1))
    return RATE


@pytest.mark.parametrize(
    ("decay", "share"), [("constant", 1.0), ("linear", 1.0), ("linear", 0.25), ("cosine", 1.0)]
)
def test_schedules_follow_their_formulas(decay, share):
    optimizer = Optimizer(learning_rate=RATE, warmup_steps=WARM, decay=decay, decay_share=share)
    schedule = learning_rate_schedule(optimizer, STEPS)
    for step in range(STEPS + 1):
        assert float(schedule(step)) == pytest.approx(_wanted(decay, share, step), abs=1e-6)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert float(learning_rate_schedule(Optimizer(learning_rate=RATE), STEPS)(0)) == pytest.approx(
        RATE
    )


def _run(transformation, params, gradients):
    state = transformation.init(params)
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def _problem(shape=(130, 140), count=4):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=shape), jnp.float32)}
    gradients = [{"w": jnp.asarray(rng.normal(size=shape), jnp.float32)} for _ in range(count)]
    return params, gradients


def _adamw(w, gradients, rate, decay, b1=0.9, b2=0.99, epsilon=1e-8):
    """Loshchilov and Hutter 2019, algorithm 2, in float64."""
    w = np.asarray(w, np.float64)
    first, second = np.zeros_like(w), np.zeros_like(w)
    for step, gradient in enumerate(gradients, 1):
        g = np.asarray(gradient, np.float64)
        first = b1 * first + (1 - b1) * g
        second = b2 * second + (1 - b2) * g * g
        corrected = first / (1 - b1**step), second / (1 - b2**step)
        w = w - rate * (corrected[0] / (np.sqrt(corrected[1]) + epsilon) + decay * w)
    return w


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_the_papers(decay):
    params, gradients = _problem(shape=(3, 4))
    optimizer = Optimizer(learning_rate=0.01, weight_decay=decay, max_grad_norm=0.0)
    got = _run(transformation(optimizer, STEPS), params, gradients)["w"]
    wanted = _adamw(params["w"], [g["w"] for g in gradients], 0.01, decay)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_rmsprop_is_pytorchs():
    """v = a v + (1 - a) g^2; w = w - rate g / (sqrt(v) + epsilon), in float64."""
    params, gradients = _problem(shape=(3, 4))
    optimizer = Optimizer(name="rmsprop", learning_rate=0.01, max_grad_norm=0.0)
    got = _run(transformation(optimizer, STEPS), params, gradients)["w"]
    w, second = np.asarray(params["w"], np.float64), np.zeros((3, 4))
    for gradient in gradients:
        g = np.asarray(gradient["w"], np.float64)
        second = 0.99 * second + 0.01 * g * g
        w = w - 0.01 * g / (np.sqrt(second) + 1e-8)
    np.testing.assert_allclose(got, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adafactor", "rmsprop"])
def test_a_weight_decay_without_effect_is_refused(name):
    with pytest.raises(LmsiError, match="has no effect"):
        Optimizer(name=name, weight_decay=0.1)


def test_adafactor_is_optaxs_with_factored_moments():
    params, gradients = _problem()
    optimizer = Optimizer(name="adafactor", learning_rate=0.01, max_grad_norm=0.0)
    got = _run(transformation(optimizer, STEPS), params, gradients)["w"]
    wanted = _run(optax.adafactor(0.01), params, gradients)["w"]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    sizes = [leaf.size for leaf in jax.tree.leaves(transformation(optimizer, STEPS).init(params))]
    assert max(sizes) < params["w"].size  # rows and columns, never the whole matrix


def _orthogonalised(gradient):
    """Jordan et al. 2024: five Newton-Schulz steps, in float64."""
    x = np.asarray(gradient, np.float64)
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_orthogonalises_the_layers_matrices_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    shapes = {"embedding": (9, 6), "layer_0": {"up": (6, 9), "down": (9, 6), "norm": (6,)}}

    def draw():
        return jax.tree.map(
            lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
            shapes,
            is_leaf=lambda leaf: isinstance(leaf, tuple),
        )

    params, gradient = draw(), draw()
    optimizer = Optimizer(
        name="muon", learning_rate=0.01, muon_learning_rate=0.1, max_grad_norm=0.0
    )
    got = _run(transformation(optimizer, STEPS), params, [gradient])
    for name in ("up", "down"):
        moved = (params["layer_0"][name] - got["layer_0"][name]) / 0.1
        rows, columns = moved.shape
        wanted = _orthogonalised(gradient["layer_0"][name]) * np.sqrt(max(1, columns / rows))
        np.testing.assert_allclose(moved, wanted, atol=1e-4)
    adam = _run(optax.nadamw(0.01, b1=0.9, b2=0.99), params, [gradient])
    np.testing.assert_allclose(got["embedding"], adam["embedding"], rtol=1e-5, atol=1e-6)
    norms = (tree["layer_0"]["norm"] for tree in (got, adam))
    np.testing.assert_allclose(*norms, rtol=1e-5, atol=1e-6)


def test_the_global_norm_is_clipped():
    params, _ = _problem(shape=(3, 4))
    huge = {"w": jnp.full((3, 4), 100.0)}
    small = jax.tree.map(lambda g: g / (100.0 * np.sqrt(12)), huge)  # norm 1
    clipped = transformation(Optimizer(learning_rate=0.1, max_grad_norm=1.0), STEPS)
    free = transformation(Optimizer(learning_rate=0.1, max_grad_norm=0.0), STEPS)
    np.testing.assert_allclose(
        _run(clipped, params, [huge, small])["w"], _run(free, params, [small, small])["w"],
        rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sgd"}, "'adamw', 'adafactor', 'rmsprop' or 'muon'"),
        ({"decay": "step"}, "'constant', 'linear' or 'cosine'"),
        ({"learning_rate": -1e-3}, "0 or more"),
        ({"learning_rate": float("nan")}, "0 or more"),
        ({"muon_learning_rate": float("inf")}, "0 or more"),
        ({"weight_decay": -0.1}, "0 or more"),
        ({"warmup_steps": -1}, "0 or more steps"),
        ({"decay_share": 0.0}, "a share above 0, up to 1 (1 for all steps)"),
        ({"max_grad_norm": -1.0}, "0 (off) or more"),
        ({"b2": 1.0}, "0 or more, below 1"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(changes, message):
    ((name, value),) = changes.items()
    with pytest.raises(LmsiError) as error:
        Optimizer(**changes)
    assert str(error.value) == f"Optimizer.{name} = {value!r}; use {message}"
