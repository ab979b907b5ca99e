"""Losses and log-probabilities of training rows: of another model, and on rows held out.

    with_top_k      a teacher's most probable tokens at each target (distillation)
    with_reference  log-probabilities of both members of a pair (preferences)
    target_losses   losses of the targets (selection)
    likelihoods     log-probability of the targets, and if greedy decoding gives them (harnesses)
    Validation      the loss of the model in training on rows that it does not learn

The first three are computed once and stored with the rows. A row's numbers do not depend on the
rows that it is packed with.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.config import ModelConfig, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models import sharding
from lmsi_jax.models.params import Params, cast_params
from lmsi_jax.models.sharding import DeviceMesh, make_training_mesh, shard_batch, shard_params
from lmsi_jax.models.transformer import logits
from lmsi_jax.records import Example
from lmsi_jax.training import packing
from lmsi_jax.training.data import Examples
from lmsi_jax.training.forward import packed_states, prepare_weights
from lmsi_jax.training.losses import (
    Arrays,
    Members,
    Teacher,
    members,
    pair_groups,
    token_logits,
    token_losses,
    weighted_sums,
)
from lmsi_jax.training.packing import (
    Batch,
    DistillationRow,
    PairRow,
    Row,
    Shape,
    batch_shape,
    distillation_row,
    fits,
    microbatches,
)

Place = Callable[[Batch], Any]
"""Puts a microbatch on the model's devices, see `sharding.shard_batch`."""


def _on_default_device(batch: Batch) -> Any:
    return batch


@functools.partial(jax.jit, static_argnums=(0, 3))
def top_k_logprobs(
    config: ModelConfig, params: Params, batch: Arrays, k: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the k most probable tokens at each place and their log-probabilities, [B, T, k] each.

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
    teacher: Teacher, rows: Sequence[Row], shape: Shape, k: int, place: Place = _on_default_device
) -> list[DistillationRow]:
    """Returns the rows, in their order, with the teacher's k most probable tokens at each place.

    Nothing predicts a row's first token, so there the log-probabilities are -inf.

    Args:
      teacher: the model; it must have the tokenizer that the rows were made with.
      rows: tokenised examples.
      shape: the batch shape to score in; its microbatches and top_k are not used.
      k: tokens at each place.
      place: puts a microbatch on the teacher's devices.

    Raises:
      ValueError: a row has no room in the shape.
    """
    scored: dict[int, DistillationRow] = {}
    for batch in microbatches(_numbered(rows), dataclasses.replace(shape, top_k=0)):
        top = top_k_logprobs(teacher.config, teacher.params, place(batch), k)
        ids, logprobs = (np.asarray(value) for value in top)
        for at, places in _places(batch["segments"]):
            number = int(batch["groups"][at][places][0])
            row_logprobs = logprobs[at, places].copy()
            row_logprobs[0] = -np.inf
            scored[number] = distillation_row(rows[number], ids[at, places].copy(), row_logprobs)
    return [scored[number] for number in range(len(rows))]


def with_reference(
    config: ModelConfig,
    params: Params,
    rows: Sequence[PairRow],
    shape: Shape,
    place: Place = _on_default_device,
) -> list[PairRow]:
    """Returns pairs, in their order, with a model's log-probabilities of both members.

    Args:
      config: the model's shape.
      params: its parameter tree.
      rows: tokenised pairs.
      shape: the batch shape to score in.
      place: puts a microbatch on the model's devices.

    Raises:
      ValueError: a pair has no room in the shape.
    """
    scored: dict[int, PairRow] = {}
    for batch in microbatches(_numbered(rows), dataclasses.replace(shape, pairs=True)):
        sums, groups = _pairs(config, params, place(batch))
        logprobs, present = np.asarray(sums.logprobs), np.asarray(sums.tokens)[..., 0] > 0
        for number, both in zip(np.asarray(groups)[present], logprobs[present], strict=True):
            scored[int(number)] = dataclasses.replace(
                rows[number], reference=[float(value) for value in both]
            )
    return [scored[number] for number in range(len(rows))]


