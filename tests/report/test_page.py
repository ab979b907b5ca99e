"""The page: well formed, self-contained, escaped, true to the outcomes, whole for odd runs."""

import copy
import html.parser
import json
import math
import re
import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.errors import LmsiError
from lmsi_jax.report import comparison, page, training_sections, vote_sections
from lmsi_jax.report import html as html_module
from lmsi_jax.report.summary import ShownQuestion, Summary

VOID = {"meta", "br"}
load = Summary.from_json


def render(summary):
    """The page of a summary's JSON."""
    return page.render(load(summary))


class Reader(html.parser.HTMLParser):
    """Checks that tags are balanced and collects text, attributes and table rows."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.attributes, self.rows = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)
        if "td" in self.open or ("th" in self.open and "tr" in self.open):
            self.rows[-1][-1] += data


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def text_of(page):
    return " ".join(" ".join(read(page).text).replace("\N{NO-BREAK SPACE}", " ").split())


def row_of(page, *starts):
    rows = read(page).rows
    return next(row for row in rows if row and row[0] == starts[0] and len(row) > 2)


def only(summary, **kept):
    """Keeps the evaluations with these values."""
    rows = summary["evals"]
    for field, values in kept.items():
        rows = [row for row in rows if row[field] in values]
    return {**summary, "evals": rows}


def test_the_page_is_well_formed(summary, three_rounds):
    for each in (summary, three_rounds):
        page = render(each)
        assert page.startswith("<!doctype html>")
        assert read(page).attributes


def test_the_page_loads_nothing_and_runs_nothing(three_rounds):
    page = render(three_rounds)
    reader = read(page)
    assert not re.search(r"https?://|url\(|@import|<script|<link|<img|<iframe", page)
    assert {name for _, name, _ in reader.attributes}.isdisjoint({"src", "srcset", "data"})
    assert all(v.startswith("#") for _, name, v in reader.attributes if name == "href")
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    policies = [v for tag, name, v in reader.attributes if tag == "meta" and name == "content"]
    assert policies[0].startswith("default-src 'none'")


def test_links_of_the_contents_lead_to_sections(three_rounds):
    attributes = read(render(three_rounds)).attributes
    ids = [v for _, name, v in attributes if name == "id"]
    assert [v[1:] for _, name, v in attributes if name == "href"] == ids
    assert len(set(ids)) == len(ids)


def test_the_headline_is_that_of_independent_sums(summary):
    tasks = [t["name"] for t in summary["tasks"] if t["domain"] == "in"]
    found = {
        (e["round"], e["task"]): e["correct"] for e in only(summary, prompt_style=["cot"])["evals"]
    }
    before, after = (
        100 * statistics.mean(statistics.mean(found[r, t]) for t in tasks) for r in (0, 1)
    )
    pairs = [pair for t in tasks for pair in zip(found[0, t], found[1, t], strict=True)]
    gained, lost = pairs.count((0, 1)), pairs.count((1, 0))
    p = scipy.stats.binomtest(gained, gained + lost).pvalue
    words, basis = comparison.headline_words(load(summary))
    words = words.replace("\N{NO-BREAK SPACE}", " ")
    assert words == (
        f"Chain-of-thought accuracy on in-domain tasks rose from {before:.1f} % to {after:.1f} %"
    )
    assert basis.startswith(f"+{after - before:.1f} points [95\N{NO-BREAK SPACE}%: ")
    assert f"p {'= ' if p >= 1e-4 else ''}{comparison.p_value(p)}." in basis
    assert f"Mean over {len(tasks)} tasks, {len(pairs):,} test questions" in basis
    assert basis.replace("\N{NO-BREAK SPACE}", " ") in text_of(render(summary))


def test_a_task_row_holds_its_accuracies_and_its_p_value(summary):
    row = only(summary, task=["parity"], prompt_style=["cot"])
    tasks = [t for t in summary["tasks"] if t["name"] == "parity"]
    page = render(no_sets({**row, "tasks": tasks}))
    before, after = (e["correct"] for e in row["evals"])
    cells = row_of(page, "Chain of thought")
    shares = [100 * sum(c) / len(c) for c in (before, after)]
    for cell, share, correct in zip(cells[2:4], shares, (before, after), strict=True):
        interval = scipy.stats.binomtest(sum(correct), len(correct)).proportion_ci(method="wilson")
        assert cell == f"{share:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    assert cells[4].startswith(comparison.points((shares[1] - shares[0]) / 100))
    pairs = list(zip(before, after, strict=True))
    changed = pairs.count((0, 1)), pairs.count((1, 0))
    p = scipy.stats.binomtest(changed[0], sum(changed)).pvalue
    assert cells[6] == comparison.p_value(p)


def test_all_rounds_have_their_column(three_rounds):
    heads = [row for row in read(render(three_rounds)).rows if row and row[0] == "Prompt style"]
    assert heads[0][:6] == ["Prompt style", "n", "Base", "Round 1", "Round 2", "Round 3"]


def test_alarms_are_on_the_page(three_rounds):
    assert "confidence rose to 0.73 while diversity fell by 21 %" in text_of(render(three_rounds))


def test_the_funnel_shows_counts_and_shares(summary):
    cells = {row[0]: row[1] for row in read(render(summary)).rows if len(row) == 2}
    shown = {name: cell.replace("\N{NO-BREAK SPACE}", " ") for name, cell in cells.items()}
    assert shown["Samples"] == "64,000 100.0 %"
    assert shown["Kept: agree with the vote"] == f"32,700 {32700 / 640:.1f} %"
    assert shown["Training rows"] == f"39,786 {39786 / 640:.1f} %"
    assert shown["Questions without a vote"] == f"7 {100 * (7 / 2000):.1f} %"


HOSTILE = '</script><script>alert("x")</script><img src=http://e.org onerror=a>&amp;\x00\x1b'


def test_every_text_is_escaped(summary):
    def spoil(value):
        if isinstance(value, dict):
            return {k: spoil(v) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v) for v in value]
        return value + HOSTILE if isinstance(value, str) else value

    kept = {"domain": "", "prompt_style": "", "start_from": "", "source": ""}
    spoilt = spoil(summary)
    listed = [(spoilt[name], summary[name]) for name in ("tasks", "evals", "rounds")]
    listed.append((spoilt["adaptive_consistency"]["sets"], summary["adaptive_consistency"]["sets"]))
    for spoilt_rows, rows in listed:
        for row, plain in zip(spoilt_rows, rows, strict=True):
            row.update({field: plain[field] for field in kept if field in plain})
    spoilt["rounds"][0]["seconds"] = {HOSTILE: 1.0}
    spoilt["rounds"][0]["examples"] = {HOSTILE: {"rows": 1, "weight": 1.0}}
    spoilt["rounds"][0]["votes_by_task"] = {
        HOSTILE: summary["rounds"][0]["votes_by_task"]["parity"]
    }
    spoilt["versions"] = {HOSTILE: HOSTILE}
    page = render(spoilt)
    tags = {tag for tag, _, _ in read(page).attributes}
    assert tags.isdisjoint({"script", "img"}) and "<script" not in page and "<img" not in page
    assert "\x00" not in page and "\x1b" not in page
    assert '</script><script>alert("x")</script>' in "".join(read(page).text)


@given(st.text())
def test_text_comes_back_from_the_page_as_it_was(content):
    shown = "".join(read(str(html_module.element("pre", "." + content))).text)[1:]
    readable = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", content)
    assert shown.replace("\r\n", "\n") == readable.replace("\r\n", "\n")


def no_rounds(summary):
    return {**only(summary, round=[0]), "rounds": []}


def nothing(summary):
    stop = {**summary["adaptive_consistency"], "sets": []}
    empty = {name: [] for name in ("tasks", "evals", "rounds", "examples", "notes")}
    return {**summary, **empty, "adaptive_consistency": stop}


def nothing_kept(summary):
    row = summary["rounds"][0]
    for field in ("parsed", "kept", "distinct_kept", "mean_confidence", "mean_entropy"):
        row[field] = 0
    row.update(
        empty_votes=row["questions"],
        examples={},
        train=[],
        sources={"self_generated": 0, "human": 0},
    )
    return summary


def no_questions(summary):
    row = summary["rounds"][0]
    for field in ("questions", "samples", "parsed", "unfinished", "kept", "distinct_kept"):
        row[field] = 0
    row["votes_by_task"] = {
        "parity": {
            "questions": 0,
            "mean_confidence": math.nan,
            "distinct_kept_per_question": math.nan,
            "empty": 0,
            "tied": 0,
        }
    }
    row.update(mean_confidence=math.nan, mean_entropy=math.nan, seconds={}, tokens_per_second={})
    return summary


def all_unparsed(summary):
    for row in summary["evals"]:
        row.update(correct=[0] * 200, parsed=0.0, confidence=[0.0] * len(row["confidence"]))
    for shown in summary["examples"]:
        shown.update(winner=None, confidence=0.0)
        for path in shown["samples"]:
            path.update(key=None, kept=False)
    return nothing_kept(summary)


def no_gold(summary):
    for shown in summary["examples"]:
        shown["gold"] = None
    return summary


def empty_task(summary):
    for row in summary["evals"]:
        if row["task"] == "parity":
            row.update(correct=[], confidence=[], parsed=math.nan, mean_tokens=math.nan)
    return summary


def all_tasks_empty(summary):
    for row in summary["evals"]:
        row.update(correct=[], confidence=[])
    return summary


def prompt_styles_missing(summary):
    return only(summary, prompt_style=["standard", "self_consistency"])


def last_round_lacks_a_task(summary):
    rows = summary["evals"]
    return {**summary, "evals": [e for e in rows if (e["round"], e["task"]) != (1, "parity")]}


def other_questions(summary):
    for row in summary["evals"]:
        if row["round"] == 1:
            row.update(correct=row["correct"][:50], confidence=row["confidence"][:50])
    return summary


def base_not_evaluated(summary):
    return only(summary, round=[1])


def trained_but_not_evaluated(summary):
    return only(summary, round=[0])


def diverged(summary):
    for i, step in enumerate(summary["rounds"][0]["train"]):
        step["loss"] = math.nan if i > 3 else math.inf
        step["grad_norm"] = math.inf
    return summary


def no_sets(summary):
    summary["adaptive_consistency"]["sets"] = []
    return summary


def sets_without_questions(summary):
    for row in summary["adaptive_consistency"]["sets"]:
        row.update(taken=[], same=[], correct=[], correct_stopped=[])
    return summary


def no_paths_shown(summary):
    for shown in summary["examples"]:
        shown["samples"] = []
    return summary


ODD = [
    no_rounds,
    nothing,
    nothing_kept,
    no_questions,
    all_unparsed,
    no_gold,
    empty_task,
    all_tasks_empty,
    prompt_styles_missing,
    last_round_lacks_a_task,
    other_questions,
    base_not_evaluated,
    trained_but_not_evaluated,
    diverged,
    no_paths_shown,
    no_sets,
    sets_without_questions,
]


@pytest.mark.parametrize("odd", ODD, ids=lambda f: f.__name__)
def test_an_odd_run_is_shown_as_what_it_is(summary, odd):
    text = text_of(render(odd(copy.deepcopy(summary))))
    assert not re.search(r"\b(nan|NaN|inf|None|Infinity)\b", text)


@pytest.mark.parametrize("odd", [no_questions, nothing_kept, diverged, all_tasks_empty])
def test_odd_later_rounds_are_shown_too(three_rounds, odd):
    assert not re.search(r"\b(nan|inf)\b", text_of(render(odd(three_rounds))))


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (no_rounds, "The base model, before any round"),
        (nothing, "Nothing has been evaluated yet"),
        (trained_but_not_evaluated, "Fine-tuned, but not evaluated"),
        (other_questions, "Base and last model cannot be compared"),
        (base_not_evaluated, "Base and last model cannot be compared"),
        (prompt_styles_missing, "Direct-answer accuracy on in-domain tasks rose from"),
    ],
)
def test_the_headline_claims_no_more_than_was_measured(summary, odd, words):
    assert comparison.headline_words(load(odd(summary)))[0].startswith(words)


@pytest.mark.parametrize(
    ("gained", "lost", "verdict"), [(30, 5, "rose"), (5, 30, "fell"), (12, 10, "no clear change")]
)
def test_a_verdict_needs_a_clear_test(summary, gained, lost, verdict):
    before = [0] * gained + [1] * lost + [1] * 30
    after = [1] * gained + [0] * lost + [1] * 30
    rows = only(summary, task=["parity"], prompt_style=["cot"])
    rows["evals"][0]["correct"], rows["evals"][1]["correct"] = before, after
    assert comparison.compare_task(load(rows), "parity")[0].change.verdict == verdict


def test_a_round_that_lacks_a_task_does_not_bend_the_mean(summary):
    odd = last_round_lacks_a_task(summary)
    found = next(c for c in comparison.compare_domain(load(odd), "in") if c.prompt_style == "cot")
    assert found.by_round[0].n == found.by_round[1].n == 800 and found.change.tasks == 4
    assert "800 (4 of 5 tasks)" in text_of(render(odd))


def test_before_and_after_are_of_the_questions_that_were_compared(summary):
    for row in summary["evals"]:
        if row["round"] == 1 and row["task"] == "parity":
            row.update(correct=row["correct"][:50], confidence=row["confidence"][:50])
    _, opening = comparison.headline(load(summary))
    change = opening.change
    assert change.tasks == 4
    assert change.after - change.before == pytest.approx(change.difference)


@pytest.mark.parametrize(
    ("winner", "gold", "kind", "result"),
    [
        ("18", "$18.00", "number", "right"),
        ("unknown", "it is not possible to tell", "nli", "right"),
        ("18", "19", "number", "wrong"),
        (None, "19", "number", "no vote"),
        ("18", None, "number", "no label"),
        ("x", "x", "a kind of later", "right"),
    ],
)
def test_a_vote_is_judged_by_keys(winner, gold, kind, result):
    shown = ShownQuestion(
        task="t",
        question="Q: ?",
        gold=gold,
        winner=winner,
        confidence=1.0,
        tied=False,
        total=1,
        samples=(),
    )
    assert vote_sections.outcome(shown, kind) == result


def test_human_rows_are_not_called_free_of_labels(summary):
    assert "without labels" in text_of(render(summary))
    summary["rounds"][0]["sources"] = {"self_generated": 100, "human": 25}
    text = text_of(render(summary))
    assert "without labels" not in text and "25 are human (20.0 %)" in text


def test_a_long_curve_is_averaged_without_moving_its_mean():
    steps = [{"step": i, "loss": float(i % 7)} for i in range(1200)]
    curve = training_sections.thin_steps(steps, "loss")
    assert len(curve) <= training_sections.MOST_POINTS
    assert statistics.mean(v for _, v in curve) == pytest.approx(
        statistics.mean(s["loss"] for s in steps)
    )


def test_a_summary_comes_back_from_json_equal(three_rounds):
    summary = load(three_rounds)
    assert load(json.loads(json.dumps(summary.to_json()))) == summary


def stop(summary):
    """The first set of adaptive consistency."""
    return summary["adaptive_consistency"]["sets"][0]


@pytest.mark.parametrize(
    ("mistake", "place"),
    [
        (lambda s: s.pop("seed"), "summary: expected a field 'seed'"),
        (lambda s: s.update(extra=1), "summary: expected only the fields name, seed"),
        (lambda s: s.update(seed="0"), "summary.seed: expected a whole number, found '0'"),
        (lambda s: s.update(seed=True), "summary.seed: expected a whole number, found True"),
        (lambda s: s.update(tasks={}), "summary.tasks: expected a list, found {}"),
        (lambda s: s["evals"][3].update(task="sums"), "summary: 'sums' is none of tasks (addition"),
        (lambda s: s["evals"][0].update(correct=[2]), "summary.evals[0]: correct holds 2"),
        (lambda s: s["evals"][0].update(prompt_style="few"), "summary.evals[0].prompt_style: exp"),
        (lambda s: s["evals"][3].update(confidence=[0.5]), "summary.evals[3]: 1 confidences for"),
        (lambda s: s["evals"].append(s["evals"][0]), "summary: evals has two entries for (0, 'ad"),
        (lambda s: s["tasks"].append(s["tasks"][0]), "summary: tasks has two entries for addition"),
        (lambda s: s["rounds"].append(s["rounds"][0]), "summary: rounds has two entries for 1"),
        (lambda s: s["rounds"][0].update(round=0), "summary.rounds[0]: round 0, expected 1 or mo"),
        (lambda s: s["evals"][0].update(round=-1), "summary.evals[0]: round -1, expected 0 or mo"),
        (lambda s: s["evals"][3]["confidence"].append(1.5), "summary.evals[3]: 201 confidences"),
        (lambda s: s["rounds"][0]["train"][0].pop("step"), "summary.rounds[0]: train[0] has no st"),
        (lambda s: stop(s).update(task="sums"), "summary: 'sums' is none of tasks (addition_words"),
        (
            lambda s: stop(s)["taken"].append(33),
            "summary.adaptive_consistency.sets[0]: taken 33 of",
        ),
        (lambda s: stop(s)["same"].pop(), "summary.adaptive_consistency.sets[0]: same has 199 en"),
        (lambda s: stop(s).update(correct=[]), "summary.adaptive_consistency.sets[0]: correct and"),
        (
            lambda s: s["adaptive_consistency"]["sets"].append(stop(s)),
            "summary: adaptive_consistency.sets has two entries for ('test', 0, 'addition_words')",
        ),
        (lambda s: s["examples"][0].update(gold=3), "summary.examples[0].gold: expected text"),
        (lambda s: s["versions"].update(jax=1), "summary.versions['jax']: expected text, found 1"),
    ],
)
def test_a_wrong_summary_is_named_with_its_remedy(summary, mistake, place):
    mistake(summary)
    with pytest.raises(LmsiError) as error:
        load(summary)
    assert str(error.value).startswith(place) and "lmsi report" in str(error.value)


def test_a_summary_that_is_no_dictionary_is_refused():
    with pytest.raises(LmsiError, match="summary: expected a dictionary, found 3"):
        render(3)


def test_the_calibration_error_is_below_each_chart_and_in_the_rows(summary):
    text = text_of(render(summary))
    for number in (0, 1):
        rows = [
            row
            for row in summary["evals"]
            if row["round"] == number and row["prompt_style"] == "self_consistency"
        ]
        inside = {task["name"] for task in summary["tasks"] if task["domain"] == "in"}
        error = _calibration_error([row for row in rows if row["task"] in inside])
        assert f"1,000 votes of 32 samples, error {100 * error:.1f} %" in text
        for row in rows:
            (found,) = [
                each["accuracy"][number]["calibration_error"]
                for each in comparison.accuracy_rows(load(summary))
                if (each["task"], each["prompt_style"]) == (row["task"], "self_consistency")
            ]
            assert found == pytest.approx(_calibration_error([row]))


def _with_details(summary):
    """Evaluations with what is known of each question, and options that were named."""
    for row in summary["evals"]:
        later, vote = row["round"] > 0, row["prompt_style"] == "self_consistency"
        n = len(row["correct"])
        row["right_share"] = [0.0 if not c else 0.5 + s / 2 for c, s in _sure(row)] if vote else []
        row["tokens"] = [40.0 + i % 3 + 5 * later for i in range(n)]
        row["parsed_share"] = [float(i % 10 > 0 or later) for i in range(n)]
        row["marked_share"] = row["finished_share"] = row["parsed_share"]
    summary["positions"] = [
        {"source": "test", "round": r, "task": "leg_counting", "shown": [30, 10], "own": [20, 20]}
        | {"right": [7, 13]}
        for r in (0, 1)
    ]
    return summary


def _sure(row):
    return zip(row["correct"], row["confidence"], strict=True)


def test_what_changed_question_by_question_is_counted_from_the_outcomes(summary):
    parsed = read(render(_with_details(summary)))
    inside = {task["name"] for task in summary["tasks"] if task["domain"] == "in"}
    pairs = [
        (old, new)
        for task in inside
        for old, new in zip(
            *(
                row["correct"]
                for number in (0, 1)
                for row in summary["evals"]
                if (row["round"], row["task"], row["prompt_style"]) == (number, task, "cot")
            ),
            strict=True,
        )
    ]
    wrong = [new for old, new in pairs if not old]
    lost = sum(not new for old, new in pairs if old)
    head = "In-domain: Chain of thought"
    row = next(row for row in parsed.rows if row[0] == head and len(row) == 4)
    assert row[1] == f"{len(pairs):,}"
    assert row[2].startswith(f"{sum(wrong):,} of {len(wrong):,}, ")
    assert row[3].startswith(f"{lost:,} of {len(pairs) - len(wrong):,}, ")
    by_difficulty = [row for row in parsed.rows if row[0] == head and len(row) == 6]
    names = [row[1] for row in by_difficulty]
    assert names[0] == "never right" and "80 % and more" in names
    assert sum(int(row[2].replace(",", "")) for row in by_difficulty) == 2 * len(pairs)
    (form,) = [row for row in parsed.rows if row[0] == head and len(row) == 5]
    assert "→" in form[1] and "+5.0" in form[1] and "90.0 → 100.0, +10.0" in form[2]


def test_places_of_options_are_shown_as_asked_and_mapped_back(summary):
    rows = read(render(_with_details(summary))).rows
    shown = [row for row in rows if row[0] == "leg_counting, test questions"]
    assert [row[1:4] for row in shown[:3]] == [
        ["Base", "as shown", "40"],
        ["Base", "mapped back", "40"],
        ["Base", "right options", "20"],
    ]
    percents = [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in shown[0][4:]]
    assert percents == ["75.0 %", "25.0 %"]


def test_an_upper_bound_is_not_called_self_improvement(summary):
    assert "Upper bound" not in text_of(render(summary))
    summary["rounds"][0]["gold"] = True
    text = text_of(render(summary))
    assert "Upper bound: gold labels chose the training rows of round 1" in text
    assert "with gold labels" in text and "without labels" not in text


def test_the_f1_of_drop_is_in_the_table_of_samples_and_in_the_rows(summary):
    assert "F1" not in text_of(render(summary))
    row = summary["evals"][0]
    row["f1"] = [0.25, 0.75] * (len(row["correct"]) // 2)
    text = text_of(render(summary))
    assert "Tokens a sample F1" in text and "50.0 %" in text
    (found,) = [
        each["accuracy"][row["round"]]["f1"]
        for each in comparison.accuracy_rows(load(summary))
        if (each["task"], each["prompt_style"]) == (row["task"], row["prompt_style"])
    ]
    assert found == 0.5


def _calibration_error(rows):
    """By NumPy: five bins of confidence, |right - sure| summed in each, over all votes."""
    sure = np.concatenate([row["confidence"] for row in rows])
    right = np.concatenate([row["correct"] for row in rows])
    bins = np.minimum((5 * sure).astype(int), 4)
    apart = np.bincount(bins, weights=right - sure, minlength=5)
    return np.abs(apart).sum() / len(sure)


def test_a_task_with_several_levels_names_its_level(summary):
    summary["tasks"][0]["level"] = ""
    told = " ".join("".join(read(render(summary)).text).split())
    first, second = (f"{t['name']} in-domain, {t['kind']}" for t in summary["tasks"][:2])
    assert first in told and f"{first}, level" not in told
    assert f"{second}, level easy" in told


def test_a_confidence_counts_the_samples_that_are_not_shown(summary):
    shown = summary["examples"][0]
    shown["samples"] = shown["samples"][:1]
    assert shown["total"] == 32
    assert f"{100 * shown['confidence']:.1f} % of 32 samples" in text_of(render(summary))


def test_losses_by_source_are_shown_if_there_are_several(summary):
    name = "Loss by source"
    assert name not in render(summary)
    for row in summary["rounds"]:
        for step in row["train"]:
            step.update({"loss/self_generated": 1.0, "loss/human": 2.0})
    page = render(summary)
    assert page.count(f"<h3>{name}") == len(summary["rounds"])
    assert ">human</text>" in page and ">self-generated</text>" in page


def test_the_filters_of_a_round_are_shown_and_escaped(summary):
    step = {
        "task": "shopping",
        "filter": "Distribution<Shift>",
        "rows": 200,
        "kept": 160,
        "questions": 44,
        "weight": 160.0,
        "dropped": {"the shift is large": 40},
        "right": 0,
        "wrong": 0,
    }
    summary["rounds"][0]["funnel"] = [step]
    (row,) = [r for r in read(render(summary)).rows if "Distribution<Shift>" in r[0]]
    assert (
        row[0] == "Distribution<Shift>, shopping" and row[1] == "200" and row[2] == "160 80.0\xa0%"
    )
    assert row[-1] == "the shift is large: 40"
    summary["rounds"][0]["funnel"] = [{**step, "right": 120, "wrong": 40}]
    (row,) = [r for r in read(render(summary)).rows if "Distribution<Shift>" in r[0]]
    assert row[3] == "120 75.0\xa0%"
