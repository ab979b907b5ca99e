"""A student learns a finished run's samples; what is missing is named; it resumes."""

import dataclasses
import json

import numpy as np
import pytest
from micro_run import contents, other_tokenizer, shard_rows, snapshot

from lmsi_jax.cli.main import main
from lmsi_jax.config import Distillation
from lmsi_jax.pipeline import train
from lmsi_jax.pipeline.distill import TeacherRun
from lmsi_jax.records import Example
from lmsi_jax.runtime import files
from lmsi_jax.runtime.store import ShardStore

STUDENT = {
    "Run.distillation": "@Distillation()",
    "Training.loss": "@Loss()",
    "Run.init_checkpoint": "fresh",
    "ModelConfig.embed_dim": 12,
    "ModelConfig.num_layers": 1,
}


@pytest.fixture
def distill(gin_file, finished, capsys):
    """Runs `lmsi distill` here and returns (exit code, stdout, the error), both on one line."""

    def run(output, changes=()):
        settings = {
            "Run.output_dir": str(output),
            "Distillation.teacher_dir": str(finished),
            **STUDENT,
            **dict(changes),
        }
        words = [
            f"--gin.{name}={value if str(value).startswith('@') else repr(value)}"
            for name, value in settings.items()
        ]
        capsys.readouterr()
        code = main(["distill", gin_file, *words])
        captured = capsys.readouterr()
        out, error = (" ".join(text.split()) for text in (captured.out, captured.err))
        return code, out, error.partition("lmsi: error: ")[2]

    return run


def _percent(scores, prompt_style):
    (row,) = [row for row in scores if row["prompt_style"] == prompt_style]
    return 100 * float(np.mean(row["correct"]))


