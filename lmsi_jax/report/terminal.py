"""The report in a terminal: tables that drop columns, never names, if the width is short."""

import dataclasses
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from lmsi_jax.report.comparison import (
    DASH,
    DOMAIN_NAMES,
    SHORT_PROMPT_STYLE_NAMES,
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
    headline_words,
    p_value,
    percent,
    points,
    share_interval,
    tasks_of,
    upper_bound_words,
)
from lmsi_jax.report.summary import DOMAINS, Summary
from lmsi_jax.report.training_sections import collapse_table
from lmsi_jax.report.vote_sections import adaptive_consistency_sentences, mean_curve

_PIPE_WIDTH = 100
"""Columns if the output is no terminal and COLUMNS is not set."""
_GAP = 2
"""Blanks between two columns."""
_STYLES = {"rose": "bold green", "fell": "bold red", "no clear change": ""}
_INTERVAL = "[95\N{NO-BREAK SPACE}%]"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      head: its name.
      cells: from the top. Text, since rich would read "[41.2, 54.9]" in a string as markup.
      rank: if the table is too wide, the columns of the largest rank are left out first.
    """

    head: str
    cells: Sequence[Text]
    rank: int

    @property
    def width(self) -> int:
        """Terminal cells that the column takes."""
        return max(cell.cell_len for cell in (Text(self.head), *self.cells))


def open_console() -> Console:
    """Opens standard output, as wide as the terminal, or COLUMNS, or 100 columns."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(file=sys.stdout, width=None if known else _PIPE_WIDTH)


def print_summary(summary: Summary, console: Console) -> None:
    """Prints verdict, alarms, accuracies, collapse metrics, and adaptive consistency."""
    words, basis = headline_words(summary)
    _print_words(console, words, "bold")
    _print_words(console, basis)
    if bound := upper_bound_words(summary):
        _print_words(console, bound, "yellow")
    for row in summary.rounds:
        for alarm in row.alarms:
            _print_words(console, f"Alarm in round {row.round}: {alarm}", "yellow")
    console.print()
    if evaluated_rounds(summary):
        _print_accuracies(console, summary, _model_names(summary))
    if metrics := collapse_table(summary, "train"):
        head, rows = metrics
        names, *values = zip(*rows, strict=True)
        print_table(console, head[0], names, _by_number(head[1:], values))
    for sentence in adaptive_consistency_sentences(summary):
        _print_words(console, sentence)


def print_evaluation(
    summary: Summary, console: Console, names: tuple[str, str] | None = None
) -> None:
    """Prints accuracies by task and prompt style, and by the number of samples.

    Args:
      summary: the run's.
      console: the output.
      names: the names of the first and the last model; None: the base and its last round.
    """
    if not evaluated_rounds(summary):
        _print_words(console, "Nothing has been evaluated yet")
        return
    names = names or _model_names(summary)
    console.print()
    _print_accuracies(console, summary, names)
    _print_curves(console, summary, names)


