"""Compares finished runs: accuracies with paired tests, settings that differ, and costs.

Runs are compared with the first one, on the questions that both were asked: equal texts have equal
uids, whatever the run. The page and the terminal show the same rows.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from lmsi_jax.report import charts
from lmsi_jax.report.comparison import (
    DASH,
    DOMAIN_NAMES,
    PROMPT_STYLE_NAMES,
    SHORT_PROMPT_STYLE_NAMES,
    Change,
    change_interval,
    compare_outcomes,
    count_of,
    duration,
    evaluated_rounds,
    format_count,
    p_value,
    points,
    round_name,
    tasks_of,
)
from lmsi_jax.report.html import (
    Html,
    element,
    join_html,
    note,
    number_with_interval,
    scrolling_table,
    table,
)
from lmsi_jax.report.page import render_document
from lmsi_jax.report.summary import DOMAINS, PROMPT_STYLES, PromptStyle, Summary
from lmsi_jax.report.terminal import Column, print_table

_SILENT = ("Run.name", "Run.output_dir", "Run.reuse")
"""Settings that say where a run is, not what it does."""
_LONGEST = 30
"""Characters of a setting's value in the terminal."""
_VERDICTS = {
    "rose": ("up", "▲ higher"),
    "fell": ("down", "▼ lower"),
    "no clear change": ("flat", "unclear"),
}
_TESTS = (
    "Differences are to the first run, on the questions that both were asked, [95 % interval, "
    "Newcombe’s for pairs]; p: McNemar’s exact two-sided test, not corrected for the number of "
    "rows."
)
_WORDS = " “Higher” and “lower” need p < 0.05 and an interval that excludes zero."


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A run with what its report does not hold.

    Attributes:
      name: a short name for tables.
      summary: its report.
      uids: the uids of its test questions by task and prompt style, in the order of the outcomes.
    """

    name: str
    summary: Summary
    uids: Mapping[tuple[str, str], Sequence[str]]

    @property
    def last(self) -> int:
        """The last evaluated round."""
        return max(evaluated_rounds(self.summary), default=0)

    def outcomes(self, task: str, style: PromptStyle, number: int) -> dict[str, bool]:
        """Returns whether each question was right, by uid; {} if this was not measured."""
        uids = self.uids.get((task, style), ())
        for row in self.summary.evals:
            same = (row.task, row.prompt_style, row.round) == (task, style, number)
            if same and len(row.correct) == len(uids):
                return dict(zip(uids, map(bool, row.correct), strict=True))
        return {}


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt style on a task, or its mean over tasks, in all runs.

    Attributes:
      group: the task, or "mean, in-domain".
      prompt_style: how the questions were asked.
      shares: the accuracy of each run's last model; None if a run did not measure it.
      base: the same of each run's base model.
      questions: of each run.
      changes: each further run minus the first one; None without common questions.
    """

    group: str
    prompt_style: PromptStyle
    shares: tuple[float | None, ...]
    base: tuple[float | None, ...]
    questions: tuple[int, ...]
    changes: tuple[Change | None, ...]


def short_names(names: Sequence[str]) -> list[str]:
    """Returns the names without the folders that all of them begin with.

    "runs/a", "runs/b" -> "a", "b".
    """
    parts = [name.rstrip("/").split("/") for name in names]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def compare_runs(runs: Sequence[ComparedRun]) -> list[Row]:
    """Returns the rows: the means over the tasks that all runs measured, then each task."""
    rows = []
    first = runs[0].summary
    for domain in DOMAINS:
        names = [task.name for task in tasks_of(first, domain)]
        for style in PROMPT_STYLES:
            measured = [
                name for name in names if all(run.outcomes(name, style, run.last) for run in runs)
            ]
            if len(measured) > 1:
                group = f"mean, {DOMAIN_NAMES[domain].lower()} ({count_of(len(measured), 'task')})"
                rows.append(_row(group, style, runs, measured))
    for name in dict.fromkeys(task.name for run in runs for task in run.summary.tasks):
        for style in PROMPT_STYLES:
            if any(run.outcomes(name, style, run.last) for run in runs):
                rows.append(_row(name, style, runs, [name]))
    return rows


def _row(group: str, style: PromptStyle, runs: Sequence[ComparedRun], tasks: Sequence[str]) -> Row:
    return Row(
        group=group,
        prompt_style=style,
        shares=tuple(_share(run, style, tasks, run.last) for run in runs),
        base=tuple(_share(run, style, tasks, 0) for run in runs),
        questions=tuple(
            sum(len(run.outcomes(task, style, run.last)) for task in tasks) for run in runs
        ),
        changes=tuple(_change(runs[0], run, style, tasks) for run in runs[1:]),
    )


