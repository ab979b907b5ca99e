"""Fine-tuning: examples -> a checkpoint, from the base model or from the last round's.

Scoring: what another model says of a round's training rows, computed once and kept on disk.

Of a teacher: its most probable tokens at each target. Of the model that training on pairs starts
from: the log-probabilities of both members. Shards of rows, in the order of the examples; each is
complete or absent, so this goes on where it was. Training reads them whatever order it draws in.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from lmsi_jax.config import Lora, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models import sharding
from lmsi_jax.pipeline.context import Context, settings_record
from lmsi_jax.pipeline.mix import read_examples, read_funnel, read_pairs
from lmsi_jax.pipeline.score import ROWS, write_missing
from lmsi_jax.records import Example
from lmsi_jax.runtime.files import remove
from lmsi_jax.runtime.store import ShardStore, shard_names
from lmsi_jax.training import checkpoints, scoring, validation
from lmsi_jax.training.data import Examples, RowReader, in_order
from lmsi_jax.training.lora import check_installed, export_adapters, write_peft
from lmsi_jax.training.losses import Teacher
from lmsi_jax.training.metrics import records
from lmsi_jax.training.packing import Row, batch_shape, check
from lmsi_jax.training.trainer import drop_unrecorded, state_shapes, train


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
    if sharding.make_training_mesh(context.run.training).is_multiprocess:
        raise LmsiError(
            "pairs and a teacher's top_k are scored by process 0 alone; choose Training.data and "
            "Training.model that its own devices suffice for"
        )

    def load_scorer() -> Callable[[Sequence[Row]], list[dict[str, Any]]]:
        """Loads the model; returns what scores rows with it."""
        model = load()
        return scoring.TargetScorer.of(model.config, model.params, context.run.training).records

    write_missing(
        ShardStore(stage.directory),
        _names(examples),
        _chunks(examples),
        load_scorer,
        f"round {round_index}: scoring",
    )
    stage.finish()


def read_scored(context: Context, round_index: int, examples: Examples) -> scoring.ScoredRows:
    """Returns the examples with what `score` wrote of them.

    Raises:
      LmsiError: what stands there is not of these examples.
    """
    store, names = ShardStore(context.folder(round_index, "score")), _names(examples)
    if store.names() != names:
        raise LmsiError(f"{store.directory} is not of these examples; delete it and repeat this")
    return scoring.ScoredRows(examples, [row for name in names for row in store.read(name)])


def _names(examples: Examples) -> tuple[str, ...]:
    return shard_names(-(-examples.count // ROWS))


def _settings(context: Context, round_index: int) -> dict[str, Any]:
    """What the numbers, and which of them there are, depend on."""
    training = context.run_in(round_index).training
    names = (
        *(
            "sequences_per_prefix",
            "sequence_length",
            "max_prefix_length",
            "compute_dtype",
            "data",
            "model",
        ),
        *("human_rate", "task_rates", "validation_count"),
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


LoadTeacher = Callable[[], Teacher]


def finetune(
    context: Context,
    round_index: int,
    inputs: dict[str, str],
    load_teacher: LoadTeacher | None = None,
) -> str:
    """Trains a round's model; returns the stage's fingerprint.

    Args:
      context: the run.
      round_index: the round.
      inputs: fingerprints of the examples and of the model that training starts from.
      load_teacher: for a `Loss.distillation` that wants a model.

    Raises:
      LmsiError: no path was kept in the whole round.
    """
    run = context.run_in(round_index)
    training = run.training
    config = {**settings_record(training), "Run": {"seed": run.seed, "start_from": run.start_from}}
    stage = context.stage(round_index, "train", config, inputs)
    if not checkpoints.has_checkpoint(stage.directory):
        remove(stage.directory / "stage.json")  # the record does not cover checkpoints, see below
    if context.done(stage):
        return stage.fingerprint
    drop_unrecorded(stage.directory)
    if training.lora is not None and training.lora.peft:
        check_installed()  # before the training
    if _scored(training, load_teacher):
        examples, _ = _examples(context, round_index)
        load = load_teacher or _reference(context, round_index)
        score(context, round_index, inputs, examples, load)
    with context.training_together(training, "train", round_index):
        train_round(context, round_index, load_teacher)
    if training.lora is not None:
        _write_adapters(context, training.lora, stage.directory)
    context.write_digest(stage.directory, stage.directory)
    # Orbax puts times into a checkpoint's files; the digest and the metrics say what is in them.
    stage.finish([stage.directory / "digest.json", *records(stage.directory)])
    return stage.fingerprint


def _scored(training: Training, load_teacher: LoadTeacher | None) -> bool:
    """Whether training reads what another model said of its rows."""
    of_teacher = load_teacher is not None and training.loss.distillation == "top_k"
    return training.preference is not None or of_teacher


def _reference(context: Context, round_index: int) -> LoadTeacher:
    """Loads the model that training on pairs starts from."""
    return lambda: Teacher(
        config=context.run.model, params=context.params(_start(context, round_index))
    )


def _start(context: Context, round_index: int) -> int:
    """The round whose model a round's training starts from."""
    return 0 if context.run.start_from == "base" else round_index - 1


