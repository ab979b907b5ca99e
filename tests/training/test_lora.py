"""LoRA starts at the base, trains adapters alone, ends as a plain model, and resumes."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_losses import step_losses

from lmsi_jax.config import Lora, Optimizer, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.attention import packed_attention
from lmsi_jax.models.params import fuse_projections, split_weights
from lmsi_jax.models.transformer import angles_of, hidden_states, logits, parameter_shapes
from lmsi_jax.training import checkpoints
from lmsi_jax.training.lora import (
    adapter_gradients,
    export_adapters,
    fresh_adapters,
    merge_adapters,
)
from lmsi_jax.training.losses import normalize_sums, weighted_sums
from lmsi_jax.training.metrics import read_metrics
from lmsi_jax.training.packing import batch_shape, batches, weighted_row
from lmsi_jax.training.trainer import merge_trained, start, state_shapes, train, train_step

LORA = Lora(rank=3, alpha=6.0, targets=("value", "query", "down"))
TRAINING = Training(
    steps=4,
    optimizer=Optimizer(learning_rate=3e-3),
    microbatches=1,
    sequences_per_prefix=2,
    sequence_length=24,
    max_prefix_length=8,
    log_every=1,
    save_every=2,
    lora=LORA,
)


def _rows():
    rng = np.random.default_rng(0)
    prefix = tuple(rng.integers(3, 300, 5).tolist())
    few = [
        weighted_row(
            prefix, rng.integers(3, 300, 4).tolist(), rng.integers(3, 300, 6).tolist(), 1.0
        )
        for _ in range(6)
    ]
    return itertools.cycle(few)


@pytest.fixture(scope="module")
def stepped(micro_config, micro_params):
    """A batch, what one and what three LoRA steps made of it, and the metrics of the first."""
    batch = next(batches(_rows(), batch_shape(TRAINING)))
    params, state = start(micro_config, TRAINING, micro_params)
    stands, metrics = [], []
    for _ in range(3):
        params, state, one = train_step(micro_config, TRAINING, 1, params, state, batch)
        stands.append(jax.tree.map(jnp.array, (params, state)))
        metrics.append(one)
    return batch, stands, metrics


def test_a_run_starts_at_the_base_to_the_bit(micro_config, micro_params, stepped):
    params, state = start(micro_config, TRAINING, micro_params)
    begun = merge_trained(TRAINING, params, state)
    assert checkpoints.digest(begun) == checkpoints.digest(micro_params)
    batch, _, metrics = stepped
    plain = dataclasses.replace(TRAINING, lora=None)
    _, _, wanted = train_step(micro_config, plain, 1, *start(micro_config, plain, begun), batch)
    assert float(metrics[0]["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-6)


def test_the_base_is_frozen_and_the_optimiser_holds_adapters_alone(micro_params, stepped):
    _, stands, metrics = stepped
    params, state = stands[-1]
    assert checkpoints.digest(params) == checkpoints.digest(micro_params)
    adapters = jax.tree.leaves(fresh_adapters(LORA, micro_params))
    assert len(adapters) == 2 * 3 * 2  # layers, targets, factors
    moments = [leaf.shape for leaf in jax.tree.leaves(state["optimizer"]) if leaf.ndim]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in adapters])
    losses = [float(one["loss"]) for one in metrics]
    assert losses[2] < losses[1] < losses[0]
    reached = merge_trained(TRAINING, params, state)
    for name, leaf in reached["layer_1"].items():
        changed = bool((leaf != micro_params["layer_1"][name]).any())
        assert changed == (name in LORA.targets)


def test_in_the_first_step_only_b_has_a_gradient(micro_params, stepped):
    """As B is zero, so is the gradient of A, and Adam's step for it."""
    _, state = stepped[1][0]
    for layer, own in fresh_adapters(LORA, micro_params).items():
        for name, factors in own.items():
            found = state["adapters"][layer][name]
            np.testing.assert_array_equal(found["a"], factors["a"])
            # Adam's first step is the rate, wherever there is a gradient.
            assert float(jnp.abs(found["b"]).max()) == pytest.approx(3e-3, rel=1e-2)


