"""Checkpoints in the layout that T5X reads and writes: `checkpoint_N/state`, through Orbax.

    checkpoint_N/state        {"target": params, "state": {"step": int32, "param_states": ...}}
    checkpoint_N/data_state   JSON: the state of the data at step N; T5X reads `state` alone

The optimizer's arrays are stored by their path in the Optax state, so a restored run resumes
exactly. Orbax writes into `checkpoint_N.orbax-checkpoint-tmp` and renames it once all items are
complete (on gs:// it adds commit_success.txt instead), so a process may die at any time.

`Checkpoints` saves and restores a training run. The functions above it read checkpoints of any run,
whole, in part, or straight onto a mesh, and explain what is wrong with a folder.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as managers

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.params import Params
from lmsi_jax.runtime.files import TEMPORARY, cannot, read_record, system_errors
from lmsi_jax.runtime.run_folders import FREED, replace_folder

UNFINISHED = ".orbax-checkpoint-tmp"
LAYOUT = "a folder checkpoint_N with an Orbax item 'state' that holds a tree 'target'"


def damaged_checkpoint(folder: epath.Path, error: Exception, others: Sequence[int]) -> LmsiError:
    """Returns the error of a checkpoint that cannot be read.

    Args:
      folder: the checkpoint.
      error: the exception of reading it.
      others: steps of other checkpoints in its folder.
    """
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, AttributeError):  # Orbax returns None for unreadable metadata
        reason = "its _METADATA cannot be read"
    rest = f"; step {max(others)} is there too, and would be next" if others else ""
    return LmsiError(
        f"the checkpoint {folder} is incomplete or damaged ({reason}); delete it and repeat the "
        f"command, or name another{rest}"
    )


def describe_folder(folder: epath.Path) -> str:
    """Describes the content of a folder that should be a checkpoint, for an error message."""
    if not folder.exists():
        return "there is no such folder"
    if not folder.is_dir():
        return f"it is a file, expected {LAYOUT}"
    names = sorted(child.name for child in folder.iterdir())
    if not names:
        return f"the folder is empty, expected {LAYOUT}"
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"found {shown}{_meaning(names)}; expected {LAYOUT}"


def _meaning(names: Sequence[str]) -> str:
    if any(UNFINISHED in name for name in names):
        return " (a save that was cut off before it was whole)"
    if "checkpoint" in names:
        return " (T5X's old format: open and save it with T5X, which writes Orbax now)"
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return " (a Hugging Face model: run `lmsi import-hf` on it first)"
    if "default" in names or "_METADATA" in names or "manifest.ocdbt" in names:
        return " (an Orbax tree of other names: save it as the item 'state' with a tree 'target')"
    return ""


def check_match(folder: epath.Path, expected: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Compares the names and shapes of a checkpoint with the expected ones.

    Args:
      folder: the checkpoint.
      expected: arrays or shapes by name.
      saved: those of the checkpoint.

    Raises:
      LmsiError: it is of another model or optimizer.
    """
    missing = sorted(set(expected) - set(saved), key=lambda name: (name[:6] != "target", name))
    if missing:
        what, remedy, prefix = _owner(missing[0])
        extra = sorted(name for name in set(saved) - set(expected) if name.startswith(prefix))
        raise LmsiError(
            f"the checkpoint {folder} belongs to another {what}: it has no "
            f"{missing[0].removeprefix(prefix)!r}"
            + (f" but has {extra[0].removeprefix(prefix)!r}" if extra else "")
            + f"; {remedy}, or name another checkpoint"
        )
    for name, leaf in expected.items():
        shape = tuple(getattr(saved[name], "shape", None) or ())
        if shape != tuple(leaf.shape):
            what, remedy, prefix = _owner(name)
            raise LmsiError(
                f"the checkpoint {folder} belongs to another {what}: "
                f"{name.removeprefix(prefix)} is {shape}, "
                f"{'ModelConfig' if what == 'model' else 'the run'} expects {tuple(leaf.shape)}; "
                f"{remedy}, or name another checkpoint"
            )


def _owner(name: str) -> tuple[str, str, str]:
    """Returns the owner of an array, the remedy, and the prefix of its name in the file."""
    if name.startswith("target."):
        return "model", "set ModelConfig to its shape", "target."
    return "optimizer", "set Optimizer as it was", "state.param_states."


PREFIX, DATA_STATE = "checkpoint", "data_state"
DIGEST = "digest.json"
"""A record beside a finished checkpoint: the `digest` of its parameters."""


