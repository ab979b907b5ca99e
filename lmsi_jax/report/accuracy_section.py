"""The part of the page about accuracy: verdict, tables, bars, confidence.

Everything that the report says about accuracy, computed once from the summary's 0/1 outcomes.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from lmsi_jax.evaluation.accuracy import accuracy_by_confidence, expected_calibration_error
from lmsi_jax.evaluation.statistics import (
    Difference,
    macro_difference,
    mcnemar,
    paired_difference,
    wilson,
)
from lmsi_jax.report import charts
from lmsi_jax.report.html import (
    DASH,
    Html,
    count_of,
    element,
    figure,
    format_count,
    format_part,
    join_html,
    p_value,
    percent,
    points,
    scrolling_table,
    table,
)
from lmsi_jax.report.summary import PROMPT_STYLES, Domain, Evaluation, PromptStyle, Summary, Task

PROMPT_STYLE_NAMES: dict[PromptStyle, str] = {
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
    """One prompt style on one task, or its mean over a domain's tasks, through the rounds."""

    prompt_style: PromptStyle
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
    """Returns one comparison for each prompt style that was measured on the task."""
    found = (_compare(summary, [task], prompt_style) for prompt_style in PROMPT_STYLES)
    return [comparison for comparison in found if comparison.by_round]


def of_domain(summary: Summary, domain: Domain) -> list[Comparison]:
    """Returns the macro mean over a domain's tasks for each prompt style.

    Only tasks that every compared round measured count, so that rounds differ by model alone.
    """
    names = [task["name"] for task in tasks_of(summary, domain)]
    found = (_compare(summary, names, prompt_style) for prompt_style in PROMPT_STYLES)
    return [comparison for comparison in found if comparison.by_round]


