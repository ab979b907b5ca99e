"""The short form of the report, at the end of a run in the terminal."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmsi_jax.report import compare, early_stop
from lmsi_jax.report.accuracy import DOMAINS, headline_words
from lmsi_jax.report.markup import DASH, p_value, points, whole
from lmsi_jax.report.summary import Summary, validate

_SHORT = {
    "standard": "standard",
    "cot": "CoT",
    "zero_shot_cot": "zero-shot CoT",
    "self_consistency": "self-consistency",
}
_STYLES = {"rose": "bold green", "fell": "bold red", "no clear change": ""}


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Prints verdict, alarms, accuracy before and after by task and prompting, and early stop.

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
    if compare.rounds_measured(checked):
        console.print(_table(checked))
    for sentence in early_stop.sentences(checked):
        console.print(Text(sentence))


def _table(summary: Summary) -> Table:
    """Text cells alone: rich would read "[41.2, 54.9]" in a string as markup."""
    last = compare.rounds_measured(summary)[-1]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task")
    table.add_column("prompting")
    for name in ("n", "base", *([f"round {last}", "change [95 %]", "p"] if last else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for title, rows in _groups(summary):
        for i, comparison in enumerate(rows):
            table.add_row(Text("" if i else title), *_cells(comparison, last))
        if rows:
            table.add_section()
    return table


def _groups(summary: Summary) -> Iterator[tuple[str, list[compare.Comparison]]]:
    for domain in DOMAINS:
        name = compare.DOMAIN_NAMES[domain].lower()
        tasks = compare.tasks_of(summary, domain)
        for task in tasks:
            yield task["name"], compare.of_task(summary, task["name"])
        if len(tasks) > 1:
            yield f"mean, {name}", compare.of_domain(summary, domain)


def _cells(comparison: compare.Comparison, last: int) -> Iterator[Text]:
    yield Text(_SHORT[comparison.prompting])
    yield Text("/".join(whole(n) for n in sorted({a.n for a in comparison.by_round.values()})))
    yield _accuracy(comparison.by_round.get(0))
    if not last:
        return
    yield _accuracy(comparison.by_round.get(last))
    change = comparison.change
    if change is None:
        yield from (Text(DASH), Text(DASH))
        return
    interval = f" [{points(change.low)}, {points(change.high)}]"
    yield Text(points(change.difference), style=_STYLES[change.verdict]).append(interval, "dim")
    yield Text(p_value(change.p))


def _accuracy(accuracy: compare.Accuracy | None) -> Text:
    return Text(DASH if accuracy is None else f"{100 * accuracy.share:.1f}")
