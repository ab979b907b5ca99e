"""Statistics: against scipy, and by exact coverage where scipy has no counterpart."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.evaluation import statistics

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def pairs(both, gained, lost, neither):
    table = [(True, True)] * both + [(False, True)] * gained
    table += [(True, False)] * lost + [(False, False)] * neither
    return [old for old, _ in table], [new for _, new in table]


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(counts):
    correct, n = counts
    reference = scipy.stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    low, high = statistics.wilson(correct, n, statistics.Z_95)
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert low <= correct / n <= high


def test_wilson_without_trials_knows_nothing():
    assert statistics.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 of 3"):
        statistics.wilson(5, 3)


@given(outcomes)
def test_mcnemar_is_the_binomial_test_of_the_changes(rows):
    before, after = zip(*rows, strict=True)
    gained = sum(new and not old for old, new in rows)
    lost = sum(old and not new for old, new in rows)
    p = statistics.mcnemar(before, after)
    expected = scipy.stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert p == pytest.approx(expected, rel=1e-9)
    assert p == statistics.mcnemar(after, before)


def test_mcnemar_stays_exact_for_many_questions():
    before, after = pairs(100, 1500, 1000, 100)
    expected = scipy.stats.binomtest(1500, 2500).pvalue
    assert statistics.mcnemar(before, after) == pytest.approx(expected, rel=1e-6)


@given(outcomes)
def test_paired_difference_holds_the_difference_and_turns_with_its_sign(rows):
    before, after = zip(*rows, strict=True)
    gain = statistics.paired_difference(before, after)
    loss = statistics.paired_difference(after, before)
    assert gain.difference == pytest.approx((sum(after) - sum(before)) / len(rows))
    assert -1 <= gain.low <= gain.difference <= gain.high <= 1
    assert gain == pytest.approx((-loss.difference, -loss.high, -loss.low))


@pytest.mark.parametrize(
    "cells",
    [
        (0.25, 0.25, 0.25, 0.25),
        (0.4, 0.2, 0.1, 0.3),
        (0.6, 0.1, 0.05, 0.25),
        (0.1, 0.5, 0.05, 0.35),
    ],
)
def test_paired_interval_covers_the_truth_about_as_often_as_it_says(cells):
    n, truth, covered = 16, cells[1] - cells[2], 0.0
    for table in itertools.product(range(n + 1), repeat=3):
        if sum(table) <= n:
            table = (*table, n - sum(table))
            gain = statistics.paired_difference(*pairs(*table))
            if gain.low <= truth <= gain.high:
                covered += scipy.stats.multinomial.pmf(table, n, cells)
    assert 0.92 <= covered <= 0.99


def test_paired_interval_nears_the_normal_one_when_there_are_many_questions():
    before, after = pairs(4000, 1500, 500, 4000)
    error = math.sqrt(0.2 - 0.1**2) / math.sqrt(10_000)
    gain = statistics.paired_difference(before, after)
    assert gain == pytest.approx((0.1, 0.1 - 1.96 * error, 0.1 + 1.96 * error), abs=5e-4)


def test_macro_difference_is_the_mean_with_a_narrower_interval():
    one = statistics.Difference(0.1, 0.0, 0.2)
    mean = statistics.macro_difference([one, one, one, one])
    assert mean == pytest.approx((0.1, 0.05, 0.15))
    assert statistics.macro_difference([one]) == pytest.approx(one)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="not pairs"):
        statistics.mcnemar([True], [])
    with pytest.raises(ValueError, match="no questions"):
        statistics.paired_difference([], [])
    with pytest.raises(ValueError, match="no tasks"):
        statistics.macro_difference([])


def test_seeds_that_differ_more_than_their_questions_give_students_interval():
    values = [0.125, 0.133, 0.190]
    found = statistics.over_seeds(values, [1e-5] * 3)
    own = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found == pytest.approx((sum(values) / 3, own.low, own.high))


def test_seeds_that_agree_by_luck_are_not_surer_than_their_questions():
    found = statistics.over_seeds([0.12, 0.12, 0.12], [0.0004, 0.0002, 0.0003])
    half = scipy.stats.t.ppf(0.975, 2) * (0.0003 / 3) ** 0.5
    assert found == pytest.approx((0.12, 0.12 - half, 0.12 + half))
    only = statistics.over_seeds([0.12], [0.0004])
    assert only.high - only.difference == pytest.approx(1.96 * 0.02, rel=1e-4)
    for values, variances in (([], []), ([0.1], [0.1, 0.1])):
        with pytest.raises(ValueError):
            statistics.over_seeds(values, variances)


def test_the_interval_over_seeds_covers_what_it_says():
    """Three seeds of 200 questions each; seeds differ by themselves too, or not at all."""
    rng = np.random.default_rng(0)
    for own in (0.0, 0.05):
        hits = 0
        for _ in range(400):
            truths = 0.4 + own * rng.standard_normal(3)
            answers = [(rng.random(200) < p).astype(float) for p in truths]
            found = statistics.over_seeds(
                [a.mean() for a in answers], [statistics.macro_variance([a]) for a in answers]
            )
            hits += found.low <= 0.4 <= found.high
        assert hits >= 0.93 * 400


def test_the_variance_of_a_mean_over_tasks_is_that_of_independent_means():
    rng = np.random.default_rng(1)
    tasks = [rng.standard_normal(n) for n in (5, 9)]
    wanted = sum(task.var(ddof=1) / len(task) for task in tasks) / 4
    assert statistics.macro_variance([task.tolist() for task in tasks]) == pytest.approx(wanted)
    with pytest.raises(ValueError):
        statistics.macro_variance([[1.0], []])


def _three_models(rng, gains, sizes=((40, 60), (40, 60))):
    """Outcomes of a base and of models that are better by these chances, by seed and task."""
    base = [{f"t{i}": (rng.random(n) < 0.4).astype(int) for i, n in enumerate(s)} for s in sizes]
    better = [
        [{t: np.maximum(o, rng.random(len(o)) < gain) for t, o in seed.items()} for seed in base]
        for gain in gains
    ]
    return base, *better


def test_the_share_of_a_gain_is_a_quotient_of_macro_means_with_a_paired_bootstrap():
    rng = np.random.default_rng(1)
    base, model, bound = _three_models(rng, (0.3, 0.5))
    found = statistics.gain_share(base, model, bound)

    def macro(models, chosen):
        return np.mean(
            [np.mean([o[t][i[t]].mean() for t in o]) for o, i in zip(models, chosen, strict=True)]
        )

    every = [{t: np.arange(len(o)) for t, o in seed.items()} for seed in base]
    plain = [macro(one, every) for one in (base, model, bound)]
    assert found.share == pytest.approx((plain[1] - plain[0]) / (plain[2] - plain[0]), rel=1e-12)
    quotients = []
    for _ in range(800):  # an independent bootstrap, one resample at a time
        drawn = [{t: rng.integers(0, len(i), len(i)) for t, i in seed.items()} for seed in every]
        b, m, g = (macro(one, drawn) for one in (base, model, bound))
        quotients.append((m - b) / (g - b))
    low, high = np.quantile(quotients, (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.05) and found.high == pytest.approx(high, abs=0.05)


def test_the_bound_reaches_all_of_its_gain_and_the_base_none():
    base, bound = _three_models(np.random.default_rng(2), (0.4,))
    assert statistics.gain_share(base, bound, bound) == pytest.approx((1, 1, 1))
    assert statistics.gain_share(base, base, bound) == pytest.approx((0, 0, 0))


def test_a_gain_that_is_not_clear_has_no_shares():
    base, model, bound = _three_models(np.random.default_rng(3), (0.3, 0.01), ((20,),))
    assert statistics.gain_share(base, model, bound) is None
    assert statistics.gain_share(base, model, base) is None
    with pytest.raises(ValueError, match="other questions of 't0'"):
        statistics.gain_share(base, model, [{"t0": [1]}])
    with pytest.raises(ValueError, match="are not triples"):
        statistics.gain_share(base, model, [])
