"""Filters one after the other, and what each of them left."""

import collections
import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

from lmsi_jax.selection.rows import NOTHING, Facts, Filter, Row

Answers = Mapping[str, frozenset[str]]
"""The keys that count as right, by the uid of their question."""
NO_ANSWERS: Answers = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """What one filter did to a task's rows.

    Attributes:
      filter: its name.
      rows: that came in.
      kept: that went on.
      questions: that still have some.
      weight: sum of the weights that went on.
      dropped: rows by reason.
      right, wrong: rows that went on, by their answer, where it was said which are right.
    """

    filter: str
    rows: int
    kept: int
    questions: int
    weight: float
    dropped: dict[str, int]
    right: int
    wrong: int

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary of plain JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What all filters left.

    Attributes:
      rows: in the order in which they came.
      weights: of each, above 0.
      steps: one for each filter.
    """

    rows: tuple[Row, ...]
    weights: tuple[float, ...]
    steps: tuple[Step, ...]


def select(
    rows: Sequence[Row],
    filters: Sequence[Filter],
    facts: Facts = NOTHING,
    answers: Answers = NO_ANSWERS,
) -> Selection:
    """Hands a task's rows through the filters; each sees what those before it left.

    Args:
      rows: of one task.
      filters: in their order; factors of the weights are multiplied.
      facts: what is known of the task beside.
      answers: which rows are right; counted in the steps, and never shown to a filter.

    Raises:
      LmsiError: a fact is missing that a filter needs.
    """
    left, weights = list(rows), [1.0] * len(rows)
    steps = []
    for one in filters:
        verdicts = one.judge(left, facts)
        dropped = collections.Counter(v.reason for v in verdicts if not v.weight > 0)
        came = len(left)
        passed = [
            (row, weight * verdict.weight)
            for row, weight, verdict in zip(left, weights, verdicts, strict=True)
            if verdict.weight > 0
        ]
        left, weights = [row for row, _ in passed], [weight for _, weight in passed]
        steps.append(_step(type(one).__name__, came, left, weights, dropped, answers))
    return Selection(rows=tuple(left), weights=tuple(weights), steps=tuple(steps))


def _step(
    name: str,
    came: int,
    left: Sequence[Row],
    weights: Sequence[float],
    dropped: dict[str, int],
    answers: Answers,
) -> Step:
    right, wrong = right_and_wrong(left, answers)
    return Step(
        filter=name,
        rows=came,
        kept=len(left),
        questions=len({row.question.uid for row in left}),
        weight=math.fsum(weights),
        dropped=dict(sorted(dropped.items())),
        right=right,
        wrong=wrong,
    )


def right_and_wrong(rows: Sequence[Row], answers: Answers) -> tuple[int, int]:
    """Counts rows whose answers are right and wrong; those of unknown questions are neither."""
    known = [row.key in answers[row.path.uid] for row in rows if row.path.uid in answers]
    return sum(known), len(known) - sum(known)
