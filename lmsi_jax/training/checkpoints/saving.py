"""Saves a training run's checkpoints, and takes the run up from them.

Orbax writes into `checkpoint_N.orbax-checkpoint-tmp` and renames it once all items are whole (on
gs:// it adds commit_success.txt instead), so a process may die at any time while it saves.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as managers

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.params import Params
from lmsi_jax.training.checkpoints.layout import PREFIX, READING, has_reading, named, nested
from lmsi_jax.training.checkpoints.refusals import UNFINISHED, seen
from lmsi_jax.training.checkpoints.stored import attempt, members, processes, read, state_handler


class Checkpoints:
    """The checkpoints of one training run.

    Args:
      directory: where `checkpoint_N` folders lie.
      keep: how many of the newest to keep; None keeps all.
      keep_best: how many of the best to keep beside them.
      best: the metric of `save` that decides which are best.
      mode: whether the "min" or the "max" of it is best.
      background: saving returns once the arrays are copied, and goes on beside the training.
      together: all processes save and restore, each its shards of global arrays; otherwise this
        process does so alone.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        keep: int | None = 1,
        *,
        keep_best: int = 0,
        best: str = "loss",
        mode: Literal["min", "max"] = "min",
        background: bool = False,
        together: bool = False,
    ):
        if mode not in ("min", "max"):
            raise LmsiError(f"the best checkpoint is by 'min' or 'max', not by {mode!r}")
        self.directory = epath.Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        if not together or jax.process_index() == 0:
            _sweep(self.directory)
        self._together = together
        options = ocp.CheckpointManagerOptions(
            step_prefix=PREFIX,
            preservation_policy=_kept(keep, keep_best, best, mode),
            enable_async_checkpointing=background,
            create=False,
            multiprocessing_options=processes(members(together)),
        )
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=_handlers(together)
        )

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """All complete steps, in order."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        params: Params,
        optimizer_state: Any = None,
        *,
        reading: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes a checkpoint, whole or not at all.

        Args:
          step: optimiser steps taken; nothing is written where this step is there already.
          params: the parameter tree.
          optimizer_state: the Optax state.
          reading: JSON values, see `position`.
          metrics: what `keep_best` compares.
        """
        if step in self._manager.all_steps():
            return
        state: dict[str, Any] = {"step": np.int32(step)}
        if optimizer_state is not None:
            state["param_states"] = nested(named(optimizer_state))
        tree = {"target": params, "state": state}
        if jax.process_count() > 1 and not self._together:
            tree = jax.tree.map(np.asarray, tree)  # Orbax takes no process' own device arrays
        items = {"state": ocp.args.PyTreeSave(tree)}
        if reading is not None:
            items[READING] = ocp.args.JsonSave(dict(reading))
        known = None if metrics is None else {k: float(v) for k, v in metrics.items()}
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=known)

    def wait(self) -> None:
        """Returns once what is being saved in the background is whole; raises what went wrong."""
        self._manager.wait_until_finished()

    def restore(
        self, step: int, params: Params | None, optimizer_state: Any, shardings: Any = None
    ) -> tuple[Params | None, Any]:
        """Reads parameters and optimiser state of a step into trees of the given shapes.

        Args:
          step: which one.
          params: a parameter tree, or one of shapes; None leaves the parameters out.
          optimizer_state: an Optax state, or one of shapes.
          shardings: (parameters', optimiser state's) trees of `jax.sharding.Sharding`: arrays are
            read straight to their place, whatever mesh they were saved from. None: as a whole.

        Raises:
          LmsiError: it is missing, incomplete, or of another model or optimiser.
        """
        like = _parts(params, optimizer_state)
        places = None
        if shardings is not None:
            places = _parts(None if params is None else shardings[0], shardings[1])
        found = read(self._folder(step), like, places)
        arrays = found["state"]["param_states"]
        # T5X writes its counters as it restored them, in float32.
        leaves = [arrays[k].astype(leaf.dtype) for k, leaf in named(optimizer_state).items()]
        state = jax.tree.unflatten(jax.tree.structure(optimizer_state), leaves)
        return found.get("target"), state

    def position(self, step: int) -> dict[str, Any] | None:
        """Returns the `reading` that a step was saved with; None where it has none (T5X's own)."""
        folder = self._folder(step)
        if not has_reading(folder):
            return None
        args = ocp.args.Composite(**{READING: ocp.args.JsonRestore()})
        return attempt(folder, lambda: dict(self._manager.restore(step, args=args)[READING]))

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _folder(self, step: int) -> epath.Path:
        folder = self.directory / f"{PREFIX}_{step}"
        if not folder.is_dir():
            raise LmsiError(f"no {folder}; {seen(self.directory)}")
        return folder


def _parts(params: Any, state: Any) -> dict[str, Any]:
    """The parts of a checkpoint's tree that are to be read."""
    parts: dict[str, Any] = {"state": {"param_states": named(state)}}
    return parts if params is None else {"target": params, **parts}


def _handlers(together: bool) -> dict[str, ocp.CheckpointHandler]:
    return {
        "state": state_handler(members(together)),
        READING: ocp.JsonCheckpointHandler(multiprocessing_options=processes(members(together))),
    }


def _sweep(directory: epath.Path) -> None:
    """Removes saves that were cut off by the end of their process; Orbax lets some of them lie."""
    for child in directory.iterdir():
        if child.name.startswith(f"{PREFIX}_") and UNFINISHED in child.name:
            child.rmtree()


def _kept(keep: int | None, keep_best: int, best: str, mode: str) -> managers.PreservationPolicy:
    policies: list[managers.PreservationPolicy] = [managers.LatestN(keep)]
    if keep_best:
        # Orbax keeps the last of the sorted ones; a checkpoint of a step without this metric
        # (saved because the process had to leave) is the worst.
        worst = np.inf if mode == "min" else -np.inf
        policies.append(
            managers.BestN(
                get_metric_fn=lambda metrics: metrics.get(best, worst),
                reverse=mode == "min",
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    return managers.AnyPreservationPolicy(policies)
