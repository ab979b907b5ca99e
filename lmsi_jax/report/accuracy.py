"""The part of the page about accuracy: verdict, tables, bars, confidence."""

from collections.abc import Iterator, Sequence

from lmsi_jax.evaluation.calibration import accuracy_by_confidence, expected_calibration_error
from lmsi_jax.report import charts, compare
from lmsi_jax.report.markup import (
    DASH,
    Html,
    element,
    figure,
    joined,
    p_value,
    part,
    percent,
    points,
    scrolling,
    several,
    table,
    whole,
)
from lmsi_jax.report.summary import PROMPTINGS, Domain, Prompting, Summary

DOMAINS: tuple[Domain, ...] = ("in", "out")
_ARROWS = {"rose": "▲ rose", "fell": "▼ fell", "no clear change": "unclear"}
_VERBS = {"rose": "rose", "fell": "fell", "no clear change": "did not clearly change:"}
_SUBJECTS: dict[Prompting, str] = {
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
    found = compare.headline(summary)
    if found is None:
        return _without_change(summary)
    domain, comparison = found
    change = comparison.change
    assert change is not None
    words = (
        f"{_SUBJECTS[comparison.prompting]} on {compare.DOMAIN_NAMES[domain].lower()} tasks "
        f"{_VERBS[change.verdict]} from {percent(change.before)} to {percent(change.after)}"
    )
    basis = (
        f"{points(change.difference)} points [95 %: {points(change.low)} to {points(change.high)}]"
        f", p {_equals(change.p)}. Mean over {several(change.tasks, 'task')}, "
        f"{several(change.n, 'test question')}; base model against round "
        f"{max(comparison.by_round)}."
    )
    return words, basis


def overview(summary: Summary) -> Html:
    """Returns the table of means by domain and prompting."""
    measured = compare.rounds_measured(summary)
    groups = []
    for domain in DOMAINS:
        tasks = compare.tasks_of(summary, domain)
        title = f"{compare.DOMAIN_NAMES[domain]} ({several(len(tasks), 'task')})"
        groups.append((title, compare.of_domain(summary, domain), len(tasks)))
    caption = "Mean over tasks, each counting alike."
    return _comparison_table(groups, measured, caption)


def by_task(summary: Summary) -> Html:
    """Returns the bars of every prompting and the table of every task."""
    groups = []
    for domain in DOMAINS:
        for task in compare.tasks_of(summary, domain):
            about = f"{compare.DOMAIN_NAMES[domain].lower()}, {task['kind']}"
            about += f", level {task['level']}" if task["level"] else ""
            title = joined([element("strong", task["name"]), f" {about}"])
            groups.append((title, compare.of_task(summary, task["name"]), 1))
    measured = compare.rounds_measured(summary)
    bars = [_bars(summary, prompting, measured) for prompting in PROMPTINGS]
    note = element("p", "Bars: accuracy; whiskers: 95 % Wilson interval.", cls="note")
    panels = element("div", *bars, cls="panels")
    detailed = _comparison_table(groups, measured)
    return joined(
        [
            charts.legend([compare.round_name(number) for number in measured]),
            note,
            panels,
            detailed,
            _sampling(summary),
        ]
    )


def confidence(summary: Summary) -> Html:
    """Returns accuracy against confidence for both domains, base and last model."""
    measured = compare.rounds_measured(summary)
    shown = sorted({measured[0], measured[-1]}) if measured else []
    figures = []
    for domain in DOMAINS:
        series = []
        for number in shown:
            sure, right, paths = compare.confidences(summary, domain, number)
            if sure:
                bins = accuracy_by_confidence(sure, right)
                error = percent(expected_calibration_error(sure, right))
                said = f"{several(len(sure), 'vote')} of {several(paths, 'path')}, error {error}"
                series.append((compare.round_name(number), bins, said))
        if series:
            name = compare.DOMAIN_NAMES[domain]
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
    return joined([element("p", note, cls="note"), element("div", *figures, cls="panels")])


def _without_change(summary: Summary) -> tuple[str, str]:
    measured = compare.rounds_measured(summary)
    if not measured:
        return "Nothing has been evaluated yet", "Run `lmsi eval` to measure the models."
    if len(summary["rounds"]) == 0:
        return "The base model, before any round", "No round of self-improvement has been run."
    if measured == [0]:
        return "Fine-tuned, but not evaluated", "Only the base model has been evaluated."
    return (
        "Base and last model cannot be compared",
        "They were not evaluated on the same questions with the same prompting.",
    )


def _comparison_table(
    groups: Sequence[tuple[object, Sequence[compare.Comparison], int]],
    measured: Sequence[int],
    caption: str = "",
) -> Html:
    compared = len(measured) > 1
    names = [element("th", compare.round_name(r), scope="col", cls="num") for r in measured]
    change_names = ["Change in points", "", "p", "Verdict"] if compared else []
    sides = ["num", "mid", "num", "text"]
    changes = [
        element("th", n, scope="col", cls=s) for n, s in zip(change_names, sides, strict=False)
    ]
    first = element("th", "Prompting", scope="col", cls="text")
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
    return scrolling(head, bodies, said.strip(), style)


def _comparison_row(
    comparison: compare.Comparison, tasks: int, measured: Sequence[int], scale: tuple[float, float]
) -> Html:
    sizes = sorted({accuracy.n for accuracy in comparison.by_round.values()})
    found = max(accuracy.tasks for accuracy in comparison.by_round.values())
    counted = f" ({found} of {tasks} tasks)" if found < tasks else ""
    cells = [
        element("th", compare.PROMPTING_NAMES[comparison.prompting], scope="row", cls="text"),
        element("td", "/".join(whole(n) for n in sizes), counted, cls="num quiet"),
    ]
    for number in measured:
        cells.append(element("td", _accuracy(comparison.by_round.get(number)), cls="num"))
    if len(measured) > 1:
        cells += _change_cells(comparison.change, scale)
    return element("tr", *cells)


def _accuracy(accuracy: compare.Accuracy | None) -> Html:
    if accuracy is None:
        return element("span", DASH, cls="quiet")
    interval = f"[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
    value = element("b", f"{100 * accuracy.share:.1f}")
    return joined([value, " ", element("span", interval, cls="interval")])


def _change_cells(change: compare.Change | None, scale: tuple[float, float]) -> Iterator[Html]:
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


def _scale(comparisons: Sequence[compare.Comparison]) -> tuple[float, float]:
    """The ends of the drawn changes of one table, zero within."""
    changes = [c.change for c in comparisons if c.change]
    return min([-0.02, *(c.low for c in changes)]), max([0.02, *(c.high for c in changes)])


def _bars(summary: Summary, prompting: Prompting, measured: Sequence[int]) -> Html:
    groups: list[charts.Group] = []
    for domain in DOMAINS:
        heading = compare.DOMAIN_NAMES[domain]
        for task in compare.tasks_of(summary, domain):
            for found in compare.of_task(summary, task["name"]):
                if found.prompting == prompting:
                    bars = [_bar(found.by_round.get(number)) for number in measured]
                    groups.append(charts.Group(task["name"], bars, heading))
                    heading = ""
    if not groups:
        return Html("")
    name = compare.PROMPTING_NAMES[prompting]
    series = [compare.round_name(number) for number in measured]
    return figure(name, charts.grouped_bars(f"{name}: accuracy by task", groups, series))


def _bar(accuracy: compare.Accuracy | None) -> charts.Bar | None:
    return charts.Bar(accuracy.share, accuracy.low, accuracy.high) if accuracy else None


def _sampling(summary: Summary) -> Html:
    names = {p: compare.PROMPTING_NAMES[p] for p in PROMPTINGS}
    rows = [
        (
            e["task"],
            names[e["prompting"]],
            compare.round_name(e["round"]),
            whole(len(e["correct"])),
            whole(e["paths"]),
            f"{e['temperature']:g}",
            percent(e["parsed"]) if e["correct"] else DASH,
            part(e["tied"], len(e["correct"])) if e["paths"] > 1 else DASH,
            f"{e['mean_tokens']:.0f}" if e["mean_tokens"] == e["mean_tokens"] else DASH,
        )
        for e in sorted(summary["evals"], key=lambda e: (e["task"], e["prompting"], e["round"]))
    ]
    head = ("Task", "Prompting", "Model", "n", "Paths", "T", "Parsed", "Tied", "Tokens a path")
    caption = (
        "Paths are sampled for each question at temperature T (0: greedy). Parsed: paths with a "
        "readable answer. Tied: questions on which two answers shared the most votes."
    )
    details = table(head, rows, caption, text_columns=3)
    return element("details", element("summary", "How the answers were sampled"), details)


def _equals(p: float) -> str:
    written = p_value(p)
    return written if written.startswith("<") else f"= {written}"
