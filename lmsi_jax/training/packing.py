"""Packs weighted rows after shared prefixes into fixed shapes; NumPy only.

Rows of one task and format share their few-shot prefix. It is computed once per microbatch and seen
by every row, instead of being repeated inside each: exact, and several times less work. Example
weights become per-token loss weights here, so nothing downstream can lose them.

There are three kinds of rows, and a batch has rows of one kind:

    Row             an example: one sequence
    DistillationRow an example with a teacher's most probable tokens at each place
    PairRow         a chosen and a rejected continuation of one prompt: two sequences
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np

from lmsi_jax.config import Training

# Rows that find no room wait for the next microbatch; this many of them close the current one.
_PATIENCE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A tokenised example.

    Attributes:
      prefix: the tokens that it shares with other rows.
      tokens: its own tokens.
      weights: loss weight of each of `tokens`; the first is ignored, because nothing predicts it.
      group: a small number that metrics are split by (the example's format).
      example: number of the example within its run, from 0; -1 if that is not needed.
    """

    prefix: tuple[int, ...]
    tokens: Sequence[int]
    weights: Sequence[float]
    group: int = 0
    example: int = -1

    @property
    def sequences(self) -> list[tuple[int, int]]:
        """Begin and end in `tokens` of each sequence; none of them sees another."""
        return [(0, len(self.tokens))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationRow(Row):
    """An example with a teacher's most probable tokens.

    Attributes:
      teacher_ids: [tokens, k] the k most probable tokens at the place of each of `tokens`, given
        those before it.
      teacher_logprobs: [tokens, k] their log-probabilities in nats; -inf if nothing is known.
    """

    teacher_ids: np.ndarray
    teacher_logprobs: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRow(Row):
    """A chosen and a rejected sequence, in this order, which always share a microbatch.

    Attributes:
      second: begin of the rejected sequence in `tokens`.
      reference: the reference model's log-probabilities of the targets of both, in nats; None
        until they are computed (`scoring.with_reference`).
    """

    second: int
    reference: Sequence[float] | None = None

    @property
    def sequences(self) -> list[tuple[int, int]]:
        """Begin and end in `tokens` of the chosen and of the rejected sequence."""
        return [(0, self.second), (self.second, len(self.tokens))]


def weighted_row(
    prefix: Sequence[int],
    inputs: Sequence[int],
    targets: Sequence[int],
    weight: float,
    group: int = 0,
) -> Row:
    """Returns a row that learns its targets alone, each token with the example's weight."""
    return Row(
        prefix=tuple(prefix),
        tokens=[*inputs, *targets],
        weights=[0.0] * len(inputs) + [weight] * len(targets),
        group=group,
    )


def pair_row(chosen: Row, rejected: Row) -> PairRow:
    """Joins two rows of one prompt into a pair.

    Raises:
      ValueError: their prefixes differ.
    """
    if chosen.prefix != rejected.prefix:
        raise ValueError(
            "the members of a pair have different prefixes; build both from one prompt"
        )
    return PairRow(
        prefix=chosen.prefix,
        tokens=[*chosen.tokens, *rejected.tokens],
        weights=[*chosen.weights, *rejected.weights],
        group=chosen.group,
        example=chosen.example,
        second=len(chosen.tokens),
    )


def distillation_row(row: Row, ids: np.ndarray, logprobs: np.ndarray) -> DistillationRow:
    """Returns an example with a teacher's tokens and log-probabilities, [tokens, k] each."""
    return DistillationRow(
        **{field.name: getattr(row, field.name) for field in dataclasses.fields(Row)},
        teacher_ids=ids,
        teacher_logprobs=logprobs,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The fixed shape of a batch.

    Attributes:
      microbatches: prefixes per step.
      rows: packed sequences after each prefix.
      length: tokens per packed sequence.
      prefix_length: most tokens of a prefix.
      top_k: a teacher's tokens at each place, for distillation rows; 0: batches have none.
      pairs: whether the rows are pairs.
    """

    microbatches: int
    rows: int
    length: int
    prefix_length: int
    top_k: int = 0
    pairs: bool = False


def batch_shape(training: Training) -> Shape:
    """Returns the fixed shape of a step's batch."""
    return Shape(
        microbatches=training.microbatches,
        rows=training.sequences_per_prefix,
        length=training.sequence_length,
        prefix_length=training.max_prefix_length,
        top_k=training.loss.top_k if training.loss.distillation == "top_k" else 0,
        pairs=training.preference is not None,
    )


Batch = dict[str, np.ndarray]
"""Arrays of one step, M microbatches of B rows of T tokens after prefixes of P tokens:

prefix [M, P], prefix_length [M], tokens, segments, positions, groups [M, B, T] (int32) and weights
[M, B, T] (float32): the loss weight of *predicting* the token at that place from those before it.
With `Shape.top_k` = k also teacher_ids (int32) and teacher_logprobs (float32), [M, B, T, k]: the
tokens that the teacher predicts at that place, -inf throughout if nothing is known. With
`Shape.pairs` segments 1 and 2, 3 and 4, ... of a sequence are the members of a pair, chosen and
rejected; also reference [M, B, T] (float32): at a member's last place the reference's
log-probability of its targets.
"""


class Packer:
    """Packs a stream of rows into microbatches, and can stop between two of them.

    A microbatch is complete when some rows of its prefix wait that have no room in it; they open
    the next one. Rows still open when a finite stream ends come last, by the order of their
    prefixes. The order is deterministic.

    Args:
      rows: the stream.
      shape: the fixed shape of a microbatch.
      open_rows: `open_rows` of an earlier packer that had read the rows before these.
    """

    def __init__(self, rows: Iterable[Row], shape: Shape, open_rows: Iterable[Row] = ()):
        self._rows, self._shape = iter(rows), shape
        self._bins: dict[tuple[int, ...], _Bin] = {}
        for row in open_rows:
            self._bin(row.prefix).add(row)

    @property
    def open_rows(self) -> list[Row]:
        """The rows that were read and are in no microbatch yet."""
        return [row for one in self._bins.values() for row in one.rows]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Returns the next microbatch.

        Raises:
          ValueError: a row or a prefix is longer than the shape allows.
        """
        for row in self._rows:
            check(row, self._shape)
            current = self._bin(row.prefix)
            current.add(row)
            if len(current.waiting) == _PATIENCE:
                return self._close(current)
        for current in self._bins.values():
            if current.rows:
                return self._close(current)
        raise StopIteration

    def _bin(self, prefix: tuple[int, ...]) -> "_Bin":
        if prefix not in self._bins:
            self._bins[prefix] = _Bin(prefix, self._shape)
        return self._bins[prefix]

    def _close(self, one: "_Bin") -> Batch:
        self._bins[one.prefix] = _Bin(one.prefix, self._shape, one.waiting)
        return one.microbatch(self._shape)


class _Bin:
    """One microbatch in the making, after one prefix, and the rows that wait for the next."""

    def __init__(self, prefix: tuple[int, ...], shape: Shape, rows: Sequence[Row] = ()):
        size = (shape.rows, shape.length)
        self.prefix = prefix
        self.arrays = {
            name: np.zeros(size, np.float32 if name == "weights" else np.int32)
            for name in ("tokens", "segments", "positions", "groups", "weights")
        }
        if shape.top_k:
            wide = (*size, shape.top_k)
            self.arrays["teacher_ids"] = np.zeros(wide, np.int32)
            self.arrays["teacher_logprobs"] = np.full(wide, -np.inf, np.float32)
        if shape.pairs:
            self.arrays["reference"] = np.zeros(size, np.float32)
        self.used = [0] * shape.rows
        self.segments = [0] * shape.rows
        self.rows: list[Row] = []  # all of them in order: added again, they give the same bin
        self.waiting: list[Row] = []
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Puts the row into the fullest sequence with room, or lets it wait."""
        self.rows.append(row)
        size = len(row.tokens)
        length = self.arrays["tokens"].shape[1]
        with_room = [i for i, used in enumerate(self.used) if used + size <= length]
        if not with_room:
            self.waiting.append(row)
            return
        at = max(with_room, key=lambda i: self.used[i])
        begin = self.used[at]
        self.used[at] += size
        views = {name: array[at, begin : begin + size] for name, array in self.arrays.items()}
        views["tokens"][:] = row.tokens
        views["groups"][:] = row.group
        views["weights"][:] = row.weights
        for begin, end in row.sequences:
            self.segments[at] += 1
            views["segments"][begin:end] = self.segments[at]
            views["positions"][begin:end] = len(self.prefix) + np.arange(end - begin)
            views["weights"][begin] = 0.0  # nothing predicts a sequence's first token
        if isinstance(row, PairRow) and row.reference is not None:
            for (_, end), logprob in zip(row.sequences, row.reference, strict=True):
                views["reference"][end - 1] = logprob
        if isinstance(row, DistillationRow) and "teacher_ids" in views:
            views["teacher_ids"][1:] = row.teacher_ids[1:]
            views["teacher_logprobs"][1:] = row.teacher_logprobs[1:]

    def microbatch(self, shape: Shape) -> Batch:
        """Returns the microbatch's arrays."""
        prefix = np.zeros(shape.prefix_length, np.int32)
        prefix[: len(self.prefix)] = self.prefix
        return {
            **self.arrays,
            "prefix": prefix,
            "prefix_length": np.array(len(self.prefix), np.int32),
        }


def check(row: Row, shape: Shape) -> None:
    """Raises ValueError if a row cannot be packed."""
    if len(row.tokens) > shape.length:
        raise ValueError(f"a row has {len(row.tokens)} tokens, a packed sequence {shape.length}")
    if len(row.prefix) > shape.prefix_length:
        raise ValueError(
            f"a prefix has {len(row.prefix)} tokens, the limit is {shape.prefix_length}"
        )
    if len(row.tokens) != len(row.weights):
        raise ValueError(f"a row has {len(row.tokens)} tokens but {len(row.weights)} weights")
    if shape.pairs and not all(any(row.weights[a + 1 : b]) for a, b in row.sequences):
        raise ValueError("a pair has a member without target tokens")
    if shape.pairs != isinstance(row, PairRow):
        raise ValueError("pairs and single rows do not go into one batch")
    if shape.top_k and isinstance(row, DistillationRow):
        expected = (len(row.tokens), shape.top_k)
        for array in (row.teacher_ids, row.teacher_logprobs):
            if array.shape != expected:
                raise ValueError(
                    f"a row's teacher arrays are {array.shape}, the batch's are {expected}"
                )


def fits(row: Row, shape: Shape) -> bool:
    """Returns True if a row can be packed."""
    try:
        check(row, shape)
    except ValueError:
        return False
    return True


def microbatches(rows: Iterable[Row], shape: Shape) -> Iterator[Batch]:
    """Yields microbatches, each of rows that share a prefix; see `Packer`."""
    return Packer(rows, shape)


def batches(rows: Iterable[Row], shape: Shape) -> Iterator[Batch]:
    """Yields steps of stacked microbatches; an incomplete last step is dropped."""
    return stack_microbatches(Packer(rows, shape), shape.microbatches)


def stack_microbatches(microbatches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Yields steps of `count` microbatches; an incomplete last step is dropped."""
    waiting: list[Batch] = []
    for microbatch in microbatches:
        waiting.append(microbatch)
        if len(waiting) == count:
            yield {name: np.stack([m[name] for m in waiting]) for name in microbatch}
            waiting = []
