"""Where checkpoints lie, and how the arrays in them are named."""

import re
from typing import Any

import jax
from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import cannot
from lmsi_jax.training.checkpoints.refusals import seen

PREFIX, READING = "checkpoint", "reading"


def find(path: epath.PathLike) -> epath.Path:
    """Returns the `checkpoint_N` folder at or newest in `path`.

    Raises:
      LmsiError: there is none.
    """
    path = epath.Path(path)
    if (path / "state").is_dir():
        return path
    found = steps(path)
    if not found:
        raise LmsiError(
            f"no checkpoint in {path}; {seen(path)}; name a folder {PREFIX}_N or one that holds "
            "such folders"
        )
    return found[max(found)]


def present(directory: epath.PathLike) -> bool:
    """Whether a folder holds any `checkpoint_N`."""
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


def has_reading(folder: epath.Path) -> bool:
    """Whether a checkpoint says where the data stood: ours do, T5X's do not."""
    return (folder / READING).is_dir()


def steps(directory: epath.Path) -> dict[int, epath.Path]:
    """Returns the `checkpoint_N` folders in a folder, by N."""
    found = list(directory.iterdir()) if directory.is_dir() else []
    names = {child: re.fullmatch(rf"{PREFIX}_(\d+)", child.name) for child in found}
    return {int(match[1]): child for child, match in names.items() if match}


def named(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by their path, as in "0.mu.embedding"."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """`named`'s dictionary with its dots as levels, which is how T5X names a state's arrays."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split(".")
        level = tree
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = leaf
    return tree
