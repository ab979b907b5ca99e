"""Checkpoints in the layout that T5X reads and writes: `checkpoint_N/state`, through Orbax.

    checkpoint_N/state      {"target": params, "state": {"step": int32, "param_states": ...}}
    checkpoint_N/reading    JSON: where the data stood at step N; T5X looks at `state` alone

The optimiser's arrays are kept by their path in the Optax state, so a restored run goes on exactly.
Orbax writes into `checkpoint_N.orbax-checkpoint-tmp` and renames it once all items are whole (on
gs:// it adds commit_success.txt instead), so a process may die at any time while it saves.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as managers

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.params import Params

_PREFIX = "checkpoint"
_UNFINISHED = ".orbax-checkpoint-tmp"
_LAYOUT = f"a folder {_PREFIX}_N with an Orbax item 'state' that holds a tree 'target'"


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
            step_prefix=_PREFIX,
            preservation_policy=_kept(keep, keep_best, best, mode),
            enable_async_checkpointing=background,
            create=False,
            multiprocessing_options=_processes(together),
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
            state["param_states"] = _nested(_named(optimizer_state))
        tree = {"target": params, "state": state}
        if jax.process_count() > 1 and not self._together:
            tree = jax.tree.map(np.asarray, tree)  # Orbax takes no process' own device arrays
        items = {"state": ocp.args.PyTreeSave(tree)}
        if reading is not None:
            items["reading"] = ocp.args.JsonSave(dict(reading))
        known = None if metrics is None else {k: float(v) for k, v in metrics.items()}
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=known)

    def wait(self) -> None:
        """Returns once what is being saved in the background is whole; raises what went wrong."""
        self._manager.wait_until_finished()

    def restore(
        self, step: int, params: Params, optimizer_state: Any, shardings: Any = None
    ) -> tuple[Params, Any]:
        """Reads parameters and optimiser state of a step into trees of the given shapes.

        Args:
          step: which one.
          params: a parameter tree, or one of shapes.
          optimizer_state: an Optax state, or one of shapes.
          shardings: (parameters', optimiser state's) trees of `jax.sharding.Sharding`: arrays are
            read straight to their place, whatever mesh they were saved from. None: as a whole.

        Raises:
          LmsiError: it is missing, incomplete, or of another model or optimiser.
        """
        folder = self._folder(step)
        like = {"target": params, "state": {"param_states": _named(optimizer_state)}}
        places = None
        if shardings is not None:
            places = {
                "target": shardings[0],
                "state": {"param_states": _named(shardings[1])},
            }
        found = _read(folder, like, places, self._together)
        arrays = found["state"]["param_states"]
        # T5X writes its counters as it restored them, in float32.
        leaves = [arrays[k].astype(leaf.dtype) for k, leaf in _named(optimizer_state).items()]
        return found["target"], jax.tree.unflatten(jax.tree.structure(optimizer_state), leaves)

    def position(self, step: int) -> dict[str, Any] | None:
        """Returns the `reading` that a step was saved with; None where it has none (T5X's own)."""
        folder = self._folder(step)
        if not (folder / "reading").is_dir():
            return None
        try:
            args = ocp.args.Composite(reading=ocp.args.JsonRestore())
            return dict(self._manager.restore(step, args=args)["reading"])
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise _damaged(folder, error) from error

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _folder(self, step: int) -> epath.Path:
        folder = self.directory / f"{_PREFIX}_{step}"
        if not folder.is_dir():
            raise LmsiError(f"no {folder}; {_seen(self.directory)}")
        return folder


def _sweep(directory: epath.Path) -> None:
    """Removes saves that were cut off by the end of their process; Orbax lets some of them lie."""
    for child in directory.iterdir():
        if child.name.startswith(f"{_PREFIX}_") and _UNFINISHED in child.name:
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


def _processes(together: bool) -> ocp.options.MultiprocessingOptions:
    """Alone a process reads and writes for itself: Orbax would wait for the others in vain."""
    if together:
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"lmsi_{me}"
    )


