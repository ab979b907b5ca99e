"""The part of the page about the rounds: losses, what changes from round to round, alarms, time."""

import math
from collections.abc import Sequence

from lmsi_jax.report import charts, compare
from lmsi_jax.report.markup import DASH, Html, duration, element, figure, joined, part, table, whole
from lmsi_jax.report.summary import Round, Summary
from lmsi_jax.report.votes import FORMAT_NAMES

MOST_POINTS = 150
"""A curve with more is averaged over neighbouring steps, so that the page stays small."""
_START = {"base": "base model", "last": "last model"}
_SHORT = {f: f.replace("_shot", "-shot").replace("_", " ") for f in FORMAT_NAMES}
_SOURCES = {"weak": "weak (own paths)", "strong": "strong (human)"}
_PROMPTING = {
    "standard": "standard",
    "cot": "CoT",
    "zero_shot_cot": "zero-shot CoT",
    "self_consistency": "vote",
}


def losses(rounds: Sequence[Round]) -> Html:
    """Returns every round's loss, also by format and source, learning rate and gradient norm."""
    if not any(row["train"] for row in rounds):
        return element("p", "No training step was logged.", cls="empty")
    figures = [
        _curves(rounds, "loss", "Loss", _unit(rounds)),
        _curves(rounds, "validation_loss", "Loss on held-out examples", "nats a target token"),
        *(_label_losses(row, len(rounds) > 1) for row in rounds if row["train"]),
        _curves(rounds, "margin", "Margin of the chosen path over the rejected one", "nats"),
        _curves(rounds, "grad_norm", "Gradient norm", "global norm"),
        _curves(rounds, "learning_rate", "Learning rate", "learning rate"),
    ]
    longest = max(len(row["train"]) for row in rounds)
    note = f"Each point is the mean of {_bucket(longest)} logged steps."
    said = element("p", note, cls="note") if _bucket(longest) > 1 else ""
    return joined([said, element("div", *figures, cls="panels")])


def _unit(rounds: Sequence[Round]) -> str:
    """What a loss is per."""
    pairs = any("margin" in step for row in rounds for step in row["train"])
    return "nats a pair" if pairs else "nats a target token"


def by_round(summary: Summary) -> Html:
    """Returns accuracy, confidence, entropy and diversity through the rounds."""
    figures = []
    for domain in ("in", "out"):
        lines = [_accuracy_line(comparison) for comparison in compare.of_domain(summary, domain)]
        if lines:
            name = f"Accuracy, {compare.DOMAIN_NAMES[domain].lower()}"
            chart = charts.line_chart(
                name, lines, "round", "mean over tasks", share=True, whole_x=True
            )
            figures.append(figure(name, chart, "Whiskers: 95 % interval of the mean over tasks."))
    rows = summary["rounds"]
    for name, unit, values, share in (
        (
            "Mean confidence of the vote",
            "agreeing paths / all",
            [r["mean_confidence"] for r in rows],
            True,
        ),
        (
            "Mean entropy of the answers",
            "nats a question",
            [r["mean_entropy"] for r in rows],
            False,
        ),
        ("Diversity", "distinct kept paths a question", [_diversity(r) for r in rows], False),
    ):
        points = [(float(r["round"]), v) for r, v in zip(rows, values, strict=True)]
        chart = charts.line_chart(
            name, [charts.Line(name, points)], "round", unit, share=share, whole_x=True
        )
        figures.append(figure(name, chart))
    starts = ", ".join(f"round {r['round']} from the {_START[r['start_from']]}" for r in rows)
    note = (
        f"Started: {starts}. Rising confidence with falling diversity is the sign of a collapse: "
        "the model agrees with itself ever more, whether right or wrong."
    )
    return joined(
        [
            element("p", note, cls="note"),
            element("div", *figures, cls="panels"),
            _values(rows),
        ]
    )


def _values(rounds: Sequence[Round]) -> Html:
    """The parameters that change by round; nothing where none does."""
    names = list(dict.fromkeys(name for row in rounds for name in row.get("values", {})))
    if not names:
        return Html("")
    head = ["Parameter", *(compare.round_name(row["round"]) for row in rounds)]
    body = [[name, *(row.get("values", {}).get(name, DASH) for row in rounds)] for name in names]
    return table(head, body, "Run.by_round: what was set differently from round to round.")


