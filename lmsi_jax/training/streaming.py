"""Checkpoints of models that do not fit into memory, read and written one array at a time.

The files are Orbax's own; it is only kept from asking for all arrays at once.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lmsi_jax.training import checkpoints

# Arrays are stored in parts of at most this, so that a device reads little besides its own shard.
_PART_BYTES = 1 << 26
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Later:
    """An array that is computed when it is written.

    Attributes:
      shape: its shape.
      dtype: its type.
      make: computes it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.size * self.dtype.itemsize


class _OneByOne(ocp.type_handlers.NumpyHandler):
    """Writes each `Later` completely before the next one is computed.

    Attributes:
      error: why one could not be computed; the rest is not written then. It is not raised within
        Orbax, which would return while its other handlers still write into the folder.
    """

    error: Exception | None = None

    async def serialize(
        self,
        values: Sequence[Later],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> list[Any]:
        """Writes the values before returning; Orbax calls this."""
        args = args or [ocp.SaveArgs()] * len(values)
        for value, info, arg in zip(values, infos, args, strict=True):
            try:
                array = value.make()
            except Exception as error:
                self.error = error
                break
            for written in await super().serialize([array], [info], [arg]):
                written.result()
        return []


def save(directory: epath.PathLike, step: int, params: Mapping[str, Any]) -> None:
    """Writes `checkpoint_STEP` as `Checkpoints.save` does, without an optimizer state.

    Args:
      directory: the folder, created if necessary.
      step: optimizer steps taken.
      params: the parameter tree, with a `Later` for each array.

    Raises:
      Exception: that of the first array that cannot be computed; the checkpoint is incomplete.
    """
    handlers = ocp.type_handlers
    one_by_one = _OneByOne(deepcopy_host_arrays=False)
    registry = handlers.create_type_handler_registry(
        (Later, one_by_one),
        (np.ndarray, handlers.NumpyHandler()),
        (jax.Array, handlers.ArrayHandler()),  # there is none; Orbax warns without it
        (int, handlers.ScalarHandler()),
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    tree = {"target": params, "state": {"step": np.asarray(step, np.int32)}}
    args = ocp.args.PyTreeSave(tree, save_args=_parted(tree))
    options = ocp.CheckpointManagerOptions(
        step_prefix="checkpoint", enable_async_checkpointing=False, create=True
    )
    folder = epath.Path(directory).resolve()
    try:
        with ocp.CheckpointManager(
            folder, options=options, item_handlers={"state": handler}
        ) as manager:
            manager.save(step, args=ocp.args.Composite(state=args))
    finally:
        if one_by_one.error is not None:
            raise one_by_one.error


def _parted(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _parted(value) for name, value in tree.items()}
    return ocp.SaveArgs(chunk_byte_size=_PART_BYTES)


class Saved:
    """The parameters of a checkpoint, read one at a time.

    Args:
      path: a `checkpoint_N` folder, or a folder whose newest one is read.

    Attributes:
      folder: the `checkpoint_N` folder.
      shapes: the shape of each parameter, by its path in the tree.
      dtypes: their types.

    Raises:
      LmsiError: there is none, or it is incomplete.
    """

    def __init__(self, path: epath.PathLike):
        self.folder = checkpoints.find(path)
        self._handler, metadata = checkpoints.open_checkpoint(self.folder)
        leaves = dict(_leaves(metadata["target"]))
        self.shapes: dict[Path, tuple[int, ...]] = {k: tuple(v.shape) for k, v in leaves.items()}
        self.dtypes: dict[Path, np.dtype] = {k: np.dtype(v.dtype) for k, v in leaves.items()}

    def read(self, path: Path) -> np.ndarray:
        """Returns a parameter as it was saved.

        Raises:
          LmsiError: the checkpoint is damaged.
        """

        def tree(leaf: Any) -> Any:
            """{"target": {...: leaf}}."""
            for key in reversed(("target", *path)):
                leaf = {key: leaf}
            return leaf

        args = ocp.args.PyTreeRestore(
            item=tree(0),
            restore_args=tree(ocp.RestoreArgs(restore_type=np.ndarray)),
            partial_restore=True,
        )
        leaf = checkpoints.read_or_explain(
            self.folder, lambda: self._handler.restore((self.folder / "state").resolve(), args=args)
        )
        for key in ("target", *path):
            leaf = leaf[key]
        return leaf


def _leaves(tree: Any, path: Path = ()) -> Any:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for name, value in tree.items():
        yield from _leaves(value, (*path, name))
