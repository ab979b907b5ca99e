"""Questions: tasks -> records. Labels stay with the test split; exemplars are stored separately.

No stage that makes training rows knows the answers of training questions, unless the run is an
upper bound by choice (`GoldLabels`). Reports and studies ask the tasks for them anew, and match
them to the rows by uid after all filters have judged.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from etils import epath

from lmsi_jax import voting
from lmsi_jax.config import Questions
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.context import Context, Round
from lmsi_jax.pipeline.step import Fields, Step
from lmsi_jax.records import Exemplar, Question
from lmsi_jax.runtime.progress import Progress
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.selection.rows import NO_ANSWERS, Answers
from lmsi_jax.tasks.task import Split

# Contaminated questions that an error lists.
_LISTED = 10


class QuestionsStep(Step):
    """Draws the run's questions once, for all rounds.

    Raises:
      LmsiError: a task does not exist, there are no questions, or training questions or exemplars
        are also among the test questions.
    """

    name = "questions"
    settings = (Fields(part="questions", without=("tasks",)),)

    def derived(self, round: Round) -> dict[str, Any]:
        from lmsi_jax.tasks import registry

        digests = registry.custom_digests(round.context.questions)
        return {"Tasks": digests} if digests else {}

    def folder(self, round: Round) -> epath.Path:
        return round.context.output / "questions"

    def write(self, round: Round, store: ShardStore) -> None:
        context = round.context
        config = context.questions
        shards: list[tuple[Split, str, int]]
        shards = [("train", name, config.train_count) for name in dict.fromkeys(config.train)]
        shards += [("test", name, config.test_count) for name in dict.fromkeys(config.test)]
        with Progress("questions", len(shards), unit="tasks") as progress:
            # The test questions first: training questions that repeat them are not drawn.
            for split, name, count in reversed(shards):
                if store.missing([f"{split}-{name}"]):
                    rows = _draw(context, split, name, count)
                    store.write(f"{split}-{name}", [row.to_json() for row in rows])
                progress.advance()
        for name in dict.fromkeys((*config.train, *config.test)):
            exemplars = _exemplars(config, name)
            if config.contamination != "allow":
                remedy = "name another file in Questions.exemplars, or set Questions.contamination"
                texts = {f"number {n}": row.question for n, row in enumerate(exemplars, 1)}
                repeated = contaminated_questions(context, name, texts)
                _refuse(f"exemplars of {name!r}", repeated, remedy)
            store.write(f"exemplars-{name}", [row.to_json() for row in exemplars])


def draw_questions(context: Context) -> str:
    """Draws the run's questions unless that is done; returns the stage's fingerprint.

    Raises:
      LmsiError: as `QuestionsStep`.
    """
    check_task_names(context.questions)
    context.round(0).settings.check_questions(context.stages)
    return QuestionsStep().execute(context.round(0), {})


def worked_questions(round: Round, task: str) -> list[tuple[Question, Exemplar]]:
    """Returns `Mixing.human_examples` questions of a task, each with its human solution."""
    from lmsi_jax.tasks import registry

    config, count = round.context.questions, round.settings.mixing.human_examples
    source = registry.find(config, task)
    rules = registry.rules_of(config, task)
    rows = itertools.islice(source.worked("pretrain", config.level, config.seed), count)
    return [
        (
            # The uid is part of the noise of the model's own sample.
            Question(
                uid=f"strong-{task}-{number}",
                task=task,
                text=worked.question,
                kind=source.kind,
                rules=rules,
            ),
            worked,
        )
        for number, worked in enumerate(rows)
    ]


def check_task_names(config: Questions) -> None:
    """Raises LmsiError if the configuration names a task that does not exist."""
    from lmsi_jax.tasks import registry

    pairs = [name for name, _ in (*config.data_dirs, *config.exemplars)]
    for name in (*config.train, *config.test, *pairs):
        registry.find(config, name)


def _draw(context: Context, split: Split, name: str, count: int) -> list[Question]:
    """Returns a task's questions; training questions without those of test and prompt."""
    from lmsi_jax.tasks import registry

    config = context.questions
    task = registry.find(config, name)
    rows = task.questions(split, config.level, count, config.seed)
    if split == "test" or config.contamination == "allow":
        return rows
    texts = {row.uid: row.text for row in rows}
    repeated = contaminated_questions(context, name, texts)
    shown = _shown_questions(config, name, texts)
    if config.contamination == "refuse":
        what = f"training questions of {name!r}"
        remedy = "set Questions.contamination to 'drop' to leave them out"
        _refuse(what, repeated, remedy)
        _refuse(what, shown, f"name another file in Questions.exemplars, {remedy}", _EXEMPLARS)
    clean = [row for row in rows if row.uid not in repeated and row.uid not in shown]
    if not clean:
        raise LmsiError(
            f"all {len(rows)} training questions of {name!r} are also among the test questions "
            "or the exemplars; leave the task out of Questions.train, or raise "
            "Questions.train_count"
        )
    return clean


