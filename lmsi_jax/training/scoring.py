"""What another model says of training rows, computed once and kept with them.

Of a teacher: its most probable tokens at each target. Of the model that training on pairs starts
from: the log-probabilities of both members. Of the base model, for selection: the losses of the
targets. Each row's numbers are those that it has alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.config.architecture import ModelConfig
from lmsi_jax.config.optimization import Training
from lmsi_jax.models.params import Params
from lmsi_jax.models.sharding import cast_params, mesh_context, shard_batch, shard_params
from lmsi_jax.training.data import Examples
from lmsi_jax.training.losses import (
    Arrays,
    Members,
    Teacher,
    members,
    pair_groups,
    token_logits,
    token_losses,
)
from lmsi_jax.training.packing import Batch, Row, Shape, batch_shape, fits, microbatches

Place = Callable[[Batch], Any]
"""Puts a microbatch where the model is, see `placement.fed`."""


def _here(batch: Batch) -> Any:
    return batch


@functools.partial(jax.jit, static_argnums=(0, 3))
def top_k_logprobs(
    config: ModelConfig, params: Params, batch: Arrays, k: int
) -> tuple[jax.Array, jax.Array]:
    """The k most probable tokens at each place and their log-probabilities, [B, T, k] each.

    The most probable comes first; at the start of a row, where nothing is predicted, -inf.
    """
    logprobs, ids = jax.lax.top_k(jax.nn.log_softmax(token_logits(config, params, batch)), k)
    ahead = ((0, 0), (1, 0), (0, 0))
    return jnp.pad(ids, ahead), jnp.pad(logprobs, ahead, constant_values=-jnp.inf)


@functools.partial(jax.jit, static_argnums=0)
def _entropies(config: ModelConfig, params: Params, batch: Arrays) -> jax.Array:
    return token_losses(config, params, batch)[1]


@functools.partial(jax.jit, static_argnums=0)
def _pairs(config: ModelConfig, params: Params, batch: Arrays) -> tuple[Members, jax.Array]:
    return members(config, params, batch), pair_groups(batch)


def with_top_k(
    teacher: Teacher, rows: Sequence[Row], shape: Shape, k: int, place: Place = _here
) -> list[Row]:
    """Returns the rows, in their order, with the teacher's k most probable tokens at each place.

    Nothing predicts a row's first token, so there the log-probabilities are -inf.

    Args:
      teacher: the model; it must have the tokenizer that the rows were made with.
      rows: tokenised examples.
      shape: the batch shape to score in; its microbatches and top_k are not used.
      k: tokens at each place.
      place: puts a microbatch where the teacher is.

    Raises:
      ValueError: a row has no room in the shape.
    """
    scored: dict[int, Row] = {}
    for batch in microbatches(_numbered(rows), dataclasses.replace(shape, top_k=0)):
        found = top_k_logprobs(teacher.config, teacher.params, place(batch), k)
        ids, logprobs = (np.asarray(value) for value in found)
        for at, where in _places(batch["segments"]):
            number = int(batch["groups"][at][where][0])
            known = logprobs[at, where].copy()
            known[0] = -np.inf
            scored[number] = dataclasses.replace(
                rows[number], teacher_ids=ids[at, where].copy(), teacher_logprobs=known
            )
    return [scored[number] for number in range(len(rows))]


def with_reference(
    config: ModelConfig, params: Params, rows: Sequence[Row], shape: Shape, place: Place = _here
) -> list[Row]:
    """Returns pairs, in their order, with a model's log-probabilities of both members.

    Args:
      config: the model's shape.
      params: its parameter tree.
      rows: tokenised pairs.
      shape: the batch shape to score in.
      place: puts a microbatch where the model is.

    Raises:
      ValueError: a pair has no room in the shape.
    """
    scored: dict[int, Row] = {}
    for batch in microbatches(_numbered(rows), dataclasses.replace(shape, pairs=True)):
        found, groups = _pairs(config, params, place(batch))
        logprobs, there = np.asarray(found.logprobs), np.asarray(found.tokens)[..., 0] > 0
        for number, both in zip(np.asarray(groups)[there], logprobs[there], strict=True):
            scored[int(number)] = dataclasses.replace(
                rows[number], reference=[float(value) for value in both]
            )
    return [scored[number] for number in range(len(rows))]


def target_losses(
    config: ModelConfig, params: Params, rows: Sequence[Row], shape: Shape, place: Place = _here
) -> list[np.ndarray]:
    """Returns the cross entropy of each row's target tokens, in nats, [targets] float64 each.

    Args:
      config: the model's shape.
      params: its parameter tree.
      rows: tokenised examples; tokens of weight 0 (question, exemplars) do not count.
      shape: the batch shape to score in.
      place: puts a microbatch where the model is.

    Raises:
      ValueError: a row has no room in the shape, or no target that something predicts.
    """
    if bare := [number for number, row in enumerate(rows) if not len(_targets(row))]:
        raise ValueError(f"row {bare[0]} has no target token that something predicts")
    found: dict[int, np.ndarray] = {}
    for batch in microbatches(_numbered(rows), shape):
        entropies = np.asarray(_entropies(config, params, place(batch)), np.float64)
        for at, where in _places(batch["segments"]):
            number = int(batch["groups"][at][where][0])
            found[number] = entropies[at, where][_targets(rows[number])]
    return [found[number] for number in range(len(rows))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetScorer:
    """A model that scores rows as a run's training wants them.

    Attributes:
      config: the model's shape.
      params: its parameters, where `placement.spread` puts them.
      training: which numbers, the batch shape to score in, and the mesh.
    """

    config: ModelConfig
    params: Params
    training: Training

    @classmethod
    def of(cls, config: ModelConfig, params: Params, training: Training) -> "TargetScorer":
        """Places a model on the run's mesh; for pairs, rounded as training computes.

        Their margins begin at 0 then.
        """
        params = shard_params(config, training, params)
        if training.preference is not None:
            params = cast_params(training, params)
        return cls(config=config, params=params, training=training)

    def records(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Returns what is stored of each row, as JSON values; {} of rows without room.

        Pairs: "reference". Others, at each target that something predicts: "ids" and "logprobs",
        these to 1e-5, which divergences of some tenths of a nat do not notice.
        """
        shape = batch_shape(self.training)
        room = dataclasses.replace(shape, top_k=0)
        fitting = [number for number, row in enumerate(rows) if fits(row, room)]
        chosen = [rows[number] for number in fitting]
        with mesh_context(self.training):
            if shape.pairs:
                found = with_reference(self.config, self.params, chosen, shape, self._place)
            else:
                model = Teacher(config=self.config, params=self.params)
                found = with_top_k(model, chosen, shape, shape.top_k, self._place)
        made = {n: _record(row) for n, row in zip(fitting, found, strict=True)}
        return [made.get(number, {}) for number in range(len(rows))]

    def losses(self, rows: Sequence[Row]) -> list[np.ndarray | None]:
        """Returns `target_losses`; None of rows without room or without a target."""
        room = dataclasses.replace(batch_shape(self.training), top_k=0)
        chosen = [n for n, row in enumerate(rows) if fits(row, room) and len(_targets(row))]
        some = [rows[number] for number in chosen]
        with mesh_context(self.training):
            found = target_losses(self.config, self.params, some, room, self._place)
        made = dict(zip(chosen, found, strict=True))
        return [made.get(number) for number in range(len(rows))]

    def _place(self, batch: Batch) -> Arrays:
        stacked = shard_batch(self.training, {name: value[None] for name, value in batch.items()})
        return {name: value[0] for name, value in stacked.items()}


