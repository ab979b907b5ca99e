"""Everything that the report says about accuracy, computed once from the summary's 0/1 outcomes."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from lmsi_jax.evaluation.calibration import expected_calibration_error
from lmsi_jax.evaluation.statistics import (
    Difference,
    macro_difference,
    mcnemar,
    paired_difference,
    wilson,
)
from lmsi_jax.report.summary import PROMPTINGS, Domain, Evaluation, Prompting, Summary, Task

PROMPTING_NAMES: dict[Prompting, str] = {
    "standard": "Standard (direct answer)",
    "cot": "Chain of thought",
    "zero_shot_cot": "Zero-shot chain of thought",
    "self_consistency": "Self-consistency (vote)",
}
DOMAIN_NAMES: dict[Domain, str] = {"in": "In-domain", "out": "Out-of-domain"}
LEVEL = 0.05
"""Below this p, and with an interval that leaves out zero, a change is called a change."""

Verdict = Literal["rose", "fell", "no clear change"]


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % interval, over n questions of one or more tasks.

    `unparsed` is the share of paths without a readable answer, `tied` that of questions whose vote
    was tied; means over the tasks.
    """

    share: float
    low: float
    high: float
    n: int
    tasks: int
    unparsed: float
    tied: float


@dataclasses.dataclass(frozen=True)
class Change:
    """Last model minus base on the same questions; `p` is McNemar's, exact, over all of them.

    `before` and `after` are means over the tasks that could be compared, each counting alike.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    n: int
    tasks: int

    @property
    def verdict(self) -> Verdict:
        """What may be said in words."""
        if self.p < LEVEL and self.low > 0:
            return "rose"
        if self.p < LEVEL and self.high < 0:
            return "fell"
        return "no clear change"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One prompting on one task, or its mean over a domain's tasks, through the rounds."""

    prompting: Prompting
    by_round: dict[int, Accuracy]
    change: Change | None
    """None where base and last model were not measured on the same questions."""


def rounds_measured(summary: Summary) -> list[int]:
    """Returns the rounds with an evaluation, in order; 0 is the base."""
    return sorted({row["round"] for row in summary["evals"]})


def round_name(number: int) -> str:
    """Returns how the page calls the model after a round."""
    return "Base" if number == 0 else f"Round {number}"


def tasks_of(summary: Summary, domain: Domain) -> list[Task]:
    """Returns the domain's tasks in the summary's order."""
    return [task for task in summary["tasks"] if task["domain"] == domain]


def of_task(summary: Summary, task: str) -> list[Comparison]:
    """Returns one comparison for each prompting that was measured on the task."""
    found = (_compare(summary, [task], prompting) for prompting in PROMPTINGS)
    return [comparison for comparison in found if comparison.by_round]


def of_domain(summary: Summary, domain: Domain) -> list[Comparison]:
    """Returns the macro mean over a domain's tasks for each prompting.

    Only tasks that every compared round measured count, so that rounds differ by model alone.
    """
    names = [task["name"] for task in tasks_of(summary, domain)]
    found = (_compare(summary, names, prompting) for prompting in PROMPTINGS)
    return [comparison for comparison in found if comparison.by_round]


