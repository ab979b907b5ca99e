"""majority@k and pass@k against votes on every subset of the samples."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsi_jax import voting
from lmsi_jax.config import Voting
from lmsi_jax.evaluation import accuracy, statistics
from lmsi_jax.records import Question, Sample

QUESTION = Question(uid="q", task="sums", text="Q: ?", kind="number", gold="2")


def _paths(rows):
    return [
        Sample(
            uid="q",
            sample_index=i,
            text="no" if answer is None else f"The answer is {answer}.",
            tokens=4,
            logprob=logprob,
            end="end_token",
        )
        for i, (answer, logprob) in enumerate(rows)
    ]


def _by_subsets(paths, weights, gold, k):
    """The vote itself on each subset."""
    wins = []
    for chosen in itertools.combinations(range(len(paths)), k):
        own = [weights[i] for i in chosen] if weights else None
        wins.append(voting.vote(QUESTION, [paths[i] for i in chosen], own).winner == gold)
    return sum(wins) / len(wins)


some_rows = st.lists(
    st.tuples(st.sampled_from([None, "1", "2", "2.0", "3"]), st.sampled_from([-1.0, -2.5, -7.25])),
    min_size=1,
    max_size=7,
)
rules = st.sampled_from([Voting(weights=w) for w in ("none", "logprob", "softmax")])


@given(some_rows, rules)
@settings(deadline=None)
def test_majority_at_k_is_the_vote_on_every_subset(rows, rule):
    paths = _paths(rows)
    weights = voting.weigh(paths, rule)
    vote = voting.vote(QUESTION, paths, weights)
    for k in range(1, len(paths) + 1):
        share, variance = accuracy.majority_at_k(vote, paths, {"2"}, k)
        assert share == pytest.approx(_by_subsets(paths, weights, "2", k))
        assert variance == 0.0
    assert share == (vote.winner == "2")  # k = m is the vote


@given(some_rows)
@settings(deadline=None)
def test_one_sample_passes_and_wins_as_often_as_samples_are_right(rows):
    paths = _paths(rows)
    vote = voting.vote(QUESTION, paths)
    (point,) = accuracy.curve([paths], [vote], [{"2"}], ks=[1])
    mean = vote.keys.count("2") / len(paths)
    assert point.majority == pytest.approx(mean) and point.passed == pytest.approx(mean)


def _many():
    draw = np.random.default_rng(0)
    answers = draw.choice(["1", "2", "3", "4"], 14, p=[0.3, 0.4, 0.2, 0.1])
    return _paths([(str(a), float(-draw.integers(1, 9))) for a in answers])


@pytest.mark.parametrize("paths", [_many(), _paths([("2", -1.0)] + [(None, -1.0)] * 13)])
def test_random_subsets_differ_from_all_of_them_by_their_standard_error(paths):
    vote = voting.vote(QUESTION, paths)
    assert math.comb(14, 5) > accuracy.MOST_SUBSETS
    truth = _by_subsets(paths, None, "2", 5)
    estimates = [accuracy.majority_at_k(vote, paths, {"2"}, 5, seed) for seed in range(20)]
    errors = [(share - truth) / math.sqrt(variance) for share, variance in estimates]
    assert max(map(abs, errors)) < 4 and abs(np.mean(errors)) < 4 / math.sqrt(20)
    assert 0.5 < np.std(errors) < 2
    assert accuracy.majority_at_k(vote, paths, {"2"}, 5, 3) == estimates[3]


def test_order_of_the_samples_never_matters():
    paths = _many()
    vote = voting.vote(QUESTION, paths)
    for k in (2, 5, 13):
        expected = accuracy.majority_at_k(vote, paths, {"2"}, k, 1)
        assert accuracy.majority_at_k(vote, paths[::-1], {"2"}, k, 1) == expected


def test_a_curve_is_the_mean_over_questions_with_its_intervals():
    rows = [
        [("2", -1.0)] * 4,
        [("1", -1.0)] * 4,
        [("2", -1.0), ("2", -2.0), ("1", -1.0), (None, 0.0)],
    ]
    paths = [_paths(row) for row in rows]
    votes = [voting.vote(QUESTION, own) for own in paths]
    points = accuracy.curve(paths, votes, [{"2"}] * 3)
    assert [point.k for point in points] == [1, 2, 4]
    for point in points:
        each = [_by_subsets(own, None, "2", point.k) for own in paths]
        assert point.majority == pytest.approx(np.mean(each)) and point.majority_error == 0
        assert point.majority_low <= point.majority <= point.majority_high
        assert point.passed_low <= point.passed <= point.passed_high
    assert [point.passed for point in points] == pytest.approx([0.5, (1 + 0 + 5 / 6) / 3, 2 / 3])
    every = accuracy.curve(paths, votes, [{"2"}] * 3, ks=range(1, 9))
    assert [point.k for point in every] == [1, 2, 3, 4]


def test_impossible_subsets_are_refused():
    paths = _paths([("2", -1.0)])
    vote = voting.vote(QUESTION, paths)
    for k, own in ((0, paths), (2, paths), (1, [])):
        with pytest.raises(ValueError, match="cannot draw"):
            accuracy.majority_at_k(vote, own, {"2"}, k)
    assert accuracy.curve([], [], []) == []


def test_the_bootstrap_agrees_with_scipys_and_is_reproducible():
    values = list(np.random.default_rng(1).random(60))
    low, high = statistics.bootstrap(values, seed=0)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.01)
    assert statistics.bootstrap(values, seed=0) == (low, high)
    assert statistics.bootstrap([], seed=0) == (0.0, 1.0)
    assert statistics.bootstrap([1.0] * 5, seed=0) == (1.0, 1.0)
