"""Where a training run begins: at its base model, or as its newest checkpoint left it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import parameter_shapes
from lmsi_jax.models.params import Params
from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.placement import placed, weights_on_mesh
from lmsi_jax.training.settings import Training
from lmsi_jax.training.step import fresh_state, shardings, state_shapes

Load = Callable[[Any], Params]
"""Loads parameters, onto a tree of shardings or, where that is None, as a whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Begin:
    """Where a run begins.

    Attributes:
      step: steps that are taken.
      params: its own parameters, placed; a step may use them up.
      state: likewise.
      position: where the data stands; None where no checkpoint says so.
      window: the window of metrics that was open.
    """

    step: int
    params: Params
    state: Any
    position: dict[str, Any] | None = None
    window: Sequence[Any] = ()


def where_to_begin(
    checkpoints: Checkpoints, config: ModelConfig, training: Training, base: Params | Load
) -> Begin:
    """Takes up the newest checkpoint, read straight to its place; or begins at the base.

    Args:
      checkpoints: the run's.
      config: the model's shape.
      training: the mesh, the optimiser and the adapters.
      base: the model that the run starts from, or what loads it.

    Raises:
      LmsiError: the checkpoint is damaged, or of another model or optimiser.
    """
    step = checkpoints.latest or 0
    if not step:
        params, state = start(config, training, base)
        return Begin(step=0, params=params, state=state)
    shapes = parameter_shapes(config)
    state_like, where = state_shapes(training, shapes), shardings(config, training, shapes)
    # With adapters what was saved is the merged model: their run goes on from the base itself.
    wanted = shapes if training.lora is None else None
    found, state = checkpoints.restore(step, wanted, state_like, where)
    params = _own(config, training, base) if found is None else found
    position = checkpoints.position(step)
    window = position.pop("window") if position else ()
    return Begin(step=step, params=params, state=state, position=position, window=window)


def start(config: ModelConfig, training: Training, base: Params | Load) -> tuple[Params, Any]:
    """Returns a run's params and state where it begins, placed; the base survives."""
    params = _own(config, training, base)
    return params, fresh_state(config, training, params)


def _own(config: ModelConfig, training: Training, base: Params | Load) -> Params:
    """The base, placed, and nobody else's."""
    where = weights_on_mesh(config, training)
    if where is None:
        return jax.tree.map(jnp.array, base(None) if callable(base) else base)
    return base(where) if callable(base) else placed(base, where)