def _share(run: ComparedRun, style: PromptStyle, tasks: Sequence[str], number: int) -> float | None:
    """Returns the mean accuracy over tasks, each counting alike."""
    found = [run.outcomes(task, style, number) for task in tasks]
    if not all(found):
        return None
    return math.fsum(sum(one.values()) / len(one) for one in found) / len(found)


def _change(
    first: ComparedRun, other: ComparedRun, style: PromptStyle, tasks: Sequence[str]
) -> Change | None:
    pairs = []
    for task in tasks:
        before = first.outcomes(task, style, first.last)
        after = other.outcomes(task, style, other.last)
        if not (common := [uid for uid in before if uid in after]):
            return None
        pairs.append(([before[uid] for uid in common], [after[uid] for uid in common]))
    return compare_outcomes(pairs)


def shared_questions(runs: Sequence[ComparedRun]) -> list[str]:
    """Returns a sentence for each further run that was asked other questions than the first."""
    sentences = []
    for run in runs[1:]:
        own = {uid for uids in run.uids.values() for uid in uids}
        theirs = {uid for uids in runs[0].uids.values() for uid in uids}
        if own != theirs:
            sentences.append(
                f"{run.name} was asked {count_of(len(own), 'test question')}, {runs[0].name} "
                f"{format_count(len(theirs))}; {format_count(len(own & theirs))} are the same, and "
                "the differences are on these alone."
            )
    return sentences


# --- settings and costs ---------------------------------------------------------------------------


def read_settings(config: str) -> dict[str, str]:
    """Returns the settings of an operative gin configuration: each value's text by its name."""
    settings: dict[str, str] = {}
    name = ""
    for line in config.splitlines():
        if match := re.match(r"([\w./]+) = (.*)", line):
            name = match[1]
            settings[name] = match[2].removesuffix("\\").strip()
        elif line.startswith(" ") and name:
            settings[name] = f"{settings[name]} {line.strip().removesuffix(chr(92))}".strip()
        else:
            name = ""
    return settings


def settings_that_differ(runs: Sequence[ComparedRun]) -> list[tuple[str, list[str]]]:
    """Returns the settings whose values are not the same in all runs, with each run's value."""
    by_run = [read_settings(run.summary.config) for run in runs]
    names = sorted({name for settings in by_run for name in settings} - {*_SILENT})
    rows = [(name, [settings.get(name, DASH) for settings in by_run]) for name in names]
    return [row for row in rows if len({*row[1]}) > 1]


def costs(runs: Sequence[ComparedRun]) -> list[tuple[str, list[str]]]:
    """Returns what each run took: rounds, questions, samples, tokens, rows, and time by stage."""
    rows: list[tuple[str, list[str]]] = [
        ("parameters", [format_count(run.summary.model.parameters) for run in runs]),
        ("rounds", [format_count(len(run.summary.rounds)) for run in runs]),
    ]

    def total(name: str, read: Callable[[Summary], float], words: Callable[[float], str]) -> None:
        values = [read(run.summary) for run in runs]
        if any(values):
            rows.append((name, [words(value) if value else DASH for value in values]))

    def tokens_of(stage: str) -> Callable[[Summary], float]:
        return lambda summary: sum(
            row.tokens_per_second.get(stage, 0.0) * row.seconds.get(stage, 0.0)
            for row in summary.rounds
        )

    def seconds_of(stage: str) -> Callable[[Summary], float]:
        return lambda summary: sum(row.seconds.get(stage, 0.0) for row in summary.rounds)

    total("questions", lambda s: sum(row.questions for row in s.rounds), format_count)
    total("samples", lambda s: sum(row.samples for row in s.rounds), format_count)
    total("tokens sampled", tokens_of("sample"), format_count)
    total("training rows", lambda s: sum(_rows(row.examples) for row in s.rounds), format_count)
    total("tokens trained on", tokens_of("train"), format_count)
    stages = dict.fromkeys(
        stage for run in runs for row in run.summary.rounds for stage in row.seconds
    )
    for stage in stages:
        total(f"{stage}, time", seconds_of(stage), duration)
    total("all rounds, time", lambda s: sum(sum(r.seconds.values()) for r in s.rounds), duration)
    return rows


def _rows(examples: Mapping[str, object]) -> int:
    return sum(getattr(counts, "rows", 0) for counts in examples.values())


