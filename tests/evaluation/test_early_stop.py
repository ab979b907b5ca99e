"""The rule replayed on whole sets of paths, against sampling step by step."""

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


def _path(uid, index, answer):
    text = "I do not know" if answer is None else f"so. The answer is {answer}."
    return Sample(
        uid=uid, sample_index=index, text=text, tokens=3, logprob=-1.0 * index, finished=True
    )


def _paths(rows):
    return {
        f"q{i}": [_path(f"q{i}", k, a) for k, a in enumerate(row)] for i, row in enumerate(rows)
    }


def _stops(answers, threshold):
    """The Beta criterion in fractions: P(Binomial(a + b + 1, 1/2) <= a)."""
    b, a = sorted([0, 0, *(answers.count(x) for x in (1, 2, 3))])[-2:]
    tail = sum(comb(a + b + 1, j) for j in range(a + 1))
    return Fraction(tail, 2 ** (a + b + 1)) >= threshold


def _replayed(questions, paths, threshold, every):
    votes = [voting.vote(question, paths[question.uid]) for question in questions]
    return replay(questions, votes, paths, threshold, every)


@given(
    st.lists(st.lists(st.sampled_from([None, 1, 2, 2, 3]), max_size=20), max_size=6),
    st.sampled_from([0.6, 0.8, 0.95]),
    st.integers(1, 5),
)
def test_it_is_what_sampling_until_the_stop_gives(rows, threshold, every):
    questions, paths = [_question(i) for i in range(len(rows))], _paths(rows)
    found = _replayed(questions, paths, threshold, every)
    for i, (question, row) in enumerate(zip(questions, rows, strict=True)):
        count = 0
        while count < len(row) and not (count and count % every == 0
                                        and _stops(row[:count], threshold)):  # fmt: skip
            count += 1
        whole = voting.vote(question, paths[question.uid]).winner
        stopped = voting.vote(question, paths[question.uid][:count]).winner
        assert found.taken[i] == count
        assert found.same[i] == (whole == stopped)
        assert found.correct[i] == (whole == "2")
        assert found.correct_stopped[i] == (stopped == "2")


def test_a_stop_may_give_the_vote_away():
    (rows,) = [[[1, 1, 1, 1, *[2] * 28]]]
    found = _replayed([_question(0)], _paths(rows), 0.95, 4)
    assert dataclasses.astuple(found) == ((4,), (0,), (1,), (0,))


@pytest.mark.parametrize("golds", [(None, None), ("2", None)])
def test_without_gold_answers_nothing_is_judged(golds):
    questions = [_question(i, gold) for i, gold in enumerate(golds)]
    found = _replayed(questions, _paths([[2] * 8, [3] * 8]), 0.95, 4)
    assert found.taken == (4, 4) and found.same == (1, 1)
    assert found.correct == found.correct_stopped == ()