def _handlers(together: bool) -> dict[str, ocp.CheckpointHandler]:
    options = _processes(together)
    return {
        "state": ocp.PyTreeCheckpointHandler(multiprocessing_options=options),
        "reading": ocp.JsonCheckpointHandler(multiprocessing_options=options),
    }


def load_params(path: epath.PathLike, like: Params, shardings: Any = None) -> Params:
    """Reads the parameters of a checkpoint.

    Args:
      path: a `checkpoint_N` folder, or a folder of which the newest is taken.
      like: a parameter tree, or one of shapes, that the checkpoint must match.
      shardings: the same tree of `jax.sharding.Sharding`, where arrays are to be placed.

    Raises:
      LmsiError: there is none, it is incomplete, or it belongs to another model.
    """
    places = None if shardings is None else {"target": shardings}
    return _read(find(path), {"target": like}, places, together=False)["target"]


def optimizer_arrays(folder: epath.PathLike) -> dict[str, jax.Array]:
    """Reads a checkpoint's optimiser state: its arrays by their path, as in "0.mu.embedding".

    Args:
      folder: a `checkpoint_N` folder.

    Raises:
      LmsiError: it is none, or it is incomplete.
    """
    folder = epath.Path(folder)
    _, metadata = opened(folder)
    like = {"state": {"param_states": metadata["state"].get("param_states", {})}}
    return _named(_read(folder, like, None, together=False)["state"]["param_states"])


def find(path: epath.PathLike) -> epath.Path:
    """Returns the `checkpoint_N` folder at or newest in `path`.

    Raises:
      LmsiError: there is none.
    """
    path = epath.Path(path)
    if (path / "state").is_dir():
        return path
    steps = _steps(path)
    if not steps:
        raise LmsiError(
            f"no checkpoint in {path}; {_seen(path)}; name a folder {_PREFIX}_N or one that holds "
            "such folders"
        )
    return steps[max(steps)]


def present(directory: epath.PathLike) -> bool:
    """Whether a folder holds any `checkpoint_N`."""
    return bool(_steps(epath.Path(directory)))


def _steps(directory: epath.Path) -> dict[int, epath.Path]:
    found = list(directory.iterdir()) if directory.is_dir() else []
    names = {child: re.fullmatch(rf"{_PREFIX}_(\d+)", child.name) for child in found}
    return {int(match[1]): child for child, match in names.items() if match}


