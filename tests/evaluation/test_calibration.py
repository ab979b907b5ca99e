"""Calibration: bins against a plain count, pass@k against all draws."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.evaluation import accuracy

votes = st.lists(st.tuples(st.integers(0, 32).map(lambda k: k / 32), st.booleans()), max_size=60)


@given(votes, st.integers(1, 12))
def test_each_vote_falls_into_the_one_bin_that_holds_it(rows, bins):
    table = accuracy.accuracy_by_confidence([c for c, _ in rows], [r for _, r in rows], bins)
    assert [b.low for b in table] + [1.0] == [0.0] + [b.high for b in table]
    for b in table:
        inside = [(c, r) for c, r in rows if b.low <= c < b.high or c == b.high == 1.0]
        assert b.n == len(inside) and b.correct == sum(r for _, r in inside)
        mean = sum(c for c, _ in inside) / len(inside) if inside else 0.0
        assert b.mean_confidence == pytest.approx(mean)
    assert sum(b.n for b in table) == len(rows)


def test_shares_fall_on_their_own_edge():
    table = accuracy.accuracy_by_confidence([k / 10 for k in range(11)], [True] * 11, 10)
    assert [b.n for b in table] == [1] * 9 + [2]


def test_calibration_error_of_known_votes():
    assert accuracy.expected_calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert accuracy.expected_calibration_error([1.0, 1.0], [False, False]) == 1.0
    assert accuracy.expected_calibration_error([0.75] * 4, [True] * 3 + [False]) == 0.0
    mixed = accuracy.expected_calibration_error([0.5, 0.9], [True, False], bins=2)
    assert mixed == pytest.approx(0.2)
    assert accuracy.expected_calibration_error([], []) == 0.0


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_path():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
            share = sum(any(draw) for draw in draws) / math.comb(n, k)
            assert accuracy.pass_at_k(n, c, k) == pytest.approx(share)


@pytest.mark.parametrize("bad", [(3, 4, 1), (3, 1, 0), (3, 1, 4), (3, -1, 1)])
def test_impossible_draws_are_refused(bad):
    with pytest.raises(ValueError, match="cannot draw"):
        accuracy.pass_at_k(*bad)


def test_bad_confidences_are_refused():
    for arguments in (([1.5], [True]), ([0.5], []), ([0.5], [True], 0), ([math.nan], [True])):
        with pytest.raises(ValueError):
            accuracy.accuracy_by_confidence(*arguments)
