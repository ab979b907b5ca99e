"""Runs a study: its variants for each seed, with estimates of the time left, then its table.

    OUTPUT_DIR/STUDY/VARIANT/seedN/    an ordinary run, with unit.json once it is finished
                     study.json        the table, written after each seed over the finished seeds
                     study.html        the same as a page, with the plot

A run may reuse stages of other runs of the same seed, of other studies too (`Run.reuse`), so that
the base's samples and evaluation are made once. After an interruption the same command continues.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lmsi_jax.config import Run, Study
from lmsi_jax.errors import LmsiError
from lmsi_jax.report.charts import Bar, Group, Line, grouped_bars, legend, line_chart
from lmsi_jax.report.comparison import (
    DASH,
    PROMPT_STYLE_NAMES,
    count_of,
    duration,
    format_count,
    points,
)
from lmsi_jax.report.html import Html, element, figure, note, panels, table
from lmsi_jax.report.page import render_document
from lmsi_jax.report.summary import PromptStyle
from lmsi_jax.runtime.files import read_record, remove_abandoned_files, write_bytes, write_record
from lmsi_jax.tools import study_results
from lmsi_jax.tools.study_results import Unit

RESULT, PAGE = "study.json", "study.html"
_TO_MIX = ("generate", "prompts", "paraphrase", "sample", "vote", "filter_scores", "mix")
_STAGES = {
    "run": (*_TO_MIX, "teacher_scores", "train", "eval"),
    "mix": _TO_MIX,
    "pretrain": ("pretrain",),
    "distill": ("mix", "teacher_scores", "train", "eval", "distill"),
}
_REUSED = 0.1
"""A run that took less than this share of its expected time reused most of another one."""

Load = Callable[[Sequence[str]], Run]
"""Builds the study's run with further bindings."""
Execute = Callable[[Run, tuple[str, ...]], None]
"""Executes stages of a run."""


def run_study(study: Study, load: Load, execute: Execute, say: Callable[[str], None]) -> None:
    """Executes the runs of a study, and writes its table after each seed.

    Args:
      study: the study.
      load: builds a run.
      execute: executes it; finished stages are checked and not repeated.
      say: prints a line.
    """
    remove_abandoned_files(study.folder)
    remaining = [unit for unit in study_results.units(study) if not unit.finished]
    say(plan(study))
    actual, expected = 0.0, 0.0  # seconds of the runs so far
    for unit in study_results.units(study):
        run = dataclasses.replace(
            load(unit.bindings), reuse=study_results.reusable_runs(study, unit)
        )
        usual, start = study_results.expected_seconds(study, [unit]), time.monotonic()
        execute(run, _STAGES[unit.variant.command])
        seconds = time.monotonic() - start
        unit.finish(seconds)
        if unit not in remaining:
            continue
        remaining.remove(unit)
        if seconds > _REUSED * usual:  # a reused run tells nothing about this machine's pace
            actual, expected = actual + seconds, expected + usual
        pace = actual / expected if expected else 0.0
        say(f"{study.name}: {unit.name}: {duration(seconds)}; {_remaining(study, remaining, pace)}")
        if not any(other.seed == unit.seed for other in remaining):
            write_result(study, load)
    write_result(study, load)
    say(f"\n{markdown(read_result(study))}\npage: {study.folder}/{PAGE}")


def plan(study: Study) -> str:
    """Returns the runs of a study in words, with the time that they are expected to take."""
    units = study_results.units(study)
    remaining = [unit for unit in units if not unit.finished]
    count = len(units) - len(remaining)
    finished = f", {count} of them finished" if count else ""
    seconds = study_results.expected_seconds(study, remaining)
    estimate = f"about {duration(seconds)} on two idle cores" if seconds else "time not known yet"
    if not remaining:
        estimate = "they are only checked, which takes seconds"
    return (
        f"{study.name}: {study.question}\n{count_of(len(units), 'run')} "
        f"({count_of(len(study.variants), 'variant')}, {count_of(len(study.seeds), 'seed')})"
        f"{finished}: {estimate}"
    )


