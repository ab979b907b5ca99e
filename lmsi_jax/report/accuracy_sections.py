"""Sections of the page about accuracy: means, task by task, and against confidence."""

import statistics
from collections.abc import Iterator, Sequence

from lmsi_jax.evaluation.accuracy import accuracy_by_confidence, expected_calibration_error
from lmsi_jax.evaluation.changes import calibration_interval
from lmsi_jax.report import charts
from lmsi_jax.report.comparison import (
    DASH,
    DOMAIN_NAMES,
    PROMPT_STYLE_NAMES,
    Accuracy,
    Change,
    Comparison,
    change_interval,
    compare_domain,
    compare_task,
    count_of,
    decimal,
    evaluated_rounds,
    format_count,
    p_value,
    percent,
    percent_of,
    points,
    round_name,
    share_interval,
    tasks_of,
    votes_of,
)
from lmsi_jax.report.html import (
    Html,
    element,
    figure,
    join_html,
    note,
    number_with_interval,
    panels,
    scrolling_table,
    table,
)
from lmsi_jax.report.summary import DOMAINS, PROMPT_STYLES, PromptStyle, Summary

_VERDICTS = {
    "rose": ("up", "▲ rose"),
    "fell": ("down", "▼ fell"),
    "no clear change": ("flat", "unclear"),
}
"""Class and text of each verdict."""
_INTERVALS = "Accuracy in percent, [95 % interval, Wilson’s]."
_TESTS = (
    "Changes: last model minus base on the same questions, [95 % interval, Newcombe’s for pairs]; "
    "p: McNemar’s exact two-sided test, not corrected for the number of rows. “Rose” and “fell” "
    "need p < 0.05 and an interval that excludes zero."
)


def overview(summary: Summary) -> Html:
    """Returns the table of means by domain and prompt style; nothing without evaluations."""
    if not summary.evals:
        return Html("")
    groups = []
    for domain in DOMAINS:
        if tasks := tasks_of(summary, domain):
            title = f"{DOMAIN_NAMES[domain]} ({count_of(len(tasks), 'task')})"
            groups.append((title, compare_domain(summary, domain), len(tasks)))
    caption = "Mean over tasks, each counting alike."
    return _comparison_table(groups, evaluated_rounds(summary), caption)


def by_task(summary: Summary) -> Html:
    """Returns the bars of every prompt style and the table of every task."""
    if not summary.evals:
        return Html("")
    groups = []
    for domain in DOMAINS:
        for task in tasks_of(summary, domain):
            about = f"{DOMAIN_NAMES[domain].lower()}, {task.kind}"
            about += f", level {task.level}" if task.level else ""
            title = join_html([element("strong", task.name), f" {about}"])
            groups.append((title, compare_task(summary, task.name), 1))
    rounds = evaluated_rounds(summary)
    return join_html(
        [
            charts.legend([round_name(number) for number in rounds]),
            note("Bars: accuracy; whiskers: 95 % Wilson interval."),
            panels(_bars(summary, prompt_style, rounds) for prompt_style in PROMPT_STYLES),
            _comparison_table(groups, rounds),
            _sampling_details(summary),
        ]
    )


