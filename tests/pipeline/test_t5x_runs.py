"""T5X's own train, infer and eval on a finished run, through the packaged gin files."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

from lmsi_jax import answers
from lmsi_jax.cli.main import main
from lmsi_jax.evaluation.accuracy import score
from lmsi_jax.interop import t5x as lmsi_t5x
from lmsi_jax.pipeline.context import read_samples
from lmsi_jax.records import Question, Vote
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.training.checkpoints import load_params

if reason := lmsi_t5x.missing():
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parents[2]


def _t5x(command, file, **macros):
    """Runs a command of T5X's."""
    words = [f"--gin.{name}={value!r}" for name, value in macros.items()]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # T5X may be on it
    subprocess.run(
        [sys.executable, "-m", "lmsi_jax.interop.t5x", command]
        + [f"--gin_file=t5x/{file}.gin", *words],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"},
    )


@pytest.fixture
def t5x(copy, tokenizer_path):
    """Runs a command of T5X's on a copy of the finished run."""
    return functools.partial(_t5x, RUN_DIR=str(copy), TOKENIZER=tokenizer_path)


@pytest.fixture
def questions_of():
    """Returns the train questions of a run, text by uid."""

    def read(run):
        store = ShardStore(run / "questions")
        names = ("train-purchases", "train-compare")
        return {row["uid"]: row["text"] for name in names for row in store.read(name)}

    return read


def _half_right(run):
    """Rewrites the gold answers so that every other greedy sample is right; returns its score."""
    store = ShardStore(run / "questions")
    questions = [Question.from_json(row) for row in store.read("test-purchases")]
    samples = read_samples(ShardStore(run / "round_1" / "eval"), "purchases-cot")
    rows = []
    for number, question in enumerate(questions):
        said = answers.extract(samples[question.uid][0].text, question.kind)
        rows.append({**question.to_json(), "gold": said if number % 2 else "999"})
    store.write("test-purchases", rows)
    return score([Question.from_json(row) for row in rows], samples, "cot", 0.0)


def test_t5xs_eval_gives_the_metrics_of_our_own(t5x, copy, tmp_path):
    wanted = _half_right(copy)
    t5x(
        "eval",
        "eval",
        CHECKPOINT_PATH=str(copy / "round_1" / "train" / "checkpoint_4"),
        EVAL_OUTPUT_DIR=str(tmp_path / "eval"),
    )
    file = tmp_path / "eval" / "inference_eval" / "lmsi_run_purchases_cot-metrics.jsonl"
    found = json.loads(file.read_text().splitlines()[-1])
    assert wanted.parsed > 0 and sum(wanted.correct) == 2
    assert found["accuracy"] == pytest.approx(sum(wanted.correct) / len(wanted.correct))
    assert found["parsed"] == pytest.approx(wanted.parsed)


def test_t5xs_infer_draws_samples_of_the_train_questions_and_they_make_a_round(
    t5x, copy, tmp_path, words, questions_of, capsys
):
    checkpoint = copy / "round_1" / "train" / "checkpoint_4"
    t5x(
        "infer",
        "infer",
        CHECKPOINT_PATH=os.path.relpath(checkpoint, ROOT),
        INFER_OUTPUT_DIR=os.path.relpath(tmp_path / "samples", ROOT),
        NUM_DECODES=3,
    )
    (file,) = (tmp_path / "samples").glob("lmsi_run_purchases_cot-*-of-00001")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 4
    texts = {text for row in rows for text in row["prediction"]}
    assert all(len(row["prediction"]) == 3 for row in rows)
    assert len(texts) > 1 and any("The answer is" in text for text in texts)
    asked = questions_of(copy)
    for row in rows:
        inputs = row["inputs"]
        assert asked[inputs["uid"]] == inputs["question"]
        assert inputs["inputs_pretokenized"].endswith(f"{inputs['question']}\nA:")
        assert inputs["targets_pretokenized"] == ""  # training questions have no answer here
    files = sorted(map(str, (tmp_path / "samples").glob("*-of-00001")))
    command, config, *bindings = words("import-samples", tmp_path / "run")
    assert main([command, config, *files, *bindings]) == 0
    assert "24 samples of 8 of 8 questions imported" in capsys.readouterr().out
    assert main(["vote", config, *bindings]) == 0
    votes = [
        Vote.from_json(vote)
        for task in ("purchases", "compare")
        for vote in ShardStore(tmp_path / "run" / "round_1" / "vote").read(task)
    ]
    assert {vote.total for vote in votes} == {3} and any(vote.winner for vote in votes)


def test_t5xs_train_fine_tunes_on_a_round_and_we_read_what_it_saves(
    t5x, copy, tmp_path, speaking_checkpoint, speaking_params
):
    t5x(
        "train",
        "finetune",
        MODEL_DIR=str(tmp_path / "model"),
        INITIAL_CHECKPOINT_PATH=f"{speaking_checkpoint}/checkpoint_7",
        TRAIN_STEPS_RELATIVE=2,
        EVAL_PERIOD=2,
        BATCH_SIZE=2,
    )
    params = load_params(tmp_path / "model" / "checkpoint_9", speaking_params)
    assert (params["embedding"] != speaking_params["embedding"]).any()
    assert (tmp_path / "model" / "inference_eval" / "lmsi_run_purchases_cot-metrics.jsonl").exists()


@pytest.mark.parametrize("prompt_style", ["cot", "standard"])
def test_t5xs_eval_of_the_embedded_model_gives_the_accuracies_of_lmsi_eval(tmp_path, prompt_style):
    tasks = ("purchases", "choices", "compare", "claims")
    settings = {
        "Run.output_dir": str(tmp_path / "run"),
        "Questions.train": (),
        "Questions.test": tasks,
        "Questions.test_count": 8,
        "Evaluation.prompt_styles": (prompt_style,),
        "Decoding.slots": 32,
    }
    words = [f"--gin.{name}={value!r}" for name, value in settings.items()]
    assert main(["eval", "quickstart", *words]) == 0
    _t5x(
        "eval",
        "eval",
        RUN_DIR=str(tmp_path / "run"),
        CHECKPOINT_PATH="embedded",
        EVAL_OUTPUT_DIR=str(tmp_path / "eval"),
        PROMPT_STYLE=prompt_style,
    )
    wanted = json.loads((tmp_path / "run" / "round_0" / "eval" / "scores.json").read_text())
    assert len(wanted) == len(tasks) and any(sum(one["correct"]) for one in wanted)
    for one in wanted:
        name = f"lmsi_run_{one['task']}_{prompt_style}-metrics.jsonl"
        file = tmp_path / "eval" / "inference_eval" / name
        found = json.loads(file.read_text().splitlines()[-1])
        assert found["accuracy"] == pytest.approx(sum(one["correct"]) / 8)
        assert found["parsed"] == pytest.approx(one["parsed"])
