"""One optimiser step, compiled: a batch in, new parameters and metrics out.

A run's `params` are a plain parameter tree, and `state` is the Optax state over it. With LoRA
`params` are the frozen base, and `state` is {"adapters": ..., "optimizer": ...}; `result` merges
them. So a checkpoint of `result` and `state` is a plain model for all who read it, and holds all
that a LoRA run goes on from, the base aside.
"""

import functools
from typing import Any

import jax
import optax

from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import Params
from lmsi_jax.training import losses, preferences
from lmsi_jax.training.accumulation import by_parameters
from lmsi_jax.training.lora import adapter_specs, by_adapters, fresh_adapters, merged
from lmsi_jax.training.losses import weighted_sums
from lmsi_jax.training.optimizers import transformation
from lmsi_jax.training.packed import regrouped
from lmsi_jax.training.placement import (
    everywhere,
    following,
    mesh_of,
    narrow,
    on_mesh,
    param_specs,
    within,
)
from lmsi_jax.training.preferences import pair_sums
from lmsi_jax.training.settings import Training
from lmsi_jax.training.teacher import Teacher

Arrays = dict[str, jax.Array]
_TOKENS = 512


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def train_step(
    config: ModelConfig,
    training: Training,
    groups: int,
    params: Params,
    state: Any,
    batch: Arrays,
    teacher: Teacher | None = None,
) -> tuple[Params, Any, Arrays]:
    """One optimiser step; returns new parameters, optimiser state and metrics.

    All three lie where `beginning.start` and `placement.fed` put params, state and batch.
    """
    metrics, gradient = _gradient(config, training, groups, params, state, batch, teacher)
    optimizer = transformation(training.optimizer, training.steps)
    if training.lora is None:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    else:
        updates, inner = optimizer.update(gradient, state["optimizer"], state["adapters"])
        adapters = optax.apply_updates(state["adapters"], updates)
        state = {"adapters": adapters, "optimizer": inner}
    metrics |= {
        "grad_norm": optax.global_norm(gradient),
        "tokens": (batch["segments"] > 0).sum(),
    }
    params, state = _kept(config, training, params, state)
    return params, state, everywhere(training, metrics)


def _gradient(
    config: ModelConfig,
    training: Training,
    groups: int,
    params: Params,
    state: Any,
    batch: Arrays,
    teacher: Teacher | None,
) -> tuple[Arrays, Params]:
    """A step's losses, and the float32 gradient of what is trained.

    The parameters are rounded to the type of the computation once a step; the sums over
    microbatches, and the update of the parameters themselves, are float32.
    """
    preference = training.preference

    def objective(weights: Params, one: Arrays) -> tuple[jax.Array, Any]:
        if preference is not None:
            return pair_sums(config, weights, one, groups, preference)
        return weighted_sums(config, weights, one, groups, training.loss, teacher)

    if mesh_of(training) is None and preference is None:
        batch = regrouped(batch, _rows_at_once(training))
    with within(training):
        rounded = narrow(training, params)
        if training.lora is None:
            sums, gradient = by_parameters(config, rounded, objective, batch)
        else:
            own = narrow(training, state["adapters"])
            sums, gradient = by_adapters(config, training.lora, rounded, own, objective, batch)
    if preference is None:
        means, gradient = losses.averaged(sums, gradient)
        more = {} if training.loss.plain else {"optimised": means.total}
        return {"loss": means.cross_entropy, "by_group": means.by_group, **more}, gradient
    of_pairs, gradient = preferences.averaged(sums, gradient)
    return {
        name: getattr(of_pairs, name)
        for name in ("loss", "by_group", "accuracy", "margin", "pairs")
    }, gradient


def _rows_at_once(training: Training) -> int:
    """How many rows without a prefix are computed at once: by shapes and kind of device alone."""
    if training.rows_at_once:
        return training.rows_at_once
    # More gain nothing on a CPU, and leave its caches.
    return max(1, _TOKENS // training.length) if jax.default_backend() == "cpu" else training.rows


def _kept(config: ModelConfig, training: Training, params: Params, state: Any) -> Any:
    """Lets parameters and state lie where they lay."""
    mesh = mesh_of(training)
    if mesh is None:
        return params, state
    specs = _specs(config, training, params, state)
    return jax.lax.with_sharding_constraint((params, state), on_mesh(mesh, specs))


def _specs(config: ModelConfig, training: Training, params: Params, state: Any) -> Any:
    """(params, state) with `PartitionSpec`s in place of arrays."""
    specs = param_specs(config, training)
    if training.lora is None:
        return specs, following(specs, params, state)
    own = adapter_specs(training.lora, specs)
    inner = following(own, state["adapters"], state["optimizer"])
    return specs, {"adapters": own, "optimizer": inner}


def _fresh_state(training: Training, params: Params) -> Any:
    optimizer = transformation(training.optimizer, training.steps)
    if training.lora is None:
        return optimizer.init(params)
    adapters = fresh_adapters(training.lora, params)
    return {"adapters": adapters, "optimizer": optimizer.init(adapters)}


def state_shapes(training: Training, params: Params) -> Any:
    """Returns a run's state with shapes in place of arrays.

    Args:
      training: the optimiser and the adapters.
      params: arrays or their shapes.
    """
    return jax.eval_shape(functools.partial(_fresh_state, training), params)


def shardings(config: ModelConfig, training: Training, params: Params) -> Any:
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


def fresh_state(config: ModelConfig, training: Training, params: Params) -> Any:
    """Returns a run's state where it begins, placed.

    Args:
      config: the model's shape.
      training: the mesh, the optimiser and the adapters.
      params: the run's own, placed.
    """
    where = shardings(config, training, params)
    make = functools.partial(_fresh_state, training)
    return make(params) if where is None else jax.jit(make, out_shardings=where[1])(params)


def result(training: Training, params: Params, state: Any) -> Params:
    """Returns the plain model that a run has reached, placed as its params are."""
    if training.lora is None:
        return params
    where = jax.tree.map(lambda leaf: leaf.sharding, params)
    merge = jax.jit(merged, static_argnums=0, out_shardings=where)
    return merge(training.lora, params, state["adapters"])
