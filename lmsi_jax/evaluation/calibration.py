"""How often a vote is right, given how sure it is (LMSI, figure 2)."""

import bisect
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple


class Bin(NamedTuple):
    """The votes with a confidence in [low, high); the last bin holds 1.0 too."""

    low: float
    high: float
    n: int
    correct: int
    mean_confidence: float
    """0.0 when the bin is empty."""


def accuracy_by_confidence(
    confidences: Sequence[float], correct: Sequence[bool], bins: int = 5
) -> list[Bin]:
    """Sorts votes into equally wide bins of confidence.

    Args:
      confidences: of each vote, in [0, 1].
      correct: whether each vote is right, in the same order.
      bins: how many bins.

    Returns:
      All bins in rising order, empty ones too.

    Raises:
      ValueError: unequal lengths, a confidence outside [0, 1], or no bins.
    """
    if len(confidences) != len(correct):
        raise ValueError(f"{len(confidences)} confidences for {len(correct)} votes")
    if bins < 1:
        raise ValueError(f"{bins} bins; use 1 or more")
    if bad := [c for c in confidences if not 0 <= c <= 1]:
        raise ValueError(f"confidence {bad[0]} is outside [0, 1]")
    edges = [i / bins for i in range(bins + 1)]
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for confidence, right in zip(confidences, correct, strict=True):
        # The same edges that are reported, so 0.6 never falls below 3/5 by rounding.
        members[bisect.bisect_right(edges, confidence, 1, bins) - 1].append((confidence, right))
    return [
        Bin(low, high, len(votes), sum(bool(right) for _, right in votes), _mean(votes))
        for low, high, votes in zip(edges[:-1], edges[1:], members, strict=True)
    ]


def expected_calibration_error(
    confidences: Sequence[float], correct: Sequence[bool], bins: int = 5
) -> float:
    """Returns the mean distance of accuracy from confidence over bins, weighted by their sizes.

    Naeini et al. 2015; 0.0 without votes. Arguments and errors as in `accuracy_by_confidence`.
    """
    table = accuracy_by_confidence(confidences, correct, bins)
    total = len(confidences) or 1
    return math.fsum(abs(b.correct - b.n * b.mean_confidence) for b in table) / total


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns the chance that k of n paths, drawn without replacement, hold one of c right ones.

    The unbiased estimate of Chen et al. 2021 ("Evaluating Large Language Models Trained on Code"),
    computed exactly.

    Raises:
      ValueError: not 0 <= c <= n, or not 1 <= k <= n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"cannot draw {k} of {n} paths with {c} right ones")
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def _mean(votes: Sequence[tuple[float, bool]]) -> float:
    return math.fsum(confidence for confidence, _ in votes) / len(votes) if votes else 0.0
