"""Sections of the page about the rounds: their course, collapse, training, time, and what the model
wrote itself.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from lmsi_jax.evaluation.collapse import EASY
from lmsi_jax.report import charts
from lmsi_jax.report.comparison import (
    DASH,
    DOMAIN_NAMES,
    SHORT_PROMPT_STYLE_NAMES,
    compare_domain,
    decimal,
    duration,
    format_count,
    percent,
    percent_of,
    round_name,
)
from lmsi_jax.report.html import (
    Html,
    count_with_share,
    element,
    figure,
    join_html,
    note,
    panels,
    table,
)
from lmsi_jax.report.summary import DOMAINS, CollapseRow, Round, Summary

MOST_POINTS = 150
"""A longer curve is averaged over neighbouring steps, so that the page stays small."""
_SOURCES = {"self_generated": "self-generated", "human": "human"}


def alarms(summary: Summary) -> Html:
    """Returns the warnings of the stop rules and the collapse monitor, or nothing."""
    items = [
        element("li", element("b", round_name(row.round)), ": ", alarm)
        for row in summary.rounds
        for alarm in row.alarms
    ]
    if not items:
        return Html("")
    title = element("strong", "Alarms")
    return element("div", title, element("ul", *items), cls="alarms", role="note")


def by_round(summary: Summary) -> Html:
    """Returns accuracy, confidence, entropy and diversity by round; nothing for a single round."""
    rows = summary.rounds
    if len(rows) < 2:
        return Html("")
    figures = []
    for domain in DOMAINS:
        lines = [
            charts.Line(
                SHORT_PROMPT_STYLE_NAMES[comparison.prompt_style],
                [(float(number), a.share) for number, a in comparison.by_round.items()],
                [(a.low, a.high) for a in comparison.by_round.values()],
            )
            for comparison in compare_domain(summary, domain)
        ]
        if lines:
            name = f"Accuracy, {DOMAIN_NAMES[domain].lower()}"
            chart = charts.line_chart(
                name, lines, "round", "mean over tasks", share=True, whole_x=True
            )
            figures.append(figure(name, chart, "Whiskers: 95 % interval of the mean over tasks."))
    confidences = [row.mean_confidence for row in rows]
    entropies = [row.mean_entropy for row in rows]
    diversity = [row.distinct_kept / row.questions if row.questions else math.nan for row in rows]
    for name, unit, values, share in (
        ("Mean confidence of the vote", "agreeing samples / all", confidences, True),
        ("Mean entropy of the answers", "nats a question", entropies, False),
        ("Diversity", "distinct kept samples a question", diversity, False),
    ):
        points = [(float(row.round), value) for row, value in zip(rows, values, strict=True)]
        lines = [charts.Line(name, points)]
        figures.append(_chart_by_round(name, lines, unit, share))
    starts = ", ".join(f"round {row.round} from the {row.start_from} model" for row in rows)
    about = (
        f"Started: {starts}. Rising confidence with falling diversity is a sign of collapse: the "
        "model agrees with itself more and more, whether right or wrong."
    )
    return join_html([note(about), panels(figures), _schedule(rows)])


def _schedule(rounds: Sequence[Round]) -> Html:
    """The parameters that change from round to round."""
    names = list(dict.fromkeys(name for row in rounds for name in row.values))
    if not names:
        return Html("")
    head = ["Parameter", *(round_name(row.round) for row in rounds)]
    body = [[name, *(row.values.get(name, DASH) for row in rounds)] for name in names]
    return table(head, body, "Run.schedule: the parameters that change from round to round.")


def training(summary: Summary) -> Html:
    """Returns the losses, also by format and source, learning rate and gradient norm."""
    rounds = summary.rounds
    if not rounds:
        return Html("")
    if not any(row.train for row in rounds):
        return element("p", "No training step was logged.", cls="empty")
    figures = [
        _curves(rounds, "loss", "Loss", _loss_unit(rounds)),
        _curves(rounds, "validation_loss", "Loss on held-out examples", "nats a target token"),
        *(_label_losses(row, len(rounds) > 1) for row in rounds if row.train),
        _curves(rounds, "margin", "Margin of the chosen sample over the rejected one", "nats"),
        _curves(rounds, "grad_norm", "Gradient norm", "global norm"),
        _curves(rounds, "learning_rate", "Learning rate", "learning rate"),
    ]
    bucket = _bucket_size(max(len(row.train) for row in rounds))
    about = note(f"Each point is the mean of {bucket} logged steps.") if bucket > 1 else ""
    return join_html([about, panels(figures)])


def _loss_unit(rounds: Sequence[Round]) -> str:
    pairs = any("margin" in metrics for row in rounds for metrics in row.train)
    return "nats a pair" if pairs else "nats a target token"


def _curves(rounds: Sequence[Round], field: str, name: str, unit: str) -> Html:
    lines = [
        charts.Line(round_name(row.round), curve)
        for row in rounds
        if (curve := thin_steps(row.train, field))
    ]
    if not lines:
        return Html("")
    return figure(name, charts.line_chart(name, lines, "step", unit, ramp=len(rounds) > 1))


def _label_losses(row: Round, with_round: bool) -> Html:
    """Losses by format, and by source if there are several."""
    fields = dict.fromkeys(f for metrics in row.train for f in metrics if f.startswith("loss/"))
    labels = [field.removeprefix("loss/") for field in fields]
    figures = []
    for by, chosen in (
        ("format", [label for label in labels if label not in _SOURCES]),
        ("source", [label for label in labels if label in _SOURCES]),
    ):
        if not chosen:
            continue
        lines = [
            charts.Line(
                _SOURCES.get(label, label.replace("_shot", "-shot").replace("_", " ")),
                thin_steps(row.train, f"loss/{label}"),
            )
            for label in chosen
        ]
        name = f"Loss by {by}" + (f", {round_name(row.round).lower()}" if with_round else "")
        figures.append(figure(name, charts.line_chart(name, lines, "step", _loss_unit([row]))))
    return join_html(figures)


def thin_steps(steps: Sequence[dict[str, float]], field: str) -> list[tuple[float, float]]:
    """Returns (step, value), averaged over neighbours so that at most MOST_POINTS remain.

    Values that are not finite do not enter their neighbours' mean; a stretch without any other
    value stays a gap.
    """
    points = [(metrics["step"], metrics[field]) for metrics in steps if field in metrics]
    size = _bucket_size(len(points))
    curve = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        finite = [value for _, value in bucket if math.isfinite(value)]
        mean = math.fsum(finite) / len(finite) if finite else math.nan
        curve.append((math.fsum(step for step, _ in bucket) / len(bucket), mean))
    return curve


def _bucket_size(count: int) -> int:
    return max(1, math.ceil(count / MOST_POINTS))


def times(summary: Summary) -> Html:
    """Returns seconds and throughput of each stage; nothing without rounds."""
    rounds = summary.rounds
    if not rounds:
        return Html("")
    by_stage = [{**row.seconds, **row.tokens_per_second} for row in rounds]
    totals = [math.fsum(row.seconds.values()) for row in rounds]
    rows: list[list[object]] = []
    for stage in dict.fromkeys(stage for stages in by_stage for stage in stages):
        cells: list[object] = [stage]
        for row, total in zip(rounds, totals, strict=True):
            seconds, rate = row.seconds.get(stage), row.tokens_per_second.get(stage)
            cells += [
                DASH if seconds is None else duration(seconds),
                DASH if seconds is None else percent_of(seconds, total),
                DASH if rate is None else format_count(rate),
            ]
        rows.append(cells)
    last: list[object] = [element("b", "Total")]
    head = ["Stage"]
    for row, total in zip(rounds, totals, strict=True):
        last += [element("b", duration(total)), DASH, DASH]
        head += [f"{round_name(row.round)}: time", "Share", "Tokens/s"]
    caption = "Wall time. Tokens/s: sampled in decoding, trained in training."
    return table(head, [*rows, last], caption)


def augmentation(summary: Summary) -> Html:
    """Returns a table of the model's own questions and one of its own prompts, if it has any."""
    return join_html([_new_questions(summary.rounds), _new_prompts(summary.rounds)])


