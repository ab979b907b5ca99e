"""Scores against plain counts over texts with known answers."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.evaluation.accuracy import score
from lmsi_jax.records import Question, Sample

PATHS = 5


def _question(number, gold):
    return Question(uid=f"q{number}", task="sums", text="Q: ?", kind="number", gold=gold)


def _path(uid, index, answer):
    text = "I do not know" if answer is None else f"so. The answer is {answer}."
    return Sample(
        uid=uid,
        sample_index=index,
        text=text,
        tokens=index + 2,
        logprob=-float(index),
        end="end_token",
    )


answers = st.lists(
    st.lists(st.sampled_from([None, 1, 2, 3]), min_size=PATHS, max_size=PATHS),
    min_size=1,
    max_size=6,
)


@given(rows=answers)
def test_self_consistency_counts_as_a_loop_does(rows):
    questions = [_question(i, "2") for i in range(len(rows))]
    paths = {
        q.uid: [_path(q.uid, k, answer) for k, answer in enumerate(row)]
        for q, row in zip(questions, rows, strict=True)
    }
    scores = score(questions, paths, "self_consistency", 0.7)
    correct, confidence, tied = [], [], 0
    for row in rows:
        counts = collections.Counter(answer for answer in row if answer is not None)
        most = max(counts.values(), default=0)
        leaders = [answer for answer, n in counts.items() if n == most]
        # Log-probabilities fall with the index, so a tie goes to the larger sum, then the smaller.
        mass = {a: -sum(k for k, b in enumerate(row) if b == a) for a in leaders}
        winner = min(leaders, key=lambda a: (-mass[a], a)) if leaders else None
        correct.append(int(winner == 2))
        confidence.append(round(most / PATHS, 6))
        tied += len(leaders) > 1
    flat = [answer for row in rows for answer in row]
    assert scores.correct == tuple(correct)
    assert scores.confidence == tuple(confidence)
    assert scores.tied == tied
    assert scores.parsed == pytest.approx(sum(a is not None for a in flat) / len(flat))
    assert scores.single == pytest.approx(flat.count(2) / len(flat))
    assert scores.mean_tokens == pytest.approx(sum(range(2, 2 + PATHS)) / PATHS)
    assert (scores.samples, scores.temperature, scores.task) == (PATHS, 0.7, "sums")


def test_one_sample_has_no_confidence_and_unparsed_is_wrong():
    questions = [_question(0, "2"), _question(1, "1,000"), _question(2, "3")]
    given_answers = {"q0": None, "q1": "1000", "q2": "4"}
    paths = {uid: [_path(uid, 0, answer)] for uid, answer in given_answers.items()}
    scores = score(questions, paths, "cot", 0.0)
    assert scores.correct == (0, 1, 0)
    assert scores.confidence == () and scores.samples == 1
    assert scores.parsed == pytest.approx(2 / 3) and scores.single == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("kind", "gold", "text", "right"),
    [
        ("choice", "(b)", "The answer is (b).", 1),
        ("choice", "(b)", "The answer is (c).", 0),
        ("yes_no", "yes", "The answer is Yes.", 1),
        ("nli", "it is not possible to tell", "The answer is it is not possible to tell.", 1),
    ],
)
def test_each_kind_is_compared_by_its_key(kind, gold, text, right):
    question = Question(uid="q", task="t", text="Q: ?", kind=kind, gold=gold)
    sample = Sample(uid="q", sample_index=0, text=text, tokens=4, logprob=-1.0, end="end_token")
    assert score([question], {"q": [sample]}, "standard", 0.0).correct == (right,)
