"""Accuracies and their changes from 0/1 outcomes, the same for page, terminal and eval.json."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from lmsi_jax.evaluation.accuracy import expected_calibration_error
from lmsi_jax.evaluation.statistics import (
    Difference,
    macro_difference,
    mcnemar,
    paired_difference,
    wilson,
)
from lmsi_jax.report.summary import (
    DOMAINS,
    PROMPT_STYLES,
    Domain,
    Evaluation,
    PromptStyle,
    Summary,
    Task,
)

PROMPT_STYLE_NAMES: dict[PromptStyle, str] = {
    "standard": "Standard (direct answer)",
    "cot": "Chain of thought",
    "zero_shot_cot": "Zero-shot chain of thought",
    "self_consistency": "Self-consistency (vote)",
}
SHORT_PROMPT_STYLE_NAMES: dict[PromptStyle, str] = {
    "standard": "standard",
    "cot": "CoT",
    "zero_shot_cot": "zero-shot CoT",
    "self_consistency": "self-consistency",
}
DOMAIN_NAMES: dict[Domain, str] = {"in": "In-domain", "out": "Out-of-domain"}
_SUBJECTS: dict[PromptStyle, str] = {
    "standard": "Direct-answer accuracy",
    "cot": "Chain-of-thought accuracy",
    "zero_shot_cot": "Zero-shot chain-of-thought accuracy",
    "self_consistency": "Accuracy of the vote",
}
_VERBS = {"rose": "rose", "fell": "fell", "no clear change": "did not clearly change:"}
LEVEL = 0.05
"""A change with a p below this, and an interval that excludes zero, is called a change."""

Verdict = Literal["rose", "fell", "no clear change"]


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of right answers over n questions of one or more tasks.

    Attributes:
      share: the mean over tasks, each counting alike.
      low, high: its 95 % interval.
      n: questions of all tasks together.
      tasks: how many.
      unparsed: share of samples without a parsed answer, mean over tasks.
      tied: share of questions with a tied vote, mean over tasks.
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
    """Last model minus base on the same questions.

    Attributes:
      before, after: means over the tasks that could be compared, each counting alike.
      difference: after - before.
      low, high: its 95 % interval.
      p: of McNemar's exact test over all questions.
      n: questions of all tasks together.
      tasks: how many.
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
        """The change in words."""
        if self.p < LEVEL and self.low > 0:
            return "rose"
        if self.p < LEVEL and self.high < 0:
            return "fell"
        return "no clear change"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One prompt style on one task, or its mean over a domain's tasks, through the rounds."""

    prompt_style: PromptStyle
    by_round: dict[int, Accuracy]
    change: Change | None
    """None if base and last model were not measured on the same questions."""


def evaluated_rounds(summary: Summary) -> list[int]:
    """Returns the rounds with an evaluation, in order; 0 is the base."""
    return sorted({row.round for row in summary.evals})


def round_name(number: int) -> str:
    """Returns the name of the model after a round: "Base", "Round 1", ..."""
    return "Base" if number == 0 else f"Round {number}"


def tasks_of(summary: Summary, domain: Domain) -> list[Task]:
    """Returns the domain's tasks in the summary's order."""
    return [task for task in summary.tasks if task.domain == domain]


def compare_task(summary: Summary, task: str) -> list[Comparison]:
    """Returns a comparison for each prompt style that was measured on the task."""
    return _comparisons(summary, [task])


def compare_domain(summary: Summary, domain: Domain) -> list[Comparison]:
    """Returns the macro mean over a domain's tasks for each prompt style.

    Only tasks that every compared round measured count, so that rounds differ by the model alone.
    """
    return _comparisons(summary, [task.name for task in tasks_of(summary, domain)])