def _new_questions(rounds: Sequence[Round]) -> Html:
    rows = []
    for row in rounds:
        for task, counts in row.generated.items():
            parts = (
                *(counts.malformed, counts.duplicates, counts.contaminated),
                *(counts.surplus, counts.new),
            )
            rows.append(
                [
                    task,
                    round_name(row.round),
                    format_count(counts.written),
                    *(count_with_share(part, counts.written) for part in parts),
                    percent(counts.mean_confidence) if counts.new else DASH,
                    count_with_share(counts.confident, counts.new),
                ]
            )
    if not rows:
        return Html("")
    head = [
        *("Task", "Sampled in", "Written", "Malformed", "Duplicates", "In the test", "Surplus"),
        *("New", "Mean confidence", "Confident"),
    ]
    caption = (
        "New questions that the model wrote after lists of real ones. Malformed: cut, or unlike "
        "the real ones in opening, lines, options or length. Duplicates: of each other or of real "
        "training questions. In the test: overlapping a test question. Surplus: more than were "
        "asked for. Confident: the vote’s confidence is high enough for training rows."
    )
    return table(head, rows, caption, text_columns=2)


def _new_prompts(rounds: Sequence[Round]) -> Html:
    rows = [
        [
            task,
            round_name(row.round),
            format_count(counts.asked),
            count_with_share(counts.usable, counts.asked),
            format_count(counts.prompts),
        ]
        for row in rounds
        for task, counts in row.prompts.items()
    ]
    if not rows:
        return Html("")
    caption = (
        "Few-shot prompts of greedy zero-shot answers. Usable: reasoning, then an answer sentence "
        "with an answer of the task’s kind. A question’s samples are spread over the prompts."
    )
    head = ["Task", "Sampled in", "Answers", "Usable", "Prompts"]
    return table(head, rows, caption, text_columns=2)


