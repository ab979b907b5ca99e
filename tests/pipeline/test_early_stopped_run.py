"""Adaptive consistency through the stages: votes, mixtures and the report of unequal samples."""

import json
import shutil
import types

import pytest
from micro_run import shard_rows

from lmsi_jax.answers import path_key
from lmsi_jax.config import Evaluation, Sampling
from lmsi_jax.pipeline import evaluate
from lmsi_jax.records import Example, Question, Sample, Vote
from lmsi_jax.runtime.store import ShardStore, Stage
from lmsi_jax.voting import samples_needed

ON = {"Sampling.adaptive_consistency": 0.8, "Sampling.adaptive_consistency_every": 2}


def _kept(paths, kind):
    """Two votes of two are 7/8 sure, one of one 3/4: at 0.8 the rule stops on two equal answers."""
    first = [path_key(path.text, kind) for path in paths[:2]]
    return paths[:2] if first[0] is not None and first[0] == first[1] else paths


@pytest.fixture
def stopped(copy):
    """The finished run as if sampled with adaptive consistency: fewer samples, no votes yet."""
    folder = copy / "round_1" / "sample"
    record = json.loads((folder / "stage.json").read_text())
    record["config"]["Sampling"] |= {"adaptive_consistency": 0.8, "adaptive_consistency_every": 2}
    record["config"]["Voting"] = {"conclusions": True}
    stage = Stage(folder, "sample", record["config"], record["inputs"])
    stage.finish()
    (folder / "config.json").unlink()  # the record repeats it
    assert stage.begin() == "done"
    kinds = {q.uid: q.kind for q in shard_rows(copy / "questions", Question)}
    store = ShardStore(folder)
    for shard in store.names():
        by_uid = {}
        for sample in map(Sample.from_json, store.read(shard)):
            by_uid.setdefault(sample.uid, []).append(sample)
        kept = [p for uid, paths in by_uid.items() for p in _kept(paths, kinds[uid])]
        store.write(shard, [path.to_json() for path in kept])
    stage.finish()
    _unvote(copy)
    return copy


def _unvote(output):
    for name in ("vote", "mix", "train", "eval"):
        shutil.rmtree(output / "round_1" / name)


def test_where_votes_stop_sampling_the_samples_depend_on_what_votes(stopped, lmsi):
    code, _, error = lmsi("sample", stopped, {**ON, "Voting.conclusions": False})
    assert code == 2 and "Voting.conclusions was True, is now False" in error


def test_without_early_stop_the_samples_do_not_depend_on_what_votes(copy, lmsi):
    _unvote(copy)
    code, _, error = lmsi("sample", copy, {"Voting.conclusions": False})
    assert (code, error) == (0, "")


def test_a_question_s_total_is_the_number_of_its_samples(stopped, lmsi):
    for command in ("vote", "mix", "report"):
        code, _, error = lmsi(command, stopped, ON)
        assert (code, error) == (0, "")
    paths = shard_rows(stopped / "round_1" / "sample", Sample)
    votes = shard_rows(stopped / "round_1" / "vote", Vote)
    totals = {vote.uid: [path.uid for path in paths].count(vote.uid) for vote in votes}
    assert set(totals.values()) == {2, 4}
    for vote in votes:
        assert vote.total == len(vote.keys) == totals[vote.uid]
        assert vote.confidence == len(vote.kept) / totals[vote.uid]
    assert any(vote.total == 2 and vote.confidence == 1 for vote in votes)
    examples = shard_rows(stopped / "round_1" / "mix", Example)
    assert {e.uid for e in examples} == {vote.uid for vote in votes if vote.kept}
    report = json.loads((stopped / "report.json").read_text())
    (row,) = report["rounds"]
    assert row["samples"] == len(paths) < 32
    assert row["mean_confidence"] == pytest.approx(sum(v.confidence for v in votes) / len(votes))
    _check_report(report["adaptive_consistency"], totals, {q.uid: q.task for q in votes})
    assert "Train questions were sampled with it." in (stopped / "report.html").read_text()


def _check_report(stop, totals, tasks):
    assert (stop["threshold"], stop["every"], stop["on"]) == (0.8, 2, True)
    trains = [row for row in stop["sets"] if row["source"] == "train"]
    assert {row["task"] for row in trains} == {"purchases", "compare"}
    for row in trains:
        assert row["samples"] == 4 and row["same"] == row["correct"] == []
        assert row["taken"] == [n for uid, n in totals.items() if tasks[uid] == row["task"]]


def test_test_questions_keep_all_samples_and_the_rule_is_replayed_on_them(stopped, lmsi):
    assert lmsi("vote", stopped, ON)[0] == lmsi("report", stopped, ON)[0] == 0
    report = json.loads((stopped / "report.json").read_text())
    (row,) = [r for r in report["adaptive_consistency"]["sets"] if r["source"] == "test"]
    (scores,) = [e for e in report["evals"] if e["prompt_style"] == "self_consistency"]
    questions = shard_rows(stopped / "questions", Question)
    paths = shard_rows(stopped / "round_0" / "eval", Sample)
    several = {q.uid: [] for q in questions if q.gold is not None}
    for path in paths[-16:]:  # the shards of self-consistency come after those of CoT
        several[path.uid].append(path)
    kinds = {q.uid: q.kind for q in questions}
    assert row["samples"] == scores["samples"] == 4
    assert row["taken"] == [len(_kept(rows, kinds[uid])) for uid, rows in several.items()]
    assert row["correct"] == scores["correct"]


def test_without_it_the_usual_rule_is_replayed_on_every_set(finished):
    report = json.loads((finished / "report.json").read_text())
    stop = report["adaptive_consistency"]
    assert (stop["threshold"], stop["every"], stop["on"]) == (0.95, 4, False)
    found = [(row["source"], row["round"], row["task"]) for row in stop["sets"]]
    assert found == [("test", 0, "purchases"), ("test", 1, "purchases"),
                     ("train", 1, "purchases"), ("train", 1, "compare")]  # fmt: skip
    for row in stop["sets"]:  # of 4 samples, a look after 4 can save none
        assert row["taken"] == [4] * 4 and row["same"] == [1] * 4
        assert row["correct"] == row["correct_stopped"]
        assert len(row["correct"]) == (4 if row["source"] == "test" else 0)


@pytest.mark.parametrize("prompt_style", ["self_consistency", "cot", "standard"])
def test_evaluation_draws_all_samples_whatever_sampling_does(prompt_style):
    settings = types.SimpleNamespace(
        evaluation=Evaluation(), sampling=Sampling(adaptive_consistency=0.95)
    )
    used = evaluate._sampling(types.SimpleNamespace(settings=settings, index=1), prompt_style)
    assert used.adaptive_consistency is None


@pytest.mark.slow
def test_sampling_stops_where_a_replay_of_all_samples_says(finished, lmsi, tmp_path):
    """The engine draws the first samples of the run without adaptive consistency."""
    code, _, error = lmsi("sample", tmp_path / "run", ON)
    assert code == 0, error
    kinds = {q.uid: q.kind for q in shard_rows(finished / "questions", Question)}
    everything, drawn = {}, {}
    for folder, found in ((finished, everything), (tmp_path / "run", drawn)):
        for path in shard_rows(folder / "round_1" / "sample", Sample):
            found.setdefault(path.uid, []).append((path.sample_index, path.text))
    assert set(drawn) == set(everything)
    for uid, paths in everything.items():
        keys = [path_key(text, kinds[uid]) for _, text in paths]
        assert drawn[uid] == paths[: samples_needed(keys, 0.8, 2)]
    assert {len(paths) for paths in drawn.values()} == {2, 4}
