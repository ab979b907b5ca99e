"""Fine-tuning: examples -> a checkpoint, from the base model or from the last round's.

If training needs what another model says of its rows (a teacher's most probable tokens, or the
log-probabilities of both members of a pair under the model that training starts from), that is
computed first and stored in shards of rows, each complete or absent, in the order of the examples.
"""

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from lmsi_jax.config import Lora, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.hf_export import export_model
from lmsi_jax.models import sharding
from lmsi_jax.models.params import Params
from lmsi_jax.pipeline.context import Round
from lmsi_jax.pipeline.mix import read_examples, read_funnel, read_pairs
from lmsi_jax.pipeline.score import ROWS, write_missing
from lmsi_jax.pipeline.step import Fields, Step
from lmsi_jax.records import Example
from lmsi_jax.runtime.files import remove
from lmsi_jax.runtime.run_folders import FREED
from lmsi_jax.runtime.store import ShardStore, Stage, shard_names
from lmsi_jax.training import checkpoints, scoring
from lmsi_jax.training.data import Examples, RowReader, in_order
from lmsi_jax.training.lora import check_installed, export_adapters, write_peft
from lmsi_jax.training.losses import Teacher
from lmsi_jax.training.metrics import records
from lmsi_jax.training.packing import Row, batch_shape, check
from lmsi_jax.training.trainer import drop_unrecorded, state_shapes, train

LoadTeacher = Callable[[], Teacher]


class TeacherScoresStep(Step):
    """Stores a teacher's or a reference's log-probabilities of the training rows.

    Args:
      examples: what training draws.
      load: loads the model; not called if the step is finished.

    Raises:
      LmsiError: the disk is full; the model has another vocabulary; or the training mesh is larger
        than this process, which scores alone.
    """

    name = "teacher_scores"
    settings = (
        Fields(
            part="training",
            names=(
                *("sequences_per_prefix", "sequence_length", "max_prefix_length", "compute_dtype"),
                *("data", "model", "human_rate", "task_rates", "validation_count"),
            ),
        ),
        Fields(part="", names=("start_from",)),
        Fields(
            part="training.loss",
            names=("top_k",),
            when=lambda round: round.settings.training.preference is None,
        ),
    )
    inputs = ("mix", "model", "teacher")

    def __init__(self, examples: Examples, load: LoadTeacher):
        self._examples = examples
        self._load = load

    def write(self, round: Round, store: ShardStore) -> None:
        training = round.settings.training
        if sharding.make_training_mesh(training).is_multiprocess:
            raise LmsiError(
                "pairs and a teacher's top_k are scored by process 0 alone; choose Training.data "
                "and Training.model that its own devices suffice for"
            )

        def load_scorer() -> Callable[[Sequence[Row]], list[dict[str, Any]]]:
            """Loads the model; returns the function that scores rows with it."""
            model = self._load()
            return scoring.TargetScorer.of(model.config, model.params, training).records

        names, chunks = _names(self._examples), _chunks(self._examples)
        write_missing(store, names, chunks, load_scorer, f"round {round.index}: scoring")


def read_scored(round: Round, examples: Examples) -> scoring.ScoredRows:
    """Returns the examples with what `TeacherScoresStep` wrote of them.

    Raises:
      LmsiError: the shards are of other examples.
    """
    store, names = round.store("teacher_scores"), _names(examples)
    if store.names() != names:
        raise LmsiError(f"{store.directory} is not of these examples; delete it and repeat this")
    return scoring.ScoredRows(examples, [row for name in names for row in store.read(name)])


