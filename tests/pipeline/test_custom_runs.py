"""Runs on a user's tasks: without labels, beside packaged ones, with code of their own."""

import json
import shutil

import pytest
from micro_run import shard_rows
from own_run import TRIGGER

from lmsi_jax import prompts
from lmsi_jax.cli.main import main
from lmsi_jax.records import Example, Question, Sample, Vote

_FILES = {
    "FileTask.name": "ours",
    "FileTask.kind": "number",
    "FileTask.train": "rows.jsonl",
    "Questions.train": ("ours", "purchases"),
    "Sampling.max_new_tokens": 12,
    "Training.steps": 2,
}
_READER = """
def read(text, question):
    if "2" in text:
        raise ValueError("two")
    return text.split("answer is ")[1].split(".")[0]

def equal(a, b):
    return {a, b} == {"4", "7"}
"""
_PROMPT = """
def prompt(question, exemplars, style):
    return "Now: ", f"{question.text}\\nA:"
"""


@pytest.fixture(autouse=True)
def _trigger(monkeypatch):
    monkeypatch.setattr(prompts, "STEP_BY_STEP", TRIGGER)


@pytest.fixture
def folder(tmp_path):
    """A folder with rows of a task, and a place for its gin file."""
    place = tmp_path / "mine"
    place.mkdir()
    rows = [{"question": f"What is {n} and {n}?", "answer": str(n % 5)} for n in range(9)]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bare = [{"question": row["question"]} for row in rows[:4]]
    (place / "bare.jsonl").write_text("\n".join(map(json.dumps, bare)))
    return place


@pytest.fixture
def run(folder, gin_text, capsys):
    """Runs the gin file of that folder; returns (exit code, stdout, the error)."""

    def start(output, *lines, command="run", **changes):
        settings = {**_FILES, "Questions.test": (), **changes}
        written = [f"{name} = {value!r}" for name, value in settings.items()]
        written += ["Questions.tasks = (@FileTask(),)", *lines]
        (folder / "own.gin").write_text(gin_text + "\n".join(written) + "\n")
        capsys.readouterr()
        code = main([command, str(folder / "own.gin"), f"--gin.Run.output_dir={str(output)!r}"])
        captured = capsys.readouterr()
        out, error = (" ".join(text.split()) for text in (captured.out, captured.err))
        return code, out, error.partition("lmsi: error: ")[2]

    return start


def test_a_run_without_any_label_trains_and_says_that_nothing_was_measured(run, tmp_path):
    output = tmp_path / "run"
    code, out, error = run(output, **{"FileTask.train": "bare.jsonl"})
    assert (code, error) == (0, "")
    assert "accuracy is not measured" in out
    assert "Trained without labels; accuracy was not measured" in out
    assert "no labelled test questions" in (output / "report.html").read_text()
    assert not (output / "round_0").exists() and not (output / "round_1" / "eval").exists()
    assert json.loads((output / "eval.json").read_text()) == []
    questions = shard_rows(output / "questions", Question)
    assert {row.gold for row in questions} == {None} and len(questions) == 8
    rows = [row for row in shard_rows(output / "round_1" / "mix", Example) if row.task == "ours"]
    assert {row.format for row in rows} == {"zero_shot_cot", "zero_shot_direct"}
    assert {row.prefix for row in rows} == {""}
    report = json.loads((output / "report.json").read_text())
    assert [task["test_questions"] for task in report["tasks"]] == [0, 0]
    before = (output / "report.json").read_text()
    code, _, _ = run(output, **{"FileTask.train": "bare.jsonl"})
    assert (
        code == 0
        and json.loads(before)["rounds"]
        == json.loads((output / "report.json").read_text())["rounds"]
    )


def test_rows_of_a_share_are_evaluated_zero_shot_beside_a_packaged_task(run, tmp_path):
    output = tmp_path / "run"
    styles = ("standard", "cot", "zero_shot_cot", "self_consistency")
    changes = {
        "FileTask.test_share": 0.5,
        "Questions.test": ("ours", "purchases"),
        "Evaluation.prompt_styles": styles,
    }
    assert run(output, **changes)[0] == 0
    scores = json.loads((output / "round_1" / "eval" / "scores.json").read_text())
    asked = {task: [s["prompt_style"] for s in scores if s["task"] == task] for task in ("ours",)}
    assert asked["ours"] == ["standard", "zero_shot_cot", "self_consistency"]  # "cot" is the same
    assert len([s for s in scores if s["task"] == "purchases"]) == 4
    # The same rows in another folder are the same questions; other rows are not.
    (tmp_path / "mine" / "more.jsonl").write_text((tmp_path / "mine" / "rows.jsonl").read_text())
    assert run(output, command="vote", **changes, **{"FileTask.train": "more.jsonl"})[0] == 0
    code, _, error = run(output, **changes, **{"FileTask.train": "bare.jsonl"})
    assert code == 2 and "Tasks.ours" in error, error


