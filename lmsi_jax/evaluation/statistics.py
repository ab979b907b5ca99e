"""Intervals and paired tests for accuracies. Accuracies are shares in [0, 1]."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

Z_95 = 1.959963984540054


class Difference(NamedTuple):
    """After minus before, with the ends of its interval."""

    difference: float
    low: float
    high: float


def wilson(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the score interval of a share (Wilson 1927); (0, 1) without trials.

    Args:
      correct: successes, 0 <= correct <= n.
      n: trials.
      z: normal quantile, 1.96 for 95 %.

    Raises:
      ValueError: not 0 <= correct <= n.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} is not a share")
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == n else (centre + half) / scale
    return low, high


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Returns the exact two-sided p-value that before and after are equally often right.

    McNemar 1947, with the binomial distribution of the questions that changed instead of its normal
    approximation. 1.0 when none changed.

    Args:
      before, after: True for each question that was right, in the same order.

    Raises:
      ValueError: unequal lengths.
    """
    _, gained, lost, _ = _table(before, after)
    changed = gained + lost
    tail = sum(math.comb(changed, i) for i in range(min(gained, lost) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**changed)))


def paired_difference(before: Sequence[bool], after: Sequence[bool], z: float = Z_95) -> Difference:
    """Returns the gain in accuracy on the same questions, with its interval.

    Newcombe 1998 ("Improved confidence intervals for the difference between binomial proportions
    based on paired data", Statistics in Medicine 17), method 10: two Wilson intervals, squared and
    added, with the correlation of the pairs.

    Args:
      before, after: True for each question that was right, in the same order.
      z: normal quantile, 95 % by default.

    Raises:
      ValueError: unequal lengths, or no questions.
    """
    both, gained, lost, neither = _table(before, after)
    n = both + gained + lost + neither
    if n == 0:
        raise ValueError("no questions to compare")
    new, old = (both + gained) / n, (both + lost) / n
    new_low, new_high = wilson(both + gained, n, z)
    old_low, old_high = wilson(both + lost, n, z)
    phi = _correlation(both, gained, lost, neither)
    difference = (gained - lost) / n
    below = _distance(new - new_low, old_high - old, phi)
    above = _distance(old - old_low, new_high - new, phi)
    return Difference(difference, max(-1.0, difference - below), min(1.0, difference + above))


def macro_difference(differences: Sequence[Difference]) -> Difference:
    """Returns the mean gain over independent tasks, each task counting alike.

    The distances to the interval's ends are squared and added (Zou and Donner 2008, "Construction
    of confidence limits about effect measures", Statistics in Medicine 27).

    Raises:
      ValueError: no tasks.
    """
    if not differences:
        raise ValueError("no tasks to average over")
    n = len(differences)
    mean = math.fsum(d.difference for d in differences) / n
    below = math.hypot(*(d.difference - d.low for d in differences)) / n
    above = math.hypot(*(d.high - d.difference for d in differences)) / n
    return Difference(mean, mean - below, mean + above)


def macro_variance(tasks: Sequence[Sequence[float]]) -> float:
    """Returns the variance of a mean over tasks of means over questions, each task counting alike.

    Args:
      tasks: for each task one value per question, such as after minus before; at least one task.

    Raises:
      ValueError: a task without questions.
    """
    variances = []
    for values in tasks:
        n = len(values)
        if n == 0:
            raise ValueError("a task without questions")
        mean = math.fsum(values) / n
        variances.append(math.fsum((value - mean) ** 2 for value in values) / (max(n - 1, 1) * n))
    return math.fsum(variances) / len(variances) ** 2


def over_seeds(values: Sequence[float], variances: Sequence[float]) -> Difference:
    """Returns the mean of several seeds' values with its 95 % interval.

    Every seed draws its own questions, noise and training order, so the variance of the seeds'
    values includes that of questions and of seeds. A few seeds may be close together by luck: their
    variance is never taken for less than what their questions alone cause. This is the estimate of
    two variance components by moments, with the seeds' component kept from falling below 0 (Searle,
    Casella and McCulloch 1992, section 3.5), and Student's t:

        mean +- t(0.975, S - 1) sqrt(max(s^2, mean of `variances`) / S)

    For a single seed the variance is that of its questions, with the normal quantile.

    Args:
      values: one for each seed.
      variances: of each value because of its questions, see `macro_variance`.

    Raises:
      ValueError: no seeds, or unequal lengths.
    """
    n = len(values)
    if n == 0 or n != len(variances):
        raise ValueError(f"{n} values of seeds and {len(variances)} variances")
    mean, within = math.fsum(values) / n, math.fsum(variances) / n
    if n == 1:
        half = Z_95 * math.sqrt(within)
    else:
        from scipy.special import stdtrit

        spread = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
        half = float(stdtrit(n - 1, 0.975)) * math.sqrt(max(spread, within) / n)
    return Difference(mean, mean - half, mean + half)