def find(path: epath.PathLike) -> epath.Path:
    """Returns the `checkpoint_N` folder at or newest in `sample`.

    Raises:
      LmsiError: there is none.
    """
    path = epath.Path(path)
    if (path / "state").is_dir():
        return path
    folders = steps(path)
    if not folders and (path / FREED).exists():
        raise LmsiError(
            f"the checkpoint in {path} was freed by `lmsi clean`; to train it again, delete "
            f"{path} and repeat the command that made it"
        )
    if not folders:
        raise LmsiError(
            f"no checkpoint in {path}; {describe_folder(path)}; name a folder {PREFIX}_N or one "
            "that holds "
            "such folders"
        )
    return folders[max(folders)]


def has_checkpoint(directory: epath.PathLike) -> bool:
    """Returns True if a folder holds any `checkpoint_N`."""
    return bool(steps(epath.Path(directory)))


def drop(directory: epath.PathLike) -> None:
    """Removes every `checkpoint_N` in a folder.

    Raises:
      LmsiError: the folder cannot be written.
    """
    for folder in steps(epath.Path(directory)).values():
        try:
            folder.rmtree()
        except OSError as error:
            raise cannot("remove", folder, error) from error


def drop_optimizer_state(folder: epath.PathLike) -> None:
    """Rewrites a local checkpoint without its optimizer's state, whole or not at all.

    The host holds all parameters meanwhile.

    Args:
      folder: a `checkpoint_N` folder.

    Raises:
      LmsiError: it is no checkpoint of this layout or incomplete, or the disk is full.
    """
    path = epath.Path(folder).resolve()
    handler, metadata = open_checkpoint(path)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata["target"]
    )
    handler.close()
    params = read(path, {"target": shapes}, None)["target"]
    beside = pathlib.Path(path.parent) / f".{path.name}{TEMPORARY}"
    shutil.rmtree(beside, ignore_errors=True)
    made = Checkpoints(beside)
    made.save(int(path.name.removeprefix(f"{PREFIX}_")), params)
    made.close()
    with system_errors(path.parent):
        if has_data_state(path):
            shutil.copytree(path / DATA_STATE, beside / path.name / DATA_STATE)
        replace_folder(beside / path.name, pathlib.Path(path))
        shutil.rmtree(beside)


def has_data_state(folder: epath.Path) -> bool:
    """Returns True if a checkpoint has the state of the data: ours do, T5X's do not."""
    return (folder / DATA_STATE).is_dir()


def steps(directory: epath.Path) -> dict[int, epath.Path]:
    """Returns the `checkpoint_N` folders in a folder, by N."""
    children = list(directory.iterdir()) if directory.is_dir() else []
    names = {child: re.fullmatch(rf"{PREFIX}_(\d+)", child.name) for child in children}
    return {int(match[1]): child for child, match in names.items() if match}


