"""The numbers of a study's table, against NumPy and SciPy."""

import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest

from lmsi_jax.config import Study, Variant
from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime.files import write_record
from lmsi_jax.tools import study_results
from lmsi_jax.tools.study import head_and_rows, render

_CONFIG = {"vocab_size": 32, "num_layers": 1, "embed_dim": 8, "num_heads": 2, "num_kv_heads": 1}
TRAINED = ("legs", "choices")
_CONFIG |= {"head_dim": 4, "mlp_dim": 16, "max_length": 64}


def _write(folder, rounds):
    """A run's folder as far as a table reads it: number -> (task, prompt_style) -> outcomes."""
    (folder / "questions").mkdir(parents=True)
    stage = {"config": {"Questions": {"train": ["legs", "choices"]}}}
    write_record(folder / "questions" / "stage.json", stage)
    write_record(folder / "manifest.json", {"model": _CONFIG})
    for number, scores in rounds.items():
        place = folder / f"round_{number}" / "eval"
        place.mkdir(parents=True)
        rows = [
            {"task": task, "prompt_style": prompt_style, "correct": [int(x) for x in correct]}
            for (task, prompt_style), correct in scores.items()
        ]
        (place / "scores.json").write_text(json.dumps(rows))


@pytest.fixture
def drawn(tmp_path):
    """Two variants, three seeds, two trained tasks and another; seed 2 of "b" stopped early."""
    rng = np.random.default_rng(0)
    study = Study(
        name="s",
        question="?",
        variants=(Variant(name="a"), Variant(name="b")),
        reference="a",
        measure="rounds",
        output_dir=str(tmp_path),
    )
    scores = {}
    for name, seed in ((n, s) for n in "ab" for s in study.seeds):
        last = 1 if (name, seed) == ("b", 2) else 2
        scores[name, seed] = {
            number: {
                ("legs", "cot"): rng.random(40) < 0.3 + 0.2 * number,
                ("choices", "cot"): rng.random(60) < 0.5,
                ("travel", "cot"): rng.random(20) < 0.4,
            }
            for number in range(last + 1)
        }
        _write(tmp_path / "s" / name / f"seed{seed}", scores[name, seed])
    return study, scores


def _mean(scores):
    return np.mean([scores["legs", "cot"].mean(), scores["choices", "cot"].mean()])


def test_changes_are_means_over_tasks_then_seeds_paired_in_each(drawn):
    study, scores = drawn
    rows = study_results.accuracy_rows(study, study.seeds)
    keys = [(row["variant"], row["domain"], row["round"]) for row in rows]
    assert keys == [(v, d, n) for v in "ab" for d in ("in", "out") for n in (1, 2)]
    for row in rows:
        if row["domain"] == "out":
            continue
        name, number = row["variant"], row["round"]
        ends = [min(number, max(scores[name, seed])) for seed in study.seeds]
        after = [_mean(scores[name, s][e]) for s, e in zip(study.seeds, ends, strict=True)]
        before = [_mean(scores[name, seed][0]) for seed in study.seeds]
        assert row["after"][0] == pytest.approx(np.mean(after))
        assert row["change"]["seeds"] == pytest.approx(np.subtract(after, before))
        assert row["stopped"] == (name == "b" and number == 2)
        if name == "b":
            theirs = [_mean(scores["a", seed][number]) for seed in study.seeds]
            assert row["against"]["seeds"] == pytest.approx(np.subtract(after, theirs))


def test_an_interval_is_students_unless_the_questions_alone_give_more(drawn):
    stats = pytest.importorskip("scipy.stats")
    study, scores = drawn
    for row in study_results.accuracy_rows(study, study.seeds):
        if (row["variant"], row["domain"], row["round"]) != ("a", "in", 2):
            continue
        seeds = np.array(row["change"]["seeds"])
        within = []
        for seed in study.seeds:
            change = [
                scores["a", seed][2][task, "cot"].astype(float) - scores["a", seed][0][task, "cot"]
                for task in ("legs", "choices")
            ]
            within.append(sum(d.var(ddof=1) / len(d) for d in change) / 4)
        wide = max(seeds.var(ddof=1), np.mean(within))
        low, high = stats.t.interval(0.95, 2, seeds.mean(), np.sqrt(wide / 3))
        assert (row["change"]["low"], row["change"]["high"]) == pytest.approx((low, high))
        return
    pytest.fail("no such row")


