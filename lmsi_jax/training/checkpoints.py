"""Checkpoints in the layout that T5X reads and writes: `checkpoint_N/state`, through Orbax.

One item, `state`, holds {"target": params, "state": {"step": int32, "param_states": ...}}. The
optimiser's arrays are kept by their path in the Optax state, so a restored run goes on exactly.
"""

import hashlib
import re
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.decoder import Params

_PREFIX = "checkpoint"


class Checkpoints:
    """The checkpoints of one training run.

    Args:
      directory: where `checkpoint_N` folders lie.
      keep: how many to keep; None keeps all.
    """

    def __init__(self, directory: epath.PathLike, keep: int | None = 1):
        self.directory = epath.Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            step_prefix=_PREFIX,
            max_to_keep=keep,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=_alone(),
        )
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers={"state": _handler()}
        )

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, params: Params, optimizer_state: Any = None) -> None:
        """Writes a checkpoint, whole or not at all."""
        state: dict[str, Any] = {"step": np.int32(step)}
        if optimizer_state is not None:
            state["param_states"] = _nested(_named(optimizer_state))
        tree = {"target": params, "state": state}
        if jax.process_count() > 1:
            tree = jax.tree.map(np.asarray, tree)  # Orbax takes no process' own device arrays
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree)))
        self._manager.wait_until_finished()

    def restore(self, step: int, params: Params, optimizer_state: Any) -> tuple[Params, Any]:
        """Reads parameters and optimiser state of a step into trees of the given shapes."""
        tree = _read(self.directory / f"{_PREFIX}_{step}")
        names = _named(optimizer_state)
        saved = _named(tree["state"].get("param_states", {}))
        _check_match(self.directory, names, saved)
        # T5X writes its counters as it restored them, in float32.
        leaves = [jax.numpy.asarray(saved[name], like.dtype) for name, like in names.items()]
        state = jax.tree.unflatten(jax.tree.structure(optimizer_state), leaves)
        return _checked(self.directory, tree["target"], params), state

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


def _alone() -> ocp.options.MultiprocessingOptions:
    """A process reads and writes for itself: Orbax would wait for the others, who do not come."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"lmsi_{me}"
    )


def _handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())


def load_params(path: epath.PathLike, like: Params) -> Params:
    """Reads the parameters of a checkpoint.

    Args:
      path: a `checkpoint_N` folder, or a folder of which the newest is taken.
      like: a parameter tree, or one of shapes, that the checkpoint must match.

    Raises:
      LmsiError: there is none, it is incomplete, or it belongs to another model.
    """
    folder = find(path)
    return _checked(folder, _read(folder)["target"], like)


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
            f"no checkpoint in {path}; name a folder {_PREFIX}_N or one that holds such folders"
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


def _read(folder: epath.Path) -> dict[str, Any]:
    if not (folder / "state").is_dir():
        raise LmsiError(f"{folder} holds no item 'state'; it is not a checkpoint of this layout")
    try:
        handler = ocp.Checkpointer(_handler(), multiprocessing_options=_alone())
        metadata = handler.metadata((folder / "state").resolve()).item_metadata
        if metadata is None:
            raise ValueError("its _METADATA cannot be read")
        tree = handler.restore(
            (folder / "state").resolve(),
            restore_args=jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree
            ),
        )
    except (ValueError, OSError, KeyError, FileNotFoundError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise LmsiError(
            f"the checkpoint {folder} is incomplete or damaged ({reason}); "
            "delete it and repeat the command, or name another"
        ) from error
    if not isinstance(tree, dict) or "target" not in tree:
        raise LmsiError(f"{folder} has no 'target' tree of parameters; found {sorted(tree)}")
    return tree


def _checked(folder: epath.Path, found: Any, like: Params) -> Params:
    saved, wanted = _named(found), _named(like)
    _check_match(folder, wanted, saved)
    leaves = [jax.numpy.asarray(saved[name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _check_match(folder: epath.Path, wanted: dict[str, Any], saved: dict[str, Any]) -> None:
    missing = sorted(set(wanted) - set(saved))
    if missing:
        extra = sorted(set(saved) - set(wanted))
        raise LmsiError(
            f"the checkpoint {folder} belongs to another model: it has no {missing[0]!r}"
            + (f" but has {extra[0]!r}" if extra else "")
            + "; set ModelConfig to its shape, or name another checkpoint"
        )
    for name, leaf in wanted.items():
        if tuple(saved[name].shape) != tuple(leaf.shape):
            raise LmsiError(
                f"the checkpoint {folder} belongs to another model: {name} is "
                f"{tuple(saved[name].shape)}, ModelConfig wants {tuple(leaf.shape)}; "
                "set ModelConfig to its shape, or name another checkpoint"
            )