def digest(params: Params) -> str:
    """Returns the SHA-256 over names, shapes and bytes of all parameters."""
    total = hashlib.sha256()
    for name, leaf in sorted(_named(params).items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{name} {array.shape} {array.dtype}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _named(tree: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _nested(named: dict[str, Any]) -> dict[str, Any]:
    """`_named`'s dictionary with its dots as levels, which is how T5X names a state's arrays."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split(".")
        level = tree
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = leaf
    return tree


def opened(folder: epath.Path, together: bool = False) -> tuple[ocp.Checkpointer, Any]:
    """Returns what reads a checkpoint's state, and the tree of its arrays' shapes.

    Raises:
      LmsiError: it is no checkpoint of this layout, or it is incomplete.
    """
    item = (folder / "state").resolve()
    if not item.is_dir():
        raise LmsiError(f"{folder} is no checkpoint of this layout: {_seen(folder)}")
    handler = ocp.Checkpointer(
        _handlers(together)["state"], multiprocessing_options=_processes(together)
    )
    metadata = attempt(folder, lambda: handler.metadata(item).item_metadata.tree)
    if not isinstance(metadata, dict) or "target" not in metadata:
        found = sorted(metadata) if isinstance(metadata, dict) else type(metadata).__name__
        raise LmsiError(
            f"{folder} has no 'target' tree of parameters; found {found}, expected {_LAYOUT}; "
            "name a checkpoint of lmsi or T5X"
        )
    return handler, metadata


def _read(folder: epath.Path, like: Any, places: Any, together: bool) -> Any:
    """Reads the arrays that `like` names, after looking whether they are there and fit.

    Returns:
      `like` with arrays in place of its leaves, of their types (a checkpoint may hold bfloat16);
      with those of `places`, sharded that way.
    """
    handler, metadata = opened(folder, together)
    saved, wanted = _named(metadata), _named(like)
    _check_match(folder, wanted, saved)
    where = {} if places is None else _named(places)

    def how(path: Any, _: Any) -> ocp.RestoreArgs:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in where:
            return ocp.ArrayRestoreArgs(sharding=where[name], dtype=wanted[name].dtype)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    args = jax.tree_util.tree_map_with_path(how, metadata)
    tree = _named(
        attempt(folder, lambda: handler.restore((folder / "state").resolve(), restore_args=args))
    )
    leaves = [
        tree[name] if name in where else jax.numpy.asarray(tree[name], leaf.dtype)
        for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def attempt(folder: epath.Path, read: Callable[[], Any]) -> Any:
    """Reads; says what is wrong with the folder where that fails."""
    try:
        return read()
    except (ValueError, OSError, KeyError, AttributeError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: epath.Path, error: Exception) -> LmsiError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, AttributeError):  # Orbax gives None for what it cannot read
        reason = "its _METADATA cannot be read"
    others = [
        str(step) for step in sorted(_steps(folder.parent)) if folder.name != f"{_PREFIX}_{step}"
    ]
    rest = f"; step {others[-1]} is there too, and would be next" if others else ""
    return LmsiError(
        f"the checkpoint {folder} is incomplete or damaged ({reason}); delete it and repeat the "
        f"command, or name another{rest}"
    )


def _seen(folder: epath.Path) -> str:
    """Says what stands in a folder where a checkpoint was looked for, and what it looks like."""
    if not folder.exists():
        return "there is no such folder"
    if not folder.is_dir():
        return f"it is a file, expected {_LAYOUT}"
    names = sorted(child.name for child in folder.iterdir())
    if not names:
        return f"the folder is empty, expected {_LAYOUT}"
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"found {shown}{_meaning(names)}; expected {_LAYOUT}"


def _meaning(names: Sequence[str]) -> str:
    if any(_UNFINISHED in name for name in names):
        return " (a save that was cut off before it was whole)"
    if "checkpoint" in names:
        return " (T5X's old format: open and save it with T5X, which writes Orbax now)"
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return " (a Hugging Face model: run `lmsi import-hf` on it first)"
    if "default" in names or "_METADATA" in names or "manifest.ocdbt" in names:
        return " (an Orbax tree of other names: save it as the item 'state' with a tree 'target')"
    return ""


def _check_match(folder: epath.Path, wanted: dict[str, Any], saved: dict[str, Any]) -> None:
    """Compares names and shapes.

    Raises:
      LmsiError: the model is another, or the optimiser.
    """
    missing = sorted(set(wanted) - set(saved), key=lambda name: (name[:6] != "target", name))
    if missing:
        what, remedy, prefix = _owner(missing[0])
        extra = sorted(name for name in set(saved) - set(wanted) if name.startswith(prefix))
        raise LmsiError(
            f"the checkpoint {folder} belongs to another {what}: it has no "
            f"{missing[0].removeprefix(prefix)!r}"
            + (f" but has {extra[0].removeprefix(prefix)!r}" if extra else "")
            + f"; {remedy}, or name another checkpoint"
        )
    for name, leaf in wanted.items():
        found = tuple(getattr(saved[name], "shape", None) or ())
        if found != tuple(leaf.shape):
            what, remedy, prefix = _owner(name)
            raise LmsiError(
                f"the checkpoint {folder} belongs to another {what}: "
                f"{name.removeprefix(prefix)} is {found}, "
                f"{'ModelConfig' if what == 'model' else 'the run'} wants {tuple(leaf.shape)}; "
                f"{remedy}, or name another checkpoint"
            )


def _owner(name: str) -> tuple[str, str, str]:
    """What an array belongs to, how to mend it, and what its name begins with in the file."""
    if name.startswith("target."):
        return "model", "set ModelConfig to its shape", "target."
    return "optimiser", "set Optimizer as it was", "state.param_states."
