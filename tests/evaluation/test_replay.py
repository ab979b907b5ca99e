"""Adaptive consistency replayed on all samples, against sampling step by step."""

import dataclasses
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax import voting
from lmsi_jax.evaluation.accuracy import replay
from lmsi_jax.records import Question, Sample


def _question(number, gold="2"):
    return Question(uid=f"q{number}", task="sums", text="Q: ?", kind="number", gold=gold)


def _sample(uid, index, answer):
    text = "I do not know" if answer is None else f"so. The answer is {answer}."
    return Sample(
        uid=uid, sample_index=index, text=text, tokens=3, logprob=-1.0 * index, end="end_token"
    )


def _samples(rows):
    return {
        f"q{i}": [_sample(f"q{i}", k, a) for k, a in enumerate(row)] for i, row in enumerate(rows)
    }


def _stops(answers, threshold):
    """The Beta criterion in fractions: P(Binomial(a + b + 1, 1/2) <= a)."""
    b, a = sorted([0, 0, *(answers.count(x) for x in (1, 2, 3))])[-2:]
    tail = sum(comb(a + b + 1, j) for j in range(a + 1))
    return Fraction(tail, 2 ** (a + b + 1)) >= threshold


def _replay(questions, samples, threshold, every):
    votes = [voting.vote(question, samples[question.uid]) for question in questions]
    return replay(questions, votes, samples, threshold, every)


@given(
    st.lists(st.lists(st.sampled_from([None, 1, 2, 2, 3]), max_size=20), max_size=6),
    st.sampled_from([0.6, 0.8, 0.95]),
    st.integers(1, 5),
)
def test_replay_equals_sampling_until_the_stop(rows, threshold, every):
    questions, samples = [_question(i) for i in range(len(rows))], _samples(rows)
    replayed = _replay(questions, samples, threshold, every)
    for i, (question, row) in enumerate(zip(questions, rows, strict=True)):
        count = 0
        while count < len(row) and not (count and count % every == 0
                                        and _stops(row[:count], threshold)):  # fmt: skip
            count += 1
        full = voting.vote(question, samples[question.uid]).winner
        stopped = voting.vote(question, samples[question.uid][:count]).winner
        assert replayed.taken[i] == count
        assert replayed.same[i] == (full == stopped)
        assert replayed.correct[i] == (full == "2")
        assert replayed.correct_stopped[i] == (stopped == "2")


def test_a_stop_may_change_the_vote():
    (rows,) = [[[1, 1, 1, 1, *[2] * 28]]]
    replayed = _replay([_question(0)], _samples(rows), 0.95, 4)
    assert dataclasses.astuple(replayed) == ((4,), (0,), (1,), (0,))


@pytest.mark.parametrize("golds", [(None, None), ("2", None)])
def test_without_gold_answers_nothing_is_scored(golds):
    questions = [_question(i, gold) for i, gold in enumerate(golds)]
    replayed = _replay(questions, _samples([[2] * 8, [3] * 8]), 0.95, 4)
    assert replayed.taken == (4, 4) and replayed.same == (1, 1)
    assert replayed.correct == replayed.correct_stopped == ()
