"""One optimiser step, compiled: a batch in, new parameters and metrics out.

A run's `params` are a plain parameter tree, and `state` is the Optax state over it. With LoRA
`params` are the frozen base, and `state` is {"adapters": ..., "optimizer": ...}; `result` merges
them. So a checkpoint of `result` and `state` is a plain model for all who read it, and holds all
that a LoRA run goes on from, the base aside.
"""

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import Params
from lmsi_jax.training.lora import adapter_specs, fresh_adapters, merged
from lmsi_jax.training.losses import Sums, step_losses
from lmsi_jax.training.packed import regrouped
from lmsi_jax.training.placement import following, mesh_of, on_mesh, param_specs, placed
from lmsi_jax.training.teacher import Teacher

if TYPE_CHECKING:
    from lmsi_jax.training.trainer import Training

Arrays = dict[str, jax.Array]
_TOKENS = 512


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def train_step(
    config: ModelConfig,
    training: "Training",
    groups: int,
    params: Params,
    state: Any,
    batch: Arrays,
    teacher: Teacher | None = None,
) -> tuple[Params, Any, Arrays]:
    """One optimiser step; returns new parameters, optimiser state and metrics.

    All three lie where `start` and `placement.fed` put params, state and batch.
    """
    means, gradient = _gradient(config, training, groups, params, state, batch, teacher)
    optimizer = training.optimizer.transformation(training.steps)
    if training.lora is None:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    else:
        updates, inner = optimizer.update(gradient, state["optimizer"], state["adapters"])
        adapters = optax.apply_updates(state["adapters"], updates)
        state = {"adapters": adapters, "optimizer": inner}
    metrics = {
        "loss": means.cross_entropy,
        "grad_norm": optax.global_norm(gradient),
        "by_group": means.by_group,
        "tokens": (batch["segments"] > 0).sum(),
    }
    if not training.loss.plain:
        metrics["optimised"] = means.total
    params, state = _kept(config, training, params, state)
    return params, state, metrics


def _gradient(
    config: ModelConfig,
    training: "Training",
    groups: int,
    params: Params,
    state: Any,
    batch: Arrays,
    teacher: Teacher | None,
) -> tuple[Sums, Params]:
    """Mean losses, and the float32 gradient of what is trained.

    The parameters are rounded to the type of the computation once a step; the sums over
    microbatches, and the update of the parameters themselves, are float32.
    """

    mesh = mesh_of(training)
    if mesh is None:
        batch = regrouped(batch, _rows_at_once(training))

    def losses(full: Params) -> tuple[Sums, Params]:
        return step_losses(config, full, batch, groups, training.loss, teacher)

    around = contextlib.nullcontext() if mesh is None else _abstract(mesh)
    with around:
        if training.lora is None:
            return losses(_narrow(training, params))
        full, pull = jax.vjp(functools.partial(merged, training.lora, params), state["adapters"])
        means, gradient = losses(_narrow(training, full))
        (gradient,) = pull(gradient)
        return means, gradient


def _rows_at_once(training: "Training") -> int:
    """How many rows without a prefix are computed at once: by shapes and kind of device alone."""
    if training.rows_at_once:
        return training.rows_at_once
    # More gain nothing on a CPU, and leave its caches.
    return max(1, _TOKENS // training.length) if jax.default_backend() == "cpu" else training.rows


def _abstract(mesh: jax.sharding.Mesh) -> Any:
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def _narrow(training: "Training", params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(training.compute_dtype), params)


def _kept(config: ModelConfig, training: "Training", params: Params, state: Any) -> Any:
    """Lets parameters and state lie where they lay."""
    mesh = mesh_of(training)
    if mesh is None:
        return params, state
    specs = _specs(config, training, params, state)
    return jax.lax.with_sharding_constraint((params, state), on_mesh(mesh, specs))


def _specs(config: ModelConfig, training: "Training", params: Params, state: Any) -> Any:
    """(params, state) with `PartitionSpec`s in place of arrays."""
    specs = param_specs(config, training)
    if training.lora is None:
        return specs, following(specs, params, state)
    own = adapter_specs(training.lora, specs)
    inner = following(own, state["adapters"], state["optimizer"])
    return specs, {"adapters": own, "optimizer": inner}


def _fresh_state(training: "Training", params: Params) -> Any:
    optimizer = training.optimizer.transformation(training.steps)
    if training.lora is None:
        return optimizer.init(params)
    adapters = fresh_adapters(training.lora, params)
    return {"adapters": adapters, "optimizer": optimizer.init(adapters)}


def state_shapes(training: "Training", params: Params) -> Any:
    """Returns a run's state with shapes in place of arrays.

    Args:
      training: the optimiser and the adapters.
      params: arrays or their shapes.
    """
    return jax.eval_shape(functools.partial(_fresh_state, training), params)


def shardings(config: ModelConfig, training: "Training", params: Params) -> Any:
    """Returns (params, state) with shardings in place of arrays; None on one device.

    Args:
      config: the model's shape.
      training: the mesh and the optimiser.
      params: arrays or their shapes.
    """
    mesh = mesh_of(training)
    if mesh is None:
        return None
    state = state_shapes(training, params)
    return on_mesh(mesh, _specs(config, training, params, state))


def start(config: ModelConfig, training: "Training", params: Params) -> tuple[Params, Any]:
    """Returns a run's params and state where it begins, placed; the caller's arrays survive."""
    where = shardings(config, training, params)
    if where is None:
        return jax.tree.map(jnp.array, params), _fresh_state(training, params)
    params = placed(params, where[0])
    state = jax.jit(functools.partial(_fresh_state, training), out_shardings=where[1])(params)
    return params, state


def resumed(
    config: ModelConfig, training: "Training", base: Params, saved: Params, state: Any
) -> tuple[Params, Any]:
    """Returns a run's params and state as a checkpoint left them, placed.

    Args:
      config: the model's shape.
      training: the mesh and the optimiser.
      base: where the run began.
      saved: the checkpoint's parameters, `result`.
      state: its state.
    """
    params = saved if training.lora is None else base
    where = shardings(config, training, params)
    if where is None:
        return jax.tree.map(jnp.array, params), state
    return placed(params, where[0]), placed(state, where[1])


def result(training: "Training", params: Params, state: Any) -> Params:
    """Returns the plain model that a run has reached."""
    if training.lora is None:
        return params
    return jax.jit(merged, static_argnums=0)(training.lora, params, state["adapters"])
