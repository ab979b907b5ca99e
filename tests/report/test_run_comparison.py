"""Comparing runs: pairs by question, settings, costs; page and terminal show the same."""

import copy
import io
import re

import pytest
from rich.console import Console
from scipy.stats import binomtest

from lmsi_jax.report.run_comparison import (
    ComparedRun,
    compare_runs,
    costs,
    print_comparison,
    read_settings,
    render_comparison,
    settings_that_differ,
    shared_questions,
    short_names,
)
from lmsi_jax.report.summary import Summary


def compared(value, name="first", uids=None):
    report = Summary.from_json(value)
    known = {
        (row.task, row.prompt_style): [f"{row.task}-{i}" for i in range(len(row.correct))]
        for row in report.evals
    }
    return ComparedRun(name, report, {**known, **(uids or {})})


@pytest.fixture
def other(summary):
    """The same run with every fifth right answer to a task lost, hotter, at twice the time."""
    value = copy.deepcopy(summary)
    for row in value["evals"]:
        if row["task"] == "parity" and row["prompt_style"] == "cot":
            row["correct"] = [c if i % 5 else 0 for i, c in enumerate(row["correct"])]
    value["config"] = "Sampling.temperature = 1.0\nRun.name = 'b'\n"
    for row in value["rounds"]:
        row["seconds"] = {stage: 2 * seconds for stage, seconds in row["seconds"].items()}
    return value


@pytest.fixture
def runs(summary, other):
    first = {**summary, "config": "Sampling.temperature = 0.7\nRun.name = 'a'\n"}
    return [compared(first), compared(other, "second")]


def _row(rows, group, style="cot"):
    return next(row for row in rows if (row.group, row.prompt_style) == (group, style))


def test_differences_are_paired_by_question(runs):
    row = _row(compare_runs(runs), "parity")
    (change,) = row.changes
    before = runs[0].outcomes("parity", "cot", runs[0].last)
    lost = sum(right for i, right in enumerate(before.values()) if i % 5 == 0)
    assert lost > 5
    assert change.difference == pytest.approx(-lost / len(before))
    assert change.p == pytest.approx(binomtest(0, lost).pvalue)  # none gained: McNemar's exact
    same = _row(compare_runs(runs), "syllogism").changes[0]
    assert (same.difference, same.p) == (0.0, 1.0)


def test_questions_in_another_order_are_the_same_questions(runs, other):
    order = list(range(len(runs[0].uids["parity", "cot"])))[::-1]
    for row in other["evals"]:
        if (row["task"], row["prompt_style"]) == ("parity", "cot"):
            row["correct"] = [row["correct"][i] for i in order]
    turned = compared(other, uids={("parity", "cot"): [f"parity-{i}" for i in order]})
    assert _row(compare_runs([runs[0], turned]), "parity").changes == (
        _row(compare_runs(runs), "parity").changes
    )


def test_only_common_questions_are_compared_and_that_is_told(runs, other):
    size = len(runs[0].uids["parity", "cot"])
    uids = [f"parity-{i}" if i < 50 else f"new-{i}" for i in range(size)]
    half = compared(other, "half", uids={("parity", "cot"): uids})
    (change,) = _row(compare_runs([runs[0], half]), "parity").changes
    assert change.n == 50
    (sentence,) = shared_questions([runs[0], half])
    assert sentence.startswith("half was asked") and "on these alone" in sentence
    none = compared(other, "none", uids={("parity", "cot"): [f"x{i}" for i in range(size)]})
    assert _row(compare_runs([runs[0], none]), "parity").changes == (None,)
    assert "no common questions" in render_comparison([runs[0], none])
    assert shared_questions(runs) == []


def test_settings_are_read_from_gin_text_over_several_lines():
    text = "# a comment\nRun.rounds = 3\nQuestions.test = \\\n    ('a',\n     'b')\n\nA.b = ''\n"
    assert read_settings(text) == {"Run.rounds": "3", "Questions.test": "('a', 'b')", "A.b": "''"}


def test_only_settings_that_differ_are_listed_without_the_places(runs):
    assert settings_that_differ(runs) == [("Sampling.temperature", ["0.7", "1.0"])]


def test_costs_are_sums_over_the_rounds(runs, summary):
    rows = dict(costs(runs))
    questions = sum(row["questions"] for row in summary["rounds"])
    assert rows["questions"] == [f"{questions:,}"] * 2
    assert rows["rounds"] == [str(len(summary["rounds"]))] * 2
    assert rows["train, time"][0] != rows["train, time"][1]


@pytest.mark.parametrize("width", [50, 80, 120])
def test_the_tables_fit_the_terminal_and_name_what_is_left_out(runs, width):
    out = io.StringIO()
    print_comparison(runs, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith("parity") for line in lines)
    assert ("Not shown at" in out.getvalue()) == (width < 120)


def test_the_page_escapes_names_and_values_and_loads_nothing(runs, other):
    evil = "<script>alert(1)</script>"
    other["config"] = f"Run.seed = '{evil}'\n"
    page = render_comparison([runs[0], compared(other, evil)])
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "default-src &#x27;none&#x27;" in page and not re.search(r"(src|href)=\"(?!#)", page)
    assert page.count("<caption") == page.count("<table") == 3


def test_three_runs_are_compared_with_the_first(runs):
    rows = compare_runs([*runs, runs[0]])
    assert all(len(row.changes) == 2 and row.changes[1].difference == 0 for row in rows)


def test_names_lose_the_folders_that_all_share():
    assert short_names(["runs/a", "runs/b/"]) == ["a", "b"]
    assert short_names(["x/run", "y/run"]) == ["x/run", "y/run"]
    assert short_names(["runs/a", "runs/a"]) == ["a", "a"]