def as_rows(summary: Summary, models: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns every accuracy and change as plain JSON, one row for each task and prompting.

    Args:
      summary: the run's.
      models: what its rounds are called; () for "base", "round 1", ...
    """
    last = max(rounds_measured(summary), default=0)
    names = models or [round_name(number).lower() for number in range(last + 1)]
    return [
        _as_row(task["name"], found, _rows(summary, task["name"], found.prompting), names)
        for task in summary["tasks"]
        for found in of_task(summary, task["name"])
    ]


def headline(summary: Summary) -> tuple[Domain, Comparison] | None:
    """Returns what the page opens with: CoT in-domain, or the next best that has a change."""
    order: Sequence[Prompting] = ("cot", "zero_shot_cot", "standard", "self_consistency")
    domains: Sequence[Domain] = ("in", "out")
    for domain in domains:
        found = sorted(of_domain(summary, domain), key=lambda c: order.index(c.prompting))
        for comparison in found:
            if comparison.change:
                return domain, comparison
    return None


def confidences(
    summary: Summary, domain: Domain, number: int
) -> tuple[list[float], list[bool], int]:
    """Returns the votes of one round on a domain: confidence, whether right, paths a question."""
    sure: list[float] = []
    right: list[bool] = []
    paths = 0
    for task in tasks_of(summary, domain):
        row = _find(summary, task["name"], "self_consistency", number)
        if row and row["confidence"]:
            sure += row["confidence"]
            right += map(bool, row["correct"])
            paths = max(paths, row["paths"])
    return sure, right, paths


def _compare(summary: Summary, names: Sequence[str], prompting: Prompting) -> Comparison:
    measured = rounds_measured(summary)
    rows = {name: _rows(summary, name, prompting) for name in names}
    shown = {r for of_task in rows.values() for r in of_task}
    compared = {name: found for name, found in rows.items() if found and set(found) == shown}
    by_round = {r: _mean([found[r] for found in compared.values()]) for r in sorted(shown)}
    return Comparison(
        prompting,
        {r: accuracy for r, accuracy in by_round.items() if accuracy},
        change(list(_pairs(compared.values(), measured))),
    )


def _as_row(
    task: str, found: Comparison, rows: Mapping[int, Evaluation], names: Sequence[str]
) -> dict[str, Any]:
    """One task and prompting of `as_rows`, from its evaluations by round."""
    accuracies = [
        {
            "model": names[number],
            **dataclasses.asdict(accuracy),
            "calibration_error": _calibration_error(rows[number]),
        }
        for number, accuracy in found.by_round.items()
    ]
    return {
        "task": task,
        "prompting": found.prompting,
        "accuracy": accuracies,
        "change": dataclasses.asdict(found.change) if found.change else None,
        "curves": {names[n]: row["curve"] for n, row in rows.items() if row.get("curve")},
    }


def _rows(summary: Summary, task: str, prompting: str) -> dict[int, Evaluation]:
    """The evaluations of a task in one prompting, by round."""
    rounds = rounds_measured(summary)
    return {number: row for number in rounds if (row := _find(summary, task, prompting, number))}


def _calibration_error(row: Evaluation) -> float | None:
    """How far votes are from being right as often as they are sure; None for single paths."""
    if not row["confidence"]:
        return None
    return expected_calibration_error(row["confidence"], list(map(bool, row["correct"])))


def _find(summary: Summary, task: str, prompting: str, number: int) -> Evaluation | None:
    """The evaluation, unless it has no questions."""
    for row in summary["evals"]:
        if (row["task"], row["prompting"], row["round"]) == (task, prompting, number):
            return row if row["correct"] else None
    return None


def _mean(rows: Sequence[Evaluation]) -> Accuracy | None:
    if not rows:
        return None
    shares = []
    for row in rows:
        correct, n = sum(row["correct"]), len(row["correct"])
        shares.append(Difference(correct / n, *wilson(correct, n)))
    # A mean of independent shares has the interval of a mean of independent differences. That of
    # one share is taken as it is: nothing is lost to rounding.
    mean = shares[0] if len(shares) == 1 else macro_difference(shares)
    return Accuracy(
        *mean,
        n=sum(len(row["correct"]) for row in rows),
        tasks=len(rows),
        unparsed=1 - math.fsum(row["parsed"] for row in rows) / len(rows),
        tied=math.fsum(row["tied"] / len(row["correct"]) for row in rows) / len(rows),
    )


def _pairs(
    compared: Iterable[dict[int, Evaluation]], measured: Sequence[int]
) -> Iterator[tuple[list[bool], list[bool]]]:
    last = measured[-1] if measured else 0
    for found in compared:
        if last == 0 or 0 not in found or last not in found:
            continue
        before, after = found[0]["correct"], found[last]["correct"]
        if len(before) == len(after):
            yield [bool(c) for c in before], [bool(c) for c in after]


def change(pairs: Sequence[tuple[list[bool], list[bool]]]) -> Change | None:
    """Returns the change over tasks; each question's outcomes are given before and after."""
    if not pairs:
        return None
    differences = [paired_difference(before, after) for before, after in pairs]
    macro = differences[0] if len(differences) == 1 else macro_difference(differences)
    before = [c for pair in pairs for c in pair[0]]
    after = [c for pair in pairs for c in pair[1]]
    shares = [[sum(c) / len(c) for c in pair] for pair in pairs]
    old, new = (math.fsum(side) / len(pairs) for side in zip(*shares, strict=True))
    return Change(old, new, *macro, mcnemar(before, after), len(before), len(pairs))
