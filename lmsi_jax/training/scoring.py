"""Scores rows under a teacher: its most probable tokens at each place, to be stored with paths."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import Params
from lmsi_jax.training.losses import Arrays, token_scores
from lmsi_jax.training.packing import Row, Shape, fits, microbatches
from lmsi_jax.training.teacher import Teacher


@functools.partial(jax.jit, static_argnums=(0, 3))
def top_k_logprobs(
    config: ModelConfig, params: Params, batch: Arrays, k: int
) -> tuple[jax.Array, jax.Array]:
    """The k most probable tokens at each place and their log-probabilities, [B, T, k] each.

    The most probable comes first; at the start of a row, where nothing is predicted, -inf.
    """
    logprobs, ids = jax.lax.top_k(jax.nn.log_softmax(token_scores(config, params, batch)), k)
    ahead = ((0, 0), (1, 0), (0, 0))
    return jnp.pad(ids, ahead), jnp.pad(logprobs, ahead, constant_values=-jnp.inf)


def with_top_k(teacher: Teacher, rows: Sequence[Row], shape: Shape, k: int) -> list[Row]:
    """Returns the rows, in their order, with the teacher's k most probable tokens at each place.

    Nothing predicts a row's first token, so there the log-probabilities are -inf.

    Args:
      teacher: the model; it must have the tokenizer that the rows were made with.
      rows: tokenised examples.
      shape: the batch shape to score in; its microbatches and top_k are not used.
      k: tokens at each place.

    Raises:
      ValueError: a row has no room in the shape.
    """
    # The group is a row's number while it is packed: so it is found again.
    numbered = [dataclasses.replace(row, group=number) for number, row in enumerate(rows)]
    plain = dataclasses.replace(shape, top_k=0)
    scored: dict[int, Row] = {}
    for batch in microbatches(numbered, plain):
        found = top_k_logprobs(teacher.config, teacher.params, batch, k)
        ids, logprobs = (np.asarray(value) for value in found)
        for at, place in _places(batch["segments"]):
            number = int(batch["groups"][at][place][0])
            known = logprobs[at, place].copy()
            known[0] = -np.inf
            scored[number] = dataclasses.replace(
                rows[number], teacher_ids=ids[at, place].copy(), teacher_logprobs=known
            )
    return [scored[number] for number in range(len(rows))]


class Scored:
    """A stream of rows with the teacher's k most probable tokens, `window` rows at a time.

    Windows begin at multiples of their size, so that a resumed run scores a row among the same
    others, to the same bits. Rows without room in the shape pass as they are.

    Args:
      teacher: the model; it must have the tokenizer that the rows were made with.
      source: the rows; may offer `skip(count)`.
      shape: the batch shape to score in.
      k: tokens at each place.
      window: rows that are scored together.
    """

    def __init__(
        self, teacher: Teacher, source: Iterable[Row], shape: Shape, k: int, window: int = 64
    ):
        self._teacher, self._source, self._shape = teacher, source, shape
        self._k, self._window, self._begin = k, window, 0

    def skip(self, count: int) -> None:
        """Passes over `count` rows, before anything is read."""
        self._begin = count

    def __iter__(self) -> Iterator[Row]:
        before = self._begin // self._window * self._window
        skip = getattr(self._source, "skip", None)
        if before and skip is not None:
            skip(before)
        rows = iter(self._source)
        if skip is None:
            rows = itertools.islice(rows, before, None)
        return itertools.islice(self._scored(rows), self._begin - before, None)

    def _scored(self, rows: Iterator[Row]) -> Iterator[Row]:
        while some := list(itertools.islice(rows, self._window)):
            fitting = [number for number, row in enumerate(some) if fits(row, self._shape)]
            chosen = [some[number] for number in fitting]
            scored = with_top_k(self._teacher, chosen, self._shape, self._k)
            found = dict(zip(fitting, scored, strict=True))
            yield from (found.get(number, row) for number, row in enumerate(some))


def _places(segments: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Where each packed row lies: its sequence and its places."""
    for at, row in enumerate(segments):
        for number in range(1, int(row.max()) + 1):
            places = np.flatnonzero(row == number)
            yield at, slice(int(places[0]), int(places[-1]) + 1)
