"""Votes: counted against collections.Counter, stopped against scipy's beta distribution."""

import collections
import math
import random

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax import voting
from lmsi_jax.records import Path, Question

QUESTION = Question(uid="q", task="sums", text="Q: 1 + 1?", kind="number", gold="2")


def path(index, answer, logprob=-1.0):
    text = " no idea" if answer is None else f" So it goes. The answer is {answer}."
    return Path(uid="q", index=index, text=text, tokens=5, logprob=logprob, finished=True)


def paths_of(*answers):
    return [path(i, answer) for i, answer in enumerate(answers)]


some_paths = st.lists(
    st.tuples(
        st.sampled_from([None, "1", "2", "3", "2.0", "$2", "1/3"]),
        st.floats(-1e3, 0, allow_nan=False),
    ),
    max_size=12,
).map(lambda rows: [path(i, answer, logprob) for i, (answer, logprob) in enumerate(rows)])


def test_equivalent_answers_vote_together_and_unparsed_ones_stay_in_the_denominator():
    vote = voting.vote(QUESTION, paths_of("2", "$2.00", None, "3", "2 apples"))
    assert vote.winner == "2" and vote.kept == (0, 1, 4)
    assert vote.keys == ("2", "2", None, "3", "2")
    assert vote.confidence == 3 / 5 and (vote.parsed, vote.total) == (4, 5)
    assert vote.tied == () and vote.uid == "q" and vote.task == "sums"
    assert vote.entropy == pytest.approx(scipy.stats.entropy([3, 1]))


@pytest.mark.parametrize("paths", [[], paths_of(None), paths_of(None, None, None)])
def test_nothing_parsed_means_no_winner(paths):
    vote = voting.vote(QUESTION, paths)
    assert vote.winner is None and vote.kept == () and vote.tied == ()
    assert vote.confidence == 0.0 and vote.entropy == 0.0 and vote.total == len(paths)


def test_many_unparsed_paths_never_beat_one_answer():
    vote = voting.vote(QUESTION, paths_of(None, None, None, "7"))
    assert vote.winner == "7" and vote.confidence == 0.25


def test_ties_go_to_the_likelier_paths_then_to_the_smaller_key():
    likelier = [path(0, "1", -5.0), path(1, "2", -4.0)]
    assert voting.vote(QUESTION, likelier).winner == "2"
    assert voting.vote(QUESTION, likelier).tied == ("1", "2")
    assert voting.vote(QUESTION, [path(0, "2"), path(1, "1")]).winner == "1"


def test_likely_paths_do_not_outvote_more_paths():
    paths = [path(0, "1", -0.1), path(1, "2", -50.0), path(2, "2", -60.0)]
    assert voting.vote(QUESTION, paths).winner == "2"


def test_kept_are_indices_not_positions():
    vote = voting.vote(QUESTION, [path(9, "2"), path(4, "3"), path(7, "2")])
    assert vote.kept == (7, 9) and vote.keys == ("3", "2", "2")


@given(some_paths, st.randoms(use_true_random=False))
def test_order_never_matters(paths, shuffler: random.Random):
    shuffled = paths[:]
    shuffler.shuffle(shuffled)
    assert voting.vote(QUESTION, shuffled) == voting.vote(QUESTION, paths)


@given(some_paths)
def test_the_vote_is_the_count_of_the_keys(paths):
    vote = voting.vote(QUESTION, paths)
    counts = collections.Counter(k for k in vote.keys if k is not None)
    assert vote.parsed == counts.total() and vote.total == len(paths)
    if not counts:
        assert vote.winner is None
        return
    most = counts.most_common(1)[0][1]
    assert counts[vote.winner] == most == len(vote.kept)
    assert vote.kept == tuple(i for i, k in enumerate(vote.keys) if k == vote.winner)
    leaders = sorted(k for k in counts if counts[k] == most)
    assert vote.tied == (tuple(leaders) if len(leaders) > 1 else ())
    assert vote.entropy == pytest.approx(scipy.stats.entropy(list(counts.values())), abs=1e-12)


def test_paths_that_cannot_vote_are_refused():
    with pytest.raises(ValueError, match="has path 0 twice"):
        voting.vote(QUESTION, [path(0, "1"), path(0, "2")])
    foreign = Path(uid="other", index=0, text="", tokens=1, logprob=0.0, finished=True)
    with pytest.raises(ValueError, match="question 'other' cannot vote on 'q'"):
        voting.vote(QUESTION, [foreign])
    with pytest.raises(ValueError, match="no log-probability"):
        voting.vote(QUESTION, [path(0, "1", math.nan)])


@pytest.mark.parametrize("threshold", [0.6, 0.9, 0.95, 0.99])
def test_adaptive_stop_is_the_beta_criterion(threshold):
    for a in range(25):
        for b in range(a + 1):
            sure = scipy.stats.beta.sf(0.5, a + 1, b + 1)
            assert voting.adaptive_stop(a, b, threshold) == (sure >= threshold), (a, b)


def test_adaptive_stop_at_its_edges():
    assert not voting.adaptive_stop(0, 0) and voting.adaptive_stop(4, 0)
    assert voting.adaptive_stop(3, 3, 0.5) and voting.adaptive_stop(3, 0, 15 / 16)
    with pytest.raises(ValueError, match="negative"):
        voting.adaptive_stop(1, -1)
