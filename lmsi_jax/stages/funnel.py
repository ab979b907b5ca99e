"""What became of a round's paths between vote and training, for its report.

The mix stage wrote down what its filters left; here the same is done again with the answers of the
training questions, where they are known, so that right and wrong rows can be counted.
"""

from collections.abc import Sequence
from typing import Any

from lmsi_jax.selection.funnel import Step, select
from lmsi_jax.selection.rows import Row
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.labels import with_answers
from lmsi_jax.stages.path_scores import read_scored_rows
from lmsi_jax.stages.vote import Voted, read_voted

VOTE = "Vote"
"""Stands for the first step: the paths that agree with the vote."""


def funnel(context: Context, round_index: int) -> list[dict[str, Any]]:
    """Returns what the vote and each filter left of each task's paths, in their order."""
    run = context.run_in(round_index)
    filters = run.mixing.filters if run.training.preference is None else ()
    steps = []
    for task, voted in read_voted(context, round_index).items():
        known = with_answers(context, task, voted)
        rows, facts = read_scored_rows(context, round_index, task, known)
        own = [_vote(known, rows), *select(rows, filters, facts).steps]
        steps += [{"task": task, **step.to_json()} for step in own]
    return steps


def _vote(voted: Sequence[Voted], rows: Sequence[Row]) -> Step:
    """The step from all paths to those that training may learn."""
    paths = sum(len(own) for _, own, _ in voted)
    parsed = sum(vote.parsed for _, _, vote in voted)
    dropped = {"another answer": parsed - len(rows), "no answer": paths - parsed}
    return Step(
        filter=VOTE,
        rows=paths,
        kept=len(rows),
        questions=len({row.question.uid for row in rows}),
        weight=float(len(rows)),
        dropped={why: n for why, n in dropped.items() if n},
        right=sum(row.right is True for row in rows),
        wrong=sum(row.right is False for row in rows),
    )
