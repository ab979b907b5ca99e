"""The majority vote over a question's paths (LMSI, section 3.1; Wang et al. 2022, section 2).

Pure functions of the paths as a set: the order in which they come never matters.
"""

import collections
import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

from lmsi_jax import answers
from lmsi_jax.records import Path, Question, Vote


def vote(question: Question, paths: Sequence[Path]) -> Vote:
    """Counts the paths' answers, one path one vote.

    Unparsed paths never vote and stay in the confidence's denominator. Equal counts are listed in
    `tied` and broken by the summed log-probability of their paths, then by the smaller key.

    Args:
      question: what was asked; its `gold` is not looked at.
      paths: its sampled paths, in any order.

    Returns:
      The vote; without any parsed path the winner is None and nothing is kept.

    Raises:
      ValueError: a path of another question, an index that comes twice, or a log-probability that
        is not a number.
    """
    ordered = _checked(question, paths)
    keys = tuple(answers.path_key(path.text, question.kind) for path in ordered)
    counts = collections.Counter(k for k in keys if k is not None)
    winner, tied = _winner(counts, ordered, keys)
    kept = tuple(
        p.index for p, k in zip(ordered, keys, strict=True) if k is not None and k == winner
    )
    return Vote(
        uid=question.uid,
        task=question.task,
        winner=winner,
        keys=keys,
        kept=kept,
        confidence=len(kept) / len(ordered) if ordered else 0.0,
        parsed=counts.total(),
        total=len(ordered),
        tied=tied,
        entropy=entropy(counts.values()),
    )


def entropy(counts: Iterable[int]) -> float:
    """Returns the entropy (nats) of the distribution that positive counts give; 0.0 for none."""
    counts = list(counts)
    total = sum(counts)
    return math.fsum(n / total * math.log(total / n) for n in counts)


def adaptive_stop(a: int, b: int, threshold: float = 0.95) -> bool:
    """Whether the leading answer will stay ahead with at least this probability.

    The Beta criterion of Adaptive-Consistency (Aggarwal et al. 2023, section 3): under a uniform
    prior, P(p > 1/2 | a, b) = 1 - I_0.5(a + 1, b + 1). That is P(Binomial(a + b + 1, 1/2) <= a),
    so it is computed exactly.

    Args:
      a: votes of the leading answer.
      b: votes of the second answer.
      threshold: wanted probability, in [0, 1].

    Raises:
      ValueError: negative votes.
    """
    if a < 0 or b < 0:
        raise ValueError(f"votes cannot be negative: {a}, {b}")
    tosses = a + b + 1
    heads = sum(math.comb(tosses, j) for j in range(a + 1))
    return Fraction(heads, 2**tosses) >= Fraction(threshold)


def settled(keys: Iterable[str | None], threshold: float = 0.95) -> bool:
    """Whether the two leading answers among these keys meet `adaptive_stop`.

    Args:
      keys: canonical answers of a question's first paths, in any order; None: unparsed, no vote.
      threshold: wanted probability; above 0.5, no votes at all settle nothing.
    """
    votes = sorted(collections.Counter(k for k in keys if k is not None).values(), reverse=True)
    a, b = (*votes, 0, 0)[:2]
    return adaptive_stop(a, b, threshold)


def paths_needed(keys: Sequence[str | None], threshold: float = 0.95, every: int = 4) -> int:
    """How many of a question's paths Adaptive-Consistency samples (Aggarwal et al. 2023).

    A function of the keys in index order alone: when a path ended and where it ran do not matter.

    Args:
      keys: canonical answers of the question's paths in index order; None: unparsed, no vote.
      threshold: wanted probability that the leading answer stays ahead, in (0.5, 1).
      every: the rule is looked at after this many paths, twice as many, and so on.

    Returns:
      The first multiple of `every` whose first paths are `settled`; `len(keys)` when there is none.

    Raises:
      ValueError: `every` is not positive.
    """
    if every < 1:
        raise ValueError(f"the rule cannot be looked at every {every} paths")
    looks = range(every, len(keys), every)
    return next((n for n in looks if settled(keys[:n], threshold)), len(keys))


def winner_of_first(vote: Vote, paths: Iterable[Path], count: int) -> str | None:
    """Returns the winner among a question's first `count` paths, as `vote` would find it.

    Args:
      vote: the vote over all of `paths`.
      paths: the question's paths, in any order.
      count: how many of them vote, in index order.

    Raises:
      ValueError: the vote is over another number of paths.
    """
    ordered = sorted(paths, key=lambda path: path.index)
    if len(ordered) != vote.total:
        raise ValueError(f"{vote.uid!r}: a vote over {vote.total} paths, {len(ordered)} are given")
    keys = vote.keys[:count]
    return _winner(collections.Counter(k for k in keys if k is not None), ordered[:count], keys)[0]


def _checked(question: Question, paths: Sequence[Path]) -> list[Path]:
    """The paths in the order of their indices."""
    ordered = sorted(paths, key=lambda path: path.index)
    for path in ordered:
        if path.uid != question.uid:
            raise ValueError(f"a path of question {path.uid!r} cannot vote on {question.uid!r}")
        if math.isnan(path.logprob):
            raise ValueError(f"path {path.index} of question {path.uid!r} has no log-probability")
    for path, following in itertools.pairwise(ordered):
        if path.index == following.index:
            raise ValueError(f"question {path.uid!r} has path {path.index} twice")
    return ordered


def _winner(
    counts: collections.Counter[str], paths: Sequence[Path], keys: Sequence[str | None]
) -> tuple[str | None, tuple[str, ...]]:
    """The winning key, and the keys that share its count when there are several."""
    if not counts:
        return None, ()
    most = max(counts.values())
    leaders = sorted(k for k, n in counts.items() if n == most)
    if len(leaders) == 1:
        return leaders[0], ()
    # fsum is exact before it rounds, so the order of the paths cannot move the last bit.
    mass = {
        leader: math.fsum(p.logprob for p, k in zip(paths, keys, strict=True) if k == leader)
        for leader in leaders
    }
    # max takes the first of equals, and leaders are sorted: the smaller key.
    return max(leaders, key=mass.__getitem__), tuple(leaders)
