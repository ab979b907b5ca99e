"""What the stages share that score rows with a model: shards that are complete or absent."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lmsi_jax.progress import Progress
from lmsi_jax.store import ShardStore, shard_names

ROWS = 256  # a shard's rows are packed together, so their number enters the bits of the sums
_Row = TypeVar("_Row")
_Rows = TypeVar("_Rows")


def in_shards(name: str, rows: Sequence[_Row]) -> list[tuple[str, Sequence[_Row]]]:
    """Returns (shard, rows), of `ROWS` rows each: NAME-NNNNN-of-MMMMM."""
    parts = [rows[at : at + ROWS] for at in range(0, len(rows), ROWS)]
    numbers = shard_names(len(parts))
    return [(f"{name}-{number}", part) for number, part in zip(numbers, parts, strict=True)]


def write_missing(
    store: ShardStore,
    names: Sequence[str],
    shards: Iterable[_Rows],
    load: Callable[[], Callable[[_Rows], Sequence[Mapping[str, Any]]]],
    label: str,
) -> None:
    """Makes and writes the shards that are not there.

    Args:
      store: where they go.
      names: of all shards.
      shards: the rows of each.
      load: loads the model, where something is missing; returns what makes a shard of rows.
      label: what the progress says.

    Raises:
      LmsiError: the disk is full.
    """
    missing = set(store.missing(names))
    if not missing:
        return
    make, done = load(), len(names) - len(missing)
    with Progress(label, len(names), unit="shards", initial=done) as bar:
        for name, rows in zip(names, shards, strict=True):
            if name in missing:
                store.write(name, make(rows))
                bar.advance()
