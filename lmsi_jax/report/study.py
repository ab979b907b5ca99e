"""What a study found: one table, as Markdown and as a page with its plot.

A result is what `lmsi_jax.studies.study` writes to study.json; shares lie in [0, 1].
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import write_bytes
from lmsi_jax.report import study_plots
from lmsi_jax.report.compare import PROMPTING_NAMES
from lmsi_jax.report.markup import DASH, Html, element, points, several, table, whole
from lmsi_jax.report.page import document
from lmsi_jax.report.summary import Prompting

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
    return f"{drawn}\n\n{legend(result)}\n"


def legend(result: Result) -> str:
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
            element("section", element("h2", "Plot"), *study_plots.plots(result), id="plot"),
            element(
                "section", element("h2", "Table"), _table(head, rows, result, texts), id="table"
            ),
        ),
        cls="study",
    )
    return document(f"{result['name']}: LMSI study", body)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], result: Result, texts: int) -> Html:
    return table(head, rows, caption=legend(result), text_columns=texts)


def _accuracy(result: Result) -> tuple[list[str], list[list[str]]]:
    measure, rows = result["measure"], result["rows"]
    compared = [row for row in rows if row["against"]]
    papers = any(row["paper"] for row in rows)
    head = ["variant", "prompting", "tasks"]
    extra = {"rounds": "round", "sizes": "parameters"}.get(measure)
    head[1:1] = [extra] if extra else []
    head += ["before", "after", "change", "each seed's"]
    head += [f"against {result['reference']}{_when(result)}"] if compared else []
    head += ["paper"] if papers else []
    cells = []
    for row in rows:
        own = [
            row["label"],
            PROMPTING_NAMES[_prompting(row)],
            _TASKS.get(row["domain"], row["domain"]),
        ]
        if extra:
            own.insert(1, str(row["round"]) if measure == "rounds" else whole(row["parameters"]))
        own += [_share(row["before"][0]), _share(row["after"][0]), _change(row["change"])]
        own.append(", ".join(points(one) for one in (row["change"] or {"seeds": []})["seeds"]))
        own += [_change(row["against"])] if compared else []
        own += [row["paper"] or DASH] if papers else []
        cells.append(own)
    return head, cells


def _prompting(row: Row) -> Prompting:
    return row["prompting"]


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
    return ["variant", "model", *(several(k, "path") for k in counts)], cells


def _shift(result: Result) -> tuple[list[str], list[list[str]]]:
    bins = list(dict.fromkeys(row["bin"] for row in result["rows"]))
    by_task: dict[str, dict[str, Row]] = {}
    for row in result["rows"]:
        by_task.setdefault(row["task"], {})[row["bin"]] = row
    cells = [[task, *(_bin(own[name]) for name in bins)] for task, own in by_task.items()]
    return ["task", *bins], cells


def _bin(row: Row) -> str:
    told = several(row["rows"], "row")
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