def bootstrap(
    values: Sequence[float], seed: int, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a mean (Efron 1979); (0, 1) without values.

    Args:
      values: one for each question, in [0, 1].
      seed: of the resamples; the same values and seed give the same interval.
      level: covered share.
      resamples: number of resamples.
    """
    if not values:
        return 0.0, 1.0
    import numpy as np

    array = np.asarray(values, float)
    drawn = np.random.default_rng(seed).integers(0, len(array), (resamples, len(array)))
    tail = (1 - level) / 2
    low, high = np.quantile(array[drawn].mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)


class GainShare(NamedTuple):
    """The share of a bound's gain that a model reaches, with its 95 % interval."""

    share: float
    low: float
    high: float


Outcomes = Mapping[str, Sequence[int]]
"""By task: 1 or 0 for each question."""


def gain_share(
    before: Sequence[Outcomes],
    after: Sequence[Outcomes],
    bound: Sequence[Outcomes],
    seed: int = 0,
    resamples: int = 2000,
) -> GainShare | None:
    """Returns (after - before) / (bound - before), means over tasks and then over seeds.

    The interval is a paired percentile bootstrap: each resample draws questions with replacement
    within each task and seed, the same for all three models. The variance of seeds beside that of
    their questions is not in it.

    Args:
      before, after, bound: for each seed, the outcomes of three models on the same questions.
      seed: of the resamples.
      resamples: number of resamples.

    Returns:
      None if the bound's gain is not clearly above 0: its 2.5 % quantile is not. The quotient would
      have no bounded interval.

    Raises:
      ValueError: no seeds, or other tasks or questions in one of the models.
    """
    if not before or not len(before) == len(after) == len(bound):
        raise ValueError(f"{len(before)}, {len(after)} and {len(bound)} seeds are not triples")
    import numpy as np

    draw = np.random.default_rng(seed)
    gains = np.zeros((2, resamples))  # of `after` and of `bound`, in each resample
    means = np.zeros(2)
    for triple in zip(before, after, bound, strict=True):
        tasks = triple[0].keys()
        if any(one.keys() != tasks for one in triple):
            raise ValueError("the models were measured on other tasks")
        for task in tasks:
            base, *others = (np.asarray(one[task], float) for one in triple)
            if not len(base) or any(len(one) != len(base) for one in others):
                raise ValueError(f"the models were measured on other questions of {task!r}")
            drawn = draw.integers(0, len(base), (resamples, len(base)))
            for i, one in enumerate(others):
                means[i] += (one - base).mean() / (len(tasks) * len(before))
                gains[i] += (one - base)[drawn].mean(axis=1) / (len(tasks) * len(before))
    if means[1] <= 0 or np.quantile(gains[1], 0.025) <= 0:
        return None
    quotients = gains[0] / np.maximum(gains[1], 1e-12)
    low, high = np.quantile(quotients, (0.025, 0.975))
    return GainShare(float(means[0] / means[1]), float(low), float(high))


def _table(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int, int, int]:
    """Counts the questions that were right both times, only after, only before, and never."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} questions before and {len(after)} after are not pairs")
    pairs = [(bool(old), bool(new)) for old, new in zip(before, after, strict=True)]
    return (
        pairs.count((True, True)),
        pairs.count((False, True)),
        pairs.count((True, False)),
        pairs.count((False, False)),
    )


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    """Newcombe's phi, with his continuity correction towards 0 if it is positive."""
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins == 0:
        return 0.0
    product = float(both * neither - gained * lost)
    if product > 0:
        product = max(0.0, product - (both + gained + lost + neither) / 2)
    return product / math.sqrt(margins)


def _distance(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))