# --- terminal -------------------------------------------------------------------------------------


def print_comparison(runs: Sequence[ComparedRun], console: Console) -> None:
    """Prints accuracies, settings that differ, and costs, each table as wide as fits."""
    rows = compare_runs(runs)
    labels: list[str] = []
    cells: list[Row | None] = []
    for before, row in zip([None, *rows], rows, strict=False):
        if before is None or row.group != before.group:
            labels.append(row.group)
            cells.append(None)
        labels.append(f"  {SHORT_PROMPT_STYLE_NAMES[row.prompt_style]}")
        cells.append(row)

    def column(head: str, rank: int, write: Callable[[Row], Text | str]) -> Column:
        written = [write(row) if row else "" for row in cells]
        return Column(head, [Text(c) if isinstance(c, str) else c for c in written], rank)

    def in_percent(share: float | None) -> str:
        return DASH if share is None else f"{100 * share:.1f}"

    columns = [column("n", 6, lambda row: "/".join(map(str, sorted({*row.questions}))))]
    columns.append(column(runs[0].name, 1, lambda row: in_percent(row.shares[0])))
    for i, run in enumerate(runs[1:]):
        columns += [
            column(run.name, 1, lambda row, i=i: in_percent(row.shares[i + 1])),  # type: ignore[misc]
            column("difference", 2, lambda row, i=i: _points(row.changes[i])),  # type: ignore[misc]
            column("[95 %]", 4, lambda row, i=i: _interval(row.changes[i])),  # type: ignore[misc]
            column("p", 3, lambda row, i=i: _p(row.changes[i])),  # type: ignore[misc]
        ]
    models = ", ".join(f"{run.name} {round_name(run.last).lower()}" for run in runs)
    words = f"Percent right, of {models}. {_TESTS} {' '.join(shared_questions(runs))}"
    print_table(console, "task, prompt style", labels, columns, words.strip())
    _print_values(
        console, "setting", settings_that_differ(runs), runs, "All settings are the same."
    )
    _print_values(console, "cost", costs(runs), runs, "")


def _print_values(
    console: Console,
    head: str,
    rows: Sequence[tuple[str, Sequence[str]]],
    runs: Sequence[ComparedRun],
    empty: str,
) -> None:
    if not rows:
        console.print(empty)
        return
    cut = any(len(value) > _LONGEST for _, values in rows for value in values)
    columns = [
        Column(run.name, [Text(_shortened(values[i])) for _, values in rows], i + 1)
        for i, run in enumerate(runs)
    ]
    note_ = f"Values of more than {_LONGEST} characters are cut; the page has them whole."
    print_table(console, head, [name for name, _ in rows], columns, note_ if cut else "")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _points(change: Change | None) -> Text:
    styles = {"rose": "bold green", "fell": "bold red", "no clear change": ""}
    return Text(points(change.difference), style=styles[change.verdict]) if change else Text(DASH)


def _interval(change: Change | None) -> Text:
    return Text(change_interval(change.low, change.high) if change else DASH, style="dim")


def _p(change: Change | None) -> str:
    return p_value(change.p) if change else DASH


# --- page -----------------------------------------------------------------------------------------


def render_comparison(runs: Sequence[ComparedRun]) -> str:
    """Returns the comparison as one HTML file without network or JavaScript."""
    names = [run.name for run in runs]
    title = f"{names[0]} against {', '.join(names[1:])}"
    rows = compare_runs(runs)
    settings = settings_that_differ(runs)
    sections = [
        ("result", "Result", _result(runs, rows)),
        (
            "settings",
            "Settings that differ",
            table(
                ("Setting", *names),
                [
                    (name, *(element("code", value, cls="value") for value in v))
                    for name, v in settings
                ],
                "Where a run is written to is left out; all other settings are the same.",
                text_columns=len(names) + 1,
                title="Settings that differ between the runs",
            )
            if settings
            else element("p", "All settings are the same.", cls="empty"),
        ),
        (
            "costs",
            "Costs",
            table(
                ("", *names),
                [(name, *values) for name, values in costs(runs)],
                "Sums over all rounds. Times are those of finished stages as they ran, whatever "
                "else the machine did; the base model’s evaluation is not in them.",
                title="Costs of the runs",
            ),
        ),
    ]
    links = [element("a", head, href=f"#{name}") for name, head, _ in sections]
    header = element(
        "header",
        element("p", "Comparison of runs", cls="kicker"),
        element("h1", title.replace("-", "\N{NON-BREAKING HYPHEN}")),
        *(element("p", _in_words(runs, row), cls="basis") for row in _headlines(rows)),
        *(element("p", sentence, cls="basis") for sentence in shared_questions(runs)),
    )
    body = element(
        "body",
        header,
        element("nav", *links, aria_label="Contents"),
        element(
            "main",
            *(element("section", element("h2", head), inner, id=n) for n, head, inner in sections),
        ),
    )
    return render_document(f"{title}: LMSI comparison", body)


