"""`lmsi eval`: its table and eval.json, two given checkpoints, and votes weighed as gin says."""

import json
import math
import shutil

import pytest
from micro_run import shard_rows

from lmsi_jax import voting
from lmsi_jax.config import Voting
from lmsi_jax.evaluation.statistics import mcnemar, wilson
from lmsi_jax.records import Sample, Vote


def test_two_checkpoints_are_compared_on_the_same_questions(
    lmsi, tmp_path, speaking_checkpoint, random_checkpoint
):
    output = tmp_path / "compared"
    given = (random_checkpoint, speaking_checkpoint)
    code, out, error = lmsi("eval", output, {"Evaluation.checkpoints": given})
    assert code == 0, error
    rows = {row["prompt_style"]: row for row in json.loads((output / "eval.json").read_text())}
    assert set(rows) == {"cot", "self_consistency"}
    for prompt_style, row in rows.items():
        before, after = row["accuracy"]
        assert (before["model"], after["model"]) == given
        scores = [json.loads((output / f"round_{r}/eval/scores.json").read_text()) for r in (0, 1)]
        one, two = (next(s for s in rows if s["prompt_style"] == prompt_style) for rows in scores)
        assert before["share"] == sum(one["correct"]) / 4 and before["unparsed"] == 1.0
        assert after["unparsed"] == pytest.approx(1 - two["parsed"]) and after["unparsed"] < 1
        assert (after["low"], after["high"]) == wilson(sum(two["correct"]), 4)
        assert after["tied"] == two["tied"] / 4
        voted = prompt_style == "self_consistency"
        assert all((model["calibration_error"] is not None) == voted for model in (before, after))
        assert row["change"]["p"] == mcnemar(one["correct"], two["correct"])
    assert [p["k"] for p in rows["self_consistency"]["curves"][speaking_checkpoint]] == [1, 2, 4]
    for words in ("before", "after", "unparsed", "tied", "majority@k", "pass@k", *given):
        assert words in out


def test_checkpoints_are_for_eval_alone(lmsi, tmp_path, speaking_checkpoint):
    code, _, error = lmsi(
        "run", tmp_path / "run", {"Evaluation.checkpoints": (speaking_checkpoint,)}
    )
    assert code == 2 and "Evaluation.checkpoints is for `lmsi eval` alone" in error


def test_votes_are_weighed_as_gin_says_and_recorded(copy, lmsi):
    rule = {"Voting.weights": "softmax", "Voting.temperature": 0.1}
    code, _, error = lmsi("vote", copy, rule)
    assert code == 2 and "Voting.weights was 'none', is now 'softmax'" in error.replace('"', "'")
    for stage in ("vote", "mix", "train", "eval"):
        shutil.rmtree(copy / "round_1" / stage)
    assert lmsi("vote", copy, rule)[0] == 0
    recorded = json.loads((copy / "round_1/vote/stage.json").read_text())["config"]["Voting"]
    assert (recorded["weights"], recorded["temperature"]) == ("softmax", 0.1)
    paths = shard_rows(copy / "round_1/sample", Sample)
    for vote in shard_rows(copy / "round_1/vote", Vote):
        own = sorted((p for p in paths if p.uid == vote.uid), key=lambda p: p.sample_index)
        weights = voting.weigh(own, Voting(weights="softmax", temperature=0.1))
        assert vote.weights == pytest.approx(weights)
        agreeing = [w for w, key in zip(vote.weights, vote.keys, strict=True) if key == vote.winner]
        expected = math.fsum(agreeing) if vote.winner else 0.0
        assert vote.confidence == pytest.approx(expected)


def test_a_rule_that_does_not_exist_is_the_users_to_mend(lmsi, tmp_path):
    code, _, error = lmsi("vote", tmp_path / "run", {"Voting.weights": "best"})
    assert code == 2 and "Voting.weights = 'best'; choose from none, logprob" in error
