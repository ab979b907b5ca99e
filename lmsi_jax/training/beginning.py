"""Where a training run begins: at its base model, or as its newest checkpoint left it."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import remove
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import parameter_shapes
from lmsi_jax.models.params import Params
from lmsi_jax.training import checkpoints as stored
from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.metrics import METRICS, read_metrics, records
from lmsi_jax.training.placement import placed, weights_on_mesh
from lmsi_jax.training.settings import Training
from lmsi_jax.training.step import fresh_state, shardings, state_shapes

_LOG = logging.getLogger(__name__)
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


def drop_unrecorded(directory: epath.PathLike) -> None:
    """Drops a run's checkpoints where the metrics that lead up to them are missing or damaged.

    No checkpoint holds those, so all steps are taken again, to the same bytes. T5X's checkpoints,
    which come without metrics of ours, are kept.

    Raises:
      LmsiError: the folder cannot be written.
    """
    folder = epath.Path(directory)
    ours = stored.present(folder) and stored.has_reading(stored.find(folder))
    if not ours or _recorded(folder):
        return
    _LOG.warning(
        "%s is missing or was altered, and no checkpoint holds what stood there: this model is "
        "trained again from its first step",
        folder / METRICS,
    )
    remove(
        folder / METRICS
    )  # first: a process that is killed here finds its checkpoints unrecorded
    stored.drop(folder)


def _recorded(folder: epath.Path) -> bool:
    try:
        read_metrics(folder)
    except LmsiError:
        return False
    return bool(records(folder))


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
