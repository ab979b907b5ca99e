"""Answers of training questions, where their task knows them: for reports and studies alone.

No stage that makes training rows has them: the questions that a run stores carry none. They are
looked up in the task anew, by the questions' uids.
"""

import itertools
from collections.abc import Sequence

from lmsi_jax.errors import LmsiError
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.vote import Voted


def with_answers(context: Context, task: str, voted: Sequence[Voted]) -> list[Voted]:
    """Returns a task's training questions, each with its answer, its paths and its vote.

    Args:
      context: the run that drew them.
      task: theirs.
      voted: from the run's shards. What the model made itself stays without an answer, and so does
        all of a data set that cannot be read any more.
    """
    from lmsi_jax.tasks import registry

    config = context.questions
    try:
        source = registry.get(task, config.folder(task))
        stream = source.labelled("train", config.level, config.seed)
        known = {row.uid: row for row in itertools.islice(stream, config.train_count)}
    except LmsiError:
        return list(voted)
    return [(known.get(question.uid, question), *rest) for question, *rest in voted]
