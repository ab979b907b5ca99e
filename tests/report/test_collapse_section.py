"""Collapse metrics on the page and in the terminal: numbers, odd rows, and runs without them."""

import io
import math
import re

import pytest
from rich.console import Console

from lmsi_jax.errors import LmsiError
from lmsi_jax.report import page, training_sections
from lmsi_jax.report.summary import Summary
from lmsi_jax.report.terminal import print_summary

load = Summary.from_json


def render(summary):
    """The page of a summary's JSON."""
    return page.render(load(summary))


def _row(source, number):
    gold = {"questions": 200, "confidence": 0.5 + 0.1 * number, "single": 0.4 + 0.05 * number}
    scored = {**gold, "majority": 0.6 + 0.05 * number, "passed": 0.95 - 0.01 * number}
    test = source == "test"
    return {
        "round": number,
        "source": source,
        "questions": 2000,
        "samples": 64000,
        "confidence": 0.5 + 0.1 * number,
        "entropy": 0.4 - 0.08 * number,
        "distinct": [0.081, 0.2 - 0.0125 * number, 0.31],
        "length": 60.0 + number,
        "unparsed": 0.03,
        "distinct_kept": 5.5,
        "empty": 0.01,
        "easy": 0.15 * number,
        "kept": None if test else 0.97,
        "rows": None if test else 39786,
        "easy_weight": None if test else 0.2 * number,
        "scored": scored if test else None,
    }


@pytest.fixture
def monitored(three_rounds):
    rows = [_row("train", r) for r in (1, 2, 3)] + [_row("test", r) for r in range(4)]
    return {**three_rounds, "collapse": rows[::-1]}


def _cells(page, name):
    row = re.search(rf"<tr>\s*<t[hd][^>]*>{re.escape(name)}</t[hd]>(.*?)</tr>", page, re.DOTALL)
    found = re.findall(r"<td[^>]*>(.*?)</td>", row[1])
    return [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in found]


def test_the_tables_have_a_column_for_each_round_in_order(monitored):
    text = str(training_sections.collapse(load(monitored)))
    train, test = text.split("Its model on the test questions")
    assert _cells(train, "Distinct-2") == [f"{0.2 - 0.0125 * r:.3f}" for r in (1, 2, 3)]
    assert _cells(train, "Their training weight") == ["20.0 %", "40.0 %", "60.0 %"]
    assert _cells(train, "Training rows") == ["39,786"] * 3
    assert _cells(test, "Vote is right (majority@m)") == ["60.0 %", "65.0 %", "70.0 %", "75.0 %"]
    assert _cells(test, "Some sample is right (pass@m)") == ["95.0 %", "94.0 %", "93.0 %", "92.0 %"]
    assert "majority@m" not in train and "Training rows" not in test
    assert "Base" in test and "Round 3" in test


def test_charts_show_the_rounds(monitored):
    text = render(monitored)
    for title in ("Confident and right, test questions", "Easy questions", "Length of a sample"):
        assert title in text
    contents = text.partition("<nav")[2].partition("</nav>")[0]
    assert contents.count('href="#collapse"') == 1


def test_the_terminal_has_the_metrics_of_the_rounds_votes(monitored):
    console = Console(file=io.StringIO(), width=130, force_terminal=False)
    print_summary(load(monitored), console)
    lines = console.file.getvalue().splitlines()
    (line,) = [line for line in lines if "Entropy of the answers" in line]
    assert line.split()[-3:] == ["0.320", "0.240", "0.160"]


def test_one_round_or_none_has_nothing_to_compare(summary, monitored):
    assert "Collapse monitor" not in render(summary)
    one = {**monitored, "collapse": [_row("train", 1)]}
    assert training_sections.collapse_table(load(one), "train") is None
    assert "Collapse monitor" not in render(one)


def test_what_is_no_number_is_a_dash(monitored):
    for row in monitored["collapse"]:
        row.update(confidence=math.nan, scored=None, kept=None, easy_weight=None)
    text = render(monitored)
    assert not re.search(r"\b(nan|None)\b", re.sub(r"<style>.*?</style>", "", text, flags=re.S))


def test_two_rows_of_one_round_are_refused(monitored):
    monitored["collapse"].append(_row("train", 1))
    with pytest.raises(LmsiError, match=r"summary: collapse has two entries for"):
        load(monitored)


def test_scheduled_values_are_shown_by_round(three_rounds):
    assert "Run.schedule" not in render(three_rounds)
    for row, value in zip(three_rounds["rounds"], ("0.5", "0.2", "0.2"), strict=True):
        row["values"] = {"Training.human_rate": value}
    assert _cells(render(three_rounds), "Training.human_rate") == ["0.5", "0.2", "0.2"]