def _remaining(study: Study, units: Sequence[Unit], pace: float) -> str:
    """The number of remaining runs, and their time at this machine's pace if it is known."""
    seconds = pace * study_results.expected_seconds(study, units)
    time_left = f", about {duration(seconds)}" if seconds else ""
    return f"{len(units) or 'none'} left{time_left}"


def finished_seeds(study: Study) -> list[int]:
    """Returns the seeds for which the runs of all variants are finished."""
    return [
        seed
        for seed in study.seeds
        if all(study_results.unit_of(study, variant, seed).finished for variant in study.variants)
    ]


def write_result(study: Study, load: Load) -> None:
    """Writes study.json and study.html over the finished seeds; nothing if there are none."""
    seeds = finished_seeds(study)
    if not seeds:
        return
    titles = {variant.name: variant.title for variant in study.variants}
    counted = [
        unit for unit in study_results.units(study) if unit.seed is None or unit.seed in seeds
    ]
    result = {
        "name": study.name,
        "question": study.question,
        "source": study.source,
        "measure": study.measure,
        "reference": titles.get(study.reference, ""),
        "upper_bound": titles.get(study.upper_bound, ""),
        "against": study.against,
        "seeds": seeds,
        "planned": list(study.seeds),
        "minutes": round(sum(map(study_results.spent_seconds, counted)) / 60, 1),
        "rows": study_results.rows(study, seeds, load),
    }
    write_record(f"{study.folder}/{RESULT}", result)
    write_bytes(f"{study.folder}/{PAGE}", render(result).encode())


def read_result(study: Study) -> dict[str, Any]:
    """Returns a study's result.

    Raises:
      LmsiError: no seed is finished yet.
    """
    try:
        return read_record(f"{study.folder}/{RESULT}")
    except LmsiError:
        raise LmsiError(
            f"{study.folder} has no {RESULT}: no seed is finished yet; run `lmsi study "
            f"{study.name}` without --table and --into"
        ) from None


# --- the table and the page -----------------------------------------------------------------------
# A result is the content of study.json; shares are in [0, 1].

Result = dict[str, Any]
Row = dict[str, Any]
Plots = Iterable[tuple[str, Html]]
"""Titles and charts."""

_ENDS = ("before", "after")
_DOMAINS = {"in": "trained", "out": "others"}
_INTERVALS = (
    "In brackets 95 % intervals over seeds, which include the variance of the seeds' questions: "
    "Student's t, no seed's variance taken for less than what its questions alone give"
)
_ONE_SEED = "In brackets 95 % intervals over the questions of the only seed"
_SHARES = "Percent right, means over tasks; changes in points, on the same questions"
_MEANING = {
    "accuracy": _SHARES,
    "rounds": _SHARES,
    "sizes": _SHARES,
    "samples": "Percent right, means over the trained tasks; fewer samples are subsets of those "
    "drawn",
    "shift": "Percent of the voted rows in each bin of the DS weight that are right, questions as "
    "clusters; rows of all seeds",
}


def render(result: Result) -> str:
    """Returns the page: question, plots, table."""
    head, rows = head_and_rows(result)
    text_columns = {"accuracy": 3, "rounds": 4, "sizes": 4}.get(result["measure"], 2)
    cells = table(head, rows, caption=explanation(result), text_columns=text_columns)
    source = [note(f"Compare: {result['source']}.")] if result["source"] else []
    body = element(
        "body",
        element(
            "header",
            element("p", f"Study: {result['name']}", cls="kicker"),
            element("h1", result["question"]),
            *source,
        ),
        element(
            "main",
            element("section", element("h2", "Plot"), *plots(result), id="plot"),
            element("section", element("h2", "Table"), cells, id="table"),
            *_change_sections(result),
        ),
        cls="study",
    )
    return render_document(f"{result['name']}: LMSI study", body)