def confidence(summary: Summary) -> Html:
    """Returns accuracy against confidence of the base and the last model, by domain."""
    rounds = evaluated_rounds(summary)
    if not rounds:
        return Html("")
    figures = []
    for domain in DOMAINS:
        series, captions = [], []
        for number in sorted({rounds[0], rounds[-1]}):
            confidences, right, samples = votes_of(summary, domain, number)
            if confidences:
                name = round_name(number)
                series.append((name, accuracy_by_confidence(confidences, right)))
                votes = f"{count_of(len(right), 'vote')} of {count_of(samples, 'sample')}"
                low, high = calibration_interval(confidences, right)
                error = percent(expected_calibration_error(confidences, right))
                error += f" {share_interval(low, high)}"
                captions.append(f"{name}: {votes}, error {error}")
        if series:
            name = DOMAIN_NAMES[domain]
            chart = charts.confidence_chart(f"{name}: accuracy against confidence", series)
            figures.append(figure(name, chart, "; ".join(captions) + "."))
    if not figures:
        return element("p", "Self-consistency was not evaluated in this run.", cls="empty")
    about = (
        "How often a vote is right, given its confidence (figure 2 of the paper). A dot’s area "
        "grows with its bin’s share of the votes, whiskers are 95 % Wilson intervals, and the rows "
        "below count the votes in each bin. On the dashed line accuracy equals confidence; the "
        "error is the mean distance of the bins from it, weighted by their votes (expected "
        "calibration error), [95 % interval, bootstrap over questions]."
    )
    return join_html([note(about), panels(figures)])


def probe(summary: Summary) -> Html:
    """Returns the contamination probe; nothing if there was none."""
    if not summary.probe:
        return Html("")

    def share(count: float, low: float, high: float, total: int) -> str:
        return f"{percent(count / total)} {share_interval(low, high)}"

    rows = [
        (
            row.task,
            percent(row.share, 0),
            format_count(row.questions),
            share(row.exact[0], row.exact[1], row.exact[2], row.questions),
            f"{decimal(row.rouge[0])} [{decimal(row.rouge[1])}, {decimal(row.rouge[2])}]",
            share(row.right[0], row.right[1], row.right[2], row.questions),
        )
        for row in summary.probe
    ]
    about = (
        "The base model continues the first words of each test question, greedily and without a "
        "prompt (2507.10532). A model that saw the questions in pre-training writes their rest "
        "word by word; one that did not has almost 0. Shares with Wilson intervals, ROUGE-L with a "
        "bootstrap over questions."
    )
    head = ("Task", "Shown", "Questions", "Rest word by word", "ROUGE-L", "Right answer")
    return join_html([note(about), table(head, rows)])


def _comparison_table(
    groups: Sequence[tuple[object, Sequence[Comparison], int]],
    rounds: Sequence[int],
    caption: str = "",
) -> Html:
    """A table body for each (title, comparisons, number of tasks)."""
    head = [("Prompt style", "text"), ("n", "num"), *((round_name(r), "num") for r in rounds)]
    if len(rounds) > 1:
        head += [("Change in points", "num"), ("", "mid"), ("p", "num"), ("Verdict", "text")]
    changes = [c.change for _, rows, _ in groups for c in rows if c.change]
    scale = min([-0.02, *(c.low for c in changes)]), max([0.02, *(c.high for c in changes)])
    bodies = []
    for title, comparisons, tasks in groups:
        top = element("th", title, colspan=len(head), scope="rowgroup", cls="group")
        rows = [_comparison_row(c, tasks, rounds, scale) for c in comparisons]
        if not rows:
            rows = [element("tr", element("td", "not measured", colspan=len(head), cls="empty"))]
        bodies.append(element("tbody", element("tr", top), *rows))
    cells = [element("th", name, scope="col", cls=side) for name, side in head]
    words = [caption, _INTERVALS, _TESTS if len(rounds) > 1 else ""]
    style = "cards stacked" if len(rounds) > 2 else "cards" if len(rounds) > 1 else "slim"
    top = element("thead", element("tr", *cells))
    title = "Accuracy by prompt style, of the base and after each round"
    return scrolling_table(top, bodies, " ".join(filter(None, words)), style, title=title)


