"""Accuracy over the number of paths: the vote's (majority@k) and the best path's (pass@k).

Both are unbiased estimates of what k paths give, from one set of m >= k paths a question: means
over subsets of k paths, drawn without replacement.
"""

import dataclasses
import math
from collections.abc import Sequence, Set
from itertools import combinations

import numpy as np

from lmsi_jax.evaluation.calibration import pass_at_k
from lmsi_jax.evaluation.statistics import bootstrap
from lmsi_jax.records import Path, Vote

MOST_SUBSETS = 600
"""Up to this many subsets all are looked at (k = 1, 2, m - 1 and m of 32 paths)."""
DRAWS = 400
"""Random subsets where there are more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One k of a curve; intervals are bootstraps over questions, at 95 %.

    `majority_error` is the standard error that the random subsets leave in `majority`; 0 where all
    subsets were looked at.
    """

    k: int
    majority: float
    majority_low: float
    majority_high: float
    majority_error: float
    passed: float
    passed_low: float
    passed_high: float


def curve(
    paths: Sequence[Sequence[Path]],
    votes: Sequence[Vote],
    right: Sequence[Set[str]],
    *,
    ks: Sequence[int] | None = None,
    seed: int = 0,
) -> list[Point]:
    """Returns majority@k and pass@k over questions.

    Args:
      paths: each question's paths, in any order.
      votes: on these, in the same order.
      right: the keys that count as right for each question.
      ks: which k; None: 1, 2, 4, ... and m. k above the fewest paths of a question are left out.
      seed: of the random subsets and of the bootstrap.

    Raises:
      ValueError: a vote is over another number of paths.
    """
    fewest = min((vote.total for vote in votes), default=0)
    wanted = _powers(fewest) if ks is None else [k for k in ks if 1 <= k <= fewest]
    rows = list(zip(paths, votes, right, strict=True))
    return [_point(k, rows, seed) for k in wanted]


def majority_at_k(
    vote: Vote, paths: Sequence[Path], right: Set[str], k: int, seed: int = 0
) -> tuple[float, float]:
    """Returns the chance that the vote on k of a question's paths is right, and its variance.

    The vote's own rule decides, weights and ties included; a subset without a parsed path is wrong.

    Args:
      vote: on all of `paths`.
      paths: the question's paths, in any order.
      right: the keys that count as right.
      k: paths of a subset, 1 to m.
      seed: of the random subsets where there are more than `MOST_SUBSETS`.

    Returns:
      The share of subsets with the right winner, and the variance of this estimate: 0.0 where all
      subsets were looked at.

    Raises:
      ValueError: not 1 <= k <= m, or the vote is over another number of paths.
    """
    m = vote.total
    if len(paths) != m or not 1 <= k <= m:
        raise ValueError(f"{vote.uid!r}: cannot draw {k} of {len(paths)} paths, {m} voted")
    if right.isdisjoint(vote.keys):
        return 0.0, 0.0
    if k == m:
        return float(vote.winner in right), 0.0
    exact = math.comb(m, k) <= MOST_SUBSETS
    members = _all_subsets(m, k) if exact else _random_subsets(m, k, seed)
    share = float(np.mean(_wins(members, vote, paths, right)))
    return share, 0.0 if exact else share * (1 - share) / DRAWS


def _wins(members: np.ndarray, vote: Vote, paths: Sequence[Path], right: Set[str]) -> np.ndarray:
    """Whether the vote on each subset is right. members_SxM: 1.0 where a path is in a subset."""
    keys = sorted({key for key in vote.keys if key is not None})
    own = np.array([[float(key == k) for k in keys] for key in vote.keys])  # m paths, a answers
    weights = np.ones(vote.total) if vote.weights is None else np.array(vote.weights)
    ordered = sorted(paths, key=lambda path: path.index)
    logprobs = np.array([path.logprob for path in ordered])
    # Rounded, so that sums which are equal but for the order of their terms tie, as `fsum` does.
    votes = np.round(members @ (own * weights[:, None]), 12)
    mass = np.round(members @ (own * logprobs[:, None]), 9)
    there = members @ own > 0
    votes = np.where(there, votes, -np.inf)
    leads = votes == votes.max(axis=1, keepdims=True)
    # argmax takes the first of equals: the smaller key.
    winner = np.argmax(np.where(leads & there, mass, -np.inf), axis=1)
    return there.any(axis=1) & np.array([key in right for key in keys])[winner]


def _all_subsets(m: int, k: int) -> np.ndarray:
    rows = list(combinations(range(m), k))
    members = np.zeros((len(rows), m))
    members[np.arange(len(rows))[:, None], rows] = 1.0
    return members


def _random_subsets(m: int, k: int, seed: int) -> np.ndarray:
    """The first k of random orders, so that the subsets of rising k grow by one path each."""
    ranks = np.random.default_rng(seed).random((DRAWS, m)).argsort(axis=1).argsort(axis=1)
    return (ranks < k).astype(float)


def _powers(m: int) -> list[int]:
    return sorted({2**i for i in range(m.bit_length()) if 2**i <= m} | ({m} if m else set()))


_Row = tuple[Sequence[Path], Vote, Set[str]]


def _point(k: int, rows: Sequence[_Row], seed: int) -> Point:
    shares, variance, passed = [], 0.0, []
    for i, (paths, vote, right) in enumerate(rows):
        share, own = majority_at_k(vote, paths, right, k, seed + i)
        shares.append(share)
        variance += own
        among = sum(key in right for key in vote.keys)
        passed.append(pass_at_k(vote.total, among, k))
    n = len(rows)
    low, high = bootstrap(shares, seed)
    passed_low, passed_high = bootstrap(passed, seed)
    return Point(
        k=k,
        majority=math.fsum(shares) / n,
        majority_low=low,
        majority_high=high,
        majority_error=math.sqrt(variance) / n,
        passed=math.fsum(passed) / n,
        passed_low=passed_low,
        passed_high=passed_high,
    )
