"""What a study found: one table, as Markdown and as a page with its plot.

A result is what `lmsi_jax.tools.study` writes to study.json; shares lie in [0, 1].

A study's plots, one kind for each measure, each as a figure under its title.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lmsi_jax.errors import LmsiError
from lmsi_jax.report.accuracy_section import PROMPT_STYLE_NAMES
from lmsi_jax.report.charts import Bar, Group, Line, grouped_bars, legend, line_chart
from lmsi_jax.report.html import DASH, Html, count_of, element, figure, format_count, points, table
from lmsi_jax.report.page import document
from lmsi_jax.report.summary import PromptStyle
from lmsi_jax.runtime.files import write_bytes

PlottedResult = dict[str, Any]
PlottedRow = dict[str, Any]
_SERIES = ("before", "after")


def plots(result: PlottedResult) -> list[Html]:
    """Returns the plots of a result, see `lmsi_jax.tools.study_page`."""
    drawn = _PLOTS[result["measure"]](result)
    panels = element("div", *(figure(title, chart) for title, chart in drawn), cls="panels")
    bars = result["measure"] == "accuracy"
    return [*([legend([f"{name} the rounds" for name in _SERIES])] if bars else []), panels]


def _bars(result: PlottedResult) -> Iterable[tuple[str, Html]]:
    """Before and after, of each variant, on the trained tasks."""
    for prompt_style, rows in _by_prompt_style(result["rows"]).items():
        groups = [
            Group(row["label"], [Bar(*row["before"]), Bar(*row["after"])])
            for row in rows
            if row["domain"] == "in"
        ]
        title = f"{prompt_style}, trained tasks"
        yield title, grouped_bars(f"{title}: before and after", groups, _SERIES)


def _rounds(result: PlottedResult) -> Iterable[tuple[str, Html]]:
    """Accuracy by round, a line for each variant and group of tasks."""
    for prompt_style, rows in _by_prompt_style(result["rows"]).items():
        lines: dict[str, list[PlottedRow]] = {}
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
        title = f"{prompt_style}: accuracy by round"
        yield (
            title,
            line_chart(title, drawn, "round", "percent right", share=True, whole_x=True),
        )


def _sizes(result: PlottedResult) -> Iterable[tuple[str, Html]]:
    """The change in points over the base's accuracy in percent, trained tasks."""
    lines = []
    for prompt_style, rows in _by_prompt_style(result["rows"]).items():
        own = sorted(
            (row for row in rows if row["domain"] == "in"), key=lambda row: row["before"][0]
        )
        changes = [(row["before"][0], row["change"]) for row in own if row["change"]]
        lines.append(
            Line(
                prompt_style,
                [(round(100 * x), 100 * change["difference"]) for x, change in changes],
                [(100 * change["low"], 100 * change["high"]) for _, change in changes],
            )
        )
    title = "Change over the base's accuracy"
    yield title, line_chart(title, lines, "base, percent right", "change, points", whole_x=True)


def _paths_study_plots(result: PlottedResult) -> Iterable[tuple[str, Html]]:
    """The vote by the number of paths, a line for each variant; before and after."""
    for after in (False, True):
        lines: dict[str, list[PlottedRow]] = {}
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


def _shift_study_plots(result: PlottedResult) -> Iterable[tuple[str, Html]]:
    """The share of right rows by bin, for each task."""
    tasks: dict[str, list[PlottedRow]] = {}
    for row in result["rows"]:
        tasks.setdefault(row["task"], []).append(row)
    for task, rows in tasks.items():
        groups = [Group(row["bin"], [Bar(*row["right"]) if row["right"] else None]) for row in rows]
        title = f"{task}: right rows by DS weight"
        yield title, grouped_bars(title, groups, ("right",), ramp=False)


def _by_prompt_style(rows: Iterable[PlottedRow]) -> dict[str, list[PlottedRow]]:
    found: dict[str, list[PlottedRow]] = {}
    for row in rows:
        found.setdefault(PROMPT_STYLE_NAMES[row["prompt_style"]], []).append(row)
    return found


_PLOTS: dict[str, Callable[[PlottedResult], Iterable[tuple[str, Html]]]] = {
    "accuracy": _bars,
    "rounds": _rounds,
    "sizes": _sizes,
    "paths": _paths_study_plots,
    "shift": _shift_study_plots,
}


Result = dict[str, Any]
Row = dict[str, Any]
_TASKS = {"in": "trained", "out": "others"}
_INTERVALS = (
    "In brackets 95 % intervals over seeds, which hold what the seeds' questions contribute: "
    "Student's t, no seed's variance taken for less than what its questions alone give"
)
_ONE_SEED = "In brackets 95 % intervals over the questions of the only seed"


def head_and_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Returns the table's columns and its cells."""
    return _TABLES[result["measure"]](result)


def markdown(result: Result) -> str:
    """Returns the table as Markdown, with what its numbers are below."""
    head, rows = head_and_rows(result)
    lines = [head, ["---"] * len(head), *rows]
    drawn = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{drawn}\n\n{study_legend(result)}\n"


def study_legend(result: Result) -> str:
    """Returns what the numbers are, over which seeds, and what they cost."""
    seeds = result["seeds"]
    told = [f"Seeds {', '.join(map(str, seeds))}"]
    if len(seeds) < len(result["planned"]):
        told[0] += f" of {', '.join(map(str, result['planned']))}, the others are not finished"
    told.append(_ONE_SEED if len(seeds) == 1 else _INTERVALS)
    told.append(_WHAT[result["measure"]])
    if stopped := [row for row in result["rows"] if row.get("stopped")]:
        names = sorted({f"{row['label']}, round {row['round']}" for row in stopped})
        told.append(
            f"Stop rules left out rounds of some seeds, whose last model stands there: "
            f"{'; '.join(names)}"
        )
    told.append(f"Took {result['minutes']:g} minutes")
    return ". ".join(told) + "."