def test_by_task_adds_the_single_tasks_to_their_means(drawn):
    study, scores = drawn
    study = dataclasses.replace(study, by_task=True, measure="accuracy")
    rows = {(r["variant"], r["domain"]): r for r in study_results.accuracy_rows(study, study.seeds)}
    assert [domain for name, domain in rows if name == "a"] == [
        *("in", "out"),
        *("legs", "choices", "travel"),
    ]
    expected = np.mean([scores["a", seed][2]["legs", "cot"].mean() for seed in study.seeds])
    assert rows["a", "legs"]["after"][0] == pytest.approx(expected)
    assert rows["a", "travel"]["change"] == rows["a", "out"]["change"]  # the only other task


def test_other_questions_are_not_compared():
    assert study_results.change([{"legs": [1, 0]}], [{"legs": [1, 0, 1]}]) is None
    assert study_results.change([{"legs": [1, 0]}], [{"choices": [1, 0]}]) is None


def test_runs_are_ordered_by_seed_and_share_with_those_of_their_seed(tmp_path):
    study = Study(
        name="s",
        question="?",
        variants=(Variant(name="base", each_seed=False, shown=False), Variant(name="a")),
        seeds=(0, 1),
        output_dir=str(tmp_path),
    )
    folders = [unit.folder.removeprefix(f"{tmp_path}/") for unit in study_results.units(study)]
    assert folders == ["s/base/once", "s/a/seed0", "s/a/seed1"]
    for folder in ("t/b/seed1", "t/b/seed0", "t/c/once", "s/a/seed1"):
        (tmp_path / folder).mkdir(parents=True)
    shared = [study_results.reusable_runs(study, unit) for unit in study_results.units(study)]
    assert shared == [(f"{tmp_path}/t/{x}",) for x in ("c/once", "b/seed0", "b/seed1")]


def test_curves_are_averaged_over_tasks_and_seeds(monkeypatch):
    def point(k, share):
        return {
            "k": k,
            "majority": share,
            "majority_low": share - 0.1,
            "majority_high": share + 0.1,
        }

    def run(*shares):
        row = {"prompt_style": "self_consistency"}
        scores = [
            {**row, "task": task, "curve": [point(1, share), point(4, share + 0.1)]}
            for task, share in zip(("legs", "choices", "travel"), shares, strict=True)
        ]
        return study_results.Evaluated(
            trained=("legs", "choices"), parameters=1, scores={0: scores, 1: scores}
        )

    runs = {0: run(0.2, 0.4, 0.9), 1: run(0.4, 0.6, 0.9)}
    monkeypatch.setattr(study_results, "read", lambda folder: runs[int(folder[-1])])
    study = Study(
        name="s", question="?", variants=(Variant(name="t"),), measure="samples", seeds=(0, 1)
    )
    rows = study_results.sample_rows(study, (0, 1))
    assert [(row["round"], row["samples"]) for row in rows] == [(0, 1), (0, 4), (1, 1), (1, 4)]
    assert [row["accuracy"][0] for row in rows] == pytest.approx([0.4, 0.5] * 2)
    stats = pytest.importorskip("scipy.stats")
    low, high = stats.t.interval(0.95, 1, 0.4, np.std([0.3, 0.5], ddof=1) / np.sqrt(2))
    assert rows[0]["accuracy"][1:] == pytest.approx([max(0, low), min(1, high)])


def test_questions_are_the_clusters_of_their_rows():
    """One row of each question: the binomial variance; copies of all rows add nothing."""
    once = [study_results.WeightedRow(f"q{i}", 1.0, i % 3 == 0) for i in range(30)]
    share = 1 / 3
    assert study_results.clustered_variance(once) == pytest.approx(share * (1 - share) / 29)
    assert study_results.clustered_variance(once * 5) == pytest.approx(
        study_results.clustered_variance(once)
    )