def _change_sections(result: Result) -> list[Html]:
    """Returns flips, slices, lengths and form of each variant, on the trained tasks."""
    rows = [row for row in result["rows"] if row.get("changes") and row["domain"] == "in"]
    if not rows:
        return []
    flips = [
        [
            *_names(row),
            *(_rate(row["changes"][name]) for name in ("gained", "lost")),
            *(_drift(row["changes"][name], 1) for name in ("tokens",)),
            *(_drift(row["changes"][name], 100) for name in ("parsed", "marked", "finished")),
        ]
        for row in rows
    ]
    head = ["variant", "prompt style", "wrong to right", "right to wrong", "tokens of a sample"]
    head += ["has an answer", "marks it", "not cut"]
    about = (
        "Trained tasks, questions of all seeds and tasks together, each counting alike; 95 % "
        "intervals over questions alone. Wrong to right: of the questions that the base got wrong; "
        "right to wrong: of those that it got right. Then means before → after and their paired "
        "change, tokens or points."
    )
    sections = [table(head, flips, caption=about, text_columns=2)]
    for title, name in (("base’s samples right", "by_difficulty"), ("vote’s share", "by_share")):
        slices = [
            [*_names(row), label, str(n), _share(old), _share(new), _points(*gain)]
            for row in rows
            for label, n, old, new, *gain in row["changes"][name]
        ]
        if slices:
            columns = ["variant", "prompt style", title, "questions", "before", "after", "change"]
            sections.append(table(columns, slices, text_columns=3))
    return [element("section", element("h2", "Question by question"), *sections, id="changes")]


def _names(row: Row) -> list[str]:
    after = f", round {row['round']}" if row["round"] > 1 else ""
    return [row["label"] + after, _style_name(row)]


def _rate(rate: Sequence[float]) -> str:
    """[3, 40, 0.02, 0.2] -> "3 of 40 (2.0 to 20.0 %)"."""
    count, total, low, high = rate
    return f"{count:,} of {total:,} ({_share(low)} to {_share(high)} %)" if total else DASH


def _drift(drift: Sequence[float] | None, unit: float) -> str:
    """[0.9, 0.95, 0.05, 0.01, 0.09] in points -> "90.0 → 95.0, +5.0 (+1.0 to +9.0)"."""
    if drift is None:
        return DASH
    before, after, *change = (unit * value for value in drift)
    return f"{before:.1f} → {after:.1f}, {_points(*(value / 100 for value in change))}"


def _points(difference: float, low: float, high: float) -> str:
    return f"{points(difference)} ({points(low)} to {points(high)})"


def markdown(result: Result) -> str:
    """Returns the table as Markdown, with the meaning of its numbers below."""
    head, rows = head_and_rows(result)
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{text}\n\n{explanation(result)}\n"