def as_rows(summary: Summary, models: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns every accuracy and change as plain JSON, one row for each task and prompt style.

    Args:
      summary: the run's.
      models: what its rounds are called; () for "base", "round 1", ...
    """
    last = max(rounds_measured(summary), default=0)
    names = models or [round_name(number).lower() for number in range(last + 1)]
    return [
        _as_row(task["name"], found, _rows(summary, task["name"], found.prompt_style), names)
        for task in summary["tasks"]
        for found in of_task(summary, task["name"])
    ]


def headline(summary: Summary) -> tuple[Domain, Comparison] | None:
    """Returns what the page opens with: CoT in-domain, or the next best that has a change."""
    order: Sequence[PromptStyle] = ("cot", "zero_shot_cot", "standard", "self_consistency")
    domains: Sequence[Domain] = ("in", "out")
    for domain in domains:
        found = sorted(of_domain(summary, domain), key=lambda c: order.index(c.prompt_style))
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


def _compare(summary: Summary, names: Sequence[str], prompt_style: PromptStyle) -> Comparison:
    measured = rounds_measured(summary)
    rows = {name: _rows(summary, name, prompt_style) for name in names}
    shown = {r for of_task in rows.values() for r in of_task}
    compared = {name: found for name, found in rows.items() if found and set(found) == shown}
    by_round = {r: _mean([found[r] for found in compared.values()]) for r in sorted(shown)}
    return Comparison(
        prompt_style,
        {r: accuracy for r, accuracy in by_round.items() if accuracy},
        change(list(_pairs(compared.values(), measured))),
    )


def _as_row(
    task: str, found: Comparison, rows: Mapping[int, Evaluation], names: Sequence[str]
) -> dict[str, Any]:
    """One task and prompt style of `as_rows`, from its evaluations by round."""
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
        "prompt_style": found.prompt_style,
        "accuracy": accuracies,
        "change": dataclasses.asdict(found.change) if found.change else None,
        "curves": {names[n]: row["curve"] for n, row in rows.items() if row.get("curve")},
    }


def _rows(summary: Summary, task: str, prompt_style: str) -> dict[int, Evaluation]:
    """The evaluations of a task in one prompt style, by round."""
    rounds = rounds_measured(summary)
    return {number: row for number in rounds if (row := _find(summary, task, prompt_style, number))}


def _calibration_error(row: Evaluation) -> float | None:
    """How far votes are from being right as often as they are sure; None for single paths."""
    if not row["confidence"]:
        return None
    return expected_calibration_error(row["confidence"], list(map(bool, row["correct"])))


def _find(summary: Summary, task: str, prompt_style: str, number: int) -> Evaluation | None:
    """The evaluation, unless it has no questions."""
    for row in summary["evals"]:
        if (row["task"], row["prompt_style"], row["round"]) == (task, prompt_style, number):
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


DOMAINS: tuple[Domain, ...] = ("in", "out")
_ARROWS = {"rose": "▲ rose", "fell": "▼ fell", "no clear change": "unclear"}
_VERBS = {"rose": "rose", "fell": "fell", "no clear change": "did not clearly change:"}
_SUBJECTS: dict[PromptStyle, str] = {
    "standard": "Direct-answer accuracy",
    "cot": "Chain-of-thought accuracy",
    "zero_shot_cot": "Zero-shot chain-of-thought accuracy",
    "self_consistency": "Accuracy of the vote",
}
_CLASSES = {"rose": "up", "fell": "down", "no clear change": "flat"}
INTERVALS = "[95 % interval, Wilson’s]."
HOW_TESTED = (
    "Changes: last model minus base on the same questions, [95 % interval, Newcombe’s for pairs]; "
    "p: McNemar’s exact two-sided test, not corrected for the number of rows. “Rose” and “fell” "
    "need p < 0.05 and an interval that leaves out zero."
)


def headline_words(summary: Summary) -> tuple[str, str]:
    """Returns the verdict as plain text, and what it rests on."""
    found = headline(summary)
    if found is None:
        return _without_change(summary)
    domain, comparison = found
    change = comparison.change
    assert change is not None
    words = (
        f"{_SUBJECTS[comparison.prompt_style]} on {DOMAIN_NAMES[domain].lower()} tasks "
        f"{_VERBS[change.verdict]} from {percent(change.before)} to {percent(change.after)}"
    )
    basis = (
        f"{points(change.difference)} points [95 %: {points(change.low)} to {points(change.high)}]"
        f", p {_equals(change.p)}. Mean over {count_of(change.tasks, 'task')}, "
        f"{count_of(change.n, 'test question')}; base model against round "
        f"{max(comparison.by_round)}."
    )
    return words, basis


def overview(summary: Summary) -> Html:
    """Returns the table of means by domain and prompt style."""
    measured = rounds_measured(summary)
    groups = []
    for domain in DOMAINS:
        tasks = tasks_of(summary, domain)
        title = f"{DOMAIN_NAMES[domain]} ({count_of(len(tasks), 'task')})"
        groups.append((title, of_domain(summary, domain), len(tasks)))
    caption = "Mean over tasks, each counting alike."
    return _comparison_table(groups, measured, caption)


def by_task(summary: Summary) -> Html:
    """Returns the bars of every prompt style and the table of every task."""
    groups = []
    for domain in DOMAINS:
        for task in tasks_of(summary, domain):
            about = f"{DOMAIN_NAMES[domain].lower()}, {task['kind']}"
            about += f", level {task['level']}" if task["level"] else ""
            title = join_html([element("strong", task["name"]), f" {about}"])
            groups.append((title, of_task(summary, task["name"]), 1))
    measured = rounds_measured(summary)
    bars = [_bars(summary, prompt_style, measured) for prompt_style in PROMPT_STYLES]
    note = element("p", "Bars: accuracy; whiskers: 95 % Wilson interval.", cls="note")
    panels = element("div", *bars, cls="panels")
    detailed = _comparison_table(groups, measured)
    return join_html(
        [
            charts.legend([round_name(number) for number in measured]),
            note,
            panels,
            detailed,
            _sampling(summary),
        ]
    )


def confidence(summary: Summary) -> Html:
    """Returns accuracy against confidence for both domains, base and last model."""
    measured = rounds_measured(summary)
    shown = sorted({measured[0], measured[-1]}) if measured else []
    figures = []
    for domain in DOMAINS:
        series = []
        for number in shown:
            sure, right, paths = confidences(summary, domain, number)
            if sure:
                bins = accuracy_by_confidence(sure, right)
                error = percent(expected_calibration_error(sure, right))
                said = f"{count_of(len(sure), 'vote')} of {count_of(paths, 'path')}, error {error}"
                series.append((round_name(number), bins, said))
        if series:
            name = DOMAIN_NAMES[domain]
            chart = charts.confidence_chart(
                f"{name}: accuracy against confidence",
                [s[:2] for s in series],
            )
            caption = "; ".join(f"{model}: {said}" for model, _, said in series)
            figures.append(figure(name, chart, caption + "."))
    if not figures:
        return element("p", "Self-consistency was not evaluated in this run.", cls="empty")
    note = (
        "How often a vote is right, given how sure it is (figure 2 of the paper). A dot’s area "
        "grows with its bin’s share of the votes, whiskers are 95 % Wilson intervals, the rows "
        "below count the votes in each bin. On the dashed line a vote is as often right as it is "
        "sure; the error is the mean distance of the bins from it, weighted by their votes "
        "(expected calibration error)."
    )
    return join_html([element("p", note, cls="note"), element("div", *figures, cls="panels")])


def _without_change(summary: Summary) -> tuple[str, str]:
    measured = rounds_measured(summary)
    if not measured:
        return "Nothing has been evaluated yet", "Run `lmsi eval` to measure the models."
    if len(summary["rounds"]) == 0:
        return "The base model, before any round", "No round of self-improvement has been run."
    if measured == [0]:
        return "Fine-tuned, but not evaluated", "Only the base model has been evaluated."
    return (
        "Base and last model cannot be compared",
        "They were not evaluated on the same questions with the same prompt style.",
    )


def _comparison_table(
    groups: Sequence[tuple[object, Sequence[Comparison], int]],
    measured: Sequence[int],
    caption: str = "",
) -> Html:
    compared = len(measured) > 1
    names = [element("th", round_name(r), scope="col", cls="num") for r in measured]
    change_names = ["Change in points", "", "p", "Verdict"] if compared else []
    sides = ["num", "mid", "num", "text"]
    changes = [
        element("th", n, scope="col", cls=s) for n, s in zip(change_names, sides, strict=False)
    ]
    first = element("th", "PromptStyle", scope="col", cls="text")
    head = element(
        "thead", element("tr", first, element("th", "n", scope="col", cls="num"), *names, *changes)
    )
    columns = 2 + len(measured) + len(changes)
    scale = _scale([c for _, rows, _ in groups for c in rows])
    bodies = []
    for title, comparisons, tasks in groups:
        top = element("tr", element("th", title, colspan=columns, scope="rowgroup", cls="group"))
        rows = [_comparison_row(c, tasks, measured, scale) for c in comparisons]
        if not rows:
            rows = [element("tr", element("td", "not measured", colspan=columns, cls="empty"))]
        bodies.append(element("tbody", top, *rows))
    said = " ".join([f"{caption} Accuracy in percent, {INTERVALS}", HOW_TESTED if compared else ""])
    style = "stacked" if len(measured) > 2 else None if compared else "slim"
    return scrolling_table(head, bodies, said.strip(), style)


def _comparison_row(
    comparison: Comparison, tasks: int, measured: Sequence[int], scale: tuple[float, float]
) -> Html:
    sizes = sorted({accuracy.n for accuracy in comparison.by_round.values()})
    found = max(accuracy.tasks for accuracy in comparison.by_round.values())
    counted = f" ({found} of {tasks} tasks)" if found < tasks else ""
    cells = [
        element("th", PROMPT_STYLE_NAMES[comparison.prompt_style], scope="row", cls="text"),
        element("td", "/".join(format_count(n) for n in sizes), counted, cls="num quiet"),
    ]
    for number in measured:
        cells.append(element("td", _accuracy(comparison.by_round.get(number)), cls="num"))
    if len(measured) > 1:
        cells += _change_cells(comparison.change, scale)
    return element("tr", *cells)


def _accuracy(accuracy: Accuracy | None) -> Html:
    if accuracy is None:
        return element("span", DASH, cls="quiet")
    interval = f"[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
    value = element("b", f"{100 * accuracy.share:.1f}")
    return join_html([value, " ", element("span", interval, cls="interval")])


def _change_cells(change: Change | None, scale: tuple[float, float]) -> Iterator[Html]:
    if change is None:
        yield element("td", DASH, cls="num quiet")
        yield from (element("td", cls="mid"), element("td", DASH, cls="num quiet"))
        yield element("td", "not comparable", cls="text quiet")
        return
    interval = f"[{points(change.low)}, {points(change.high)}]"
    value = element("b", points(change.difference))
    yield element("td", value, " ", element("span", interval, cls="interval"), cls="num")
    kind = _CLASSES[change.verdict]
    mark = charts.change_mark(change.difference, change.low, change.high, scale, kind)
    yield element("td", mark, cls="mid")
    yield element("td", p_value(change.p), cls="num")
    yield element("td", _ARROWS[change.verdict], cls=f"text verdict {kind}")


def _scale(comparisons: Sequence[Comparison]) -> tuple[float, float]:
    """The ends of the drawn changes of one table, zero within."""
    changes = [c.change for c in comparisons if c.change]
    return min([-0.02, *(c.low for c in changes)]), max([0.02, *(c.high for c in changes)])


def _bars(summary: Summary, prompt_style: PromptStyle, measured: Sequence[int]) -> Html:
    groups: list[charts.Group] = []
    for domain in DOMAINS:
        heading = DOMAIN_NAMES[domain]
        for task in tasks_of(summary, domain):
            for found in of_task(summary, task["name"]):
                if found.prompt_style == prompt_style:
                    bars = [_bar(found.by_round.get(number)) for number in measured]
                    groups.append(charts.Group(task["name"], bars, heading))
                    heading = ""
    if not groups:
        return Html("")
    name = PROMPT_STYLE_NAMES[prompt_style]
    series = [round_name(number) for number in measured]
    return figure(name, charts.grouped_bars(f"{name}: accuracy by task", groups, series))


def _bar(accuracy: Accuracy | None) -> charts.Bar | None:
    return charts.Bar(accuracy.share, accuracy.low, accuracy.high) if accuracy else None


def _sampling(summary: Summary) -> Html:
    names = {p: PROMPT_STYLE_NAMES[p] for p in PROMPT_STYLES}
    rows = [
        (
            e["task"],
            names[e["prompt_style"]],
            round_name(e["round"]),
            format_count(len(e["correct"])),
            format_count(e["paths"]),
            f"{e['temperature']:g}",
            percent(e["parsed"]) if e["correct"] else DASH,
            format_part(e["tied"], len(e["correct"])) if e["paths"] > 1 else DASH,
            f"{e['mean_tokens']:.0f}" if e["mean_tokens"] == e["mean_tokens"] else DASH,
        )
        for e in sorted(summary["evals"], key=lambda e: (e["task"], e["prompt_style"], e["round"]))
    ]
    head = ("Task", "PromptStyle", "Model", "n", "Paths", "T", "Parsed", "Tied", "Tokens a path")
    caption = (
        "Paths are sampled for each question at temperature T (0: greedy). Parsed: paths with a "
        "readable answer. Tied: questions on which two answers shared the most votes."
    )
    details = table(head, rows, caption, text_columns=3)
    return element("details", element("summary", "How the answers were sampled"), details)


def _equals(p: float) -> str:
    written = p_value(p)
    return written if written.startswith("<") else f"= {written}"
