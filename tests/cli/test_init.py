"""`lmsi init`: a folder with a run on questions of one's own; and what `--dry_run` says of it."""

import json

import pytest

from lmsi_jax.cli.main import main


@pytest.fixture(autouse=True)
def _empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lmsi(capsys):
    """Runs the command; returns (exit code, stdout, the error)."""

    def run(*words):
        capsys.readouterr()
        code = main(words)
        captured = capsys.readouterr()
        error = " ".join(captured.err.split()).partition("lmsi: error: ")[2]
        return code, captured.out, error

    return run


def test_the_folder_has_a_run_questions_tests_and_exemplars(lmsi, tmp_path):
    code, out, error = lmsi("init", "work/sums")
    assert (code, error) == (0, "") and "next: lmsi run work/sums/sums.gin" in out
    folder = tmp_path / "work" / "sums"
    files = {path.name for path in folder.iterdir()}
    assert files == {"sums.gin", "questions.jsonl", "test.jsonl", "exemplars.txt"}
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == 10 and {*map(tuple, rows)} == {("question",)}
    text = (folder / "sums.gin").read_text()
    assert "NAME" not in text and "PATH" not in text and "lmsi run work/sums/sums.gin" in text
    assert max(map(len, text.splitlines())) <= 100


def test_nothing_is_overwritten(lmsi, tmp_path):
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "mine.txt").write_text("mine")
    code, _, error = lmsi("init", "sums")
    assert code == 2 and "sums is there already; remove it, or name another folder" in error
    assert [path.name for path in (tmp_path / "sums").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["gsm8k", "my-data", ".."])
def test_a_name_that_is_no_task_s_is_refused(lmsi, tmp_path, name):
    code, _, error = lmsi("init", name)
    assert code == 2 and "use other letters, digits and _, as in 'riddles'" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "text", "wrong"),
    [
        ("questions.jsonl", '{"question": "x"}\n{"text": "y"}\n', "line 2, column 'question' is"),
        ("test.jsonl", '{"question": "x"}\n', "test.jsonl, line 1 has no answer"),
        ("test.jsonl", '{"question": "x", "answer": "?"}\n', "line 1, column 'answer' has '?'"),
        ("exemplars.txt", "Q: x\nA: y\n", "exemplars.txt, item 1 is not a question"),
    ],
)
def test_a_dry_run_reads_all_files_and_names_row_and_column(lmsi, tmp_path, file, text, wrong):
    assert lmsi("init", "sums")[0] == 0
    code, out, _ = lmsi("run", "sums/sums.gin", "--dry_run")
    assert code == 0 and "sums/FileTask.kind = 'number'" in out and "no mistake found" in out
    (tmp_path / "sums" / file).write_text(text)
    code, out, error = lmsi("run", "sums/sums.gin", "--dry_run")
    said = [line for line in out.splitlines() if line.startswith("wrong: ")]
    assert code == 2 and len(said) == 1 and wrong in said[0], out
    assert "this would not run: 0 to set, 1 wrong" in error


def test_a_dry_run_names_code_that_cannot_be_loaded(lmsi, tmp_path):
    assert lmsi("init", "sums")[0] == 0
    flag = "--gin.FileTask.reader='no_such:read'"
    code, out, _ = lmsi("run", "sums/sums.gin", "--dry_run", flag)
    said = [line for line in out.splitlines() if line.startswith("wrong: ")]
    assert code == 2 and len(said) == 1
    assert "FileTask.reader: there is no module 'no_such' beside the gin file or inst" in said[0]
