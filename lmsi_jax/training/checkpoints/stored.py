"""Reads checkpoints: whole, in part, or straight onto a mesh; and takes their digests."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.params import Params
from lmsi_jax.training.checkpoints.layout import PREFIX, find, named, nested, steps
from lmsi_jax.training.checkpoints.refusals import LAYOUT, check_match, damaged, seen

_PORTION = 1 << 30  # bytes that `stored_digest` holds at once, or one array if it is larger


def load_params(path: epath.PathLike, like: Params, shardings: Any = None) -> Params:
    """Reads the parameters of a checkpoint.

    Args:
      path: a `checkpoint_N` folder, or a folder of which the newest is taken.
      like: a parameter tree, or one of shapes, that the checkpoint must match.
      shardings: the same tree of `jax.sharding.Sharding`, where arrays are to be placed; each
        process reads what its own devices hold, and where they span several all call this.

    Raises:
      LmsiError: there is none, it is incomplete, or it belongs to another model.
    """
    places = None if shardings is None else {"target": shardings}
    return read(find(path), {"target": like}, places)["target"]


def load_state(path: epath.PathLike, like: Any) -> Any:
    """Reads a part of a checkpoint's optimiser state.

    Args:
      path: as for `load_params`.
      like: the part, or shapes in its place; its arrays' paths are those in the whole state.

    Raises:
      LmsiError: as `load_params`.
    """
    states = {"state": {"param_states": named(like)}}
    found = read(find(path), states, None)["state"]["param_states"]
    return jax.tree.unflatten(jax.tree.structure(like), list(found.values()))


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
    return named(read(folder, like, None)["state"]["param_states"])


def digest(params: Params) -> str:
    """Returns the SHA-256 over names, shapes and bytes of all parameters."""
    return _digest(iter(sorted(named(params).items())))


def stored_digest(path: epath.PathLike, like: Params) -> str:
    """Returns the `digest` of a checkpoint's parameters; the host never holds all of them.

    Args:
      path: as for `load_params`.
      like: a parameter tree, or one of shapes, that the checkpoint must match.

    Raises:
      LmsiError: as `load_params`.
    """
    folder = find(path)
    shapes = sorted(named({"target": like}).items())

    def leaves() -> Iterator[tuple[str, Any]]:
        for portion in _portions(shapes):
            tree = named(read(folder, nested(dict(portion)), None))
            yield from ((name.removeprefix("target."), tree[name]) for name, _ in portion)

    return _digest(leaves())


def _portions(shapes: list[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    """Cuts named shapes into runs of at most `_PORTION` bytes, or of one array."""
    portion: list[tuple[str, Any]] = []
    size = 0
    for name, leaf in shapes:
        own = leaf.size * leaf.dtype.itemsize
        if portion and size + own > _PORTION:
            yield portion
            portion, size = [], 0
        portion.append((name, leaf))
        size += own
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
    """Orbax would wait for all processes, in vain where some of them do not take part."""
    if 1 < len(taking_part) == jax.process_count():
        return ocp.options.MultiprocessingOptions()
    first = min(taking_part)
    return ocp.options.MultiprocessingOptions(
        primary_host=first,
        active_processes={*taking_part},
        barrier_sync_key_prefix=f"lmsi_{first}",
    )


def state_handler(taking_part: Members) -> ocp.PyTreeCheckpointHandler:
    """What reads and writes the item `state`."""
    return ocp.PyTreeCheckpointHandler(multiprocessing_options=processes(taking_part))


def read(folder: epath.Path, like: Any, places: Any) -> Any:
    """Reads the arrays that `like` names and no others, having looked whether they fit.

    Args:
      folder: a `checkpoint_N` folder.
      like: a part of the tree in `state`, with arrays or shapes.
      places: None, or a tree like it of shardings.

    Returns:
      `like` with arrays in place of its leaves, of their types (a checkpoint may hold bfloat16);
      with those of `places`, sharded that way.

    Raises:
      LmsiError: it is no such checkpoint, incomplete, or of another model or optimiser.
    """
    where = {} if places is None else named(places)
    handler, metadata = opened(folder, holders(where))
    wanted = named(like)
    check_match(folder, wanted, named(metadata))
    how = {name: _restoring(where.get(name), leaf.dtype) for name, leaf in wanted.items()}
    args = ocp.args.PyTreeRestore(
        item=nested(wanted), restore_args=nested(how), partial_restore=True
    )
    item = (folder / "state").resolve()
    tree = named(attempt(folder, lambda: handler.restore(item, args=args)))
    leaves = [
        tree[name] if name in where else jax.numpy.asarray(tree[name], leaf.dtype)
        for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _restoring(place: Any, dtype: Any) -> ocp.RestoreArgs:
    if place is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=place, dtype=dtype)


def holders(shardings: Any) -> Members:
    """The processes that have a part of what is read to these places; this one where none is."""
    devices = {device for place in jax.tree.leaves(shardings) for device in place.device_set}
    return frozenset(device.process_index for device in devices) or members(together=False)


def opened(folder: epath.Path, taking_part: Members | None = None) -> tuple[ocp.Checkpointer, Any]:
    """Returns what reads a checkpoint's state, and the tree of its arrays' shapes.

    Args:
      folder: a `checkpoint_N` folder.
      taking_part: who reads it together; None: this process alone.

    Raises:
      LmsiError: it is no checkpoint of this layout, or it is incomplete.
    """
    item = (folder / "state").resolve()
    if not item.is_dir():
        raise LmsiError(f"{folder} is no checkpoint of this layout: {seen(folder)}")
    own = taking_part or members(together=False)
    handler = ocp.Checkpointer(state_handler(own), multiprocessing_options=processes(own))
    metadata = attempt(folder, lambda: handler.metadata(item).item_metadata.tree)
    if not isinstance(metadata, dict) or "target" not in metadata:
        found = sorted(metadata) if isinstance(metadata, dict) else type(metadata).__name__
        raise LmsiError(
            f"{folder} has no 'target' tree of parameters; found {found}, expected {LAYOUT}; "
            "name a checkpoint of lmsi or T5X"
        )
    return handler, metadata


def attempt(folder: epath.Path, reading: Callable[[], Any]) -> Any:
    """Reads; says what is wrong with the folder where that fails."""
    try:
        return reading()
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        beside = [step for step in steps(folder.parent) if folder.name != f"{PREFIX}_{step}"]
        raise damaged(folder, error, beside) from error
