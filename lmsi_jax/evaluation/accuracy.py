"""Scores paths against gold answers. PURE: records in, numbers out.

How often a vote is right, given how sure it is (LMSI, figure 2).

Accuracy over the number of paths: the vote's (majority@k) and the best path's (pass@k).

Both are unbiased estimates of what k paths give, from one set of m >= k paths a question: means
over subsets of k paths, drawn without replacement.

What adaptive consistency would have done to paths that were all sampled. PURE: records in, numbers
out.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence, Set
from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

import numpy as np

from lmsi_jax import voting
from lmsi_jax.config.stages import Voting
from lmsi_jax.evaluation.statistics import bootstrap
from lmsi_jax.records import Question, Sample, Vote
from lmsi_jax.voting import EQUAL, right_keys


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
    samples: Sequence[Sequence[Sample]],
    votes: Sequence[Vote],
    right: Sequence[Set[str]],
    *,
    ks: Sequence[int] | None = None,
    seed: int = 0,
) -> list[Point]:
    """Returns majority@k and pass@k over questions.

    Args:
      samples: each question's paths, in any order.
      votes: on these, in the same order.
      right: the keys that count as right for each question.
      ks: which k; None: 1, 2, 4, ... and m. k above the fewest paths of a question are left out.
      seed: of the random subsets and of the bootstrap.

    Raises:
      ValueError: a vote is over another number of paths.
    """
    fewest = min((vote.total for vote in votes), default=0)
    wanted = _powers(fewest) if ks is None else [k for k in ks if 1 <= k <= fewest]
    rows = list(zip(samples, votes, right, strict=True))
    return [_point(k, rows, seed) for k in wanted]


def majority_at_k(
    vote: Vote, samples: Sequence[Sample], right: Set[str], k: int, seed: int = 0
) -> tuple[float, float]:
    """Returns the chance that the vote on k of a question's paths is right, and its variance.

    The vote's own rule decides, weights and ties included; a subset without a parsed path is wrong.

    Args:
      vote: on all of `samples`.
      samples: the question's paths, in any order.
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
    if len(samples) != m or not 1 <= k <= m:
        raise ValueError(f"{vote.uid!r}: cannot draw {k} of {len(samples)} paths, {m} voted")
    if right.isdisjoint(vote.keys):
        return 0.0, 0.0
    if k == m:
        return float(vote.winner in right), 0.0
    exact = math.comb(m, k) <= MOST_SUBSETS
    members = _all_subsets(m, k) if exact else _random_subsets(m, k, seed)
    share = float(np.mean(_wins(members, vote, samples, right)))
    return share, 0.0 if exact else share * (1 - share) / DRAWS


def _wins(
    members: np.ndarray, vote: Vote, samples: Sequence[Sample], right: Set[str]
) -> np.ndarray:
    """Whether the vote on each subset is right. members_SxM: 1.0 where a path is in a subset."""
    keys = sorted({key for key in vote.keys if key is not None})
    own = np.array([[float(key == k) for k in keys] for key in vote.keys])  # m paths, a answers
    weights = np.ones(vote.total) if vote.weights is None else np.array(vote.weights)
    ordered = sorted(samples, key=lambda sample: sample.sample_index)
    logprobs = np.array([sample.logprob for sample in ordered])
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
    scores = np.random.default_rng(seed).random((DRAWS, m)).argsort(axis=1).argsort(axis=1)
    return (scores < k).astype(float)


def _powers(m: int) -> list[int]:
    return sorted({2**i for i in range(m.bit_length()) if 2**i <= m} | ({m} if m else set()))


_Row = tuple[Sequence[Sample], Vote, Set[str]]


def _point(k: int, rows: Sequence[_Row], seed: int) -> Point:
    shares, variance, passed = [], 0.0, []
    for i, (samples, vote, right) in enumerate(rows):
        share, own = majority_at_k(vote, samples, right, k, seed + i)
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


