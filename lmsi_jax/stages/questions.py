"""Questions: SeqIO tasks -> records; labels stay with the test split."""

import itertools

from lmsi_jax.errors import LmsiError
from lmsi_jax.progress import Progress
from lmsi_jax.records import Exemplar, Question
from lmsi_jax.stages.context import Context, named
from lmsi_jax.store import ShardStore, Stage


def draw(context: Context) -> str:
    """Draws the run's questions once, for all rounds; returns the stage's fingerprint.

    Raises:
      LmsiError: a task does not exist, or there are no questions.
    """
    from lmsi_jax.tasks import registry

    config = context.questions
    wanted = [("train", name, config.train_count) for name in dict.fromkeys(config.train)]
    wanted += [("test", name, config.test_count) for name in dict.fromkeys(config.test)]
    for _, name, _ in wanted:
        registry.get(name)
    splits = [("sample", config.train), ("eval", config.test)]
    unasked = [stage for stage, names in splits if stage in context.stages and not names]
    if unasked or not wanted or not all(count > 0 for _, _, count in wanted):
        raise LmsiError(
            "there are no questions: set Questions.train, Questions.test and their counts above 0"
        )
    stage = Stage(context.output / "questions", "questions", named(config))
    if stage.begin() == "done":
        return stage.fingerprint
    store = ShardStore(stage.directory)
    with Progress("questions", len(wanted), unit="tasks") as progress:
        for split, name, count in wanted:
            if store.missing([f"{split}-{name}"]):
                rows = registry.load_questions(
                    name, split, config.level, count, config.seed, config.data_dir
                )
                store.write(f"{split}-{name}", [row.to_json() for row in rows])
            progress.advance()
    stage.finish()
    return stage.fingerprint


def worked_questions(context: Context, task: str) -> list[tuple[Question, Exemplar]]:
    """Returns `Mixing.strong_count` questions of a task, each with its given solution."""
    from lmsi_jax.tasks import registry

    config, count = context.questions, context.run.mixing.strong_count
    source = registry.get(task, config.data_dir)
    rows = itertools.islice(source.worked("pretrain", config.level, config.seed), count)
    return [
        (
            Question(
                uid=f"strong-{task}-{number}", task=task, text=worked.question, kind=source.kind
            ),
            worked,
        )
        for number, worked in enumerate(rows)
    ]
