"""`lmsi run` with rows to punish, and the vote's controls on the same samples."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from micro_run import contents, shard_rows

from lmsi_jax.cli.main import main
from lmsi_jax.records import Example, Sample, Vote
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.tasks import registry

SETTINGS = {
    "Mixing.keep": "parsed",
    "Mixing.formats": ("zero_shot_cot", "zero_shot_direct"),
    "Mixing.selection": "(@Extremes(),)",
    "Extremes.share": 0.25,
    "Extremes.penalty": 0.5,
    "Training.loss": "@Loss()",
    "Loss.negatives": "advantage",
}


def _words(gin_file, command, output, **changes):
    settings = {"Run.output_dir": str(output), **SETTINGS, **changes}
    return [
        command,
        gin_file,
        *(f"--gin.{n}={v if '@' in str(v) else repr(v)}" for n, v in settings.items()),
    ]


@pytest.fixture
def voted(copy):
    """A copy of a finished run up to its votes."""
    for stage in ("mix", "train", "eval"):
        shutil.rmtree(copy / "round_1" / stage)
    return copy


@pytest.fixture
def punished(voted, gin_file):
    """The same, which learns the most frequent answers and punishes the rarest, mixed anew."""
    assert main(_words(gin_file, "mix", voted)) == 0
    return voted


def _examples(run, form="zero_shot_cot"):
    rows = ShardStore(run / "round_1" / "mix").read("self_generated-purchases")
    return [row for row in map(Example.from_json, rows) if row.format == form]


def test_rare_answers_become_rows_with_negative_weights(punished):
    rows = _examples(punished)
    assert {np.sign(row.weight) for row in rows} == {1.0, -1.0}
    assert all(row.weight > 0 for row in _examples(punished, "zero_shot_direct"))
    votes = {vote.uid: vote for vote in shard_rows(punished / "round_1" / "vote", Vote)}
    for row in rows:
        key = row.targets.rstrip(".")[-1]
        assert (key == votes[row.uid].winner) == (row.weight > 0)


def test_the_report_tells_rows_to_punish_from_rows_to_learn(punished, gin_file):
    assert main(_words(gin_file, "report", punished)) == 0
    (row,) = json.loads((punished / "report.json").read_text())["rounds"]
    steps = [step for step in row["funnel"] if step["filter"] == "Extremes"]
    assert sum(step["punished"] for step in steps) > 0
    assert sum(step["right"] + step["wrong"] for step in steps) > 0
    for step in steps:
        assert step["right"] + step["wrong"] + step["punished"] == step["kept"]
    assert "To punish" in (punished / "report.html").read_text()
    assert row["gold"] is False


@pytest.mark.slow
def test_a_training_with_punished_rows_resumes_to_the_same_bytes(punished, gin_file, tmp_path):
    assert main(_words(gin_file, "run", punished)) == 0
    lines = (punished / "round_1/train/metrics.jsonl").read_text().splitlines()
    # The loss of a punished token is below 0; a step may have none.
    gaps = [json.loads(line)["loss"] - json.loads(line)["optimised"] for line in lines]
    assert min(gaps) > -1e-5 and max(gaps) > 0.01
    again = pathlib.Path(shutil.copytree(punished, tmp_path / "again"))
    shutil.rmtree(again / "round_1" / "eval")
    shutil.rmtree(again / "round_1" / "train")
    assert main(_words(gin_file, "train", again)) == 0
    assert main(_words(gin_file, "run", again)) == 0
    assert contents(again) == contents(punished)


def test_another_penalty_makes_the_rows_stale(punished, gin_file, capsys):
    assert main(_words(gin_file, "mix", punished, **{"Extremes.penalty": 0.25})) == 2
    assert "penalty" in capsys.readouterr().err


def test_gold_labels_choose_right_rows_and_the_report_says_so(voted, gin_file, capsys):
    changes = {"Mixing.selection": "(@GoldLabels(), @VoteSized())", "Loss.negatives": "refuse"}
    assert main(_words(gin_file, "mix", voted, **changes)) == 0
    task = registry.get("purchases")
    gold = {
        question.uid: question.gold
        for question, _ in zip(task.labelled("train", "easy", 0), range(4), strict=False)
    }
    rows_of = ShardStore(voted / "round_1" / "vote").read("purchases")
    votes = {vote.uid: vote for vote in map(Vote.from_json, rows_of)}
    right = {uid for uid, vote in votes.items() if gold[uid] in vote.keys}
    rows = [row for row in _examples(voted) if row.task == "purchases"]
    assert all(row.targets.rstrip(".").endswith(gold[row.uid]) for row in rows)
    assert {row.uid for row in rows} == right
    capsys.readouterr()
    assert main(_words(gin_file, "report", voted, **changes)) == 0
    assert "Upper bound: gold labels chose" in " ".join(capsys.readouterr().out.split())
    page = (voted / "report.html").read_text()
    assert "Upper bound" in page and "with gold labels" in page and "without labels" not in page
    record = json.loads((voted / "round_1" / "mix" / "stage.json").read_text())
    assert "GoldLabels" in json.dumps(record)


@pytest.mark.parametrize(
    ("keep", "selection"), [("all", "(@VoteSized(),)"), ("parsed", "(@RandomVote(),)")]
)
def test_controls_have_the_votes_number_of_rows(voted, gin_file, keep, selection):
    changes = {"Mixing.keep": keep, "Mixing.selection": selection, "Loss.negatives": "refuse"}
    assert main(_words(gin_file, "mix", voted, **changes)) == 0
    votes = map(Vote.from_json, ShardStore(voted / "round_1" / "vote").read("purchases"))
    (step,) = ShardStore(voted / "round_1" / "mix").read("funnel-purchases")
    assert step["kept"] == sum(len(vote.kept) for vote in votes)
    texts = {(s.uid, s.text.strip()) for s in shard_rows(voted / "round_1" / "sample", Sample)}
    assert {(row.uid, row.targets.strip()) for row in _examples(voted)} <= texts
