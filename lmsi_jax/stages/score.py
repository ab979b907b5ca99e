"""Scoring: what another model says of a round's training rows, computed once and kept on disk.

Of a teacher: its most probable tokens at each target. Of the model that training on pairs starts
from: the log-probabilities of both members. Shards of rows, in the order of the examples; each is
complete or absent, so this goes on where it was. Training reads them whatever order it draws in.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmsi_jax.errors import LmsiError
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.scored_shards import ROWS, write_missing
from lmsi_jax.store import ShardStore, shard_names
from lmsi_jax.training import placement, scoring
from lmsi_jax.training.data import Examples
from lmsi_jax.training.packing import Row
from lmsi_jax.training.teacher import Teacher


def score(
    context: Context,
    round_index: int,
    inputs: dict[str, str],
    examples: Examples,
    load: Callable[[], Teacher],
) -> None:
    """Writes what a model says of the examples.

    Args:
      context: the run.
      round_index: the round.
      inputs: fingerprints of the examples and of the model.
      examples: what training draws.
      load: returns the model; not called where the stage is finished.

    Raises:
      LmsiError: the disk is full; the model has another vocabulary; or the training mesh is larger
        than this process, which scores alone.
    """
    stage = context.stage(round_index, "score", _settings(context, round_index), inputs)
    if context.done(stage):
        return
    if placement.spans(context.run.training):
        raise LmsiError(
            "pairs and a teacher's top_k are scored by process 0 alone; choose Training.data and "
            "Training.model that its own devices suffice for"
        )

    def load_scorer() -> Callable[[Sequence[Row]], list[dict[str, Any]]]:
        """Loads the model; returns what scores rows with it."""
        model = load()
        return scoring.Scorer.of(model.config, model.params, context.run.training).records

    write_missing(
        ShardStore(stage.directory),
        _names(examples),
        _chunks(examples),
        load_scorer,
        f"round {round_index}: scoring",
    )
    stage.finish()


def read_scored(context: Context, round_index: int, examples: Examples) -> scoring.Scored:
    """Returns the examples with what `score` wrote of them.

    Raises:
      LmsiError: what stands there is not of these examples.
    """
    store, names = ShardStore(context.folder(round_index, "score")), _names(examples)
    if store.names() != names:
        raise LmsiError(f"{store.directory} is not of these examples; delete it and repeat this")
    return scoring.Scored(examples, [row for name in names for row in store.read(name)])


def _names(examples: Examples) -> tuple[str, ...]:
    return shard_names(-(-examples.count // ROWS))


def _settings(context: Context, round_index: int) -> dict[str, Any]:
    """What the numbers, and which of them there are, depend on."""
    training = context.run_in(round_index).training
    names = (
        *("rows", "length", "prefix_length", "compute_dtype", "data", "model"),
        *("strong_rate", "task_rates", "validation_count"),
    )
    settings = {name: getattr(training, name) for name in names}
    own: dict[str, Any] = {"Training": settings, "Run": {"start_from": context.run.start_from}}
    if training.preference is None:
        own["Loss"] = {"top_k": training.loss.top_k}
    return own


def _chunks(examples: Examples) -> Iterator[list[Row]]:
    rows = examples.in_order()
    while some := list(itertools.islice(rows, ROWS)):
        yield some