def print_probe(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the table of the contamination probe.

    Args:
      rows: of `pipeline.probe`, as JSON.
      console: the output.
    """

    def share(row: Mapping[str, Any], name: str) -> str:
        count, low, high = row[name]
        return f"{percent(count / row['questions'])} {share_interval(low, high)}"

    columns = [
        ("shown", [percent(row["share"], 0) for row in rows], 4),
        ("questions", [format_count(row["questions"]) for row in rows], 5),
        ("rest word by word", [share(row, "exact") for row in rows], 1),
        ("ROUGE-L", [decimal(row["rouge"][0], 2) for row in rows], 3),
        ("right answer", [share(row, "right") for row in rows], 2),
    ]
    note = (
        "The base model continues the first words of each test question, greedily and without a "
        "prompt. Rest word by word: it writes the question's other words; right answer: it goes "
        "on to one. [95 % interval, Wilson's]. A model that never saw the questions has almost 0."
    )
    names = [row["task"] for row in rows]
    cells = [Column(head, [Text(cell) for cell in values], rank) for head, values, rank in columns]
    print_table(console, "task", names, cells, note)


def print_distillation(result: Mapping[str, Any], console: Console) -> None:
    """Prints what a student gained, as means over the tasks inside and outside of training.

    Args:
      result: of `lmsi_jax.pipeline.distill.distill`.
      console: the output.
    """
    _print_words(console, _model_sizes(result))
    console.print()
    labels: list[str] = []
    rows: list[Mapping[str, Any] | None] = []
    for row in result["means"]:
        group = f"{_DISTILLED[row['domain']]} ({count_of(row['tasks'], 'task')})"
        if group not in labels:
            labels.append(group)
            rows.append(None)
        labels.append(f"  {SHORT_PROMPT_STYLE_NAMES[row['prompt_style']]}")
        rows.append(row)

    def column(head: str, rank: int, write: Callable[[Mapping[str, Any]], str]) -> Column:
        return Column(head, [Text(write(row) if row else "") for row in rows], rank)

    columns = [
        column("n", 5, lambda row: str(row["n"])),
        column("teacher", 2, lambda row: f"{row['teacher_before']:.1f}"),
        column("student", 1, lambda row: f"{row['student_before']:.1f}"),
        column("distilled", 1, lambda row: f"{row['student_after']:.1f}"),
        column("gain", 2, lambda row: f"{row['gain']['difference']:+.1f}"),
        column(_INTERVAL, 3, lambda r: f"[{r['gain']['low']:+.1f}, {r['gain']['high']:+.1f}]"),
        column("p", 4, lambda row: p_value(row["gain"]["p"])),
    ]
    print_table(console, "tasks, prompt style", labels, columns)


def distillation_sentences(result: Mapping[str, Any]) -> list[str]:
    """Returns what a student gained in words, for the notes of its report."""
    teacher = result["teacher"]
    sentences = [
        f"Distilled from round {teacher['round']} of {teacher['folder']}: {_model_sizes(result)}."
    ]
    for row in result["means"]:
        gain = row["gain"]
        sentences.append(
            f"{_DISTILLED[row['domain']]}, {SHORT_PROMPT_STYLE_NAMES[row['prompt_style']]}: "
            f"teacher {row['teacher_before']:.1f}, student {row['student_before']:.1f}, distilled "
            f"{row['student_after']:.1f} ({gain['difference']:+.1f} points, 95 % {gain['low']:+.1f}"
            f" to {gain['high']:+.1f}, p {p_value(gain['p'])})."
        )
    return sentences


def print_table(
    console: Console, head: str, names: Iterable[str], columns: Sequence[Column], note: str = ""
) -> None:
    """Prints a table that fits the console's width.

    Names are never cut: columns are left out instead, and named below.

    Args:
      console: the output.
      head: the head of the names.
      names: the rows' names, the first column.
      columns: the others, with as many cells.
      note: an explanation to print below.
    """
    shown = [Column(head, list(map(Text, names)), 0), *columns]
    while sum(column.width + _GAP for column in shown) - _GAP > console.width and len(shown) > 1:
        last = max(column.rank for column in shown)
        shown = [column for column in shown if column.rank < last]
    widths = [column.width for column in shown]
    heads = [Text(column.head, style="dim") for column in shown]
    lines = [heads, *zip(*(column.cells for column in shown), strict=True)]
    lines.insert(1, [Text("─" * (sum(widths) + _GAP * (len(widths) - 1)), style="dim")])
    for line in lines:
        cells = [cell.copy() for cell in line]
        for cell, width in zip(cells[1:], widths[1:], strict=False):
            cell.pad_left(width - cell.cell_len)
        if len(cells) > 1:
            cells[0].pad_right(widths[0] - cells[0].cell_len)
        row = Text(" " * _GAP).join(cells)
        row.rstrip()
        console.print(row, no_wrap=True, overflow="ignore", crop=False)
    heads_shown = {column.head for column in shown}
    if left_out := dict.fromkeys(c.head for c in columns if c.head not in heads_shown):
        note += f" Not shown at {console.width} columns: {', '.join(left_out)}."
    if note:
        _print_words(console, note.strip(), "dim")
    console.print()


def _print_words(console: Console, words: str, style: str = "") -> None:
    # Wrapped here, since rich breaks lines at no-break spaces and hyphens too.
    text = textwrap.fill(words, console.width, break_on_hyphens=False)
    console.print(Text(text, style=style))


def _by_number(heads: Sequence[str], columns: Sequence[Sequence[str]]) -> list[Column]:
    """Columns of numbers in rising order; the last one is kept longest, then the first one."""
    count = len(heads)
    order = dict.fromkeys([count - 1, 0, *range(count - 2, 0, -1)])
    ranks = {index: rank for rank, index in enumerate(order, start=1)}
    return [
        Column(head, [Text(cell) for cell in cells], ranks[i])
        for i, (head, cells) in enumerate(zip(heads, columns, strict=True))
    ]


def _model_names(summary: Summary) -> tuple[str, str]:
    return "base", f"round {evaluated_rounds(summary)[-1]}"


def _print_accuracies(console: Console, summary: Summary, names: tuple[str, str]) -> None:
    """Prints a group of rows for each task and each mean, a row for each prompt style."""
    last = evaluated_rounds(summary)[-1]
    labels: list[str] = []
    rows: list[Comparison | None] = []
    for domain in DOMAINS:
        tasks = tasks_of(summary, domain)
        groups = [(task.name, compare_task(summary, task.name)) for task in tasks]
        if len(tasks) > 1:
            mean = f"mean, {DOMAIN_NAMES[domain].lower()}"
            groups.append((mean, compare_domain(summary, domain)))
        for name, comparisons in groups:
            styles = [SHORT_PROMPT_STYLE_NAMES[c.prompt_style] for c in comparisons]
            labels += [name, *(f"  {style}" for style in styles)] if comparisons else []
            rows += [None, *comparisons] if comparisons else []

    def column(head: str, rank: int, write: Callable[[Comparison], Text | str]) -> Column:
        return Column(head, [_text(write(row)) if row else Text() for row in rows], rank)

    def accuracies(head: str, number: int) -> list[Column]:
        return [
            column(head, 1, lambda row: _share(row.by_round.get(number))),
            column(_INTERVAL, 8, lambda row: _interval(row.by_round.get(number))),
        ]

    columns = [column("n", 5, _questions), *accuracies(names[0], 0)]
    if last:
        columns += [
            *accuracies(names[1], last),
            column("change", 2, lambda row: _change(row.change)),
            column(_INTERVAL, 3, lambda row: _change_interval(row.change)),
            column("p", 4, lambda row: p_value(row.change.p) if row.change else DASH),
        ]
    columns += [
        column("unparsed", 6, lambda row: _unparsed(row.by_round.get(last))),
        column("tied", 7, lambda row: _tied(row, last)),
    ]
    note = (
        "Percent right. Unparsed: samples without a readable answer; tied: questions with a tied "
        "vote; both of the last model."
    )
    print_table(console, "task, prompt style", labels, columns, note)


def _print_curves(console: Console, summary: Summary, names: tuple[str, str]) -> None:
    """Prints majority@k and pass@k of the first and the last model, means over tasks."""
    rounds = evaluated_rounds(summary)
    rows: dict[str, dict[int, str]] = {}
    for number in sorted({rounds[0], rounds[-1]}):
        name = names[1] if number else names[0]
        means = mean_curve([row for row in summary.evals if row.curve and row.round == number])
        if means:
            rows[f"{name}, majority@k"] = {k: f"{100 * share:.1f}" for k, share, _ in means}
            rows[f"{name}, pass@k"] = {k: f"{100 * share:.1f}" for k, _, share in means}
    if rows:
        ks = sorted({k for row in rows.values() for k in row})
        columns = [[row.get(k, DASH) for row in rows.values()] for k in ks]
        heads = [f"k = {k}" for k in ks]
        print_table(console, "samples, mean over tasks", rows, _by_number(heads, columns))


def _text(content: Text | str) -> Text:
    return Text(content) if isinstance(content, str) else content


def _questions(row: Comparison) -> str:
    return "/".join(map(format_count, sorted({a.n for a in row.by_round.values()})))


def _share(accuracy: Accuracy | None) -> str:
    return f"{100 * accuracy.share:.1f}" if accuracy else DASH


def _interval(accuracy: Accuracy | None) -> Text:
    return Text(share_interval(accuracy.low, accuracy.high) if accuracy else DASH, style="dim")


def _change(change: Change | None) -> Text:
    if change is None:
        return Text(DASH)
    return Text(points(change.difference), style=_STYLES[change.verdict])


def _change_interval(change: Change | None) -> Text:
    return Text(change_interval(change.low, change.high) if change else DASH, style="dim")


def _unparsed(accuracy: Accuracy | None) -> str:
    return percent(accuracy.unparsed) if accuracy else DASH


def _tied(row: Comparison, number: int) -> str:
    accuracy = row.by_round.get(number)
    voted = row.prompt_style == "self_consistency"
    return percent(accuracy.tied) if accuracy and voted else DASH


_DISTILLED = {"in": "trained", "out": "others"}


def _model_sizes(result: Mapping[str, Any]) -> str:
    teacher, student = (format_count(result[side]["parameters"]) for side in ("teacher", "student"))
    return f"teacher {teacher} parameters, student {student} parameters; percent right"