def test_test_questions_without_answers_end_the_run_before_it_begins(run, tmp_path):
    changes = {"FileTask.test": "bare.jsonl", "Questions.test": ("ours",)}
    for command in ("run", "eval"):
        code, _, error = run(tmp_path / "run", command=command, **changes)
        assert code == 2 and "bare.jsonl, line 1 has no answer in the column 'answer'" in error
    code, _, error = run(tmp_path / "run", command="eval")
    assert code == 2 and "set Questions.train and Questions.test" in error


def test_exemplars_of_given_solutions_make_the_task_few_shot(run, folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows[:3]:
        row["solution"] = "We look it up."
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "run"
    code, _, error = run(output, **{"FileTask.solution": "solution", "Questions.train": ("ours",)})
    assert (code, error) == (0, "")
    rows = shard_rows(output / "round_1" / "mix", Example)
    few_shot = [row for row in rows if row.format == "few_shot_cot"]
    assert few_shot and few_shot[0].prefix.count("We look it up. The answer is") == 3
    asked = {row.text for row in shard_rows(output / "questions", Question)}
    assert not any(text in few_shot[0].prefix for text in asked)


def test_a_reader_and_an_equality_vote_and_changed_code_makes_the_vote_stale(run, folder, tmp_path):
    (folder / "my_rules.py").write_text(_READER)
    output = tmp_path / "run"
    changes = {
        "FileTask.reader": "my_rules:read",
        "FileTask.equality": "my_rules:equal",
        "Sampling.num_samples": 8,
    }
    code, _, error = run(output, **changes)
    assert (code, error) == (0, "")
    votes = {v.uid: v for v in shard_rows(output / "round_1" / "vote", Vote) if v.task == "ours"}
    samples = [s for s in shard_rows(output / "round_1" / "sample", Sample) if s.uid in votes]
    twos = {(s.uid, s.sample_index) for s in samples if "2" in s.text}
    unread = {(u, i) for u, v in votes.items() for i, key in enumerate(v.keys) if key is None}
    assert unread == twos
    both = [
        v for u, v in votes.items() if {"4", "7"} <= {s.text[-2] for s in samples if s.uid == u}
    ]
    assert all(not {"4", "7"} <= {*vote.keys} for vote in votes.values())
    assert both, "no question has both answers: draw more samples"
    sampled = (output / "round_1" / "sample" / "stage.json").read_text()
    assert run(output, **changes)[0] == 0  # nothing is stale
    (folder / "my_rules.py").write_text(_READER + "\n# Another reading.\n")
    code, _, error = run(output, command="vote", **changes)
    assert code == 2 and "ours.read" in error
    assert (output / "round_1" / "sample" / "stage.json").read_text() == sampled
    # Sampling does not read answers: it stays, and the vote is cast anew.
    for stage in ("vote", "mix", "train"):
        shutil.rmtree(output / "round_1" / stage)
    code, _, error = run(output, command="vote", **changes)
    assert (code, error) == (0, "")


def test_a_prompt_of_one_s_own_is_sampled_and_learnt(run, folder, tmp_path):
    (folder / "my_prompt.py").write_text(_PROMPT)
    output, changes = tmp_path / "run", {"FileTask.prompt": "my_prompt:prompt"}
    code, _, error = run(output, **changes)
    assert (code, error) == (0, "")
    rows = [row for row in shard_rows(output / "round_1" / "mix", Example) if row.task == "ours"]
    assert rows and {row.prefix for row in rows} == {"Now: "}
    (folder / "my_prompt.py").write_text(_PROMPT.replace('"Now: "', "question.uid"))
    code, _, error = run(output, command="sample", **changes)
    assert code == 2 and "ours.prompt" in error
    code, _, error = run(tmp_path / "other", **changes)
    assert code == 2 and "the prompt of ours has another first part for question" in error


def test_a_task_in_python_runs_and_its_changed_code_is_noticed(run, folder, tmp_path):
    text = (
        "class Ours:\n    name, kind = 'coded', 'number'\n    def rows(self, split):\n"
        "        for n in range(4):\n            yield {'question': f'{split} {n}?', 'answer': n}\n"
        "TASK = Ours()\n"
    )
    (folder / "my_task.py").write_text(text)
    lines = ["Questions.tasks = ('my_task:TASK',)"]
    changes = {"Questions.train": ("coded",), "Questions.test": ("coded",)}
    code, _, error = run(tmp_path / "run", *lines, **changes)
    assert (code, error) == (0, "")
    assert "coded" in (tmp_path / "run" / "report.html").read_text()
    (folder / "my_task.py").write_text(text.replace("range(4)", "range(5)"))
    code, _, error = run(tmp_path / "run", *lines, **changes)
    assert code == 2 and "Tasks.coded.code" in error
    (folder / "my_task.py").write_text(text.replace("'number'", "'numbers'"))
    code, _, error = run(tmp_path / "run", *lines, **changes)
    assert code == 2 and "kind = 'numbers'; choose from number" in error