def test_every_row_falls_into_exactly_one_of_the_papers_bins():
    names = [
        study_results.bin_name(low, high) for low, high in itertools.pairwise(study_results.EDGES)
    ]
    assert names == ["[1, 1.1)", "[1.1, 1.3)", "[1.3, 1.5)", "[1.5, 2)", "[2, ∞)"]
    rows = [
        study_results.WeightedRow(f"q{w}", w, w < 1.4)
        for w in (1.0, 1.1, 1.2, 1.3, 1.5, 2.0, np.inf)
    ]
    counts = [
        study_results.right_share([rows], *edge)["rows"]
        for edge in itertools.pairwise(study_results.EDGES)
    ]
    assert counts == [1, 2, 1, 1, 2]
    assert study_results.right_share([rows], 1.0, 1.1)["right"][0] == 1.0
    assert study_results.right_share([rows[:1]], 1.5, 2.0)["right"] is None


def test_the_table_marks_the_upper_bound_and_says_what_share_of_its_gain_others_reach(drawn):
    study, scores = drawn
    study = dataclasses.replace(study, measure="accuracy", upper_bound="b", reference="")
    for seed in study.seeds:
        place = pathlib.Path(study.folder) / "b" / f"seed{seed}" / "round_1" / "mix"
        place.mkdir()
        chosen = {"selection": [{"GoldLabels": {}}, {"VoteSized": {"seed": 0}}]}
        write_record(place / "stage.json", {"config": {"Mixing": chosen}})
    rows = study_results.accuracy_rows(study, study.seeds)
    result = {"measure": "accuracy", "rows": rows, "against": "after", "reference": ""}
    result |= {"name": "s", "question": "?", "source": "", "upper_bound": "b", "minutes": 1.0}
    result |= {"seeds": list(study.seeds), "planned": list(study.seeds)}
    head, cells = head_and_rows(result)
    at = head.index("share of b’s gain")
    names = [row[0] for row in cells]
    assert names == ["a", "a", "b (upper bound)", "b (upper bound)"]

    def mean(name, last):
        """Mean accuracy on the trained tasks; run "b" of seed 2 ended after round 1."""
        runs = [scores[name, seed] for seed in study.seeds]
        rounds = [max(run) if last else 0 for run in runs]
        found = [run[n][t, "cot"] for run, n in zip(runs, rounds, strict=True) for t in TRAINED]
        return np.mean([np.mean(outcomes) for outcomes in found])

    reached = (mean("a", True) - mean("a", False)) / (mean("b", True) - mean("a", False))
    assert cells[0][at].startswith(f"{100 * reached:.0f} % (")
    assert cells[2][at].startswith("100 % (") or cells[2][at] == "–"
    page = render(result)
    assert "Question by question" in page and "wrong to right" in page
    assert "An upper bound has seen the labels" in page and "paired bootstrap" in page
    with pytest.raises(LmsiError, match="Study.upper_bound = 'c' is none of its variants: a, b"):
        dataclasses.replace(study, upper_bound="c")


@pytest.mark.parametrize("measure", ["accuracy", "rounds", "sizes", "samples", "shift"])
def test_every_measure_has_a_table_and_a_plot(measure, drawn):
    study, _ = drawn
    rows = study_results.accuracy_rows(study, study.seeds)
    share = [0.4, 0.3, 0.5]
    if measure == "samples":
        rows = [
            {"label": "T", "round": number, "samples": k, "accuracy": share}
            for number in (0, 1)
            for k in (1, 4)
        ]
    if measure == "shift":
        rows = [
            {"task": "legs", "bin": name, "rows": count, "right": share if count else None}
            for name, count in (("[1, 2)", 5), ("[2, 3)", 0))
        ]
    names = ("name", "question", "source", "reference", "against", "seeds")
    result = {name: getattr(study, name) for name in names}
    result |= {"planned": [0, 1, 2, 3], "measure": measure, "minutes": 3.5, "rows": rows}
    head, cells = head_and_rows(result)
    assert cells and {len(row) for row in cells} == {len(head)}
    page = render(result)
    assert "<svg" in page and "Seeds 0, 1, 2 of 0, 1, 2, 3, the others are not finished" in page
