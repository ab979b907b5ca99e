"""Scores rows under a teacher: its most probable tokens at each place, to be stored with paths."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import Params
from lmsi_jax.training.losses import Arrays, token_scores
from lmsi_jax.training.packing import Row, Shape, microbatches
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


def stream_with_top_k(
    teacher: Teacher, rows: Iterator[Row], shape: Shape, k: int, window: int = 64
) -> Iterator[Row]:
    """`with_top_k` for a stream, `window` rows at a time; a row that comes again is not scored."""
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], Row] = {}
    while some := list(itertools.islice(rows, window)):
        names = [(row.prefix, tuple(row.tokens)) for row in some]
        new = {name: row for name, row in zip(names, some, strict=True) if name not in known}
        known |= zip(new, with_top_k(teacher, list(new.values()), shape, k), strict=True)
        for name, row in zip(names, some, strict=True):
            found = known[name]
            yield dataclasses.replace(
                row, teacher_ids=found.teacher_ids, teacher_logprobs=found.teacher_logprobs
            )


def _places(segments: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Where each packed row lies: its sequence and its places."""
    for at, row in enumerate(segments):
        for number in range(1, int(row.max()) + 1):
            places = np.flatnonzero(row == number)
            yield at, slice(int(places[0]), int(places[-1]) + 1)
