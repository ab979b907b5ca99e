"""What became of a round's paths between vote and training: what is stored, and for the report.

The mix stage writes down what its filters left. The report does the same again, so that right and
wrong rows can be counted with the answers of training questions, which that stage has not.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lmsi_jax.selection.funnel import Answers, Step, right_and_wrong, select
from lmsi_jax.selection.rows import Row
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.labels import train_answers
from lmsi_jax.stages.path_scores import read_scored_rows
from lmsi_jax.stages.vote import Voted, read_voted
from lmsi_jax.store import ShardStore


def read_funnel(context: Context, round_index: int) -> dict[str, list[Step]]:
    """Returns what each filter of a round left, in their order, by task; {} without filters."""
    store = ShardStore(context.folder(round_index, "mix"))
    names = [name for name in store.names() if name.startswith("funnel-")]
    return {
        name.removeprefix("funnel-"): [Step(**row) for row in store.read(name)] for name in names
    }


def labelled_funnel(context: Context, round_index: int) -> list[dict[str, Any]]:
    """Returns what the vote and each filter left of each task's paths, with right and wrong rows.

    Where filters do not leave today what they left then (a filter of one's own was changed since),
    it is what they left then, without right and wrong.
    """
    run, stored = context.run_in(round_index), read_funnel(context, round_index)
    filters = run.mixing.filters if run.training.preference is None else ()
    steps = []
    for task, voted in read_voted(context, round_index).items():
        rows, facts = read_scored_rows(context, round_index, task, voted)
        answers = train_answers(context, task)
        own = list(select(rows, filters, facts, answers).steps)
        if list(map(_unlabelled, own)) != stored.get(task, []):
            own = stored.get(task, [])
        steps += [{"task": task, **step.to_json()} for step in (_vote(voted, rows, answers), *own)]
    return steps


def _unlabelled(step: Step) -> Step:
    """As the mix stage has written it."""
    return dataclasses.replace(step, right=0, wrong=0)


def _vote(voted: Sequence[Voted], rows: Sequence[Row], answers: Answers) -> Step:
    """The step from all paths to those that training may learn."""
    paths = sum(len(own) for _, own, _ in voted)
    parsed = sum(vote.parsed for _, _, vote in voted)
    dropped = {"another answer": parsed - len(rows), "no answer": paths - parsed}
    right, wrong = right_and_wrong(rows, answers)
    return Step(
        filter="Vote",
        rows=paths,
        kept=len(rows),
        questions=len({row.question.uid for row in rows}),
        weight=float(len(rows)),
        dropped={why: n for why, n in dropped.items() if n},
        right=right,
        wrong=wrong,
    )