def alarms(rounds: Sequence[Round]) -> Html:
    """Returns the warnings of the stop rules and of the watch, or nothing."""
    items = [
        element("li", element("b", compare.round_name(row["round"])), ": ", alarm)
        for row in rounds
        for alarm in row["alarms"]
    ]
    if not items:
        return Html("")
    title = element("strong", "Alarms")
    return element("div", title, element("ul", *items), cls="alarms", role="note")


def times(rounds: Sequence[Round]) -> Html:
    """Returns seconds and throughput of each stage."""
    stages = list(dict.fromkeys(stage for row in rounds for stage in row["seconds"]))
    stages += [s for row in rounds for s in row["tokens_per_second"] if s not in stages]
    totals = [math.fsum(row["seconds"].values()) for row in rounds]
    rows: list[list[object]] = []
    for stage in dict.fromkeys(stages):
        cells: list[object] = [stage]
        for row, total in zip(rounds, totals, strict=True):
            cells += _stage_cells(row, stage, total)
        rows.append(cells)
    last: list[object] = [element("b", "Total")]
    for total in totals:
        last += [element("b", duration(total)), DASH, DASH]
    head = ["Stage"]
    for row in rounds:
        head += [f"{compare.round_name(row['round'])}: time", "Share", "Tokens/s"]
    return table(
        head, [*rows, last], "Wall time. Tokens/s: sampled in decoding, trained in training."
    )


def _stage_cells(row: Round, stage: str, total: float) -> list[object]:
    seconds, rate = row["seconds"].get(stage), row["tokens_per_second"].get(stage)
    return [
        DASH if seconds is None else duration(seconds),
        DASH if seconds is None else part(seconds, total),
        DASH if rate is None else whole(rate),
    ]


def _curves(rounds: Sequence[Round], field: str, name: str, unit: str) -> Html:
    lines = [
        charts.Line(compare.round_name(row["round"]), curve)
        for row in rounds
        if (curve := thinned(row["train"], field))
    ]
    if not lines:
        return Html("")
    return figure(name, charts.line_chart(name, lines, "step", unit, ramp=len(rounds) > 1))


def _label_losses(row: Round, named: bool) -> Html:
    """Losses by format, and by source where there are several."""
    fields = dict.fromkeys(f for step in row["train"] for f in step if f.startswith("loss/"))
    labels = [field.removeprefix("loss/") for field in fields]
    figures = []
    for what, chosen in (
        ("format", [label for label in labels if label not in _SOURCES]),
        ("source", [label for label in labels if label in _SOURCES]),
    ):
        lines = [
            charts.Line(
                _SOURCES.get(label) or _SHORT.get(label, label),
                thinned(row["train"], f"loss/{label}"),
            )
            for label in chosen
        ]
        if lines:
            round_name = f", {compare.round_name(row['round']).lower()}" if named else ""
            name = f"Loss by {what}{round_name}"
            chart = charts.line_chart(name, lines, "step", _unit([row]))
            figures.append(figure(name, chart))
    return joined(figures)


def thinned(steps: Sequence[dict[str, float]], field: str) -> list[tuple[float, float]]:
    """Returns (step, value), averaged over neighbours so that at most MOST_POINTS remain.

    Values that are not finite stay apart: they do not spoil their neighbours' mean, and a stretch
    of nothing else stays a gap.
    """
    found = [(step["step"], step[field]) for step in steps if field in step]
    size = _bucket(len(found))
    curve = []
    for start in range(0, len(found), size):
        bucket = found[start : start + size]
        good = [value for _, value in bucket if math.isfinite(value)]
        mean = math.fsum(good) / len(good) if good else math.nan
        curve.append((math.fsum(step for step, _ in bucket) / len(bucket), mean))
    return curve


def _bucket(count: int) -> int:
    return max(1, math.ceil(count / MOST_POINTS))


def _accuracy_line(comparison: compare.Comparison) -> charts.Line:
    found = comparison.by_round.items()
    return charts.Line(
        _PROMPTING[comparison.prompting],
        [(float(number), accuracy.share) for number, accuracy in found],
        [(accuracy.low, accuracy.high) for _, accuracy in found],
    )


def _diversity(row: Round) -> float:
    return row["distinct_kept"] / row["questions"] if row["questions"] else math.nan