Scores = Callable[[Question, Sequence[Sample]], list[float] | None]
"""A scorer's score of each of a question's paths."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One task under one prompt style.

    Attributes:
      task: its name.
      prompt_style: "standard", "cot", "zero_shot_cot" (one path) or "self_consistency" (the vote).
      temperature: of the paths.
      paths: per question.
      correct: 1 or 0 per question, in question order.
      confidence: of the vote, per question; () for one path.
      parsed: share of paths with a parsed answer.
      tied: questions whose vote was tied.
      single: accuracy of one path, averaged over all paths.
      mean_tokens: tokens per path.
      curve: majority@k and pass@k of self-consistency, for k = 1, 2, 4, ... and all paths.
    """

    task: str
    prompt_style: str
    temperature: float
    paths: int
    correct: tuple[int, ...]
    confidence: tuple[float, ...]
    parsed: float
    tied: int
    single: float
    mean_tokens: float
    curve: tuple[Point, ...] = ()


def score(
    questions: Sequence[Question],
    samples: Mapping[str, Sequence[Sample]],
    prompt_style: str,
    temperature: float,
    weights: Voting = EQUAL,
    scores: Scores | None = None,
) -> TaskScore:
    """Votes on each question's paths (one path is its own vote) and compares with the gold answer.

    A question without a parsed answer counts as wrong.

    Args:
      questions: of one task, with gold answers.
      samples: of each question, by uid.
      prompt_style: how they were asked.
      temperature: at which they were answered.
      weights: how much a path's vote counts.
      scores: what the scorer of `weights` says of a question's paths, where it has one.
    """
    several = prompt_style == "self_consistency"
    ordered = [samples[question.uid] for question in questions]
    votes = [
        voting.cast(question, own, weights, scores(question, own) if scores else None)
        for question, own in zip(questions, ordered, strict=True)
    ]
    gold = [right_keys(question) for question in questions]
    right = [vote.winner in g for vote, g in zip(votes, gold, strict=True)]
    total = max(1, sum(vote.total for vote in votes))
    agree = sum(key in g for vote, g in zip(votes, gold, strict=True) for key in vote.keys)
    tokens = sum(sample.tokens for own in ordered for sample in own)
    return TaskScore(
        task=questions[0].task,
        prompt_style=prompt_style,
        temperature=temperature,
        paths=max(vote.total for vote in votes),
        correct=tuple(map(int, right)),
        confidence=tuple(round(vote.confidence, 6) for vote in votes) if several else (),
        parsed=sum(vote.parsed for vote in votes) / total,
        tied=sum(bool(vote.tied) for vote in votes),
        single=agree / total,
        mean_tokens=tokens / total,
        curve=tuple(curve(ordered, votes, gold)) if several else (),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """The rule on one set of questions; every tuple is in their order.

    Attributes:
      taken: paths that the rule takes of each question.
      same: 1 where the vote on these has the winner of the vote on all paths, else 0.
      correct: 1 where the vote on all paths is right, else 0; () without gold answers.
      correct_stopped: the same for the vote on the paths that the rule takes.
    """

    taken: tuple[int, ...]
    same: tuple[int, ...]
    correct: tuple[int, ...]
    correct_stopped: tuple[int, ...]


def replay(
    questions: Sequence[Question],
    votes: Sequence[Vote],
    samples: Mapping[str, Sequence[Sample]],
    threshold: float,
    every: int,
) -> Replay:
    """Applies `voting.samples_needed` to votes on all paths, and votes again on what it takes.

    A vote without a winner is wrong, and the same as another without one.

    Args:
      questions: with gold answers, or at least one without (then nothing is judged).
      votes: on all paths of each question, in the same order.
      samples: by question uid.
      threshold: wanted probability that the leading answer stays ahead, in (0.5, 1).
      every: how many paths lie between two looks.

    Raises:
      ValueError: as many votes as questions are needed, or a vote is not over its question's paths.
    """
    taken = [voting.samples_needed(vote.keys, threshold, every) for vote in votes]
    winners = [
        voting.winner_of_first(vote, samples[question.uid], count)
        for question, vote, count in zip(questions, votes, taken, strict=True)
    ]
    return Replay(
        taken=tuple(taken),
        same=tuple(int(w == vote.winner) for w, vote in zip(winners, votes, strict=True)),
        correct=_right(questions, [vote.winner for vote in votes]),
        correct_stopped=_right(questions, winners),
    )


def _right(questions: Sequence[Question], winners: Sequence[str | None]) -> tuple[int, ...]:
    if any(question.gold is None for question in questions):
        return ()
    gold = [voting.right_keys(question) for question in questions]
    return tuple(int(w in g) for w, g in zip(winners, gold, strict=True))