def _code(value: str) -> Html:
    return element("code", value, cls="value")


def _headlines(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows to open with: chain of thought on the first group that has it."""
    for style in ("cot", "self_consistency", "standard", "zero_shot_cot"):
        for row in rows:
            if row.prompt_style == style and any(row.changes):
                return [row]
    return []


def _in_words(runs: Sequence[ComparedRun], row: Row) -> str:
    parts = []
    for run, change in zip(runs[1:], row.changes, strict=True):
        if change:
            parts.append(
                f"{run.name} {100 * change.after:.1f} against {100 * change.before:.1f}, "
                f"{points(change.difference)} points {change_interval(change.low, change.high)}, "
                f"p {p_value(change.p)}"
            )
    style = PROMPT_STYLE_NAMES[row.prompt_style].lower()
    return f"{row.group[:1].upper()}{row.group[1:]}, {style}: {'; '.join(parts)}."


def _result(runs: Sequence[ComparedRun], rows: Sequence[Row]) -> Html:
    if not rows:
        return element("p", "No run measured accuracy.", cls="empty")
    changes = [change for row in rows for change in row.changes if change]
    scale = min([-0.02, *(c.low for c in changes)]), max([0.02, *(c.high for c in changes)])
    head = [("Prompt style", "text"), ("n", "num"), (runs[0].name, "num")]
    for run in runs[1:]:
        head += [(run.name, "num"), ("Difference in points", "num"), ("", "mid"), ("p", "num")]
        head += [("Verdict", "text")]
    bodies = []
    for group in dict.fromkeys(row.group for row in rows):
        top = element("th", group, colspan=len(head), scope="rowgroup", cls="group")
        lines = [element("tr", *_cells(runs, row, scale)) for row in rows if row.group == group]
        bodies.append(element("tbody", element("tr", top), *lines))
    cells = [element("th", name, scope="col", cls=side) for name, side in head]
    caption = (
        "Accuracy of each run’s last model in percent, below it that of its base model. "
        + _TESTS
        + _WORDS
    )
    models = "; ".join(f"{run.name}, {round_name(run.last).lower()}" for run in runs)
    return join_html(
        [
            note(f"Last models: {models}."),
            scrolling_table(
                element("thead", element("tr", *cells)),
                bodies,
                caption,
                "stacked cards",
                title="Accuracy of the runs by task and prompt style",
            ),
        ]
    )


def _cells(runs: Sequence[ComparedRun], row: Row, scale: tuple[float, float]) -> Iterator[Html]:
    yield element("th", PROMPT_STYLE_NAMES[row.prompt_style], scope="row", cls="text")
    sizes = "/".join(format_count(n) for n in sorted({*row.questions}))
    yield element("td", sizes, cls="num quiet", data_label="n")
    yield element("td", _accuracy(row, 0), cls="num", data_label=runs[0].name)
    for i, change in enumerate(row.changes):
        yield element("td", _accuracy(row, i + 1), cls="num", data_label=runs[i + 1].name)
        if change is None:
            yield element("td", DASH, cls="num quiet", data_label="Difference")
            yield element("td", cls="mid")
            yield element("td", DASH, cls="num quiet")
            yield element("td", "no common questions", cls="text quiet")
            continue
        kind, words = _VERDICTS[change.verdict]
        interval = change_interval(change.low, change.high)
        mark = charts.change_mark(change.difference, change.low, change.high, scale, kind)
        difference = number_with_interval(points(change.difference), interval)
        yield element("td", difference, cls="num", data_label="Difference")
        yield element("td", mark, cls="mid")
        yield element("td", p_value(change.p), cls="num", data_label="p")
        yield element("td", words, cls=f"text verdict {kind}", data_label="Verdict")


def _accuracy(row: Row, index: int) -> Html:
    share, base = row.shares[index], row.base[index]
    if share is None:
        return element("span", DASH, cls="quiet")
    below = DASH if base is None else f"base {100 * base:.1f}"
    return number_with_interval(f"{100 * share:.1f}", below)
