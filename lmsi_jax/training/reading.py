"""Where the data stands: how many rows were read, and which of them are in no batch yet.

With this in a checkpoint a run goes on without packing again what it has trained on. The stream
itself is a pure function of the seed, so the number of rows read says where it stands; a stream
that has `skip(count)` passes over them without making them (SeqIO's does, in tf.data).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from lmsi_jax.errors import LmsiError
from lmsi_jax.training.packing import Batch, Packer, Row, Shape, stacked


class Rows:
    """A stream of rows that counts what is read of it, and leaves out what does not fit.

    Args:
      source: the rows; may offer `skip(count)`.
      fits: which rows to give out.
    """

    def __init__(self, source: Iterable[Row], fits: Callable[[Row], bool] = lambda row: True):
        self._source, self._fits = source, fits
        self._iterator: Iterator[Row] | None = None
        self.read = 0

    def skip(self, count: int) -> None:
        """Passes over `count` rows of the source, before anything is read."""
        skip = getattr(self._source, "skip", None)
        if skip is not None:
            skip(count)
        else:
            self._iterator = iter(self._source)
            for _ in zip(range(count), self._iterator, strict=False):
                pass
        self.read = count

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Row:
        if self._iterator is None:
            self._iterator = iter(self._source)
        while True:
            row = next(self._iterator)
            self.read += 1
            if self._fits(row):
                return row


class Steps:
    """The batches of a run's steps, from a position on.

    Args:
      rows: the stream, from its beginning.
      shape: of a step's batch.
      position: as `position` was; None begins at the beginning.
    """

    def __init__(
        self, rows: Iterable[Row], shape: Shape, position: Mapping[str, Any] | None = None
    ):
        self._rows = rows if isinstance(rows, Rows) else Rows(rows)
        open_rows: list[Row] = []
        if position is not None:
            open_rows = _unpacked(position)
            self._rows.skip(int(position["rows"]))
        self._packer = Packer(self._rows, shape, open_rows)
        self._steps = stacked(self._packer, shape.microbatches)

    @property
    def position(self) -> dict[str, Any]:
        """Where the data stands between two steps, as JSON values."""
        return {"rows": self._rows.read, "open": [_json(row) for row in self._packer.open_rows]}

    def next(self) -> Batch | None:
        """Returns the next step's batch; None where the stream has ended."""
        return next(self._steps, None)


def _json(row: Row) -> dict[str, Any]:
    plain = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return {
        k: {"dtype": str(v.dtype), "array": v.tolist()} if isinstance(v, np.ndarray) else v
        for k, v in plain.items()
    }


def _row(plain: Mapping[str, Any]) -> Row:
    found: dict[str, Any] = {
        k: np.array(v["array"], v["dtype"]) if isinstance(v, dict) else v for k, v in plain.items()
    }
    return Row(**{**found, "prefix": tuple(found["prefix"])})


def _unpacked(position: Mapping[str, Any]) -> list[Row]:
    try:
        return [_row(row) for row in position["open"]]
    except (KeyError, TypeError) as error:
        raise LmsiError(
            f"the checkpoint's reading position cannot be understood ({error}); it is of another "
            "version: delete the run's checkpoints and train again"
        ) from error