def target_losses(
    config: ModelConfig,
    params: Params,
    rows: Sequence[Row],
    shape: Shape,
    place: Place = _on_default_device,
) -> list[np.ndarray]:
    """Returns the cross entropy of each row's target tokens, in nats, [targets] float64 each.

    Args:
      config: the model's shape.
      params: its parameter tree.
      rows: tokenised examples; tokens of weight 0 (question, exemplars) do not count.
      shape: the batch shape to score in.
      place: puts a microbatch on the model's devices.

    Raises:
      ValueError: a row has no room in the shape, or no predicted target.
    """
    if bare := [number for number, row in enumerate(rows) if not len(_targets(row))]:
        raise ValueError(f"row {bare[0]} has no target token that something predicts")
    losses: dict[int, np.ndarray] = {}
    for batch in microbatches(_numbered(rows), shape):
        entropies = np.asarray(_entropies(config, params, place(batch)), np.float64)
        for at, places in _places(batch["segments"]):
            number = int(batch["groups"][at][places][0])
            losses[number] = entropies[at, places][_targets(rows[number])]
    return [losses[number] for number in range(len(rows))]


@functools.partial(jax.jit, static_argnums=0)
def _likelihoods(
    config: ModelConfig, params: Params, batch: Arrays, sequences: jax.Array, places: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-probability of the tokens at K places, and if they are the most probable."""
    weights, states = packed_states(config, params, batch)
    scores = logits(config, weights, states[sequences, places - 1][None])[0]  # [K, V]
    tokens = batch["tokens"][sequences, places]
    picked = jnp.take_along_axis(scores, tokens[:, None], axis=-1)[:, 0]
    return picked - jax.nn.logsumexp(scores, axis=-1), scores.argmax(-1) == tokens


def likelihoods(
    config: ModelConfig, params: Params, rows: Sequence[Row], shape: Shape
) -> list[tuple[float, bool]]:
    """Returns each row's sum of the log-probabilities of its targets, and if they are greedy.

    The vocabulary's scores are computed at the targets alone.

    Args:
      config: the model's shape.
      params: its parameter tree.
      rows: token sequences whose targets have weight 1, all else 0.
      shape: the batch shape to score in.

    Raises:
      ValueError: a row has no room in the shape, or no predicted target.
    """
    targets = [_targets(row) for row in rows]
    if bare := [number for number, places in enumerate(targets) if not len(places)]:
        raise ValueError(f"row {bare[0]} has no target token that something predicts")
    scored: dict[int, tuple[float, bool]] = {}
    for batch in microbatches(_numbered(rows), shape):
        found = [
            (int(batch["groups"][at][places][0]), at, places.start)
            for at, places in _places(batch["segments"])
        ]
        count = sum(len(targets[number]) for number, _, _ in found)
        # Rounded up to a power of eight, so that few programs are compiled.
        most = shape.rows * shape.length
        index = np.ones((2, min(most, next(8**n for n in range(2, 12) if 8**n >= count))), np.int32)
        index[0] = 0
        ends = np.cumsum([0, *(len(targets[number]) for number, _, _ in found)])
        for (number, at, start), begin, end in zip(found, ends[:-1], ends[1:], strict=True):
            index[0, begin:end] = at
            index[1, begin:end] = start + targets[number]
        logprobs, best = map(np.asarray, _likelihoods(config, params, batch, *index))
        for (number, _, _), begin, end in zip(found, ends[:-1], ends[1:], strict=True):
            total = float(logprobs[begin:end].sum(dtype=np.float64))
            scored[number] = total, bool(best[begin:end].all())
    return [scored[number] for number in range(len(rows))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetScorer:
    """A model that scores rows as a run's training needs them.

    Attributes:
      config: the model's shape.
      params: its parameters, placed by `sharding.shard_params`.
      training: decides on the numbers, the batch shape to score in, and the mesh.
    """

    config: ModelConfig
    params: Params
    training: Training

    @classmethod
    def of(cls, config: ModelConfig, params: Params, training: Training) -> "TargetScorer":
        """Places a model on the run's mesh; for pairs, rounded as training computes.

        Their margins then start at 0.
        """
        params = shard_params(config, make_training_mesh(training), params)
        if training.preference is not None:
            params = cast_params(params, training.compute_dtype)
        return cls(config=config, params=params, training=training)

    def records(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Returns what is stored of each row, as JSON values; {} for rows without room.

        Pairs: "reference". Others, at each predicted target: "ids" and "logprobs", these to 1e-5,
        which divergences of some tenths of a nat do not notice.
        """
        shape = batch_shape(self.training)
        room = dataclasses.replace(shape, top_k=0)
        numbers = [number for number, row in enumerate(rows) if fits(row, room)]
        with self._mesh.context():
            if shape.pairs:
                pairs = [row for number in numbers if isinstance(row := rows[number], PairRow)]
                scored: Sequence[Row] = with_reference(
                    self.config, self.params, pairs, shape, self._place
                )
            else:
                model = Teacher(config=self.config, params=self.params)
                examples = [rows[number] for number in numbers]
                scored = with_top_k(model, examples, shape, shape.top_k, self._place)
        records = {n: _record(row) for n, row in zip(numbers, scored, strict=True)}
        return [records.get(number, {}) for number in range(len(rows))]

    def losses(self, rows: Sequence[Row]) -> list[np.ndarray | None]:
        """Returns `target_losses`; None for rows without room or without a target."""
        room = dataclasses.replace(batch_shape(self.training), top_k=0)
        numbers = [n for n, row in enumerate(rows) if fits(row, room) and len(_targets(row))]
        examples = [rows[number] for number in numbers]
        with self._mesh.context():
            losses = target_losses(self.config, self.params, examples, room, self._place)
        by_number = dict(zip(numbers, losses, strict=True))
        return [by_number.get(number) for number in range(len(rows))]

    @property
    def _mesh(self) -> DeviceMesh:
        return make_training_mesh(self.training)

    def _place(self, batch: Batch) -> Arrays:
        stacked = shard_batch(self._mesh, {name: value[None] for name, value in batch.items()})
        return {name: value[0] for name, value in stacked.items()}


def _record(row: Row) -> dict[str, Any]:
    if isinstance(row, PairRow):
        assert row.reference is not None
        return {"reference": list(row.reference)}
    assert isinstance(row, DistillationRow)
    places = _targets(row)
    logprobs = row.teacher_logprobs[places].astype(np.float64)
    return {"ids": row.teacher_ids[places].tolist(), "logprobs": logprobs.round(5).tolist()}


def _targets(row: Row) -> np.ndarray:
    """Returns the places of the target tokens that something predicts."""
    return 1 + np.flatnonzero(np.asarray(row.weights[1:]) > 0)


class ScoredRows:
    """A stream of rows with the numbers that `TargetScorer.records` gave them.

    Args:
      source: the rows; `Row.example` counts them.
      records: by example.
    """

    def __init__(self, source: Examples, records: Sequence[Mapping[str, Any]]):
        self._source = source
        self._records = [_arrays(record) for record in records]

    def skip(self, count: int) -> None:
        """Skips `count` rows, before anything is read."""
        self._source.skip(count)

    def __iter__(self) -> Iterator[Row]:
        for row in self._source:
            yield _with_record(row, self._records[row.example])


def _arrays(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    kinds = {"ids": np.int32, "logprobs": np.float32, "reference": np.float64}
    return {name: np.array(value, kinds[name]) for name, value in record.items()}


def _with_record(row: Row, record: Mapping[str, np.ndarray]) -> Row:
    if isinstance(row, PairRow) and "reference" in record:
        return dataclasses.replace(row, reference=record["reference"].tolist())
    if "ids" not in record:
        return row
    places, k = _targets(row), record["ids"].shape[1:]
    ids = np.zeros((len(row.tokens), *k), np.int32)
    logprobs = np.full(ids.shape, -np.inf, np.float32)
    ids[places], logprobs[places] = record["ids"], record["logprobs"]
    return distillation_row(row, ids, logprobs)


def _numbered(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with their numbers as groups, so that they are identified when packed."""
    return [dataclasses.replace(row, group=number) for number, row in enumerate(rows)]


def _places(segments: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Yields the sequence and the places of each packed row."""
    for at, row in enumerate(segments):
        for number in range(1, int(row.max()) + 1):
            places = np.flatnonzero(row == number)
            yield at, slice(int(places[0]), int(places[-1]) + 1)


Sources = dict[str, list[Example]]


def hold_out(sources: Mapping[str, Sequence[Example]], count: int) -> tuple[Sources, list[Example]]:
    """Holds out whole questions, in the order of their hashes, until there are enough examples.

    Args:
      sources: examples by source, "self_generated" and "human".
      count: least number of examples to hold out, if there are that many.

    Returns:
      (the sources without the held-out examples, those in the order of their hashes).

    Raises:
      LmsiError: a source would have no example left.
    """
    by_question: dict[str, list[Example]] = {}
    for example in (example for rows in sources.values() for example in rows):
        by_question.setdefault(example.uid, []).append(example)
    held_out: list[Example] = []
    taken: set[str] = set()
    for uid in sorted(by_question, key=lambda uid: hashlib.sha256(uid.encode()).digest()):
        if len(held_out) >= count:
            break
        held_out += by_question[uid]
        taken.add(uid)
    rest = {name: [row for row in rows if row.uid not in taken] for name, rows in sources.items()}
    for name, rows in sources.items():
        if rows and not rest[name]:
            raise LmsiError(
                f"Training.validation_count = {count} leaves none of the {len(rows)} {name} "
                "examples to train on; lower it"
            )
    return rest, held_out


class Validation:
    """The loss on held-out rows; false if there are none.

    Args:
      config: the model's shape.
      training: the batch shape and the mesh.
      rows: the held-out rows; they stay in the host's memory, packed.
    """

    def __init__(self, config: ModelConfig, training: Training, rows: Iterable[packing.Row]):
        self._config, self._training = config, training
        shape = dataclasses.replace(batch_shape(training), top_k=0)
        microbatches = list(packing.microbatches(rows, shape))
        if microbatches:  # empty ones fill the last step
            empty = {name: np.zeros_like(array) for name, array in microbatches[0].items()}
            microbatches += [empty] * (-len(microbatches) % shape.microbatches)
        self._batches = list(packing.stack_microbatches(microbatches, shape.microbatches))

    def __bool__(self) -> bool:
        return bool(self._batches)

    def loss(self, params: Params) -> float:
        """Returns the weighted mean cross entropy of the target tokens, in nats.

        Args:
          params: the plain model, placed as the training's.
        """
        mesh = sharding.make_training_mesh(self._training)
        totals = np.zeros(2)
        for batch in self._batches:
            placed = sharding.shard_batch(mesh, batch)
            totals += np.asarray(_sums(self._config, self._training, params, placed), np.float64)
        return float(totals[0] / totals[1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(
    config: ModelConfig, training: Training, params: Params, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Sums the weighted cross entropy and the weights of a step's batch."""
    mesh = sharding.make_training_mesh(training)

    def microbatch_sums(microbatch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, sums = weighted_sums(config, weights, microbatch, 1)
        return sums.cross_entropy, microbatch["weights"].sum()

    with mesh.context():
        weights = prepare_weights(config, cast_params(params, training.compute_dtype))
        entropies, totals = jax.lax.map(microbatch_sums, batch)
        return sharding.replicate(mesh, (entropies.sum(), totals.sum()))
