"""What changed question by question, against counts by hand and NumPy."""

import collections

import numpy as np
import pytest
import scipy.stats

from lmsi_jax.evaluation.accuracy import expected_calibration_error, score
from lmsi_jax.evaluation.changes import (
    Answered,
    BaseVotes,
    calibration_interval,
    describe,
    position_counts,
)
from lmsi_jax.records import Question, Sample
from lmsi_jax.voting import AnswerReader, vote

BEFORE = (1, 1, 0, 0, 0, 1, 0, 1)
AFTER = (1, 0, 1, 1, 0, 1, 1, 1)


def test_flips_are_rates_of_the_wrong_and_of_the_right():
    halves = [(Answered(correct=BEFORE[:3]), Answered(correct=AFTER[:3]))]
    halves += [(Answered(correct=BEFORE[3:]), Answered(correct=AFTER[3:]))]
    changes = describe(halves)
    assert changes.questions == 8
    assert changes.gained[:2] == (3, 4) and changes.lost[:2] == (1, 4)
    interval = scipy.stats.binomtest(3, 4).proportion_ci(0.95, method="wilson")
    assert changes.gained[2:] == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert (changes.by_difficulty, changes.tokens, changes.parsed) == ((), None, None)


def test_gains_are_sliced_by_the_bases_votes_and_the_slices_hold_every_question_once():
    right = (0.0, 0.25, 1 / 3, 0.5, 2 / 3, 0.9, 1.0)  # of the first seven questions
    sure = (0.1, 0.2, 0.39, 0.4, 0.6, 0.8, 1.0)
    pair = (Answered(correct=BEFORE), Answered(correct=AFTER))
    changes = describe([pair], [BaseVotes(right, sure)])
    slices = {one.name: one for one in changes.by_difficulty}
    counts = {name: one.questions for name, one in slices.items()}
    assert counts == {
        "never right": 1,
        "up to 1/3": 2,
        "up to 2/3": 2,
        "below 1": 1,
        "always right": 1,
    }
    third = slices["up to 1/3"]  # the second and the third question
    assert (third.before, third.after, third.difference) == (0.5, 0.5, 0.0)
    assert [one.questions for one in changes.by_share] == [1, 2, 1, 1, 2]
    total = sum(one.questions * one.difference for one in changes.by_share)
    assert total == pytest.approx(sum(AFTER[:7]) - sum(BEFORE[:7]))
    assert all(one.low <= one.difference <= one.high for one in changes.by_share)


def test_lengths_are_compared_in_pairs():
    rng = np.random.default_rng(0)
    old, new = rng.normal(40, 5, 30), rng.normal(44, 5, 30)
    pairs = [
        (
            Answered(correct=[1] * 10, tokens=old[at : at + 10].tolist()),
            Answered(correct=[0] * 10, tokens=new[at : at + 10].tolist()),
        )
        for at in (0, 10, 20)
    ]
    drift = describe(pairs).tokens
    error = 1.959964 * scipy.stats.sem(new - old)
    expected = (old.mean(), new.mean(), (new - old).mean())
    assert drift[:3] == pytest.approx(expected, rel=1e-9)
    assert drift[3:] == pytest.approx((drift[2] - error, drift[2] + error), rel=1e-6)


@pytest.mark.parametrize("pairs", [[], [(Answered(correct=[1]), Answered(correct=[1, 0]))]])
def test_other_questions_are_not_compared(pairs):
    with pytest.raises(ValueError, match="not asked the same questions"):
        describe(pairs)


def test_the_interval_of_the_calibration_error_is_a_bootstrap_over_questions():
    rng = np.random.default_rng(3)
    sure = np.round(rng.random(120), 3)
    right = rng.random(120) < sure**2
    drawn = [rng.integers(0, 120, 120) for _ in range(600)]
    errors = [expected_calibration_error(sure[i].tolist(), right[i].tolist()) for i in drawn]
    expected = np.quantile(errors, (0.025, 0.975))
    assert calibration_interval(sure.tolist(), right.tolist()) == pytest.approx(expected, abs=0.02)
    assert calibration_interval([], []) == (0.0, 1.0)


def _sample(index, text, end="end_token", tokens=4):
    return Sample(uid="q", sample_index=index, text=text, tokens=tokens, logprob=-1.0, end=end)


def test_a_score_knows_each_questions_samples():
    question = Question(uid="q", task="t", text="Q: ?", kind="number", gold="7")
    samples = [
        _sample(0, "The answer is 7."),
        _sample(1, "So she has 7 apples.", tokens=6),
        _sample(2, "Hm, I", end="limit", tokens=8),
        _sample(3, "The answer is 8."),
    ]
    found = score([question], {"q": samples}, "self_consistency", 0.7)
    assert found.right_share == (0.5,) and found.tokens == (5.5,)
    assert (found.parsed_share, found.marked_share, found.finished_share) == (
        (0.75,),
        (0.5,),
        (0.75,),
    )


@pytest.mark.parametrize("rotated", [False, True])
def test_places_are_counted_as_shown_and_in_the_questions_own_order(rotated):
    question = Question(
        uid="q", task="t", text="Q: ?\n(a) one (b) two (c) six", kind="choice", gold="(b)"
    )
    samples = [_sample(i, "The answer is (a).") for i in (0, 1, 2, 4)]
    samples.append(_sample(5, "No idea."))
    readings = AnswerReader(rotate_options=rotated).read(question, samples)
    cast = vote(question, samples, readings=readings)
    numbers = [sample.sample_index for sample in samples]
    found = position_counts([question], [cast], [numbers], rotated)
    assert found.shown == (4, 0, 0) and found.right == (0, 1, 0)
    own = collections.Counter(i % 3 if rotated else 0 for i in (0, 1, 2, 4))
    assert found.own == tuple(own[i] for i in range(3))
    other = Question(uid="q", task="t", text="Q: ?", kind="number")
    assert position_counts([other], [cast], [numbers], rotated) is None