def test_the_student_learns_the_teachers_examples_and_the_table_has_all_three(
    distill, finished, tmp_path
):
    before = snapshot(finished)
    changes = {"Training.steps": 60, "Training.save_every": 60, "Optimizer.learning_rate": 1e-2}
    code, out, error = distill(tmp_path / "run", changes)
    assert code == 0, error
    assert snapshot(finished) == before
    run = tmp_path / "run"
    mixes = [shard_rows(folder / "round_1" / "mix", Example) for folder in (run, finished)]
    assert mixes[0] == mixes[1] != []
    lines = [json.loads(x) for x in (run / "round_1/train/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    result = json.loads((run / "distillation.json").read_text())
    assert [(row["task"], row["prompt_style"]) for row in result["rows"]] == [
        ("purchases", "cot"),
        ("purchases", "self_consistency"),
    ]
    for row in result["rows"]:
        for side, folder in [
            ("teacher_before", finished / "round_0"),
            ("student_before", run / "round_0"),
            ("student_after", run / "round_1"),
        ]:
            scores = json.loads((folder / "eval" / "scores.json").read_text())
            assert row[side] == _percent(scores, row["prompt_style"])
    assert result["student"]["parameters"] < result["teacher"]["parameters"]
    assert "distilled" in out


def test_a_student_with_another_tokenizer_reads_the_same_text(distill, tmp_path):
    (tmp_path / "other.model").write_bytes(other_tokenizer(275))
    other = {"Run.tokenizer": str(tmp_path / "other.model"), "ModelConfig.vocab_size": 275}
    sizes = {
        "Training.sequence_length": 512,
        "Training.max_prefix_length": 1600,
        "ModelConfig.max_length": 2400,
    }
    code, _, error = distill(tmp_path / "run", other | sizes)
    assert code == 0, error
    code, _, error = distill(tmp_path / "soft", other | sizes | {"Loss.distillation": "model"})
    assert code == 2 and "another tokenizer than the teacher" in error


def test_intervals_and_p_values_are_scipys(distill, tmp_path):
    stats = pytest.importorskip("scipy.stats")
    changes = {"Training.steps": 60, "Training.save_every": 60, "Optimizer.learning_rate": 1e-2}
    code, out, error = distill(tmp_path / "run", changes)
    assert code == 0, error
    result = json.loads((tmp_path / "run" / "distillation.json").read_text())
    scores = {
        number: json.loads((tmp_path / f"run/round_{number}/eval/scores.json").read_text())
        for number in (0, 1)
    }
    for row, mean in zip(result["rows"], result["means"], strict=True):  # one task alone
        assert {k: mean[k] for k in ("gain", "intervals", "n")} == {
            k: row[k] for k in ("gain", "intervals", "n")
        }
        before, after = (
            next(s["correct"] for s in scores[n] if s["prompt_style"] == row["prompt_style"])
            for n in (0, 1)
        )
        gained, lost = (
            sum(a and not b for a, b in zip(*sides, strict=True))
            for sides in ((after, before), (before, after))
        )
        p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert row["gain"]["p"] == pytest.approx(p)
        assert row["gain"]["difference"] == pytest.approx(100 * (gained - lost) / row["n"])
        assert row["gain"]["low"] <= row["gain"]["difference"] <= row["gain"]["high"]
        own = stats.binomtest(sum(after), len(after)).proportion_ci(method="wilson")
        expected = [100 * own.low, 100 * own.high]
        assert row["intervals"]["student_after"] == pytest.approx(expected, abs=0.02)
        assert f"{row['gain']['difference']:+.1f} [{row['gain']['low']:+.1f}" in out


def test_the_report_of_a_distilled_run_has_the_table_in_words_and_json(
    distill, gin_file, tmp_path, capsys
):
    assert distill(tmp_path / "run")[0] == 0
    assert main(["report", gin_file, f"--gin.Run.output_dir={str(tmp_path / 'run')!r}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    means = json.loads((tmp_path / "run" / "distillation.json").read_text())["means"]
    assert len(report["notes"]) == 1 + len(means)
    page = (tmp_path / "run" / "report.html").read_text()
    for note, row in zip(report["notes"][1:], means, strict=True):
        assert f"teacher {row['teacher_before']:.1f}" in note
        assert note.split(":")[0] in page
    assert {row["round"] for row in report["evals"]} == {0, 1}
    assert "report: " in printed and "another run" in page


@pytest.mark.parametrize("form", ["model", "top_k"])
def test_the_teachers_probabilities_can_be_learnt_too(distill, tmp_path, form):
    code, _, error = distill(tmp_path / "run", {"Loss.distillation": form})
    assert code == 0, error
    lines = (tmp_path / "run" / "round_1" / "train" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(x)["optimised"] != json.loads(x)["loss"] for x in lines)
    assert (tmp_path / "run" / "round_1" / "teacher_scores" / "stage.json").exists() == (
        form == "top_k"
    )


def test_the_teachers_tokens_are_stored_once_and_scoring_goes_on_where_it_was(
    distill, tmp_path, monkeypatch
):
    """Killed after its second shard; a whole run scores to the same bytes."""
    monkeypatch.setattr(train, "ROWS", 4)
    changes = {"Loss.distillation": "top_k", "Loss.top_k": 3}
    assert distill(tmp_path / "whole", changes)[0] == 0
    whole = ShardStore(tmp_path / "whole" / "round_1" / "teacher_scores")
    assert len(whole.names()) >= 3
    known = [row for name in whole.names() for row in whole.read(name) if row]
    assert known and all(len(ids) == 3 for row in known for ids in row["ids"])
    assert all(p[0] >= p[1] >= p[2] for row in known for p in row["logprobs"])
    write, made = ShardStore.write, []

    def interrupted(self, name, rows):
        if self.directory.name == "teacher_scores":
            if len(made) == 2:
                made.append("cut")
                raise KeyboardInterrupt
            made.append(name)
        write(self, name, rows)

    monkeypatch.setattr(ShardStore, "write", interrupted)
    assert distill(tmp_path / "run", changes)[0] == 130
    assert distill(tmp_path / "run", changes)[0] == 0
    assert made == [*whole.names()[:2], "cut", *whole.names()[2:]]
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_interrupted_it_goes_on_to_the_same_bytes(distill, tmp_path, monkeypatch):
    assert distill(tmp_path / "whole")[0] == 0
    replace = files._replace

    def interrupted(path, data):
        if path.name in ("digest.json", "compare.jsonl.gz", "scores.json"):
            hits = tmp_path / f"hit-{path.parent.name}"
            if not hits.exists():
                hits.touch()
                raise KeyboardInterrupt
        replace(path, data)

    monkeypatch.setattr(files, "_replace", interrupted)
    codes = [distill(tmp_path / "run")[0]]
    while codes[-1] == 130:
        codes.append(distill(tmp_path / "run")[0])
    assert codes == [130] * (len(codes) - 1) + [0] and len(codes) >= 3
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    stand = snapshot(tmp_path / "run" / "round_1" / "train")
    assert distill(tmp_path / "run")[0] == 0
    assert snapshot(tmp_path / "run" / "round_1" / "train") == stand


def test_a_missing_or_unfinished_teacher_is_named_and_nothing_is_done(distill, copy, tmp_path):
    def error_with(**changes):
        settings = {f"Distillation.{name}": value for name, value in changes.items()}
        code, _, error = distill(tmp_path / "run", settings)
        assert code == 2 and len(error) < 400 and not (tmp_path / "run").exists()
        return error

    assert "/nowhere holds no run; set Distillation.teacher_dir" in error_with(
        teacher_dir="/nowhere"
    )
    assert "round_2/mix is not finished" in error_with(round=2).replace(" ", "").replace(
        "isnotfinished", " is not finished"
    )
    assert "Distillation.round = -1; use 0 (the last round" in error_with(round=-1)
    (copy / "round_1" / "mix" / "stage.json").unlink()
    assert "finish it with `lmsi mix`" in error_with(teacher_dir=str(copy))


def test_other_questions_than_the_teachers_are_refused(distill, tmp_path):
    code, _, error = distill(tmp_path / "run", {"Questions.test_count": 3})
    assert code == 2 and "Questions.test_count is 3, the teacher's run has 4" in error


def test_without_a_distillation_it_says_what_to_bind(lmsi, tmp_path):
    code, _, error = lmsi("distill", tmp_path / "run")
    assert code == 2 and "bind it to @Distillation()" in error


def test_the_teachers_shape_and_last_round_come_from_its_run(finished, micro_config):
    teacher = TeacherRun(Distillation(teacher_dir=str(finished)))
    assert teacher.round == 1
    assert teacher.config == dataclasses.replace(micro_config, max_length=1024)


@pytest.mark.parametrize(("size", "billions"), [("8b", 8.63), ("62b", 62.5)])
def test_the_large_recipes_are_of_palms_shape_and_want_a_teacher(size, billions, tmp_path, capsys):
    """Parameter counts of Chowdhery et al. 2022, table 1."""
    from lmsi_jax.config import gin_loader
    from lmsi_jax.config.configurables import load_run

    wanted = ["Run.output_dir", "Run.init_checkpoint", "Run.tokenizer", "Distillation.teacher_dir"]
    words = [f"--gin.{name}={str(tmp_path / 'none')!r}" for name in wanted]
    words += ["--gin.Questions.train=('legs',)", "--gin.Questions.test=('legs',)"]
    arguments, _ = gin_loader.parse(words)
    gin_loader.load(f"distill_{size}", arguments)
    run = load_run()
    assert run.model.parameter_count / 1e9 == pytest.approx(billions, rel=2e-3)
    training = run.training
    assert (training.steps, training.optimizer.learning_rate) == (10_000, 5e-5)
    assert training.microbatches * training.sequences_per_prefix == 32
    assert main(["distill", f"distill_{size}", *words]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "holds no run; set Distillation.teacher_dir" in error