def compare_outcomes(pairs: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> Change | None:
    """Returns the change over tasks; None without tasks.

    Args:
      pairs: for each task, whether each question was right before and after, in the same order.

    Raises:
      ValueError: a task without questions, or with other questions after than before.
    """
    if not pairs:
        return None
    differences = [paired_difference(before, after) for before, after in pairs]
    macro = differences[0] if len(differences) == 1 else macro_difference(differences)
    before = [c for pair in pairs for c in pair[0]]
    after = [c for pair in pairs for c in pair[1]]
    shares = [[sum(c) / len(c) for c in pair] for pair in pairs]
    old, new = (math.fsum(side) / len(pairs) for side in zip(*shares, strict=True))
    return Change(old, new, *macro, mcnemar(before, after), len(before), len(pairs))


def accuracy_rows(summary: Summary, models: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns eval.json: accuracies and changes, one row for each task and prompt style.

    Args:
      summary: the run's.
      models: the names of its rounds; () for "base", "round 1", ...
    """
    last = max(evaluated_rounds(summary), default=0)
    names = models or [round_name(number).lower() for number in range(last + 1)]
    rows = []
    for task in summary.tasks:
        for comparison in compare_task(summary, task.name):
            evaluations = _evaluations(summary, task.name, comparison.prompt_style)
            rows.append(_accuracy_row(task.name, comparison, evaluations, names))
    return rows


def headline(summary: Summary) -> tuple[Domain, Comparison] | None:
    """Returns the comparison that the page opens with: in-domain CoT, or the next with a change."""
    order: Sequence[PromptStyle] = ("cot", "zero_shot_cot", "standard", "self_consistency")
    for domain in DOMAINS:
        comparisons = compare_domain(summary, domain)
        for comparison in sorted(comparisons, key=lambda c: order.index(c.prompt_style)):
            if comparison.change:
                return domain, comparison
    return None


def headline_words(summary: Summary) -> tuple[str, str]:
    """Returns the verdict as plain text, and the numbers that support it."""
    opening = headline(summary)
    if opening is None:
        return _headline_without_change(summary)
    domain, comparison = opening
    change = comparison.change
    assert change is not None
    words = (
        f"{_SUBJECTS[comparison.prompt_style]} on {DOMAIN_NAMES[domain].lower()} tasks "
        f"{_VERBS[change.verdict]} from {percent(change.before)} to {percent(change.after)}"
    )
    p = p_value(change.p)
    basis = (
        f"{points(change.difference)} points [95\N{NO-BREAK SPACE}%: {points(change.low)} to "
        f"{points(change.high)}], p {p if p.startswith('<') else f'= {p}'}. Mean over "
        f"{count_of(change.tasks, 'task')}, {count_of(change.n, 'test question')}; base model "
        f"against round {max(comparison.by_round)}."
    )
    return words, basis


def upper_bound_words(summary: Summary) -> str:
    """Returns the warning that gold labels chose training rows; "" if they did in no round."""
    names = [str(row.round) for row in summary.rounds if row.gold]
    if not names:
        return ""
    rounds = f"round{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return (
        f"Upper bound: gold labels chose the training rows of {rounds} (GoldLabels). This is no "
        "self-improvement."
    )


def votes_of(summary: Summary, domain: Domain, number: int) -> tuple[list[float], list[bool], int]:
    """Returns one round's votes on a domain: confidences, whether right, samples per question."""
    confidences: list[float] = []
    right: list[bool] = []
    samples = 0
    for task in tasks_of(summary, domain):
        row = _evaluations(summary, task.name, "self_consistency").get(number)
        if row and row.confidence:
            confidences += row.confidence
            right += map(bool, row.correct)
            samples = max(samples, row.samples)
    return confidences, right, samples


def _comparisons(summary: Summary, tasks: Sequence[str]) -> list[Comparison]:
    compared = (_compare(summary, tasks, prompt_style) for prompt_style in PROMPT_STYLES)
    return [comparison for comparison in compared if comparison.by_round]


def _compare(summary: Summary, tasks: Sequence[str], prompt_style: PromptStyle) -> Comparison:
    by_task = [_evaluations(summary, task, prompt_style) for task in tasks]
    rounds = sorted({number for rows in by_task for number in rows})
    complete = [rows for rows in by_task if rows and sorted(rows) == rounds]
    means = {number: _mean([rows[number] for rows in complete]) for number in rounds}
    last = max(evaluated_rounds(summary), default=0)
    return Comparison(
        prompt_style,
        {number: accuracy for number, accuracy in means.items() if accuracy},
        compare_outcomes(list(_outcome_pairs(complete, last))),
    )


def _evaluations(summary: Summary, task: str, prompt_style: str) -> dict[int, Evaluation]:
    """The evaluations with questions of a task in one prompt style, by round."""
    rows = {
        row.round: row
        for row in summary.evals
        if (row.task, row.prompt_style) == (task, prompt_style) and row.correct
    }
    return dict(sorted(rows.items()))


def _mean(rows: Sequence[Evaluation]) -> Accuracy | None:
    if not rows:
        return None
    shares = []
    for row in rows:
        correct, n = sum(row.correct), len(row.correct)
        shares.append(Difference(correct / n, *wilson(correct, n)))
    # A mean of independent shares has the interval of a mean of independent differences. A single
    # share keeps its own interval, so that nothing is lost to rounding.
    mean = shares[0] if len(shares) == 1 else macro_difference(shares)
    return Accuracy(
        *mean,
        n=sum(len(row.correct) for row in rows),
        tasks=len(rows),
        unparsed=1 - math.fsum(row.parsed for row in rows) / len(rows),
        tied=math.fsum(row.tied / len(row.correct) for row in rows) / len(rows),
    )


def _outcome_pairs(
    tasks: Iterable[Mapping[int, Evaluation]], last: int
) -> Iterator[tuple[list[bool], list[bool]]]:
    """Outcomes before and after, of the tasks on which both models got the same questions."""
    for rows in tasks:
        if last == 0 or 0 not in rows or last not in rows:
            continue
        before, after = rows[0].correct, rows[last].correct
        if len(before) == len(after):
            yield list(map(bool, before)), list(map(bool, after))


def _accuracy_row(
    task: str, comparison: Comparison, rows: Mapping[int, Evaluation], names: Sequence[str]
) -> dict[str, Any]:
    accuracies = [
        {
            "model": names[number],
            **dataclasses.asdict(accuracy),
            "calibration_error": _calibration_error(rows[number]),
            **({"f1": statistics.fmean(rows[number].f1)} if rows[number].f1 else {}),
        }
        for number, accuracy in comparison.by_round.items()
    ]
    curves = {
        names[number]: [dataclasses.asdict(point) for point in row.curve]
        for number, row in rows.items()
        if row.curve
    }
    return {
        "task": task,
        "prompt_style": comparison.prompt_style,
        "accuracy": accuracies,
        "change": dataclasses.asdict(comparison.change) if comparison.change else None,
        "curves": curves,
    }


def _calibration_error(row: Evaluation) -> float | None:
    """The expected calibration error of the votes; None for single samples."""
    if not row.confidence:
        return None
    return expected_calibration_error(row.confidence, list(map(bool, row.correct)))


def _headline_without_change(summary: Summary) -> tuple[str, str]:
    measured = evaluated_rounds(summary)
    if not measured and summary.rounds and not any(task.test_questions for task in summary.tasks):
        return (
            "Trained without labels; accuracy was not measured",
            "The run has no labelled test questions: name tasks that have some in Questions.test. "
            "Votes, confidence and the collapse monitor need none.",
        )
    if not measured:
        return "Nothing has been evaluated yet", "Run `lmsi eval` to measure the models."
    if not summary.rounds:
        return "The base model, before any round", "No round of self-improvement has been run."
    if measured == [0]:
        return "Fine-tuned, but not evaluated", "Only the base model has been evaluated."
    return (
        "Base and last model cannot be compared",
        "They were not evaluated on the same questions with the same prompt style.",
    )


# --- numbers as the page and the terminal write them ----------------------------------------------

DASH = "–"
"""Shown if there is no value."""


def format_count(value: float) -> str:
    """Returns a whole number with commas: 12800 -> "12,800"."""
    return f"{value:,.0f}" if math.isfinite(value) else DASH


def decimal(value: float, places: int = 2) -> str:
    """Returns a number with `places` decimals, or a dash if it is not finite."""
    return f"{value:,.{places}f}" if math.isfinite(value) else DASH


def percent(share: float, places: int = 1) -> str:
    """Returns a share in percent: 0.4812 -> "48.1 %", with a no-break space."""
    return f"{100 * share:.{places}f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else DASH


def percent_of(count: float, total: float) -> str:
    """Returns count / total in percent, or a dash if the total is 0."""
    return percent(count / total) if total else DASH


def points(difference: float) -> str:
    """Returns a difference of shares in points: 0.122 -> "+12.2"; a true minus, no sign at zero."""
    rounded = round(100 * difference, 1)
    sign = "+" if rounded > 0 else "\N{MINUS SIGN}" if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def share_interval(low: float, high: float) -> str:
    """Returns the interval of a share in percent: "[41.2, 54.9]"."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def change_interval(low: float, high: float) -> str:
    """Returns the interval of a difference in points: "[−3.2, +9.1]"."""
    return f"[{points(low)}, {points(high)}]"


def p_value(p: float) -> str:
    """Returns a p-value, with more digits near the usual levels: 0.00002 -> "< 0.0001"."""
    if p < 0.0001:
        return "<\N{NO-BREAK SPACE}0.0001"
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float) -> str:
    """Returns a time in its two largest units: 372.4 -> "6 min 12 s"."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def count_of(count: int, noun: str) -> str:
    """Returns a count with its noun: 1, "task" -> "1 task"; 3, "task" -> "3 tasks"."""
    return f"{format_count(count)} {noun}{'' if count == 1 else 's'}"
