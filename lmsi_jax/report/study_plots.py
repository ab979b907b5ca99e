"""A study's plots, one kind for each measure, each as a figure under its title."""

from collections.abc import Callable, Iterable
from typing import Any

from lmsi_jax.report.charts import Bar, Group, Line, grouped_bars, legend, line_chart
from lmsi_jax.report.compare import PROMPTING_NAMES
from lmsi_jax.report.markup import Html, element, figure

Result = dict[str, Any]
Row = dict[str, Any]
_SERIES = ("before", "after")


def plots(result: Result) -> list[Html]:
    """Returns the plots of a result, see `lmsi_jax.report.study`."""
    drawn = _PLOTS[result["measure"]](result)
    panels = element("div", *(figure(title, chart) for title, chart in drawn), cls="panels")
    bars = result["measure"] == "accuracy"
    return [*([legend([f"{name} the rounds" for name in _SERIES])] if bars else []), panels]


def _bars(result: Result) -> Iterable[tuple[str, Html]]:
    """Before and after, of each variant, on the trained tasks."""
    for prompting, rows in _by_prompting(result["rows"]).items():
        groups = [
            Group(row["label"], [Bar(*row["before"]), Bar(*row["after"])])
            for row in rows
            if row["domain"] == "in"
        ]
        title = f"{prompting}, trained tasks"
        yield title, grouped_bars(f"{title}: before and after", groups, _SERIES)


def _rounds(result: Result) -> Iterable[tuple[str, Html]]:
    """Accuracy by round, a line for each variant and group of tasks."""
    for prompting, rows in _by_prompting(result["rows"]).items():
        lines: dict[str, list[Row]] = {}
        for row in rows:
            if row["domain"] not in ("in", "out"):
                continue
            name = row["label"] + ("" if row["domain"] == "in" else ", others")
            lines.setdefault(name, []).append(row)
        drawn = [
            Line(
                name,
                [(0, own[0]["before"][0]), *((row["round"], row["after"][0]) for row in own)],
                [(*own[0]["before"][1:],), *((*row["after"][1:],) for row in own)],
            )
            for name, own in lines.items()
        ]
        title = f"{prompting}: accuracy by round"
        yield (
            title,
            line_chart(title, drawn, "round", "percent right", share=True, whole_x=True),
        )


def _sizes(result: Result) -> Iterable[tuple[str, Html]]:
    """The change in points over the base's accuracy in percent, trained tasks."""
    lines = []
    for prompting, rows in _by_prompting(result["rows"]).items():
        own = sorted(
            (row for row in rows if row["domain"] == "in"), key=lambda row: row["before"][0]
        )
        changes = [(row["before"][0], row["change"]) for row in own if row["change"]]
        lines.append(
            Line(
                prompting,
                [(round(100 * x), 100 * change["difference"]) for x, change in changes],
                [(100 * change["low"], 100 * change["high"]) for _, change in changes],
            )
        )
    title = "Change over the base's accuracy"
    yield title, line_chart(title, lines, "base, percent right", "change, points", whole_x=True)


def _paths(result: Result) -> Iterable[tuple[str, Html]]:
    """The vote by the number of paths, a line for each variant; before and after."""
    for after in (False, True):
        lines: dict[str, list[Row]] = {}
        for row in result["rows"]:
            if (row["round"] > 0) == after:
                lines.setdefault(row["label"], []).append(row)
        drawn = [
            Line(
                name,
                [(row["paths"], row["accuracy"][0]) for row in own],
                [(*row["accuracy"][1:],) for row in own],
            )
            for name, own in lines.items()
        ]
        title = f"{_SERIES[after].capitalize()} the round: the vote by the number of paths"
        yield (
            title,
            line_chart(title, drawn, "paths", "percent right", share=True, whole_x=True),
        )


def _shift(result: Result) -> Iterable[tuple[str, Html]]:
    """The share of right rows by bin, for each task."""
    tasks: dict[str, list[Row]] = {}
    for row in result["rows"]:
        tasks.setdefault(row["task"], []).append(row)
    for task, rows in tasks.items():
        groups = [Group(row["bin"], [Bar(*row["right"]) if row["right"] else None]) for row in rows]
        title = f"{task}: right rows by DS weight"
        yield title, grouped_bars(title, groups, ("right",), ramp=False)


def _by_prompting(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(PROMPTING_NAMES[row["prompting"]], []).append(row)
    return found


_PLOTS: dict[str, Callable[[Result], Iterable[tuple[str, Html]]]] = {
    "accuracy": _bars,
    "rounds": _rounds,
    "sizes": _sizes,
    "paths": _paths,
    "shift": _shift,
}