def insert(file: Path, name: str, text: str) -> None:
    """Puts a study's table into a document, in place of what stands between its marks.

    Raises:
      LmsiError: the document cannot be read, or has no such marks.
    """
    try:
        before = file.read_text(encoding="utf-8")
    except OSError as error:
        raise LmsiError(f"cannot read {file}: {error.strerror}") from error
    marks = re.compile(rf"(<!-- study {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    after, count = marks.subn(lambda found: f"{found[1]}{text}{found[2]}", before)
    if count != 1:
        raise LmsiError(
            f"{file} wants one place between <!-- study {name} --> and <!-- end --> lines; it has "
            f"{count}"
        )
    write_bytes(file, after.encode())


def render(result: Result) -> str:
    """Returns the page: question, plot, table."""
    head, rows = head_and_rows(result)
    texts = {"accuracy": 3, "rounds": 4, "sizes": 4}.get(result["measure"], 2)
    notes = (
        [element("p", f"Beside it: {result['source']}.", cls="note")] if result["source"] else []
    )
    body = element(
        "body",
        element(
            "header",
            element("p", f"Study: {result['name']}", cls="kicker"),
            element("h1", result["question"]),
            *notes,
        ),
        element(
            "main",
            element("section", element("h2", "Plot"), *plots(result), id="plot"),
            element(
                "section", element("h2", "Table"), _table(head, rows, result, texts), id="table"
            ),
        ),
        cls="study",
    )
    return document(f"{result['name']}: LMSI study", body)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], result: Result, texts: int) -> Html:
    return table(head, rows, caption=study_legend(result), text_columns=texts)


def _accuracy(result: Result) -> tuple[list[str], list[list[str]]]:
    measure, rows = result["measure"], result["rows"]
    compared = [row for row in rows if row["against"]]
    papers = any(row["paper"] for row in rows)
    head = ["variant", "prompt_style", "tasks"]
    extra = {"rounds": "round", "sizes": "parameters"}.get(measure)
    head[1:1] = [extra] if extra else []
    head += ["before", "after", "change", "each seed's"]
    head += [f"against {result['reference']}{_when(result)}"] if compared else []
    head += ["paper"] if papers else []
    cells = []
    for row in rows:
        own = [
            row["label"],
            PROMPT_STYLE_NAMES[_prompt_style(row)],
            _TASKS.get(row["domain"], row["domain"]),
        ]
        if extra:
            own.insert(
                1, str(row["round"]) if measure == "rounds" else format_count(row["parameters"])
            )
        own += [_share(row["before"][0]), _share(row["after"][0]), _change(row["change"])]
        own.append(", ".join(points(one) for one in (row["change"] or {"seeds": []})["seeds"]))
        own += [_change(row["against"])] if compared else []
        own += [row["paper"] or DASH] if papers else []
        cells.append(own)
    return head, cells


def _prompt_style(row: Row) -> PromptStyle:
    return row["prompt_style"]


def _when(result: Result) -> str:
    return " before its rounds" if result["against"] == "before" else ""


def _paths(result: Result) -> tuple[list[str], list[list[str]]]:
    counts = sorted({row["paths"] for row in result["rows"]})
    by_line: dict[tuple[str, int], dict[int, Row]] = {}
    for row in result["rows"]:
        by_line.setdefault((row["label"], row["round"]), {})[row["paths"]] = row
    cells = []
    for (label, number), line in by_line.items():
        own = [_interval(line[k]["accuracy"]) if k in line else DASH for k in counts]
        cells.append([label, "after" if number else "before", *own])
    return ["variant", "model", *(count_of(k, "path") for k in counts)], cells


def _shift(result: Result) -> tuple[list[str], list[list[str]]]:
    bins = list(dict.fromkeys(row["bin"] for row in result["rows"]))
    by_task: dict[str, dict[str, Row]] = {}
    for row in result["rows"]:
        by_task.setdefault(row["task"], {})[row["bin"]] = row
    cells = [[task, *(_bin(own[name]) for name in bins)] for task, own in by_task.items()]
    return ["task", *bins], cells


def _bin(row: Row) -> str:
    told = count_of(row["rows"], "row")
    return f"{_interval(row['right'])}, {told}" if row["right"] else told


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(values: Sequence[float]) -> str:
    """[0.41, 0.35, 0.47] -> "41.0 (35.0 to 47.0)"."""
    mean, low, high = map(_share, values)
    return f"{mean} ({low} to {high})"


def _change(row: Row | None) -> str:
    """In points, with its interval."""
    if row is None:
        return DASH
    return f"{points(row['difference'])} ({points(row['low'])} to {points(row['high'])})"


_TABLES: dict[str, Callable[[Result], tuple[list[str], list[list[str]]]]] = {
    "accuracy": _accuracy,
    "rounds": _accuracy,
    "sizes": _accuracy,
    "paths": _paths,
    "shift": _shift,
}
_SHARES = "Percent right, means over tasks; changes in points, on the same questions"
_WHAT = {
    "accuracy": _SHARES,
    "rounds": _SHARES,
    "sizes": _SHARES,
    "paths": "Percent right, means over the trained tasks; fewer paths are subsets of those drawn",
    "shift": "Percent of the voted rows in each bin of the DS weight that are right, questions as "
    "clusters; rows of all seeds",
}
