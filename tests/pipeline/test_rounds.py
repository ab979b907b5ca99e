"""The whole loop on a micro model: what it leaves behind, in one go, stage by stage, twice."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest
from micro_run import ROOT, contents, shard_rows, snapshot

from lmsi_jax.pipeline import train
from lmsi_jax.records import Example, Question, Sample, Vote
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.runtime.files import read_record
from lmsi_jax.training import checkpoints

STAGES = ("sample", "vote", "mix", "train", "eval", "report")


def _digest(folder, micro_params):
    return checkpoints.digest(checkpoints.load_params(folder, micro_params))


def test_a_run_leaves_every_stage_finished_and_described(finished):
    for stage in ("sample", "vote", "mix", "train", "eval"):
        assert (finished / "round_1" / stage / "stage.json").exists()
    assert (finished / "round_0" / "eval" / "scores.json").exists()
    assert (finished / "questions" / "stage.json").exists()
    assert "Sampling.temperature = 0.7" in (finished / "config.gin").read_text()
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["seeds"] == {"Run.seed": 5, "Questions.seed": 0}
    assert set(manifest["hashes"]) == {"base", "questions"}
    assert "<html" in (finished / "report.html").read_text()
    assert not list(finished.rglob("*.tmp"))


def test_only_parsed_answers_are_kept_and_empty_votes_are_empty(finished):
    votes = shard_rows(finished / "round_1" / "vote", Vote)
    by_task = {task: [v for v in votes if v.task == task] for task in ("purchases", "compare")}
    assert all(v.winner in tuple("12347") and v.kept for v in by_task["purchases"])
    assert all((v.winner, v.kept, v.confidence) == (None, (), 0.0) for v in by_task["compare"])
    paths = shard_rows(finished / "round_1" / "sample", Sample)
    assert len(paths) == 2 * 4 * 4
    assert len({path.text for path in paths if path.uid.startswith("purchases")}) > 1
    examples = shard_rows(finished / "round_1" / "mix", Example)
    assert {e.task for e in examples} == {"purchases"}
    assert {e.source for e in examples} == {"self_generated"}
    kept = sum(len(v.kept) for v in votes)
    for name in {e.format for e in examples}:
        assert sum(e.weight for e in examples if e.format == name) == kept


def test_the_loop_never_sees_a_label(finished):
    questions = shard_rows(finished / "questions", Question)
    tests = {q.uid for q in questions if q.gold is not None}
    assert len(tests) == 4 and len(questions) == 12
    trained = {e.uid for e in shard_rows(finished / "round_1" / "mix", Example)}
    assert trained and not trained & tests


def test_training_moves_the_model(finished, micro_params, speaking_params):
    after = _digest(finished / "round_1" / "train", micro_params)
    assert after != checkpoints.digest(speaking_params)
    written = read_record(finished / "round_1" / "train" / "digest.json")
    assert written == {"params_sha256": after}


def test_each_command_alone_and_in_order_equals_run(finished, lmsi, tmp_path, micro_params):
    for stage in STAGES:
        code, _, error = lmsi(stage, tmp_path / "run")
        assert (code, error) == (0, "")
    assert contents(tmp_path / "run") == contents(finished)
    folders = [root / "round_1" / "train" for root in (tmp_path / "run", finished)]
    assert len({_digest(folder, micro_params) for folder in folders}) == 1
    assert (tmp_path / "run" / "config.gin").exists()


@pytest.mark.parametrize(
    ("command", "first"), [("vote", "sample"), ("mix", "sample"), ("train", "sample")]
)
def test_a_command_before_its_inputs_names_the_command_to_run(lmsi, tmp_path, command, first):
    code, _, error = lmsi(command, tmp_path / "run")
    assert code == 2
    assert f"run `lmsi {first}` with the same configuration first" in error


def test_sampling_voting_and_evaluating_load_no_tensorflow(words, tmp_path):
    commands = [words(command, tmp_path / "run") for command in ("sample", "vote", "eval")]
    code = (
        "import sys; from lmsi_jax.cli.main import main;"
        f"print([main(command) for command in {commands!r}]);"
        "print(sorted({'seqio', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-2:] == ["[0, 0, 0]", "[]"], done.stderr[-2000:]


def test_a_report_of_nothing_says_what_to_run(lmsi, tmp_path):
    code, _, error = lmsi("report", tmp_path / "run")
    assert code == 2 and "run `lmsi run` first" in error


def test_a_stage_ends_by_naming_the_next_one(lmsi, tmp_path):
    code, out, _ = lmsi("sample", tmp_path / "run")
    assert code == 0
    assert "the stage 'vote'" in out and "run `lmsi vote`" in out


def test_finished_stages_are_not_redone(copy, lmsi, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("nothing should be decoded or trained")

    monkeypatch.setattr(Engine, "generate", never)
    monkeypatch.setattr(train, "train", never)
    before = snapshot(copy)
    for command in ("run", *STAGES):
        assert lmsi(command, copy)[0] == 0
    for path, what in snapshot(copy).items():
        if path.parent != copy:  # config, manifest and report describe the latest command
            assert before[path] == what
    assert set(snapshot(copy)) == set(before)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"Sampling.temperature": 0.9}, "Sampling.temperature was 0.7, is now 0.9"),
        ({"Run.seed": 6}, "Run.seed was 5, is now 6"),
        ({"Questions.train_count": 5}, "Questions.train_count was 4, is now 5"),
        ({"Training.steps": 5}, "Training.steps was 4, is now 5"),
        ({"Optimizer.learning_rate": 0.5}, "optimizer.learning_rate was 0.001, is now 0.5"),
        ({"Mixing.cap": 1}, "Mixing.cap was None, is now 1"),
        ({"Evaluation.num_samples": 2}, "Evaluation.num_samples was 4, is now 2"),
        ({"Decoding.slots": 4}, "Decoding.slots was 8, is now 4"),
        ({"Run.questions_per_shard": 3}, "Run.questions_per_shard was 2, is now 3"),
    ],
)
def test_a_changed_parameter_is_named_and_nothing_is_overwritten(copy, lmsi, changes, named):
    before = snapshot(copy)
    code, _, error = lmsi("run", copy, changes)
    assert code == 2 and named in error and "Choose another output_dir" in error
    assert snapshot(copy) == before


def test_a_temperature_belongs_to_the_evaluations_that_use_it(copy, lmsi):
    _, _, error = lmsi("run", copy, {"Evaluation.temperature_after": 1.1})
    assert "temperature_after was 0.7, is now 1.1" in error and "round_1/eval" in error
    _, _, error = lmsi("run", copy, {"Evaluation.temperature": 1.1})
    assert "temperature was 0.7, is now 1.1" in error and "round_0/eval" in error


def test_another_base_model_is_noticed(copy, lmsi, random_checkpoint):
    before = snapshot(copy)
    code, _, error = lmsi("run", copy, {"Run.init_checkpoint": random_checkpoint})
    assert code == 2 and "input model was" in error
    assert snapshot(copy) == before


def test_a_lost_checkpoint_is_trained_again_to_the_same_bytes(copy, lmsi, finished, micro_params):
    import shutil

    shutil.rmtree(copy / "round_1" / "train" / "checkpoint_4")
    code, out, _ = lmsi("eval", copy)
    assert code == 0 and "run `lmsi train`" in out
    shutil.rmtree(copy / "round_1" / "eval")
    assert lmsi("run", copy)[0] == 0
    assert contents(copy) == contents(finished)
    folders = [root / "round_1" / "train" for root in (copy, finished)]
    assert len({_digest(folder, micro_params) for folder in folders}) == 1


ROUNDS = {
    "Run.rounds": 2,
    "Mixing.human_examples": 3,
    "Training.human_rate": 0.5,
    "CollapseMonitor.empty": 0.0,
}


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory, gin_file):
    """Runs of two rounds with human examples, from the base and from the last model."""
    from lmsi_jax.cli.main import main

    outputs: dict[str, pathlib.Path] = {}
    for start in ("base", "last"):
        outputs[start] = tmp_path_factory.mktemp("rounds") / start
        changes = {**ROUNDS, "Run.start_from": start, "Run.output_dir": str(outputs[start])}
        flags = [f"--gin.{name}={value!r}" for name, value in changes.items()]
        assert main(["run", gin_file, *flags]) == 0
    return outputs


def test_a_second_round_samples_from_the_first_ones_model(two_rounds):
    output = two_rounds["base"]
    first, second = (shard_rows(output / f"round_{r}" / "sample", Sample) for r in (1, 2))
    assert [p.uid for p in first] == [p.uid for p in second]
    assert [p.logprob for p in first] != [p.logprob for p in second]
    report = json.loads((output / "report.json").read_text())
    assert [row["round"] for row in report["rounds"]] == [1, 2]
    assert {row["round"] for row in report["evals"]} == {0, 1, 2}


def test_a_round_starts_from_the_base_or_from_the_last_model(two_rounds):
    def digest(start, number):
        return (two_rounds[start] / f"round_{number}" / "train" / "digest.json").read_text()

    assert digest("base", 1) == digest("last", 1)  # the first round's last model is the base
    assert digest("base", 2) != digest("last", 2)


def test_strong_examples_are_mixed_in(two_rounds):
    examples = shard_rows(two_rounds["base"] / "round_1" / "mix", Example)
    human = [e for e in examples if e.source == "human"]
    assert len(human) == 2 * 3 * 4  # tasks, questions, formats
    assert {e.task for e in human} == {"purchases", "compare"}
    report = json.loads((two_rounds["base"] / "report.json").read_text())
    assert report["rounds"][0]["sources"]["human"] == len(human)


def test_a_stop_rule_ends_the_rounds_and_says_why(copy, lmsi):
    changes = {"Run.rounds": 2, "CollapseMonitor.least_questions": 1, "CollapseMonitor.empty": 0.4}
    code, out, _ = lmsi("run", copy, changes)
    assert code == 0
    assert "stopping after round 1: 50 % of the questions have no parsed answer" in out
    assert not (copy / "round_2").exists()
    report = json.loads((copy / "report.json").read_text())
    assert report["rounds"][0]["alarms"][0] == "50 % of the questions have no parsed answer"


def test_rates_without_strong_examples_name_the_parameter(copy, lmsi):
    import shutil

    for stage in ("train", "eval"):
        shutil.rmtree(copy / "round_1" / stage)
    code, _, error = lmsi("train", copy, {"Training.human_rate": 0.5})
    assert code == 2 and "set Mixing.human_examples above 0, or Training.human_rate to 0" in error


@pytest.mark.parametrize(
    ("command", "knob"), [("train", "Training.sequences_per_prefix"), ("sample", "Decoding.slots")]
)
@pytest.mark.parametrize(
    "error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: allocating 9 bytes")]
)
def test_memory_that_does_not_suffice_names_the_setting(
    copy, lmsi, monkeypatch, command, knob, error
):
    shutil.rmtree(copy / "round_1" / command)

    def fail(*_args, **_named):
        raise error

    work = {"train": "train.train", "sample": "sample.draw_samples"}[command]
    monkeypatch.setattr(f"lmsi_jax.pipeline.{work}", fail)
    code, _, text = lmsi(command, copy)
    assert code == 2 and f"round_1/{command}: the memory does not suffice" in text and knob in text
