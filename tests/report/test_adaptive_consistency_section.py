"""Adaptive consistency on page and terminal: counted again from the sets with plain loops."""

import io

import pytest
from rich.console import Console
from test_page import load, read, render, text_of

from lmsi_jax.evaluation.statistics import paired_difference
from lmsi_jax.report import vote_sections
from lmsi_jax.report.terminal import print_summary


def sets(summary, source, number):
    rows = summary["adaptive_consistency"]["sets"]
    return [row for row in rows if (row["source"], row["round"]) == (source, number)]


def sampled_with_it(summary):
    """The same run with the rule on in sampling."""
    summary["adaptive_consistency"]["on"] = True
    for row in summary["adaptive_consistency"]["sets"]:
        if row["source"] == "train":
            row["same"] = []
    return summary


def section(summary):
    """The section's text and its table."""
    page = str(vote_sections.adaptive_consistency(load(summary)))
    return text_of(page), [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row]
                           for row in read(page).rows]  # fmt: skip


def test_a_task_s_row_holds_what_the_rule_takes_and_what_the_vote_loses(summary):
    one = sets(summary, "test", 1)[2]
    n = len(one["taken"])
    pairs = list(zip(one["correct"], one["correct_stopped"], strict=True))
    row = next(r for r in section(summary)[1][11:] if r[0] == one["task"])
    gain = 100 * sum(after - before for before, after in pairs) / n
    interval = paired_difference(one["correct"], one["correct_stopped"])
    assert row[1:7] == [
        f"{n}",
        f"{sum(one['taken']):,}",
        f"{100 * (1 - sum(one['taken']) / (32 * n)):.1f} %",
        f"{100 * sum(one['same']) / n:.1f} %",
        f"{100 * sum(one['correct']) / n:.1f}",
        f"{100 * sum(one['correct_stopped']) / n:.1f}",
    ]
    shown = row[7].replace("\N{MINUS SIGN}", "-").split()
    assert float(shown[0]) == pytest.approx(gain, abs=0.051)
    assert float(shown[1][1:-1]) == pytest.approx(100 * interval.low, abs=0.051)


def test_sums_over_tasks_count_every_question_alike(summary):
    rows = sets(summary, "test", 1)
    keep(rows[0], 50)
    parts = load(summary).adaptive_consistency.sets
    one = vote_sections.effect([row for row in parts if (row.source, row.round) == ("test", 1)])
    flat = {name: [x for row in rows for x in row[name]] for name in ("taken", "same", "correct")}
    assert one.questions == len(flat["taken"]) == 50 + 6 * 200
    assert (one.taken, one.possible) == (sum(flat["taken"]), 32 * one.questions)
    assert (one.same, one.right) == (sum(flat["same"]), sum(flat["correct"]))


def keep(row, n):
    """Leaves a set its first n questions."""
    row.update({k: row[k][:n] for k in ("taken", "same", "correct", "correct_stopped")})


def test_page_and_terminal_say_the_same_sentences(summary):
    file = io.StringIO()
    print_summary(load(summary), Console(file=file, width=300))
    sentences = [
        s.replace("\N{NO-BREAK SPACE}", " ")
        for s in vote_sections.adaptive_consistency_sentences(load(summary))
    ]
    printed = file.getvalue().replace("\N{NO-BREAK SPACE}", " ")
    assert len(sentences) == 2
    for sentence in sentences:
        assert sentence in printed and sentence in text_of(render(summary))
    rows = sets(summary, "test", 1)
    taken = sum(sum(row["taken"]) for row in rows)
    saved = 100 * (1 - taken / (32 * 200 * len(rows)))
    assert sentences[0].startswith(
        f"Adaptive consistency would save {saved:.1f} % of the samples on the test questions of "
        "round 1; "
    )


def test_if_the_rule_was_off_the_page_tells_how_to_turn_it_on(summary):
    text, _ = section(summary)
    assert "Sampling.adaptive_consistency = 0.95 turns it on" in text and "all sampled" in text
    assert "stopped early" not in text


def test_if_the_rule_was_on_the_drawn_samples_are_counted(summary):
    text, rows = section(sampled_with_it(summary))
    taken = sum(sum(row["taken"]) for row in sets(summary, "train", 1))
    saved = 100 * (1 - taken / 64000)
    assert f"saved {saved:.1f} % of the samples on the train questions of round 1: " in text
    assert f"{taken:,} of 64,000 were sampled" in text
    assert "at most 32 samples each, stopped early" in text
    assert "turns it on" not in text
    assert rows[-1][4:] == ["–"] * 4


def test_of_many_rounds_the_first_and_the_last_are_shown(three_rounds):
    text, rows = section(three_rounds)
    titles = [row[0].rpartition(" 32 ")[0] for row in rows if len(row) == 1]
    assert titles == ["Test questions, base", "Test questions, round 3",
                      "Train questions, round 1", "Train questions, round 3"]  # fmt: skip
    assert "between the first and the last are left out" in text


def test_one_task_needs_no_row_for_all(summary):
    rows = summary["adaptive_consistency"]["sets"]
    summary["adaptive_consistency"]["sets"] = [row for row in rows if row["task"] == "parity"]
    assert "All tasks" not in [row[0] for row in section(summary)[1]]


def test_a_run_without_several_samples_has_no_such_section(summary):
    summary["adaptive_consistency"]["sets"] = []
    assert vote_sections.adaptive_consistency_sentences(load(summary)) == []
    assert 'id="adaptive-consistency"' not in render(summary)