def insert(file: Path, name: str, text: str) -> None:
    """Replaces a study's table in a document, between the lines that mark it.

    Raises:
      LmsiError: the document cannot be read, or has no such lines.
    """
    try:
        before = file.read_text(encoding="utf-8")
    except OSError as error:
        raise LmsiError(f"cannot read {file}: {error.strerror}") from error
    marks = re.compile(rf"(<!-- study {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    after, count = marks.subn(lambda match: f"{match[1]}{text}{match[2]}", before)
    if count != 1:
        raise LmsiError(
            f"{file} requires one place between <!-- study {name} --> and <!-- end --> lines; it "
            f"has {count}"
        )
    write_bytes(file, after.encode())


def explanation(result: Result) -> str:
    """Returns the meaning of the numbers, their seeds, and what they cost."""
    seeds = result["seeds"]
    seeds_used = f"Seeds {', '.join(map(str, seeds))}"
    if len(seeds) < len(result["planned"]):
        planned = ", ".join(map(str, result["planned"]))
        seeds_used += f" of {planned}, the others are not finished"
    sentences = [seeds_used, _ONE_SEED if len(seeds) == 1 else _INTERVALS]
    sentences.append(_MEANING[result["measure"]])
    if any(row.get("gold") for row in result["rows"]):
        sentences.append("An upper bound has seen the labels of its training questions")
    if bound := result.get("upper_bound"):
        sentences.append(
            f"Share of {bound}’s gain: paired bootstrap over questions; a dash if that gain is not "
            "clearly above 0"
        )
    if stopped := [row for row in result["rows"] if row.get("stopped")]:
        names = sorted({f"{row['label']}, round {row['round']}" for row in stopped})
        sentences.append(
            "Stop rules ended some seeds before these rounds, which count their last model: "
            f"{'; '.join(names)}"
        )
    sentences.append(f"Took {result['minutes']:g} minutes")
    return ". ".join(sentences) + "."


def head_and_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Returns the table's columns and its cells."""
    return _TABLES[result["measure"]](result)


def _accuracy_table(result: Result) -> tuple[list[str], list[list[str]]]:
    measure, rows = result["measure"], result["rows"]
    compared = any(row["against"] for row in rows)
    papers = any(row["paper"] for row in rows)
    bound = result.get("upper_bound")
    head = ["variant", "prompt style", "tasks"]
    extra = {"rounds": "round", "sizes": "parameters"}.get(measure)
    head[1:1] = [extra] if extra else []
    head += ["before", "after", "change", "each seed's"]
    if compared:
        when = " before its rounds" if result["against"] == "before" else ""
        head.append(f"against {result['reference']}{when}")
    head += [f"share of {bound}’s gain"] if bound else []
    head += ["paper"] if papers else []
    table_rows = []
    for row in rows:
        domain = _DOMAINS.get(row["domain"], row["domain"])
        label = row["label"] + (" (upper bound)" if row.get("gold") else "")
        cells = [label, _style_name(row), domain]
        if extra:
            number = str(row["round"]) if measure == "rounds" else format_count(row["parameters"])
            cells.insert(1, number)
        cells += [_share(row["before"][0]), _share(row["after"][0]), _change(row["change"])]
        cells.append(", ".join(map(points, row["change"]["seeds"] if row["change"] else [])))
        cells += [_change(row["against"])] if compared else []
        cells += [_reached(row.get("reached"))] if bound else []
        cells += [row["paper"] or DASH] if papers else []
        table_rows.append(cells)
    return head, table_rows


def _samples_table(result: Result) -> tuple[list[str], list[list[str]]]:
    counts = sorted({row["samples"] for row in result["rows"]})
    by_model: dict[tuple[str, int], dict[int, Row]] = {}
    for row in result["rows"]:
        by_model.setdefault((row["label"], row["round"]), {})[row["samples"]] = row
    rows = [
        [
            label,
            _ENDS[number > 0],
            *(_interval(by_k[k]["accuracy"]) if k in by_k else DASH for k in counts),
        ]
        for (label, number), by_k in by_model.items()
    ]
    return ["variant", "model", *(count_of(k, "sample") for k in counts)], rows


def _shift_table(result: Result) -> tuple[list[str], list[list[str]]]:
    bins = list(dict.fromkeys(row["bin"] for row in result["rows"]))
    by_task: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        count = count_of(row["rows"], "row")
        cell = f"{_interval(row['right'])}, {count}" if row["right"] else count
        by_task.setdefault(row["task"], {})[row["bin"]] = cell
    return ["task", *bins], [
        [task, *(cells[name] for name in bins)] for task, cells in by_task.items()
    ]


def _style_name(row: Row) -> str:
    style: PromptStyle = row["prompt_style"]
    return PROMPT_STYLE_NAMES[style]


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(values: Sequence[float]) -> str:
    """[0.41, 0.35, 0.47] -> "41.0 (35.0 to 47.0)"."""
    mean, low, high = map(_share, values)
    return f"{mean} ({low} to {high})"


def _change(row: Row | None) -> str:
    if row is None:
        return DASH
    return _points(row["difference"], row["low"], row["high"])


def _reached(values: Sequence[float] | None) -> str:
    """[0.82, 0.6, 1.1] -> "82 % (60 to 110)"."""
    if values is None:
        return DASH
    mean, low, high = (f"{100 * value:.0f}".replace("-", "\N{MINUS SIGN}") for value in values)
    return f"{mean} % ({low} to {high})"


_TABLES: dict[str, Callable[[Result], tuple[list[str], list[list[str]]]]] = {
    "accuracy": _accuracy_table,
    "rounds": _accuracy_table,
    "sizes": _accuracy_table,
    "samples": _samples_table,
    "shift": _shift_table,
}


def plots(result: Result) -> list[Html]:
    """Returns the plots of a result, preceded by a legend if they need one."""
    charts = panels(figure(title, chart) for title, chart in _PLOTS[result["measure"]](result))
    if result["measure"] == "accuracy":
        return [legend([f"{end} the rounds" for end in _ENDS]), charts]
    return [charts]


def _accuracy_plots(result: Result) -> Plots:
    """Before and after, of each variant, on the trained tasks."""
    for style, rows in _group_by(result["rows"], _style_name).items():
        groups = [
            Group(row["label"], [Bar(*row["before"]), Bar(*row["after"])])
            for row in rows
            if row["domain"] == "in"
        ]
        title = f"{style}, trained tasks"
        yield title, grouped_bars(f"{title}: before and after", groups, _ENDS)


def _round_plots(result: Result) -> Plots:
    """Accuracy by round, a line for each variant and domain."""
    for style, rows in _group_by(result["rows"], _style_name).items():
        means = [row for row in rows if row["domain"] in _DOMAINS]
        by_line = _group_by(
            means, lambda row: row["label"] + (", others" if row["domain"] == "out" else "")
        )
        lines = [
            Line(
                name,
                [(0, line[0]["before"][0]), *((row["round"], row["after"][0]) for row in line)],
                [tuple(line[0]["before"][1:]), *(tuple(row["after"][1:]) for row in line)],
            )
            for name, line in by_line.items()
        ]
        title = f"{style}: accuracy by round"
        yield title, line_chart(title, lines, "round", "percent right", share=True, whole_x=True)


def _size_plots(result: Result) -> Plots:
    """The change in points over the base's accuracy in percent, on the trained tasks."""
    lines = []
    for style, rows in _group_by(result["rows"], _style_name).items():
        changes = [
            (row["before"][0], row["change"])
            for row in sorted(rows, key=lambda row: row["before"][0])
            if row["domain"] == "in" and row["change"]
        ]
        lines.append(
            Line(
                style,
                [(round(100 * x), 100 * change["difference"]) for x, change in changes],
                [(100 * change["low"], 100 * change["high"]) for _, change in changes],
            )
        )
    title = "Change over the base's accuracy"
    yield title, line_chart(title, lines, "base, percent right", "change, points", whole_x=True)


def _sample_plots(result: Result) -> Plots:
    """The vote by the number of samples, a line for each variant; before and after."""
    by_end = _group_by(result["rows"], lambda row: _ENDS[row["round"] > 0])
    for end in _ENDS:
        lines = [
            Line(
                label,
                [(row["samples"], row["accuracy"][0]) for row in rows],
                [tuple(row["accuracy"][1:]) for row in rows],
            )
            for label, rows in _group_by(by_end.get(end, []), lambda row: row["label"]).items()
        ]
        title = f"{end.capitalize()} the round: the vote by the number of samples"
        yield title, line_chart(title, lines, "samples", "percent right", share=True, whole_x=True)


def _shift_plots(result: Result) -> Plots:
    """The share of right rows by bin, for each task."""
    for task, rows in _group_by(result["rows"], lambda row: row["task"]).items():
        groups = [Group(row["bin"], [Bar(*row["right"]) if row["right"] else None]) for row in rows]
        title = f"{task}: right rows by DS weight"
        yield title, grouped_bars(title, groups, ("right",), ramp=False)


def _group_by(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


_PLOTS: dict[str, Callable[[Result], Plots]] = {
    "accuracy": _accuracy_plots,
    "rounds": _round_plots,
    "sizes": _size_plots,
    "samples": _sample_plots,
    "shift": _shift_plots,
}