def _shown_questions(config: Questions, name: str, texts: Mapping[str, str]) -> dict[str, str]:
    """Returns which training questions their own prompt answers: id -> the exemplar."""
    from lmsi_jax.tasks import contamination, registry

    task = registry.find(config, name)
    exemplars = _exemplars(config, name)
    shown = {f"exemplar {number}": row.question for number, row in enumerate(exemplars, 1)}
    return {
        one.uid: f"{one.evaluated} ({one.how})"
        for one in contamination.find_contaminated(
            texts, shown, task.contamination_ngram, task.content
        )
    }


def contaminated_questions(context: Context, name: str, texts: Mapping[str, str]) -> dict[str, str]:
    """Returns which questions the run's test questions repeat.

    Args:
      context: the run; its test questions are drawn.
      name: the task.
      texts: id -> text.

    Returns:
      id -> "id of the test question (how they overlap)".
    """
    from lmsi_jax.tasks import contamination, registry

    config, repeated = context.questions, dict[str, str]()
    task = registry.find(config, name)
    for tested, rows in context.load_questions("test").items():
        words = min(task.contamination_ngram, registry.find(config, tested).contamination_ngram)
        evaluated = {row.uid: row.text for row in rows}
        for one in contamination.find_contaminated(texts, evaluated, words, task.content):
            repeated.setdefault(one.uid, f"{one.evaluated} ({one.how})")
    return repeated


_EXEMPLARS = "are also exemplars of its prompt, which gives their answers away"


def _refuse(
    what: str,
    repeated: Mapping[str, str],
    remedy: str,
    where: str = "are also among the test questions",
) -> None:
    """Raises LmsiError if anything is repeated."""
    if repeated:
        listed = ", ".join(f"{uid} as {other}" for uid, other in list(repeated.items())[:_LISTED])
        more = f" and {len(repeated) - _LISTED} more" if len(repeated) > _LISTED else ""
        raise LmsiError(
            f"{len(repeated)} {what} {where}: {listed}{more}; {remedy}, or to 'allow' to keep them"
        )


def _exemplars(config: Questions, name: str) -> tuple[Exemplar, ...]:
    """Returns a task's exemplars: the configured file's, or its own."""
    from lmsi_jax.tasks import exemplars, registry

    path, task = dict(config.exemplars).get(name), registry.find(config, name)
    return task.exemplars() if path is None else exemplars.load_for_task(path, task.kind)


def train_answers(config: Questions, task: str) -> Answers:
    """Returns the right keys of a task's training questions, by uid.

    Questions that the model wrote have none; nor has a data set that cannot be read any more.
    """
    from lmsi_jax.tasks import registry

    try:
        source = registry.find(config, task)
        stream = source.labelled("train", config.level, config.seed)
        questions = list(itertools.islice(stream, config.train_count))
    except LmsiError:
        return NO_ANSWERS
    keys = {row.uid: voting.right_keys(row) for row in questions}
    return {uid: right for uid, right in keys.items() if right}
