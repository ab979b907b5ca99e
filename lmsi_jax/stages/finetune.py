"""Fine-tuning: examples -> a checkpoint, from the base model or from the last round's."""

import functools
from collections.abc import Callable, Iterable

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import remove
from lmsi_jax.stages.context import Context, named
from lmsi_jax.stages.mix import read_examples
from lmsi_jax.training import checkpoints, validation
from lmsi_jax.training.data import Examples, in_order
from lmsi_jax.training.lora import export_adapters
from lmsi_jax.training.packing import Row, check
from lmsi_jax.training.reading import Rows
from lmsi_jax.training.scoring import Scored
from lmsi_jax.training.step import state_shapes
from lmsi_jax.training.teacher import Teacher
from lmsi_jax.training.trainer import Training, train

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
    run, training = context.run, context.run.training
    config = {**named(training), "Run": {"seed": run.seed, "start_from": run.start_from}}
    stage = context.stage(round_index, "train", config, inputs)
    if not checkpoints.present(stage.directory):
        remove(stage.directory / "stage.json")  # the record does not cover checkpoints, see below
    if context.done(stage):
        return stage.fingerprint
    with context.training_together(training, "train", round_index):
        train_round(context, round_index, load_teacher)
    if training.lora is not None:
        state = state_shapes(training, context.shapes)
        export_adapters(stage.directory, stage.directory / "adapters", state)
    context.write_digest(stage.directory, stage.directory)
    # Orbax puts times into a checkpoint's files; the digest and the metrics say what is in them.
    stage.finish([stage.directory / "digest.json", stage.directory / "metrics.jsonl"])
    return stage.fingerprint


def train_round(
    context: Context, round_index: int, load_teacher: LoadTeacher | None = None
) -> None:
    """Trains a round's model to its last checkpoint, in this process' part."""
    run, training = context.run, context.run.training
    sources = read_examples(context, round_index)
    if not any(sources.values()):
        raise LmsiError(
            f"round {round_index} kept no path: no answer was parsed, or Mixing.min_confidence "
            "leaves none. Look at `lmsi report`; use a stronger base model or another prompt"
        )
    rates = {"weak": 1.0 - training.strong_rate, "strong": training.strong_rate}
    sources = {name: rows for name, rows in sources.items() if rates[name] > 0}
    sources, held_out = validation.split(sources, training.validation_count)
    examples = Examples(
        sources,
        rates,
        context.tokenizer_path,
        task_rates=dict(training.task_rates),
        seed=run.seed * 1000 + round_index,
    )
    teacher = load_teacher() if load_teacher else None
    rows: Iterable[Row] = examples
    if teacher and training.loss.distillation == "top_k":
        rows = Scored(teacher, examples, training.shape, training.loss.top_k)
    start = 0 if run.start_from == "base" else round_index - 1
    train(
        run.model,
        training,
        functools.partial(context.params, start),
        fitting(rows, training),
        context.folder(round_index, "train"),
        groups=examples.groups,
        name=f"round {round_index}: training",
        teacher=teacher if training.loss.distillation == "model" else None,
        held_out=fitting(in_order(held_out, context.tokenizer_path), training) if held_out else (),
    )


def fitting(rows: Iterable[Row], training: Training) -> Rows:
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
            check(row, training.shape)
        except ValueError as reason:
            if not fitted and tried > 1000:
                raise LmsiError(
                    f"no training row fits: {reason}; raise Training.length or "
                    "Training.prefix_length"
                ) from None
            return False
        fitted += 1
        return True

    return Rows(rows, fits)
