"""Answers of training questions, where their task knows them: for reports and studies alone.

No stage that makes training rows has them: the questions that a run stores carry none. They are
asked of the task anew, and meet the rows by their questions' uids, after all filters have judged.
"""

import itertools

from lmsi_jax import voting
from lmsi_jax.errors import LmsiError
from lmsi_jax.selection.funnel import NO_ANSWERS, Answers
from lmsi_jax.stages.context import Context


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
