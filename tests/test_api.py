"""`import lmsi_jax` offers the loop as functions, and loads nothing before they are used."""

import dataclasses
import subprocess
import sys

import pytest

import lmsi_jax
from lmsi_jax import api
from lmsi_jax.config import FileTask, MinConfidence, Voting
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Exemplar, Question, Sample


def _question(number: int) -> Question:
    return Question(uid=f"q{number}", task="t", text=f"Q: {number}?", kind="number")


def _samples(question: Question, *numbers: int) -> list[Sample]:
    return [
        Sample(
            uid=question.uid,
            sample_index=index,
            text=f" It is {number}. The answer is {number}.",
            tokens=9,
            logprob=-1.0,
            end="end_token",
        )
        for index, number in enumerate(numbers)
    ]


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, lmsi_jax; print({'jax', 'numpy', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_name_is_a_documented_function_or_class():
    for name in lmsi_jax.__all__:
        value = getattr(lmsi_jax, name)
        assert value is getattr(api, name) and value.__doc__
    assert set(lmsi_jax.__all__) <= set(dir(lmsi_jax))
    with pytest.raises(AttributeError, match="no attribute 'samples'"):
        lmsi_jax.samples  # noqa: B018


def test_votes_select_what_agrees_and_mix_writes_it_in_four_formats():
    questions = [_question(1), _question(2)]
    samples = {
        "q1": _samples(questions[0], 7, 7, 8),
        "q2": _samples(questions[1], 1, 2, 3),
    }
    votes = lmsi_jax.vote(questions, samples, Voting())
    assert votes["q1"].winner == "7" and votes["q1"].confidence == pytest.approx(2 / 3)
    rows = lmsi_jax.select(questions, samples, votes, [MinConfidence(confidence=0.5)])
    assert [(row.sample.uid, row.sample.sample_index) for row, _ in rows] == [("q1", 0), ("q1", 1)]
    shots = [Exemplar(question="Q: 1 + 1?", reasoning="1 + 1 = 2.", answer="2")]
    examples = lmsi_jax.mix(rows, shots)
    assert [example.format for example in examples] == [
        "few_shot_cot",
        "few_shot_direct",
        "zero_shot_cot",
        "zero_shot_direct",
    ]
    assert {example.weight for example in examples} == {1.0}  # two equal rows of one question


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(LmsiError, match="no config.gin and no model.gin above"):
        lmsi_jax.load(tmp_path)


def test_texts_of_any_origin_are_voted_on_without_jax():
    code = """if True:
        import sys, lmsi_jax
        from lmsi_jax.records import Question
        question = Question(uid="q1", task="mine", text="Q: How many apples?", kind="number")
        texts = {"q1": ["9 + 9 = 18. The answer is 18.", "Answer: 17", "It is $18.00 in all."]}
        vote = lmsi_jax.vote([question], texts)["q1"]
        rows = lmsi_jax.select([question], texts, {"q1": vote})
        kept = [row.sample.sample_index for row, _ in rows]
        print(vote.winner, vote.kept, kept, {"jax", "flax", "tensorflow"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "18 (0, 2) [0, 2] set()\n"


def test_texts_alone_weigh_the_same_under_every_rule():
    question = _question(1)
    texts = {"q1": ["The answer is 2.", "The answer is 1."]}
    for weights in ("none", "logprob", "normalised_logprob", "softmax"):
        vote = lmsi_jax.vote([question], texts, Voting(weights=weights))["q1"]
        assert vote.winner == "1" and vote.tied == ("1", "2") and vote.confidence == 0.5


def test_questions_without_answers_are_not_evaluated():
    with pytest.raises(LmsiError, match="question 'q1' has no answer to compare with"):
        lmsi_jax.evaluate(None, [_question(1)])


def test_a_task_may_be_one_s_own(tmp_path):
    (tmp_path / "rows.csv").write_text("question\nHow many?\n")
    task = lmsi_jax.task(FileTask(name="ours", kind="number", train=str(tmp_path / "rows.csv")))
    assert [row.text for row in task.questions("train", "hard", 9, 0)] == ["Q: How many?"]


def test_questions_that_share_a_uid_are_refused_and_not_merged():
    first, samples = _question(1), {"q1": _samples(_question(1), 7, 7)}
    twice = [first, dataclasses.replace(first, text="Q: another?")]
    for call in (
        lambda: lmsi_jax.vote(twice, samples),
        lambda: lmsi_jax.select(twice, samples, lmsi_jax.vote([first], samples)),
        lambda: lmsi_jax.sample(object(), twice),  # before anything is sampled
    ):
        with pytest.raises(LmsiError, match="two questions have the uid 'q1': 'Q: 1.' of t and"):
            call()
