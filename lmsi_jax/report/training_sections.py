"""The part of the page about the rounds: losses, what changes from round to round, alarms, time.

What a distilled student gained, as the terminal shows it and as a report says it.

A result is what `lmsi_jax.pipeline.distill` writes to `RESULT` in a student's folder.

The part of the page about what the model made itself: questions and few-shot prompts.

The part of the page about the collapse monitor: how a run would fail without labels, round by
round.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmsi_jax.evaluation.collapse import EASY
from lmsi_jax.report import accuracy_section, charts
from lmsi_jax.report.accuracy_section import round_name
from lmsi_jax.report.html import (
    DASH,
    Html,
    decimal,
    duration,
    element,
    figure,
    format_count,
    format_part,
    format_with_share,
    join_html,
    p_value,
    percent,
    table,
)
from lmsi_jax.report.summary import CollapseLabelled, CollapseRow, NewQuestions, Round, Summary
from lmsi_jax.report.vote_sections import FORMAT_NAMES

MOST_POINTS = 150
"""A curve with more is averaged over neighbouring steps, so that the page stays small."""
_START = {"base": "base model", "last": "last model"}
_SHORT = {f: f.replace("_shot", "-shot").replace("_", " ") for f in FORMAT_NAMES}
_SOURCES = {"self_generated": "self-generated", "human": "human"}
_PROMPT_STYLE = {
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
    return join_html([said, element("div", *figures, cls="panels")])


def _unit(rounds: Sequence[Round]) -> str:
    """What a loss is per."""
    pairs = any("margin" in step for row in rounds for step in row["train"])
    return "nats a pair" if pairs else "nats a target token"


def by_round(summary: Summary) -> Html:
    """Returns accuracy, confidence, entropy and diversity through the rounds."""
    figures = []
    for domain in ("in", "out"):
        lines = [
            _accuracy_line(comparison) for comparison in accuracy_section.of_domain(summary, domain)
        ]
        if lines:
            name = f"Accuracy, {accuracy_section.DOMAIN_NAMES[domain].lower()}"
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
    return join_html(
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
    head = ["Parameter", *(accuracy_section.round_name(row["round"]) for row in rounds)]
    body = [[name, *(row.get("values", {}).get(name, DASH) for row in rounds)] for name in names]
    return table(head, body, "Run.schedule: what was set differently from round to round.")


def alarms(rounds: Sequence[Round]) -> Html:
    """Returns the warnings of the stop rules and of the collapse monitor, or nothing."""
    items = [
        element("li", element("b", accuracy_section.round_name(row["round"])), ": ", alarm)
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
        head += [f"{accuracy_section.round_name(row['round'])}: time", "Share", "Tokens/s"]
    return table(
        head, [*rows, last], "Wall time. Tokens/s: sampled in decoding, trained in training."
    )


def _stage_cells(row: Round, stage: str, total: float) -> list[object]:
    seconds, rate = row["seconds"].get(stage), row["tokens_per_second"].get(stage)
    return [
        DASH if seconds is None else duration(seconds),
        DASH if seconds is None else format_part(seconds, total),
        DASH if rate is None else format_count(rate),
    ]


def _curves(rounds: Sequence[Round], field: str, name: str, unit: str) -> Html:
    lines = [
        charts.Line(accuracy_section.round_name(row["round"]), curve)
        for row in rounds
        if (curve := thin_steps(row["train"], field))
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
                thin_steps(row["train"], f"loss/{label}"),
            )
            for label in chosen
        ]
        if lines:
            round_name = f", {accuracy_section.round_name(row['round']).lower()}" if named else ""
            name = f"Loss by {what}{round_name}"
            chart = charts.line_chart(name, lines, "step", _unit([row]))
            figures.append(figure(name, chart))
    return join_html(figures)


def thin_steps(steps: Sequence[dict[str, float]], field: str) -> list[tuple[float, float]]:
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


def _accuracy_line(comparison: accuracy_section.Comparison) -> charts.Line:
    found = comparison.by_round.items()
    return charts.Line(
        _PROMPT_STYLE[comparison.prompt_style],
        [(float(number), accuracy.share) for number, accuracy in found],
        [(accuracy.low, accuracy.high) for _, accuracy in found],
    )


def _diversity(row: Round) -> float:
    return row["distinct_kept"] / row["questions"] if row["questions"] else math.nan


RESULT = "distillation.json"
SIDES = ("teacher_before", "student_before", "student_after")
_TITLES = {"in": "trained", "out": "others"}


def print_table(result: dict[str, Any]) -> None:
    """Prints the paper's table: means over the tasks, inside and outside of training."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = (
        "tasks",
        "prompt_style",
        "n",
        "teacher",
        "student",
        "student, distilled",
        "gain [95 %]",
    )
    for name in (*heads, "p"):
        table.add_column(Text(name))
    for row in result["means"]:
        gain = row["gain"]
        cells = [
            f"{_TITLES[row['domain']]} ({row['tasks']})",
            row["prompt_style"],
            str(row["n"]),
            *(f"{row[side]:.1f}" for side in SIDES),
            f"{gain['difference']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]",
            p_value(gain["p"]),
        ]
        table.add_row(*map(Text, cells))  # as they are: rich would read "[95 %]" as markup
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(_sizes(result), markup=False)
    console.print(table)