def _record(row: Row) -> dict[str, Any]:
    if row.reference is not None:
        return {"reference": list(row.reference)}
    assert row.teacher_ids is not None and row.teacher_logprobs is not None
    places = _targets(row)
    logprobs = row.teacher_logprobs[places].astype(np.float64)
    return {"ids": row.teacher_ids[places].tolist(), "logprobs": logprobs.round(5).tolist()}


def _targets(row: Row) -> np.ndarray:
    """Places of the tokens that are learnt and that something predicts."""
    return 1 + np.flatnonzero(np.asarray(row.weights[1:]) > 0)


class ScoredRows:
    """A stream of rows with what `Scorer.records` said of them.

    Args:
      source: the rows; each says which example it is.
      records: by example.
    """

    def __init__(self, source: Examples, records: Sequence[Mapping[str, Any]]):
        self._source = source
        self._known = [_arrays(record) for record in records]

    def skip(self, count: int) -> None:
        """Passes over `count` rows, before anything is read."""
        self._source.skip(count)

    def __iter__(self) -> Iterator[Row]:
        for row in self._source:
            yield _with_known(row, self._known[row.example])


def _arrays(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    kinds = {"ids": np.int32, "logprobs": np.float32, "reference": np.float64}
    return {name: np.array(value, kinds[name]) for name, value in record.items()}


def _with_known(row: Row, known: Mapping[str, np.ndarray]) -> Row:
    if "reference" in known:
        return dataclasses.replace(row, reference=known["reference"].tolist())
    if "ids" not in known:
        return row
    places, k = _targets(row), known["ids"].shape[1:]
    ids = np.zeros((len(row.tokens), *k), np.int32)
    logprobs = np.full(ids.shape, -np.inf, np.float32)
    ids[places], logprobs[places] = known["ids"], known["logprobs"]
    return dataclasses.replace(row, teacher_ids=ids, teacher_logprobs=logprobs)


def _numbered(rows: Sequence[Row]) -> list[Row]:
    """The group is a row's number while it is packed: so it is found again."""
    return [dataclasses.replace(row, group=number) for number, row in enumerate(rows)]


def _places(segments: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Where each packed row lies: its sequence and its places."""
    for at, row in enumerate(segments):
        for number in range(1, int(row.max()) + 1):
            places = np.flatnonzero(row == number)
            yield at, slice(int(places[0]), int(places[-1]) + 1)