def flatten_tree(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by their path, as in "0.mu.embedding"."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def nest_leaves(leaves: dict[str, Any]) -> dict[str, Any]:
    """Undoes `flatten_tree` with a dictionary per level, as T5X names a state's arrays."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split(".")
        level = tree
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = leaf
    return tree


_PORTION = 1 << 30  # bytes that `stored_digest` holds at once, or one larger array


def load_params(path: epath.PathLike, like: Params, shardings: Any = None) -> Params:
    """Reads the parameters of a checkpoint.

    Args:
      path: a `checkpoint_N` folder, or a folder whose newest one is read.
      like: a parameter tree, or one of shapes, that the checkpoint must match.
      shardings: the same tree of `jax.sharding.Sharding`, to read the arrays into; each process
        reads the parts of its own devices, and all processes that they span call this.

    Raises:
      LmsiError: there is none, it is incomplete, or it belongs to another model.
    """
    places = None if shardings is None else {"target": shardings}
    return read(find(path), {"target": like}, places)["target"]


def check_digest(folder: epath.Path, digest: str) -> None:
    """Compares a trained model with its digest: a checkpoint's format has no checksum of its own.

    Args:
      folder: the checkpoint, beside its record `DIGEST`.
      digest: of its parameters.

    Raises:
      LmsiError: the checkpoint or the record was altered.
    """
    if read_record(folder.parent / DIGEST)["params_sha256"] != digest:
        raise LmsiError(
            f"the checkpoint {folder} was altered after training; restore it, or delete it and "
            "repeat the command that trained it"
        )


def check_finite(folder: epath.PathLike, params: Params) -> None:
    """Checks the values of parameters, where they are.

    Args:
      folder: their checkpoint, for the message.
      params: the parameter tree.

    Raises:
      LmsiError: some are NaN or infinite; names the first array.
    """
    finite = flatten_tree(_all_finite(params))
    broken = [name for name, whole in finite.items() if not whole]
    if broken:
        more = f" and {len(broken) - 1} more arrays" if len(broken) > 1 else ""
        raise LmsiError(
            f"the checkpoint {os.fspath(folder)} has NaN or infinite numbers in {broken[0]}{more}; "
            "name an earlier checkpoint, or import or train the model anew (with a lower "
            "Optimizer.learning_rate)"
        )


@jax.jit
def _all_finite(params: Params) -> Any:
    return jax.tree.map(lambda leaf: jax.numpy.isfinite(leaf).all(), params)


def load_state(path: epath.PathLike, like: Any) -> Any:
    """Reads a part of a checkpoint's optimizer state.

    Args:
      path: as for `load_params`.
      like: the part, or shapes in its place; its arrays' paths are those in the whole state.

    Raises:
      LmsiError: as `load_params`.
    """
    states = {"state": {"param_states": flatten_tree(like)}}
    arrays = read(find(path), states, None)["state"]["param_states"]
    return jax.tree.unflatten(jax.tree.structure(like), list(arrays.values()))


def optimizer_arrays(folder: epath.PathLike) -> dict[str, jax.Array]:
    """Reads a checkpoint's optimizer state: its arrays by their path, as in "0.mu.embedding".

    Args:
      folder: a `checkpoint_N` folder.

    Raises:
      LmsiError: it is none, or it is incomplete.
    """
    folder = epath.Path(folder)
    _, metadata = open_checkpoint(folder)
    like = {"state": {"param_states": metadata["state"].get("param_states", {})}}
    return flatten_tree(read(folder, like, None)["state"]["param_states"])


def digest(params: Params) -> str:
    """Returns the SHA-256 over names, shapes and bytes of all parameters."""
    return _digest(iter(sorted(flatten_tree(params).items())))


def stored_digest(path: epath.PathLike, like: Params) -> str:
    """Returns the `digest` of a checkpoint's parameters; the host never holds all of them.

    Args:
      path: as for `load_params`.
      like: a parameter tree, or one of shapes, that the checkpoint must match.

    Raises:
      LmsiError: as `load_params`.
    """
    folder = find(path)
    shapes = sorted(flatten_tree({"target": like}).items())

    def leaves() -> Iterator[tuple[str, Any]]:
        for portion in _portions(shapes):
            tree = flatten_tree(read(folder, nest_leaves(dict(portion)), None))
            yield from ((name.removeprefix("target."), tree[name]) for name, _ in portion)

    return _digest(leaves())


def _portions(shapes: list[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    """Cuts named shapes into runs of at most `_PORTION` bytes, or of one array."""
    portion: list[tuple[str, Any]] = []
    size = 0
    for name, leaf in shapes:
        nbytes = leaf.size * leaf.dtype.itemsize
        if portion and size + nbytes > _PORTION:
            yield portion
            portion, size = [], 0
        portion.append((name, leaf))
        size += nbytes
    yield portion


def _digest(leaves: Iterator[tuple[str, Any]]) -> str:
    total = hashlib.sha256()
    for name, leaf in leaves:
        array = np.ascontiguousarray(leaf)
        total.update(f"{name} {array.shape} {array.dtype}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


Members = frozenset[int]
"""The processes that read or write together."""


def members(together: bool) -> Members:
    """All processes, or this one alone."""
    return frozenset(range(jax.process_count()) if together else {jax.process_index()})


def processes(taking_part: Members) -> ocp.options.MultiprocessingOptions:
    """Returns Orbax's options for some processes; by default it would wait for all of them."""
    if 1 < len(taking_part) == jax.process_count():
        return ocp.options.MultiprocessingOptions()
    first = min(taking_part)
    return ocp.options.MultiprocessingOptions(
        primary_host=first,
        active_processes={*taking_part},
        barrier_sync_key_prefix=f"lmsi_{first}",
    )


def state_handler(taking_part: Members) -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(multiprocessing_options=processes(taking_part))


def read(folder: epath.Path, like: Any, places: Any) -> Any:
    """Reads the arrays that `like` names and no others, after checking that they match.

    Args:
      folder: a `checkpoint_N` folder.
      like: a part of the tree in `state`, with arrays or shapes.
      places: None, or the same tree of shardings.

    Returns:
      `like` with arrays in place of its leaves, of their types (a checkpoint may be bfloat16), and
      sharded as `places` says.

    Raises:
      LmsiError: it is no such checkpoint, incomplete, or of another model or optimizer.
    """
    where = {} if places is None else flatten_tree(places)
    handler, metadata = open_checkpoint(folder, holders(where))
    leaves_like = flatten_tree(like)
    check_match(folder, leaves_like, flatten_tree(metadata))
    how = {name: _restoring(where.get(name), leaf.dtype) for name, leaf in leaves_like.items()}
    args = ocp.args.PyTreeRestore(
        item=nest_leaves(leaves_like), restore_args=nest_leaves(how), partial_restore=True
    )
    item = (folder / "state").resolve()
    tree = flatten_tree(read_or_explain(folder, lambda: handler.restore(item, args=args)))
    leaves = [
        tree[name] if name in where else jax.numpy.asarray(tree[name], leaf.dtype)
        for name, leaf in leaves_like.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _restoring(place: Any, dtype: Any) -> ocp.RestoreArgs:
    if place is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=place, dtype=dtype)


def holders(shardings: Any) -> Members:
    """Returns the processes that hold parts of these shardings; without any, this process."""
    devices = {device for place in jax.tree.leaves(shardings) for device in place.device_set}
    return frozenset(device.process_index for device in devices) or members(together=False)


def open_checkpoint(
    folder: epath.Path, taking_part: Members | None = None
) -> tuple[ocp.Checkpointer, Any]:
    """Opens a checkpoint: returns its reader, and the tree of its arrays' shapes.

    Args:
      folder: a `checkpoint_N` folder.
      taking_part: the processes that read it together; None: this process alone.

    Raises:
      LmsiError: it is no checkpoint of this layout, or it is incomplete.
    """
    item = (folder / "state").resolve()
    if not item.is_dir():
        raise LmsiError(f"{folder} is no checkpoint of this layout: {describe_folder(folder)}")
    readers = taking_part or members(together=False)
    handler = ocp.Checkpointer(state_handler(readers), multiprocessing_options=processes(readers))
    with _quiet_about_the_root():
        metadata = read_or_explain(folder, lambda: handler.metadata(item).item_metadata.tree)
    if not isinstance(metadata, dict) or "target" not in metadata:
        names = sorted(metadata) if isinstance(metadata, dict) else type(metadata).__name__
        raise LmsiError(
            f"{folder} has no 'target' tree of parameters; found {names}, expected {LAYOUT}; "
            "name a checkpoint of lmsi or T5X"
        )
    return handler, metadata


@contextlib.contextmanager
def _quiet_about_the_root() -> Iterator[None]:
    """Drops Orbax's warning that `state`, an item, has no metadata of a whole checkpoint."""

    def is_another(record: logging.LogRecord) -> bool:
        return "Metadata file does not exist" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(is_another)
    try:
        yield
    finally:
        logger.removeFilter(is_another)


def read_or_explain(folder: epath.Path, reading: Callable[[], Any]) -> Any:
    """Calls a function that reads a checkpoint; raises its failure as an error with a remedy."""
    try:
        return reading()
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        others = [step for step in steps(folder.parent) if folder.name != f"{PREFIX}_{step}"]
        raise damaged_checkpoint(folder, error, others) from error


class Checkpoints:
    """The checkpoints of one training run.

    Args:
      directory: the folder of the `checkpoint_N` folders.
      keep: number of newest ones to keep; None keeps all.
      keep_best: number of best ones to keep as well.
      best: the metric of `save` that ranks them.
      mode: whether its "min" or its "max" is best.
      background: saving returns once the arrays are copied, and continues in the background.
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
        with system_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if not together or jax.process_index() == 0:
                _sweep(self.directory)
        self._together = together
        self._newest = None if keep_best else keep
        options = ocp.CheckpointManagerOptions(
            step_prefix=PREFIX,
            preservation_policy=_kept(keep, keep_best, best, mode),
            # The policy ranks; without this function Orbax would not store the metrics, and a run
            # that is taken up would not know which of its checkpoints was best.
            best_fn=(lambda metrics: metrics[best]) if keep_best else None,
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
        data_state: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes a checkpoint, whole or not at all.

        Args:
          step: optimizer steps taken; nothing is written if this step exists already.
          params: the parameter tree.
          optimizer_state: the Optax state.
          data_state: JSON values, see the method `data_state`.
          metrics: for `keep_best`.

        Raises:
          LmsiError: the disk is full, or the folder cannot be written.
        """
        if step in self._manager.all_steps():
            return
        state: dict[str, Any] = {"step": np.int32(step)}
        if optimizer_state is not None:
            state["param_states"] = nest_leaves(flatten_tree(optimizer_state))
        tree = {"target": params, "state": state}
        if jax.process_count() > 1 and not self._together:
            tree = jax.tree.map(np.asarray, tree)  # Orbax accepts no process-local device arrays
        items = {"state": ocp.args.PyTreeSave(tree)}
        if data_state is not None:
            items[DATA_STATE] = ocp.args.JsonSave(dict(data_state))
        known = None if metrics is None else {k: float(v) for k, v in metrics.items()}
        with system_errors(self.directory):
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=known)

    def prune(self) -> None:
        """Removes the checkpoints that a save would remove, unless the best ones are kept too.

        A process that was killed after its last save may have removed them in part.
        """
        if self._newest is None:
            return
        with system_errors(self.directory):
            for step in self.steps[: -self._newest]:
                self._manager.delete(step)

    def wait(self) -> None:
        """Waits until the saves in the background are complete; raises their failures as `save`."""
        with system_errors(self.directory):
            self._manager.wait_until_finished()

    def restore(
        self, step: int, params: Params | None, optimizer_state: Any, shardings: Any = None
    ) -> tuple[Params | None, Any]:
        """Reads parameters and optimizer state of a step into trees of the given shapes.

        Args:
          step: the checkpoint's step.
          params: a parameter tree, or one of shapes; None leaves the parameters out.
          optimizer_state: an Optax state, or one of shapes.
          shardings: (parameters', optimizer state's) trees of `jax.sharding.Sharding`: arrays are
            read straight into them, whatever mesh they were saved from. None: unsharded.

        Raises:
          LmsiError: it is missing, incomplete, or of another model or optimizer.
        """
        like = _parts(params, optimizer_state)
        places = None
        if shardings is not None:
            places = _parts(None if params is None else shardings[0], shardings[1])
        tree = read(self._folder(step), like, places)
        arrays = tree["state"]["param_states"]
        # T5X writes its counters as it restored them, in float32.
        leaves = [arrays[k].astype(leaf.dtype) for k, leaf in flatten_tree(optimizer_state).items()]
        state = jax.tree.unflatten(jax.tree.structure(optimizer_state), leaves)
        return tree.get("target"), state

    def data_state(self, step: int) -> dict[str, Any] | None:
        """Returns the `data_state` that a step was saved with; None if it has none (T5X's)."""
        folder = self._folder(step)
        if not has_data_state(folder):
            return None
        args = ocp.args.Composite(**{DATA_STATE: ocp.args.JsonRestore()})
        return read_or_explain(
            folder, lambda: dict(self._manager.restore(step, args=args)[DATA_STATE])
        )

    def close(self) -> None:
        """Waits for the saves in the background; raises their failures as `save`."""
        with system_errors(self.directory):
            self._manager.close()

    def _folder(self, step: int) -> epath.Path:
        folder = self.directory / f"{PREFIX}_{step}"
        if not folder.is_dir():
            raise LmsiError(f"no {folder}; {describe_folder(self.directory)}")
        return folder


def _parts(params: Any, state: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {"state": {"param_states": flatten_tree(state)}}
    return parts if params is None else {"target": params, **parts}


def _handlers(together: bool) -> dict[str, ocp.CheckpointHandler]:
    return {
        "state": state_handler(members(together)),
        DATA_STATE: ocp.JsonCheckpointHandler(multiprocessing_options=processes(members(together))),
    }


def _sweep(directory: epath.Path) -> None:
    """Removes saves that their process did not finish; Orbax leaves some of them behind."""
    for child in directory.iterdir():
        if child.name.startswith(f"{PREFIX}_") and UNFINISHED in child.name:
            child.rmtree()


def _kept(keep: int | None, keep_best: int, best: str, mode: str) -> managers.PreservationPolicy:
    policies: list[managers.PreservationPolicy] = [managers.LatestN(keep)]
    if keep_best:
        # Orbax keeps the last ones in order. A checkpoint without this metric (saved because the
        # process had to leave) ranks last.
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