def _write_adapters(context: Context, lora: Lora, directory: epath.Path) -> None:
    """Writes the adapters by themselves, beside the run's checkpoint."""
    own, state = directory / "adapters", state_shapes(context.run.training, context.shapes)
    exported = export_adapters(directory, own, state)
    if lora.peft:
        adapters = checkpoints.load_params(exported, state["adapters"])
        write_peft(lora, adapters, own / "peft", context.run.init_checkpoint)


def train_round(
    context: Context, round_index: int, load_teacher: LoadTeacher | None = None
) -> None:
    """Trains a round's model to its last checkpoint, in this process' part."""
    run = context.run_in(round_index)
    training = run.training
    examples, held_out = _examples(context, round_index)
    rows: Iterable[Row] = examples
    teacher = None
    if _scored(training, load_teacher):
        rows = read_scored(context, round_index, examples)
    elif load_teacher:
        teacher = load_teacher()
    train(
        run.model,
        training,
        functools.partial(context.params, _start(context, round_index)),
        fitting_rows(rows, training),
        context.folder(round_index, "train"),
        groups=examples.groups,
        name=f"round {round_index}: training",
        teacher=teacher,
        held_out=fitting_rows(in_order(held_out, context.tokenizer_path), training)
        if held_out
        else (),
    )


def _examples(context: Context, round_index: int) -> tuple[Examples, list[Example]]:
    """A round's examples, or its pairs, as training draws them, and what is held out of them.

    Raises:
      LmsiError: there are none.
    """
    run = context.run_in(round_index)
    training = run.training
    seed, tasks = run.seed * 1000 + round_index, dict(training.task_rates)
    if training.preference is not None:
        pairs = {"pairs": read_pairs(context, round_index)}
        own = Examples(pairs, {"pairs": 1.0}, context.tokenizer_path, task_rates=tasks, seed=seed)
        return own, []
    sources = read_examples(context, round_index)
    if not any(sources.values()):
        raise _nothing_kept(context, round_index)
    rates = {"self_generated": 1.0 - training.human_rate, "human": training.human_rate}
    sources = {name: rows for name, rows in sources.items() if rates[name] > 0}
    sources, held_out = validation.split(sources, training.validation_count)
    own = Examples(sources, rates, context.tokenizer_path, task_rates=tasks, seed=seed)
    return own, held_out


def _nothing_kept(context: Context, round_index: int) -> LmsiError:
    """Says what left no path of a round: a filter, or all that comes before filters."""
    steps = zip(*read_funnel(context, round_index).values(), strict=True)  # by filter, then by task
    for step in steps:
        if not any(one.kept for one in step):
            dropped = sum((collections.Counter(one.dropped) for one in step), collections.Counter())
            why = ", ".join(f"{reason!r}: {n:,}" for reason, n in dropped.most_common())
            if why:
                return LmsiError(
                    f"round {round_index} kept no path: {step[0].filter} dropped all that were "
                    f"left ({why}); loosen it, or take it out of Mixing"
                )
    return LmsiError(
        f"round {round_index} kept no path: no answer was parsed, or Augmentation.min_confidence "
        "leaves none. Look at `lmsi report`; use a stronger base model or another prompt"
    )


def fitting_rows(rows: Iterable[Row], training: Training) -> RowReader:
    """Leaves out rows that the batch shape has no room for; reading raises where none fits.

    Raises:
      LmsiError: none of the first rows fits.
    """
    tried = fitted = 0

    def fits(row: Row) -> bool:
        """Whether there is room for it."""
        nonlocal tried, fitted
        tried += 1
        try:
            check(row, batch_shape(training))
        except ValueError as reason:
            if not fitted and tried > 1000:
                raise LmsiError(
                    f"no training row fits: {reason}; raise Training.sequence_length or "
                    "Training.max_prefix_length"
                ) from None
            return False
        fitted += 1
        return True

    return RowReader(rows, fits)
