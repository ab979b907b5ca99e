"""Fine-tuning: examples -> a checkpoint, from the base model or from the last round's."""

from collections.abc import Callable, Iterable

from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import remove, write_json
from lmsi_jax.stages.context import Context, named
from lmsi_jax.stages.mix import read_examples, read_pairs
from lmsi_jax.stages.score import score
from lmsi_jax.training import checkpoints
from lmsi_jax.training.data import Examples
from lmsi_jax.training.lora import Lora, export_adapters
from lmsi_jax.training.packing import Row, check
from lmsi_jax.training.peft import check_installed, write_peft
from lmsi_jax.training.reading import Rows
from lmsi_jax.training.step import state_shapes
from lmsi_jax.training.teacher import Teacher
from lmsi_jax.training.trainer import Training, train


def finetune(
    context: Context,
    round_index: int,
    inputs: dict[str, str],
    load_teacher: Callable[[], Teacher] | None = None,
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
    if training.lora is not None and training.lora.peft:
        check_installed()  # before the training
    examples = _examples(context, round_index)
    start = 0 if run.start_from == "base" else round_index - 1
    begin = context.params(start)
    rows: Iterable[Row] = examples
    teacher = None
    if training.preference is not None:
        reference = Teacher(config=run.model, params=begin)
        rows = score(context, round_index, inputs, examples, lambda: reference)
    elif load_teacher and training.loss.distillation == "top_k":
        rows = score(context, round_index, inputs, examples, load_teacher)
    elif load_teacher:
        teacher = load_teacher()
    params = train(
        run.model,
        training,
        begin,
        fitting(rows, training),
        stage.directory,
        groups=examples.groups,
        name=f"round {round_index}: training",
        teacher=teacher,
    )
    if training.lora is not None:
        _write_adapters(context, training.lora, stage.directory)
    write_json(stage.directory / "digest.json", {"params_sha256": checkpoints.digest(params)})
    # Orbax puts times into a checkpoint's files; the digest and the metrics say what is in them.
    stage.finish([stage.directory / "digest.json", stage.directory / "metrics.jsonl"])
    return stage.fingerprint


def _write_adapters(context: Context, lora: Lora, directory: epath.Path) -> None:
    """Writes the adapters by themselves, beside the run's checkpoint."""
    own, state = directory / "adapters", state_shapes(context.run.training, context.shapes)
    exported = export_adapters(directory, own, context.shapes, state)
    if lora.peft:
        adapters = checkpoints.load_params(exported, state["adapters"])
        write_peft(lora, adapters, own / "peft", context.run.init_checkpoint)


def _examples(context: Context, round_index: int) -> Examples:
    """A round's examples, or its pairs, as training draws them.

    Raises:
      LmsiError: there are none.
    """
    run, training = context.run, context.run.training
    seed, tasks = run.seed * 1000 + round_index, dict(training.task_rates)
    if training.preference is not None:
        pairs = {"pairs": read_pairs(context, round_index)}
        return Examples(pairs, {"pairs": 1.0}, context.tokenizer_path, task_rates=tasks, seed=seed)
    sources = read_examples(context, round_index)
    if not any(sources.values()):
        raise LmsiError(
            f"round {round_index} kept no path: no answer was parsed, or Mixing.min_confidence "
            "leaves none. Look at `lmsi report`; use a stronger base model or another prompt"
        )
    rates = {"weak": 1.0 - training.strong_rate, "strong": training.strong_rate}
    return Examples(sources, rates, context.tokenizer_path, task_rates=tasks, seed=seed)


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
