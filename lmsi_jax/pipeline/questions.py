"""Questions: SeqIO tasks -> records; labels stay with the test split, exemplars are kept beside.

Answers of training questions, where their task knows them: for reports and studies alone.

No stage that makes training rows has them: the questions that a run stores carry none. They are
asked of the task anew, and meet the rows by their questions' uids, after all filters have judged.
"""

import itertools
from collections.abc import Mapping

from lmsi_jax import voting
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.context import Context
from lmsi_jax.records import Exemplar, Question
from lmsi_jax.runtime.progress import Progress
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.selection.rows import NO_ANSWERS, Answers
from lmsi_jax.tasks.task import Split

# An error lists so many of the questions that overlap.
_LISTED = 10


def draw_questions(context: Context) -> str:
    """Draws the run's questions once, for all rounds; returns the stage's fingerprint.

    Raises:
      LmsiError: a task does not exist, there are no questions, or training questions or exemplars
        also stand among the test questions.
    """
    config = context.questions
    wanted: list[tuple[Split, str, int]]
    wanted = [("train", name, config.train_count) for name in dict.fromkeys(config.train)]
    wanted += [("test", name, config.test_count) for name in dict.fromkeys(config.test)]
    _check_names(context)
    context.run.check_questions(context.stages)
    stage = context.questions_stage()
    if stage.begin() == "done":
        return stage.fingerprint
    store = ShardStore(stage.directory)
    with Progress("questions", len(wanted), unit="tasks") as progress:
        # The test questions first: what overlaps with them is not drawn.
        for split, name, count in reversed(wanted):
            if store.missing([f"{split}-{name}"]):
                rows = _drawn(context, split, name, count)
                store.write(f"{split}-{name}", [row.to_json() for row in rows])
            progress.advance()
    for name in dict.fromkeys((*config.train, *config.test)):
        exemplars = _exemplars(context, name)
        if config.contamination != "allow":
            remedy = "name another file in Questions.exemplars, or set Questions.contamination"
            texts = {f"number {n}": row.question for n, row in enumerate(exemplars, 1)}
            found = contaminated_questions(context, name, texts)
            _refuse(f"exemplars of {name!r}", found, remedy)
        store.write(f"exemplars-{name}", [row.to_json() for row in exemplars])
    stage.finish()
    return stage.fingerprint


def worked_questions(context: Context, task: str) -> list[tuple[Question, Exemplar]]:
    """Returns `Mixing.human_examples` questions of a task, each with its given solution."""
    from lmsi_jax.tasks import registry

    config, count = context.questions, context.run.mixing.human_examples
    source = registry.get(task, config.folder(task))
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


def _check_names(context: Context) -> None:
    """Raises LmsiError where the configuration names a task that does not exist."""
    from lmsi_jax.tasks import registry

    config = context.questions
    named_tasks = [name for name, _ in (*config.data_dirs, *config.exemplars)]
    for name in (*config.train, *config.test, *named_tasks):
        registry.get(name)


def _drawn(context: Context, split: Split, name: str, count: int) -> list[Question]:
    """A task's questions; training questions without those that the test questions have."""
    from lmsi_jax.tasks import registry

    config = context.questions
    rows = registry.load_questions(
        name, split, config.level, count, config.seed, config.folder(name)
    )
    if split == "test" or config.contamination == "allow":
        return rows
    found = contaminated_questions(context, name, {row.uid: row.text for row in rows})
    if config.contamination == "refuse":
        remedy = "set Questions.contamination to 'drop' to leave them out"
        _refuse(f"training questions of {name!r}", found, remedy)
    left = [row for row in rows if row.uid not in found]
    if not left:
        raise LmsiError(
            f"all {len(rows)} training questions of {name!r} also stand among the test questions; "
            "leave the task out of Questions.train, or raise Questions.train_count"
        )
    return left


def contaminated_questions(context: Context, name: str, texts: Mapping[str, str]) -> dict[str, str]:
    """Returns which questions the run's test questions have too.

    Args:
      context: the run; its test questions are drawn.
      name: the task.
      texts: id -> text.

    Returns:
      id -> "id of the test question (how they overlap)".
    """
    from lmsi_jax.tasks import contamination, registry

    store = ShardStore(context.output / "questions")
    found: dict[str, str] = {}
    for tested in dict.fromkeys(context.questions.test):
        words = min(registry.get(task).contamination_ngram for task in (name, tested))
        rows = (Question.from_json(row) for row in store.read(f"test-{tested}"))
        evaluated = {row.uid: row.text for row in rows}
        for one in contamination.find_contaminated(
            texts, evaluated, words, registry.get(name).content
        ):
            found.setdefault(one.uid, f"{one.evaluated} ({one.how})")
    return found


def _refuse(what: str, found: Mapping[str, str], remedy: str) -> None:
    """Raises LmsiError where something was found."""
    if found:
        listed = ", ".join(f"{uid} as {other}" for uid, other in list(found.items())[:_LISTED])
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise LmsiError(
            f"{len(found)} {what} also stand among the test questions: {listed}{more}; {remedy}, "
            "or to 'allow' to keep them"
        )


def _exemplars(context: Context, name: str) -> tuple[Exemplar, ...]:
    """A task's exemplars: the configured file's, or its own."""
    from lmsi_jax.tasks import exemplars, registry

    path = dict(context.questions.exemplars).get(name)
    if path is None:
        return registry.get(name).exemplars()
    found = exemplars.load(path)
    bare = [row.question for row in found if not row.reasoning]
    if bare:
        raise LmsiError(
            f"the exemplars {path} have no reasoning before the answer of {bare[0][:60]!r}; "
            "few-shot chain of thought needs it, so give every answer some"
        )
    return found


def read_exemplars(context: Context, name: str) -> tuple[Exemplar, ...]:
    """Reads the exemplars that the run uses for a task."""
    rows = ShardStore(context.output / "questions").read(f"exemplars-{name}")
    return tuple(Exemplar.from_json(row) for row in rows)


def train_answers(context: Context, task: str) -> Answers:
    """Returns the right keys of a task's training questions, by uid.

    Questions that the model made itself have none, and so has a data set that cannot be read any
    more.
    """
    from lmsi_jax.tasks import registry

    config = context.questions
    try:
        source = registry.get(task, config.folder(task))
        stream = source.labelled("train", config.level, config.seed)
        drawn = list(itertools.islice(stream, config.train_count))
    except LmsiError:
        return NO_ANSWERS
    keys = {row.uid: frozenset(voting.right_keys(row)) for row in drawn}
    return {uid: right for uid, right in keys.items() if right}