Source = Literal["train", "test"]
_Value = float | None
_TITLES: dict[Source, str] = {
    "train": "Votes that the round learned from",
    "test": "Its model on the test questions",
}
_CAPTIONS: dict[Source, str] = {
    "train": (
        "The votes on training questions, by the model before the round, and the rows made of "
        f"them. Easy: more than {percent(EASY, 0)} of the samples agree. Distinct-n: different "
        "n-grams of words over all, among the samples of one question. Entropy: of a question’s "
        "answers, over the largest possible. Means over questions."
    ),
    "test": (
        "The vote of many samples, with gold answers. Votes that gain confidence without getting "
        "right more often, and a falling pass@m, are signs of collapse. Metrics at different "
        "temperatures do not compare."
    ),
}


def _share(value: _Value) -> str:
    return DASH if value is None else percent(value)


def _count(value: _Value) -> str:
    return DASH if value is None else format_count(value)


def _decimals(places: int) -> Callable[[_Value], str]:
    return lambda value: DASH if value is None else decimal(value, places)


def _labelled(name: str) -> Callable[[CollapseRow], _Value]:
    return lambda row: None if row.scored is None else getattr(row.scored, name)


def _distinct(n: int) -> Callable[[CollapseRow], _Value]:
    return lambda row: row.distinct[n - 1]


_METRICS: tuple[tuple[str, Callable[[CollapseRow], _Value], Callable[[_Value], str]], ...] = (
    ("Questions", lambda row: row.questions, _count),
    ("Mean share of the vote", lambda row: row.confidence, _share),
    ("Vote is right (majority@m)", _labelled("majority"), _share),
    ("Some sample is right (pass@m)", _labelled("passed"), _share),
    ("Sample is right (pass@1)", _labelled("single"), _share),
    ("Entropy of the answers", lambda row: row.entropy, _decimals(3)),
    *((f"Distinct-{n}", _distinct(n), _decimals(3)) for n in (1, 2, 3)),
    ("Tokens a sample", lambda row: row.length, _decimals(1)),
    ("Unparsed samples", lambda row: row.unparsed, _share),
    ("Questions without an answer", lambda row: row.empty, _share),
    ("Different kept samples a question", lambda row: row.distinct_kept, _decimals(1)),
    ("Easy questions", lambda row: row.easy, _share),
    ("Their training weight", lambda row: row.easy_weight, _share),
    ("Questions with training rows", lambda row: row.kept, _share),
    ("Training rows", lambda row: row.rows, _count),
)


def collapse(summary: Summary) -> Html:
    """Returns the collapse metrics by round for each source, with charts; nothing for one round."""
    parts: list[Html] = []
    for source in _TITLES:
        if cells := collapse_table(summary, source):
            parts += [element("h3", _TITLES[source]), table(*cells, _CAPTIONS[source])]
    figures = _collapse_charts(summary)
    return join_html([*parts, panels(figures) if figures else ""])


def collapse_table(summary: Summary, source: Source) -> tuple[list[str], list[list[str]]] | None:
    """Returns (head, rows): a row for each metric that was measured, a column for each round.

    None without measurements, and for a single round, which has nothing to be compared with.
    """
    rounds = _collapse_rows(summary, source)
    if len(rounds) < 2:
        return None
    head = ["Metric", *(round_name(row.round) for row in rounds)]
    rows = []
    for name, value_of, write in _METRICS:
        values = [value_of(row) for row in rounds]
        if any(value is not None for value in values):
            rows.append([name, *map(write, values)])
    return head, rows


def _collapse_rows(summary: Summary, source: Source) -> list[CollapseRow]:
    rows = [row for row in summary.collapse if row.source == source]
    return sorted(rows, key=lambda row: row.round)


def _collapse_charts(summary: Summary) -> list[Html]:
    train, test = _collapse_rows(summary, "train"), _collapse_rows(summary, "test")
    figures = []
    if len(test) > 1 and all(row.scored for row in test):
        names = (("share of the vote", "confidence"), ("right", "majority"), ("pass@m", "passed"))
        lines = [_line(label, test, _labelled(name)) for label, name in names]
        figures.append(_chart_by_round("Confident and right, test questions", lines, "share", True))
    if len(train) > 1:
        distinct = [_line(f"distinct-{n}", train, _distinct(n)) for n in (1, 2, 3)]
        easy = [
            _line("questions", train, lambda row: row.easy),
            _line("weight", train, lambda row: row.easy_weight),
        ]
        length = [_line("tokens", train, lambda row: row.length)]
        title = "Distinct n-grams of a question’s samples"
        figures.append(_chart_by_round(title, distinct, "share", True))
        figures.append(_chart_by_round("Easy questions", easy, "share", True))
        figures.append(_chart_by_round("Length of a sample", length, "tokens"))
    return figures


def _line(
    label: str, rows: Sequence[CollapseRow], value_of: Callable[[CollapseRow], _Value]
) -> charts.Line:
    points = ((float(row.round), value_of(row)) for row in rows)
    return charts.Line(label, [(x, math.nan if y is None else y) for x, y in points])


def _chart_by_round(
    title: str, lines: Sequence[charts.Line], unit: str, share: bool = False
) -> Html:
    chart = charts.line_chart(title, lines, "round", unit, share=share, whole_x=True)
    return figure(title, chart)