def _names(examples: Examples) -> tuple[str, ...]:
    return shard_names(-(-examples.count // ROWS))


def _chunks(examples: Examples) -> Iterator[list[Row]]:
    rows = examples.in_order()
    while some := list(itertools.islice(rows, ROWS)):
        yield some


class TrainStep(Step):
    """Trains the round's model.

    Args:
      load_teacher: loads the teacher, for a `Loss.distillation` that needs its model.

    Raises:
      LmsiError: no sample was kept in the whole round.
    """

    name = "train"
    settings = (Fields(part="training"), Fields(part="", names=("seed", "start_from")))
    inputs = ("mix", "model", "teacher")

    def __init__(self, load_teacher: LoadTeacher | None = None):
        self._load_teacher = load_teacher

    def prepare(self, folder: epath.Path) -> None:
        freed = (folder / FREED).exists()  # on purpose, since nothing needs it any more
        if not (freed or checkpoints.has_checkpoint(folder)):
            remove(folder / "stage.json")  # its checksums do not cover checkpoints, see `outputs`

    def run(self, round: Round, stage: Stage) -> None:
        training, context = round.settings.training, round.context
        round.reader.clear()
        drop_unrecorded(stage.directory)
        if (stage.directory / FREED).exists():  # its checkpoint has no state to continue from
            checkpoints.drop(stage.directory)
            remove(stage.directory / FREED)
        if training.lora is not None and training.lora.peft:
            check_installed()  # before the training
        examples = _examples(round)
        if self._reads_scores(training):
            # Training on pairs is against the model that it starts from.
            load = self._load_teacher or (
                lambda: Teacher(config=round.settings.model, params=context.params(round.start))
            )
            TeacherScoresStep(examples[0], load).execute(round, stage.inputs)
        with self.together(round):
            self._train(round, *examples)
        if training.lora is not None:
            _write_adapters(round, training.lora, stage.directory)
        context.write_digest(stage.directory, stage.directory)

    def together(self, round: Round) -> contextlib.AbstractContextManager[None]:
        """Has the other processes train too, if the mesh needs their devices."""
        if not sharding.make_training_mesh(round.settings.training).is_multiprocess:
            return contextlib.nullcontext()
        return super().together(round)

    def share(self, round: Round) -> None:
        self._train(round, *_examples(round))

    def outputs(self, stage: Stage) -> Iterable[epath.PathLike]:
        # Orbax puts times into a checkpoint's files; the digest and the metrics cover them.
        return [stage.directory / "digest.json", *records(stage.directory)]

    def _reads_scores(self, training: Training) -> bool:
        of_teacher = self._load_teacher is not None and training.loss.distillation == "top_k"
        return training.preference is not None or of_teacher

    def _train(self, round: Round, examples: Examples, held_out: Sequence[Example]) -> None:
        """Trains to the last checkpoint, in this process' part."""
        round.release()
        settings, context = round.settings, round.context
        training = settings.training
        rows: Iterable[Row] = examples
        teacher = None
        if self._reads_scores(training):
            rows = read_scored(round, examples)
        elif self._load_teacher:
            teacher = self._load_teacher()
        validation_rows = in_order(held_out, context.tokenizer_path) if held_out else ()

        def load_base(shardings: Any) -> Params:
            if shardings is None:
                return context.params(round.start)
            return context.placed_params(round.start, shardings)

        train(
            settings.model,
            training,
            load_base,
            fitting_rows(rows, training),
            round.folder(self.name),
            groups=examples.groups,
            name=f"round {round.index}: training",
            teacher=teacher,
            held_out=fitting_rows(validation_rows, training) if held_out else (),
            track=context.tracking.of_training(round, self.name) if context.tracking else None,
        )


def _write_adapters(round: Round, lora: Lora, directory: epath.Path) -> None:
    """Writes the adapters by themselves, beside the run's checkpoint."""
    folder = directory / "adapters"
    state = state_shapes(round.settings.training, round.context.shapes)
    exported = export_adapters(directory, folder, state)
    if lora.peft:
        adapters = checkpoints.load_params(exported, state["adapters"])
        write_peft(lora, adapters, folder / "peft", _peft_base(round))


def _peft_base(round: Round) -> str:
    """Returns the model that a round's adapters belong on, exported once for all its rounds.

    It is the one that training started from, as a folder that PEFT opens, `round_N/hf`. A model
    that no Hugging Face architecture computes, or without a checkpoint of its own on this machine,
    is named by its checkpoint.
    """
    context, settings = round.context, round.settings
    # With start_from = "last" the adapters of round 2 belong on the model of round 1.
    start = context.round(round.start)
    ours = os.fspath(start.folder("train")) if round.start else settings.init_checkpoint
    checkpoint = context.checkpoint(round.start)
    if checkpoint is None:
        return ours
    out = Path(start.folder("hf"))
    try:
        if not out.exists():
            export_model(checkpoint, settings.model, context.tokenizer_path, out)
    except LmsiError as error:
        print(f"adapters name {ours} as their model, which PEFT cannot open: {error}")
        return ours
    return str(out.resolve())


def _examples(round: Round) -> tuple[Examples, list[Example]]:
    """Returns a round's examples or pairs as training draws them, and the held-out ones.

    Raises:
      LmsiError: there are none.
    """
    settings, path = round.settings, round.context.tokenizer_path
    training = settings.training
    seed, tasks = settings.seed * 1000 + round.index, dict(training.task_rates)
    if training.preference is not None:
        pairs = {"pairs": read_pairs(round)}
        return Examples(pairs, {"pairs": 1.0}, path, task_rates=tasks, seed=seed), []
    sources = read_examples(round)
    if not any(sources.values()):
        raise _nothing_kept(round)
    rates = {"self_generated": 1.0 - training.human_rate, "human": training.human_rate}
    sources = {name: rows for name, rows in sources.items() if rates[name] > 0}
    sources, held_out = scoring.hold_out(sources, training.validation_count)
    return Examples(sources, rates, path, task_rates=tasks, seed=seed), held_out


def _nothing_kept(round: Round) -> LmsiError:
    """Returns the error of a round without examples, with the filter that dropped the last ones."""
    steps = zip(*read_funnel(round).values(), strict=True)  # by filter, then by task
    for step in steps:
        if not any(one.kept for one in step):
            dropped = sum((collections.Counter(one.dropped) for one in step), collections.Counter())
            why = ", ".join(f"{reason!r}: {n:,}" for reason, n in dropped.most_common())
            if why:
                return LmsiError(
                    f"round {round.index} kept no sample: {step[0].filter} dropped all that were "
                    f"left ({why}); loosen it, or take it out of Mixing"
                )
    return LmsiError(
        f"round {round.index} kept no sample: no answer was parsed, or Augmentation.min_confidence "
        "leaves none. Look at `lmsi report`; use a stronger base model or another prompt"
    )


def fitting_rows(rows: Iterable[Row], training: Training) -> RowReader:
    """Skips rows that the batch shape has no room for; reading raises if none fits.

    Raises:
      LmsiError: none of the first rows fits.
    """
    tried = fitted = 0

    def fits(row: Row) -> bool:
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
