"""`lmsi explain-answer`: what it prints of a text's candidates, and which mistakes it names."""

import io
import types

import pytest

from lmsi_jax import answers
from lmsi_jax.cli.main import main

TEXT = (
    "Step 1: \\boxed{9} eggs a day.\nThe answer is reasonable.\n"
    "She sells them for 2 dollars each, so 9 * 2 = 18.\n\nThe answer is 18 dollars.\n"
)


@pytest.fixture
def explain(capsys, tmp_path):
    """Explains a text; returns the exit code, and the lines of the output or the error."""

    def run(text: str, *flags: str) -> tuple[int, list[str]]:
        path = tmp_path / "sample.txt"
        path.write_text(text, encoding="utf-8")
        code = main(["explain-answer", str(path), *flags])
        out, error = capsys.readouterr()
        return code, (out or error).splitlines()

    return run


def test_every_candidate_is_a_row_and_the_choice_follows(explain):
    code, lines = explain(TEXT, "--kind=number")
    assert code == 0 and max(map(len, lines)) <= 80
    assert lines[0].split() == ["mark", "strength", "place", "answer", "key", "verdict"]
    rows = answers.explain(TEXT, "number")[1:]
    table = lines[1 : lines.index("")]
    assert [line.split()[-1] for line in table] == [row[-1] for row in rows]
    assert [line.split()[-1] for line in table].count("chosen") == 1
    assert {"value", "remark"} <= {line.split()[-1] for line in table}
    end = TEXT.index("18 dollars.") + len("18 dollars.")
    assert lines[lines.index("") + 1 :] == [
        "answer: 18",
        "taught as: 18 dollars",
        f"solution: the first {end} characters, which is the whole text",
    ]


def test_long_answers_are_cut_to_the_width(explain):
    code, lines = explain(f"The answer is {'very ' * 40}long.\nAnswer: x", "--kind=span")
    assert code == 0 and max(map(len, lines[: lines.index("")])) <= 80
    assert "…" in lines[1]


def test_options_are_read_as_in_a_question(explain):
    flags = ("--kind=choice", "--options=(a) ice (b) a nail")
    assert "answer: b" in explain("So the answer is a nail.", *flags)[1]
    assert explain("So the answer is a nail.", "--kind=choice")[1][-1] == "no answer"
    code, lines = explain("(b)", "--kind=choice", "--options=ice; a nail")
    assert code == 2 and "write the options as in the question" in " ".join(lines)


def test_a_text_that_was_cut_concludes_nothing(explain):
    assert "answer: 18" in explain("So she has 18 apples.", "--kind=number")[1]
    assert explain("So she has 18 apples.", "--kind=number", "--cut")[1][-1] == "no answer"


def test_a_text_may_come_from_standard_input(capsys, monkeypatch):
    stream = types.SimpleNamespace(buffer=io.BytesIO("\ufeffThe answer is no.".encode()))
    monkeypatch.setattr("sys.stdin", stream)
    assert main(["explain-answer", "-", "--kind=yes_no"]) == 0
    assert "answer: no\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.txt", "--kind=number"], "cannot read nowhere.txt"),
        (["nowhere.txt"], "--kind"),
        (["nowhere.txt", "--kind=word"], "invalid choice: 'word'"),
        (["nowhere.txt", "--kind=number", "--gin.Run.seed=1"], "takes no gin flags"),
    ],
)
def test_mistakes_are_named(capsys, words, message):
    assert main(["explain-answer", *words]) == 2
    assert message in capsys.readouterr().err