def _sizes(result: dict[str, Any]) -> str:
    sizes = [f"{result[side]['parameters']:,} parameters" for side in ("teacher", "student")]
    return f"teacher {sizes[0]}, student {sizes[1]}; percent right"


def sentences(result: dict[str, Any]) -> list[str]:
    """Returns the table in words, for a report's notes."""
    folder, number = result["teacher"]["folder"], result["teacher"]["round"]
    said = [f"Distilled from round {number} of {folder}: {_sizes(result)}."]
    for row in result["means"]:
        gain = row["gain"]
        said.append(
            f"{_TITLES[row['domain']]}, {row['prompt_style']}: teacher "
            f"{row['teacher_before']:.1f}, "
            f"student {row['student_before']:.1f}, distilled {row['student_after']:.1f} "
            f"({gain['difference']:+.1f} points, 95 % {gain['low']:+.1f} to {gain['high']:+.1f}, "
            f"p {p_value(gain['p'])})."
        )
    return said


_PARTS = ("malformed", "duplicates", "contaminated", "surplus", "new")


def generation_section(rounds: Sequence[Round]) -> Html:
    """Returns a table of new questions and one of generated prompts, where there are any."""
    return join_html([_questions(rounds), _prompts(rounds)])


def _questions(rounds: Sequence[Round]) -> Html:
    rows = [
        [task, round_name(row["round"]), *_cells(found)]
        for row in rounds
        for task, found in row["generated"].items()
    ]
    if not rows:
        return Html("")
    head = ["Task", "Sampled in", "Written", "Malformed", "Duplicates", "In the test", "Surplus"]
    caption = (
        "New questions that the model wrote behind lists of real ones. Malformed: cut, or unlike "
        "the real ones in opening, lines, options or length. Duplicates: of each other or of real "
        "training questions. In the test: overlap with a test question. Surplus: more than were "
        "asked for. Sure: the vote’s confidence is high enough for them to give training rows."
    )
    return table([*head, "New", "Mean confidence", "Sure"], rows, caption)


def _cells(found: NewQuestions) -> list[object]:
    written, new = found["written"], found["new"]
    shares = [format_with_share(n, written) for n in (found[name] for name in _PARTS)]  # type: ignore[literal-required]
    confidence = percent(found["mean_confidence"]) if new else DASH
    return [format_count(written), *shares, confidence, format_with_share(found["confident"], new)]


def _prompts(rounds: Sequence[Round]) -> Html:
    rows = [
        [
            task,
            round_name(row["round"]),
            format_count(found["asked"]),
            format_with_share(found["usable"], found["asked"]),
            format_count(found["prompts"]),
        ]
        for row in rounds
        for task, found in row["prompts"].items()
    ]
    if not rows:
        return Html("")
    caption = (
        "Few-shot prompts of greedy zero-shot answers. Usable: reasoning, then an answer sentence "
        "with an answer of the task’s kind. A question’s paths are spread over the prompts."
    )
    return table(["Task", "Sampled in", "Answers", "Usable", "Prompts"], rows, caption)


Source = Literal["train", "test"]
_Value = float | None
_HEAD = {"train": "Votes that the round learnt", "test": "Its model on the test questions"}
_ABOUT = {
    "train": (
        "The votes on training questions, of the model before the round, and the rows that came of "
        "them. Easy: more than "
        f"{percent(EASY, 0)} of the paths agree. Distinct-n: different n-grams of words over all, "
        "among the paths of one question. Entropy: of a question’s answers, over the largest "
        "possible. Means over questions."
    ),
    "test": (
        "The vote of many paths, with gold answers. A vote that gets surer without getting right "
        "more often, and a falling pass@m, are the signs of a collapse. Figures at different "
        "temperatures do not compare."
    ),
}


def _share(value: _Value) -> str:
    return DASH if value is None else percent(value)


