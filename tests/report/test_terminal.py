"""The tables in the terminal: the page's numbers, whole names at every width, odd runs."""

import io
import math

import pytest
from rich.console import Console
from rich.text import Text

from lmsi_jax.report import comparison
from lmsi_jax.report.comparison import headline_words, points
from lmsi_jax.report.summary import Summary
from lmsi_jax.report.terminal import (
    Column,
    open_console,
    print_distillation,
    print_evaluation,
    print_summary,
    print_table,
)

STYLES = ("standard", "CoT", "zero-shot CoT", "self-consistency")
WIDTHS = (60, 80, 120)
load = Summary.from_json


def console(width):
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def printed(summary, width=130):
    out = console(width)
    print_summary(load(summary), out)
    return out.file.getvalue()


def accuracy_table(text):
    """The lines of the table of accuracies: its head, and the rows below the rule."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("task, prompt style"))
    end = next(i for i, line in enumerate(lines) if line.startswith("Percent right."))
    return lines[start].replace("\N{NO-BREAK SPACE}", " "), lines[start + 2 : end]


def groups(rows):
    """Rows by the task or mean above them."""
    found = {}
    for row in rows:
        if not row.startswith(" "):
            name = row
            found[name] = []
        else:
            found[name].append(row)
    return found


def test_verdict_and_table_hold_the_numbers_of_the_page(summary):
    text = printed(summary)
    assert headline_words(load(summary))[0] in text
    rows = comparison.compare_task(load(summary), "parity")
    expected = next(row for row in rows if row.prompt_style == "cot")
    cells = groups(accuracy_table(text)[1])["parity"][1].split()
    change = expected.change
    assert cells[:3] == ["CoT", "200", f"{100 * expected.by_round[0].share:.1f}"]
    assert f"{100 * expected.by_round[1].share:.1f}" in cells
    line = groups(accuracy_table(text)[1])["parity"][1]
    interval = f"[{points(change.low)}, {points(change.high)}]"
    assert line.split(interval)[0].split()[-1] == points(change.difference)


@pytest.mark.parametrize("width", [*WIDTHS, "piped"])
@pytest.mark.parametrize("command", ["run", "eval"])
def test_every_row_is_whole_and_named_at_every_width(
    width, command, three_rounds, monkeypatch, capsys
):
    if width == "piped":
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    show = {"run": print_summary, "eval": print_evaluation}[command]
    show(load(three_rounds), open_console())
    text = capsys.readouterr().out
    limit = 100 if width == "piped" else width
    assert max(map(len, text.splitlines())) <= limit and "…" not in text
    head, rows = accuracy_table(text)
    names = [task["name"] for task in three_rounds["tasks"]]
    by_group = groups(rows)
    assert set(by_group) == {*names, "mean, in-domain", "mean, out-of-domain"}
    for lines in by_group.values():
        assert [next(s for s in STYLES if line.startswith(f"  {s} ")) for line in lines] == [
            *STYLES
        ]
    columns = head.removeprefix("task, prompt style").split()
    assert {"base", "round", "change"} <= set(columns)
    # As many cells in every row as the head has columns; an interval is one column of two words.
    cells = head.replace("round 3", "round_3").replace("[95 %]", "[95_%] x").split()[3:]
    for line in (line for lines in by_group.values() for line in lines):
        name = next(s for s in STYLES if line.startswith(f"  {s} "))
        words = line.replace("<\N{NO-BREAK SPACE}", "<").replace("\N{NO-BREAK SPACE}%", "%")
        assert len(words.split()) - len(name.split()) == len(cells)


def test_a_wider_terminal_shows_more_columns_and_a_narrow_one_says_what_is_missing(three_rounds):
    heads = {width: accuracy_table(printed(three_rounds, width))[0] for width in (60, 80, 120, 150)}
    assert [len(head.split()) for head in heads.values()] == sorted(
        len(head.split()) for head in heads.values()
    )
    assert "p" not in heads[60].split()[3:] and "unparsed" in heads[120]
    assert heads[150].count("[95 %]") == 3
    flat = " ".join(printed(three_rounds, 60).split())
    assert "Not shown at 60 columns: n, p, unparsed, tied." in flat
    assert "Not shown" not in printed(three_rounds, 150)


@pytest.mark.parametrize("width", WIDTHS)
def test_more_numbers_than_fit_keep_the_first_and_the_last(width):
    out = console(width)
    columns = [Column(f"k = {k}", [Text(f"{k}.0")], 0) for k in range(12)]
    ranks = [2, *range(12, 2, -1), 1]
    columns = [Column(c.head, c.cells, rank) for c, rank in zip(columns, ranks, strict=True)]
    print_table(out, "samples, mean over tasks", ["base, majority@k"], columns)
    head, _, row, *_ = out.file.getvalue().splitlines()
    assert "k = 0" in head and "k = 11" in head and len(head) <= width
    assert row.startswith("base, majority@k") and row.endswith("11.0")


def test_a_name_is_never_cut_however_long(summary):
    name = "a_family_of_questions_with_a_name_of_more_than_sixty_characters_in_all"
    text = printed(
        {
            **summary,
            "tasks": [{**summary["tasks"][0], "name": name}],
            "evals": [
                {**row, "task": name} for row in summary["evals"] if row["task"] == "addition_words"
            ],
            "adaptive_consistency": {**summary["adaptive_consistency"], "sets": []},
        },
        60,
    )
    assert name in text.splitlines()


def test_every_task_and_both_means_are_there(summary):
    text = printed(summary)
    for name in [t["name"] for t in summary["tasks"]] + ["mean, in-domain", "mean, out-of-domain"]:
        assert name in text


def test_brackets_in_names_are_no_markup(three_rounds):
    three_rounds["rounds"][0]["alarms"] = ["[bold]sure[/bold] [/]"]
    assert "Alarm in round 1: [bold]sure[/bold] [/]" in printed(three_rounds)


def test_a_run_without_rounds_has_no_column_of_changes(summary):
    summary["evals"] = [e for e in summary["evals"] if e["round"] == 0]
    summary["rounds"] = []
    head, _ = accuracy_table(printed(summary))
    assert "base" in head and "change" not in head


def test_nothing_evaluated_prints_no_table(summary):
    summary.update(evals=[], rounds=[])
    text = printed(summary)
    assert "Nothing has been evaluated yet" in text and "task, prompt style" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_odd_runs_print_at_any_width(summary, width):
    for row in summary["evals"]:
        if row["task"] == "parity":
            row.update(correct=[], confidence=[], parsed=math.nan)
    text = printed(summary, width)
    assert "nan" not in text and "None" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_distilled_student_is_shown_at_every_width(width):
    means = [
        {
            "domain": domain,
            "prompt_style": style,
            "tasks": 1 + (domain == "in"),
            "n": 400,
            "teacher_before": 61.25,
            "student_before": 40.5,
            "student_after": 55.75,
            "gain": {"difference": 15.25, "low": 10.5, "high": 20.0, "p": 0.00001},
        }
        for domain in ("in", "out")
        for style in ("cot", "self_consistency")
    ]
    result = {"teacher": {"parameters": 1100}, "student": {"parameters": 300}, "means": means}
    out = console(width)
    print_distillation(result, out)
    lines = out.file.getvalue().splitlines()
    assert lines[0].startswith("teacher 1,100 parameters, student 300")
    assert max(map(len, lines)) <= width
    assert "trained (2 tasks)" in lines and "others (1 task)" in lines
    rows = [line.split() for line in lines if line.startswith("  self-consistency")]
    assert len(rows) == 2
    assert all({"40.5", "55.8", "+15.2"} <= set(row) for row in rows)


def test_a_number_stays_on_the_line_of_its_unit(summary):
    for width in range(40, 90):
        assert not any(line.startswith("%") for line in printed(summary, width).splitlines())