def _comparison_row(
    comparison: Comparison, tasks: int, rounds: Sequence[int], scale: tuple[float, float]
) -> Html:
    sizes = sorted({accuracy.n for accuracy in comparison.by_round.values()})
    compared = max(accuracy.tasks for accuracy in comparison.by_round.values())
    of_tasks = f" ({compared} of {tasks} tasks)" if compared < tasks else ""
    cells = [
        element("th", PROMPT_STYLE_NAMES[comparison.prompt_style], scope="row", cls="text"),
        element(
            "td", "/".join(map(format_count, sizes)), of_tasks, cls="num quiet", data_label="n"
        ),
    ]
    for number in rounds:
        accuracy = _accuracy(comparison.by_round.get(number))
        cells.append(element("td", accuracy, cls="num", data_label=round_name(number)))
    if len(rounds) > 1:
        cells += _change_cells(comparison.change, scale)
    return element("tr", *cells)


def _accuracy(accuracy: Accuracy | None) -> Html:
    if accuracy is None:
        return element("span", DASH, cls="quiet")
    interval = share_interval(accuracy.low, accuracy.high)
    return number_with_interval(f"{100 * accuracy.share:.1f}", interval)


def _change_cells(change: Change | None, scale: tuple[float, float]) -> Iterator[Html]:
    if change is None:
        yield element("td", DASH, cls="num quiet", data_label="Change")
        yield from (element("td", cls="mid"), element("td", DASH, cls="num quiet", data_label="p"))
        yield element("td", "not comparable", cls="text quiet", data_label="Verdict")
        return
    interval = change_interval(change.low, change.high)
    kind, verdict = _VERDICTS[change.verdict]
    mark = charts.change_mark(change.difference, change.low, change.high, scale, kind)
    difference = number_with_interval(points(change.difference), interval)
    yield element("td", difference, cls="num", data_label="Change")
    yield element("td", mark, cls="mid")
    yield element("td", p_value(change.p), cls="num", data_label="p")
    yield element("td", verdict, cls=f"text verdict {kind}", data_label="Verdict")


def _bars(summary: Summary, prompt_style: PromptStyle, rounds: Sequence[int]) -> Html:
    groups: list[charts.Group] = []
    for domain in DOMAINS:
        heading = DOMAIN_NAMES[domain]
        for task in tasks_of(summary, domain):
            for comparison in compare_task(summary, task.name):
                if comparison.prompt_style == prompt_style:
                    bars = [_bar(comparison.by_round.get(number)) for number in rounds]
                    groups.append(charts.Group(task.name, bars, heading))
                    heading = ""
    if not groups:
        return Html("")
    name = PROMPT_STYLE_NAMES[prompt_style]
    series = [round_name(number) for number in rounds]
    return figure(name, charts.grouped_bars(f"{name}: accuracy by task", groups, series))


def _bar(accuracy: Accuracy | None) -> charts.Bar | None:
    return charts.Bar(accuracy.share, accuracy.low, accuracy.high) if accuracy else None


def _sampling_details(summary: Summary) -> Html:
    with_f1 = any(row.f1 for row in summary.evals)
    rows = [
        (
            row.task,
            PROMPT_STYLE_NAMES[row.prompt_style],
            round_name(row.round),
            format_count(len(row.correct)),
            format_count(row.samples),
            f"{row.temperature:g}",
            percent(row.parsed) if row.correct else DASH,
            percent_of(row.tied, len(row.correct)) if row.samples > 1 else DASH,
            decimal(row.mean_tokens, 0),
            *([percent(statistics.fmean(row.f1)) if row.f1 else DASH] if with_f1 else []),
        )
        for row in sorted(summary.evals, key=lambda row: (row.task, row.prompt_style, row.round))
    ]
    head = [
        "Task",
        "Prompt style",
        "Model",
        "n",
        "Samples",
        "T",
        "Parsed",
        "Tied",
        "Tokens a sample",
    ]
    head += ["F1"] if with_f1 else []
    caption = (
        "Samples: drawn for each question at temperature T (0: greedy). Parsed: samples with a "
        "readable answer. Tied: questions on which two answers share the most votes."
        + (" F1: DROP’s own score, beside accuracy." if with_f1 else "")
    )
    details = table(head, rows, caption, text_columns=3)
    return element("details", element("summary", "How the answers were sampled"), details)