def _number(digits: int) -> Callable[[_Value], str]:
    return lambda value: DASH if value is None else decimal(value, digits)


def _count(value: _Value) -> str:
    return DASH if value is None else format_count(value)


def _gold(name: str) -> Callable[[CollapseRow], _Value]:
    def value(row: CollapseRow) -> _Value:
        """Of the questions with a gold answer."""
        scored: CollapseLabelled | None = row["scored"]
        return None if scored is None else scored[name]  # type: ignore[literal-required]

    return value


def _distinct(n: int) -> Callable[[CollapseRow], _Value]:
    return lambda row: row["distinct"][n - 1]


_FIGURES: tuple[tuple[str, Callable[[CollapseRow], _Value], Callable[[_Value], str]], ...] = (
    ("Questions", lambda row: row["questions"], _count),
    ("Mean share of the vote", lambda row: row["confidence"], _share),
    ("Vote is right (majority@m)", _gold("majority"), _share),
    ("Some path is right (pass@m)", _gold("passed"), _share),
    ("Path is right (pass@1)", _gold("single"), _share),
    ("Entropy of the answers", lambda row: row["entropy"], _number(3)),
    *((f"Distinct-{n}", _distinct(n), _number(3)) for n in (1, 2, 3)),
    ("Tokens a path", lambda row: row["length"], _number(1)),
    ("Unparsed paths", lambda row: row["unparsed"], _share),
    ("Questions without an answer", lambda row: row["empty"], _share),
    ("Different kept paths a question", lambda row: row["distinct_kept"], _number(1)),
    ("Easy questions", lambda row: row["easy"], _share),
    ("Their training weight", lambda row: row["easy_weight"], _share),
    ("Questions with training rows", lambda row: row["kept"], _share),
    ("Training rows", lambda row: row["rows"], _count),
)


def watch_section(summary: Summary) -> Html:
    """Returns a table of figures by round for each source, and charts from two rounds on."""
    parts: list[Html] = []
    for source in ("train", "test"):
        found = rows_by_figure(summary, source)
        if found:
            head, rows = found
            parts += [element("h3", _HEAD[source]), table(head, rows, _ABOUT[source])]
    return join_html([*parts, _charts(summary)])


def rows_by_figure(summary: Summary, source: Source) -> tuple[list[str], list[list[str]]] | None:
    """Returns (head, rows): a row for each figure that was measured, a column for each round.

    None where nothing was measured, and of a single round: there is nothing to compare it with.
    """
    rounds = _rows(summary, source)
    if len(rounds) < 2:
        return None
    head = ["Figure", *(round_name(row["round"]) for row in rounds)]
    rows = []
    for name, value, shown in _FIGURES:
        values = [value(row) for row in rounds]
        if any(one is not None for one in values):
            rows.append([name, *map(shown, values)])
    return head, rows


def _rows(summary: Summary, source: Source) -> list[CollapseRow]:
    own = [row for row in summary.get("collapse", []) if row["source"] == source]
    return sorted(own, key=lambda row: row["round"])


def _charts(summary: Summary) -> Html:
    train, test = _rows(summary, "train"), _rows(summary, "test")
    figures = []
    if len(test) > 1 and all(row["scored"] for row in test):
        names = (
            ("share of the vote", "confidence"),
            ("right", "majority"),
            ("pass@m", "passed"),
        )
        lines = [_line(label, test, _gold(name)) for label, name in names]
        figures.append(_chart("Sure and right, test questions", lines, "share", share=True))
    if len(train) > 1:
        distinct = [_line(f"distinct-{n}", train, _distinct(n)) for n in (1, 2, 3)]
        easy = [
            _line("questions", train, lambda row: row["easy"]),
            _line("weight", train, lambda row: row["easy_weight"]),
        ]
        length = [_line("tokens", train, lambda row: row["length"])]
        figures.append(_chart("Distinct n-grams of a question’s paths", distinct, "share", True))
        figures.append(_chart("Easy questions", easy, "share", True))
        figures.append(_chart("Length of a path", length, "tokens"))
    return element("div", *figures, cls="panels") if figures else Html("")


def _line(
    label: str, rows: Sequence[CollapseRow], value: Callable[[CollapseRow], _Value]
) -> charts.Line:
    found = ((float(row["round"]), value(row)) for row in rows)
    return charts.Line(label, [(x, float("nan") if y is None else y) for x, y in found])


def _chart(title: str, lines: Sequence[charts.Line], unit: str, share: bool = False) -> Html:
    chart = charts.line_chart(title, lines, "round", unit, share=share, whole_x=True)
    return figure(title, chart)