def test_the_gradient_is_that_through_the_merged_matrices(micro_config, micro_params):
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.1, jnp.float32),
        fresh_adapters(LORA, micro_params),
    )
    batch = next(batches(_rows(), batch_shape(dataclasses.replace(TRAINING, microbatches=2))))

    def objective(weights, one):
        return weighted_sums(micro_config, weights, one, 1)

    found = normalize_sums(
        *adapter_gradients(micro_config, LORA, micro_params, adapters, objective, batch)
    )
    full, pull = jax.vjp(functools.partial(merge_adapters, LORA, micro_params), adapters)
    means, of_matrices = step_losses(micro_config, full, batch, 1)
    assert float(found[0].total) == pytest.approx(float(means.total), rel=1e-6)
    (wanted,) = pull(of_matrices)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_no_gradient_of_a_frozen_matrix_is_ever_held(micro_config):
    """A step without adapters holds one of all parameters; with them on all matrices, of none."""
    config = dataclasses.replace(micro_config, embed_dim=128, mlp_dim=512)
    params = parameter_shapes(config)
    batch = next(batches(_rows(), batch_shape(TRAINING)))

    def peak(lora):
        training = dataclasses.replace(TRAINING, lora=lora)
        given = (params, state_shapes(training, params), batch)
        compiled = train_step.lower(config, training, 1, *given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    every = Lora(rank=1, targets=("query", "key", "value", "attention_out", "gate", "up", "down"))
    matrices = sum(4 * leaf.size for layer in (0, 1) for leaf in params[f"layer_{layer}"].values())
    assert peak(every) < peak(None) - 0.9 * matrices


class _Adapted:
    """Stands where a matrix stands: x W + alpha / rank (x A) B, without ever adding to W."""

    def __init__(self, matrix, a, b):
        self.parts = matrix, a, b

    def __rmatmul__(self, x):
        matrix, a, b = self.parts
        return x @ matrix + (LORA.alpha / LORA.rank) * ((x @ a) @ b)


def test_merged_logits_are_those_of_adapters_beside_the_frozen_matrices(micro_config, micro_params):
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.1, jnp.float32),
        fresh_adapters(LORA, micro_params),
    )
    tokens = rng.integers(3, 300, (2, 12))
    positions = np.broadcast_to(np.arange(12), (2, 12))
    attend = packed_attention(micro_config, jnp.ones((2, 12), int), positions, None)
    angles = angles_of(micro_config, positions)

    def scores(weights):
        states = hidden_states(micro_config, weights, tokens, angles, attend)
        return logits(micro_config, weights, states)

    beside = split_weights(micro_config, micro_params)
    for layer, own in adapters.items():
        beside[layer] = {
            **beside[layer],
            **{name: _Adapted(beside[layer][name], **factors) for name, factors in own.items()},
        }
    found = scores(fuse_projections(micro_config, merge_adapters(LORA, micro_params, adapters)))
    base = scores(fuse_projections(micro_config, micro_params))
    np.testing.assert_allclose(found, scores(beside), atol=1e-5)
    assert float(jnp.abs(found - base).max()) > 1e-2


class _Cut(Exception):
    pass


def _cut_after(rows, count):
    yield from itertools.islice(rows, count)
    raise _Cut


def test_a_cut_run_goes_on_to_the_same_bytes_and_leaves_a_plain_model_and_its_adapters(
    tmp_path, micro_config, micro_params
):
    def run(folder, rows):
        return train(micro_config, TRAINING, micro_params, rows, tmp_path / folder)

    wanted = run("whole", _rows())
    with pytest.raises(_Cut):
        run("cut", _cut_after(_rows(), 30))
    assert checkpoints.Checkpoints(tmp_path / "cut").latest == 2
    found = run("cut", _rows())
    assert checkpoints.digest(found) == checkpoints.digest(wanted)
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")
    loaded = checkpoints.load_params(tmp_path / "cut", micro_params)
    assert checkpoints.digest(loaded) == checkpoints.digest(wanted)
    state = state_shapes(TRAINING, micro_params)
    exported = export_adapters(tmp_path / "cut", tmp_path / "adapters", state)
    assert exported.name == "checkpoint_4"
    alone = checkpoints.load_params(exported, fresh_adapters(LORA, micro_params))
    again = merge_adapters(LORA, micro_params, alone)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_checkpoint_of_a_run_without_adapters_exports_none(tmp_path, micro_params):
    written = checkpoints.Checkpoints(tmp_path / "run")
    written.save(1, micro_params)
    written.close()
    state = state_shapes(TRAINING, micro_params)
    with pytest.raises(LmsiError, match="the checkpoint .* belongs to another"):
        export_adapters(tmp_path / "run", tmp_path / "adapters", state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "Lora.rank = 0"),
        ({"alpha": 0.0}, "Lora.alpha = 0.0; use a number above 0"),
        ({"targets": ("q_proj",)}, "use one or more of query, key"),
        ({"targets": ()}, "use one or more of query, key"),
        ({"seed": 2**32}, "Lora.seed = 4294967296; use a number from 0 to"),
    ],
)
def test_settings_that_cannot_be_are_named_with_the_choice(changes, message):
    with pytest.raises(LmsiError, match=message):
        Lora(**changes)
