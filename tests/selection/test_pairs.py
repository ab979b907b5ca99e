"""Pairs from votes, against what a person reads off the counts."""

import random

import pytest

from lmsi_jax.pairing import Pair, pair
from lmsi_jax.records import Question, Sample
from lmsi_jax.voting import vote

QUESTION = Question(uid="q", task="t", text="Q: ?", kind="number")


def _paths(*answers):
    """(answer or None, log-probability) of each sample."""
    return [
        Sample(
            uid="q",
            sample_index=i,
            text="no idea" if answer is None else f"The answer is {answer}.",
            tokens=4,
            logprob=logprob,
            end="end_token",
        )
        for i, (answer, logprob) in enumerate(answers)
    ]


def _pair(paths, threshold=0.5):
    return pair(vote(QUESTION, paths), paths, threshold)


def test_the_most_voted_answer_is_chosen_and_the_least_voted_rejected():
    paths = _paths((7, -3), (7, -1), (7, -2), (4, -1), (4, -1), (9, -8), (None, -1), (7, -9))
    assert _pair(paths) == Pair(uid="q", chosen=1, rejected=5, weight=(4 - 1) / 8)


def test_the_order_of_the_samples_does_not_matter():
    paths = _paths((7, -3), (7, -1), (7, -1), (4, -1), (9, -8), (5, -2))
    before = _pair(paths)
    assert before is not None and before.chosen == 1
    for seed in range(5):
        random.Random(seed).shuffle(paths)
        assert _pair(paths) == before


def test_of_equally_rare_answers_the_most_probable_mistake_is_rejected():
    assert _pair(_paths((7, -3), (7, -1), (4, -9), (9, -2))).rejected == 3
    assert _pair(_paths((7, -3), (7, -1), (4, -2), (9, -2))).rejected == 2


@pytest.mark.parametrize(("threshold", "there"), [(0.5, True), (0.51, False), (0.0, True)])
def test_the_chosen_answer_needs_enough_of_all_samples(threshold, there):
    paths = _paths((7, -3), (7, -1), (4, -1), (None, -1))
    assert (_pair(paths, threshold) is not None) == there


def test_of_a_weighted_vote_the_weights_choose_and_reject():
    paths = _paths((7, -3), (7, -1), (4, -1), (4, -1), (4, -2), (9, -8))
    weights = [4.0, 2.0, 0.5, 0.25, 0.25, 3.0]
    weighed = vote(QUESTION, paths, weights)
    found = pair(weighed, paths, threshold=0.6)
    assert found == Pair(uid="q", chosen=1, rejected=2, weight=(6 - 1) / 10)
    assert pair(weighed, paths, threshold=0.61) is None


def test_without_a_lead_there_is_no_pair():
    assert _pair(_paths((7, -1), (7, -2))) is None  # one answer alone
    assert _pair(_paths((7, -1), (4, -2))) is None  # a tie
    assert _pair(_paths((None, -1), (None, -2)), 0.0) is None
    assert _pair([], 0.0) is None


def test_samples_of_another_vote_are_refused():
    paths = _paths((7, -1), (7, -2), (4, -2))
    with pytest.raises(ValueError, match="a vote over 3 samples"):
        pair(vote(QUESTION, paths), paths[:2])
    with pytest.raises(ValueError, match="use a share of the samples"):
        _pair(paths, 16)
