"""The table in the terminal: the page's numbers, literal brackets, and odd runs."""

import io
import math

import pytest
from rich.console import Console

from lmsi_jax.report import accuracy_section
from lmsi_jax.report.accuracy_section import headline_words
from lmsi_jax.report.html import points
from lmsi_jax.report.terminal import print_summary


def printed(summary, width=130):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_summary(summary, console)
    return console.file.getvalue()


def test_verdict_and_table_hold_the_numbers_of_the_page(summary):
    text = printed(summary)
    assert headline_words(summary)[0] in text
    found = next(c for c in accuracy_section.of_task(summary, "parity") if c.prompt_style == "cot")
    line = text.split("parity")[1].splitlines()[1]
    assert f"{100 * found.by_round[0].share:.1f}" in line
    assert f"{100 * found.by_round[1].share:.1f}" in line
    assert f" [{points(found.change.low)}, {points(found.change.high)}] " in line


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
    text = printed(summary)
    assert "base" in text and "change" not in text.split("task ")[1]


def test_nothing_evaluated_prints_no_table(summary):
    summary.update(evals=[], rounds=[])
    assert "Nothing has been evaluated yet" in printed(summary)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_odd_runs_print_at_any_width(summary, width):
    for row in summary["evals"]:
        if row["task"] == "parity":
            row.update(correct=[], confidence=[], parsed=math.nan)
    text = printed(summary, width)
    assert "nan" not in text and "None" not in text
