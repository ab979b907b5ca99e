"""The short form of the report, at the end of a run in the terminal."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmsi_jax.report import accuracy_section, training_sections, vote_sections
from lmsi_jax.report.accuracy_section import DOMAINS, headline_words
from lmsi_jax.report.html import DASH, format_count, p_value, percent, points
from lmsi_jax.report.summary import Evaluation, Summary, validate

_SHORT = {
    "standard": "standard",
    "cot": "CoT",
    "zero_shot_cot": "zero-shot CoT",
    "self_consistency": "self-consistency",
}
_WIDE = 150
"""From so many columns on there is room for the accuracies' intervals."""
_STYLES = {"rose": "bold green", "fell": "bold red", "no clear change": ""}


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Prints verdict, alarms, accuracy before and after by task and prompt style, and adaptive
    consistency.

    Args:
      summary: as `lmsi_jax.report.summary.Summary` describes it.
      console: where to print.

    Raises:
      LmsiError: the summary is not one.
    """
    checked = validate(summary)
    words, basis = headline_words(checked)
    console.print(Text(words, style="bold"))
    console.print(Text(basis))
    for row in checked["rounds"]:
        for alarm in row["alarms"]:
            console.print(Text(f"Alarm in round {row['round']}: {alarm}", style="yellow"))
    if accuracy_section.rounds_measured(checked):
        console.print(_table(checked, _names(checked), console.width >= _WIDE))
        console.print(_legend())
    if rows := training_sections.rows_by_figure(checked, "train"):
        console.print(_collapse_table(*rows))
    for sentence in vote_sections.sentences(checked):
        console.print(Text(sentence))


def print_evaluation(
    summary: dict[str, Any], console: Console, names: tuple[str, str] | None = None
) -> None:
    """Prints accuracy by task and prompt style, and the votes' accuracy by the number of paths.

    Args:
      summary: as `lmsi_jax.report.summary.Summary` describes it.
      console: where to print; intervals of accuracies need 150 columns.
      names: what the first and the last model are called; None: the base and its last round.

    Raises:
      LmsiError: the summary is not one.
    """
    checked = validate(summary)
    if not accuracy_section.rounds_measured(checked):
        console.print(Text("Nothing has been evaluated yet"))
        return
    shown = names or _names(checked)
    console.print(_table(checked, shown, console.width >= _WIDE))
    console.print(_legend())
    if rows := vote_sections.with_curves(checked):
        console.print(_paths_table(checked, rows, shown))


def _names(summary: Summary) -> tuple[str, str]:
    return "base", f"round {accuracy_section.rounds_measured(summary)[-1]}"


def _legend() -> Text:
    return Text(
        "unparsed: paths without a readable answer; tied: questions with a tied vote; both of the "
        "last model",
        style="dim",
    )


def _table(summary: Summary, names: tuple[str, str], wide: bool) -> Table:
    """Text cells alone: rich would read "[41.2, 54.9]" in a string as markup."""
    last = accuracy_section.rounds_measured(summary)[-1]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task")
    table.add_column("prompt_style")
    after = [names[1], "change [95 %]", "p"] if last else []
    for name in ("n", names[0], *after, "unparsed", "tied"):
        table.add_column(name, justify="right", no_wrap=True)
    for title, rows in _groups(summary):
        for i, comparison in enumerate(rows):
            table.add_row(Text("" if i else title), *_cells(comparison, last, wide))
        if rows:
            table.add_section()
    return table


def _paths_table(summary: Summary, rows: list[Evaluation], names: tuple[str, str]) -> Table:
    """Majority@k and pass@k of the first and the last model, means over tasks."""
    measured = accuracy_section.rounds_measured(summary)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("paths, mean over tasks")
    ends = [r for r in sorted({measured[0], measured[-1]}) if any(e["round"] == r for e in rows)]
    by_end = {end: vote_sections.means([e for e in rows if e["round"] == end]) for end in ends}
    for k in sorted({k for curve in by_end.values() for k, _, _ in curve}):
        table.add_column(f"k = {k}", justify="right", no_wrap=True)
    for end, curve in by_end.items():
        name = names[0] if end == 0 else names[1]
        for label, place in (("majority@k", 1), ("pass@k", 2)):
            cells = [Text(f"{100 * point[place]:.1f}") for point in curve]
            table.add_row(Text(f"{name}, {label}"), *cells)
    return table


def _collapse_table(head: list[str], rows: list[list[str]]) -> Table:
    """The collapse monitor's figures of the votes that each round learnt."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(Text(name), justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _groups(summary: Summary) -> Iterator[tuple[str, list[accuracy_section.Comparison]]]:
    for domain in DOMAINS:
        name = accuracy_section.DOMAIN_NAMES[domain].lower()
        tasks = accuracy_section.tasks_of(summary, domain)
        for task in tasks:
            yield task["name"], accuracy_section.of_task(summary, task["name"])
        if len(tasks) > 1:
            yield f"mean, {name}", accuracy_section.of_domain(summary, domain)


def _cells(comparison: accuracy_section.Comparison, last: int, wide: bool) -> Iterator[Text]:
    yield Text(_SHORT[comparison.prompt_style])
    yield Text(
        "/".join(format_count(n) for n in sorted({a.n for a in comparison.by_round.values()}))
    )
    yield _accuracy(comparison.by_round.get(0), wide)
    if last:
        yield _accuracy(comparison.by_round.get(last), wide)
        yield from _change(comparison.change)
    measured = comparison.by_round.get(last)
    yield Text(DASH if measured is None else percent(measured.unparsed))
    votes = comparison.prompt_style == "self_consistency"
    yield Text(percent(measured.tied) if measured is not None and votes else DASH)


def _change(change: accuracy_section.Change | None) -> Iterator[Text]:
    if change is None:
        yield from (Text(DASH), Text(DASH))
        return
    interval = f" [{points(change.low)}, {points(change.high)}]"
    yield Text(points(change.difference), style=_STYLES[change.verdict]).append(interval, "dim")
    yield Text(p_value(change.p))


def _accuracy(accuracy: accuracy_section.Accuracy | None, wide: bool) -> Text:
    if accuracy is None:
        return Text(DASH)
    share = Text(f"{100 * accuracy.share:.1f}")
    interval = f" [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
    return share.append(interval, "dim") if wide else share
