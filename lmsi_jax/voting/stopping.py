"""When a question needs no more paths: Adaptive-Consistency (Aggarwal et al. 2023)."""

import collections
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction


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
