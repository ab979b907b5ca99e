"""Compare two models question by question. PURE: sequences in, numbers out.

describe               flips, gains by difficulty and by vote share, lengths, form of the answers
calibration_interval   the interval of the expected calibration error
position_counts        how often each place among the options was named

Questions of several tasks are pooled, each counting alike. Intervals are at 95 %.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lmsi_jax import answers
from lmsi_jax.evaluation.statistics import Z_95, macro_variance, paired_difference, wilson
from lmsi_jax.records import Question, Vote


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """A model's answers to one task's questions in one prompt style, in question order.

    Attributes:
      correct: 1 or 0.
      tokens: of a sample, mean over the question's samples; () if that is not known, as below.
      parsed: share of the samples with an answer.
      marked: share of the samples that mark their answer, as in "The answer is 7."
      finished: share of the samples that no token limit cut.
    """

    correct: Sequence[int]
    tokens: Sequence[float] = ()
    parsed: Sequence[float] = ()
    marked: Sequence[float] = ()
    finished: Sequence[float] = ()


class BaseVotes(NamedTuple):
    """The base model's votes on the first questions of a task.

    Attributes:
      right: share of each question's samples that are right.
      confidence: share that agree with the vote.
    """

    right: Sequence[float]
    confidence: Sequence[float]


class Rate(NamedTuple):
    """A share of questions with its Wilson interval."""

    flipped: int
    total: int
    low: float
    high: float


class Drift(NamedTuple):
    """Means before and after, and the paired mean difference with its interval."""

    before: float
    after: float
    difference: float
    low: float
    high: float


class Slice(NamedTuple):
    """The questions of one bin: accuracy before and after, and the paired gain (Newcombe)."""

    name: str
    questions: int
    before: float
    after: float
    difference: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """The comparison of two models on the same questions.

    Attributes:
      questions: how many.
      gained: of the questions that were wrong, those that became right.
      lost: of those that were right, those that became wrong.
      by_difficulty: by the share of the base's samples that are right; () without votes of the
        base.
      by_share: by the share of the base's vote.
      tokens, parsed, marked, finished: as of `Answered`; None if that is not known.
    """

    questions: int
    gained: Rate
    lost: Rate
    by_difficulty: tuple[Slice, ...] = ()
    by_share: tuple[Slice, ...] = ()
    tokens: Drift | None = None
    parsed: Drift | None = None
    marked: Drift | None = None
    finished: Drift | None = None


_DIFFICULTIES = ("never right", "up to 1/3", "up to 2/3", "below 1", "always right")
_SHARES = ("below 20 %", "20 to 40 %", "40 to 60 %", "60 to 80 %", "80 % and more")


def describe(
    pairs: Sequence[tuple[Answered, Answered]], votes: Sequence[BaseVotes | None] = ()
) -> Changes:
    """Returns what changed.

    Args:
      pairs: for each task the answers before and after, to the same questions.
      votes: for each task the base's votes; () or None without any. Questions are sliced by them:
        if the answers before are those votes themselves, the slices regress to the mean.

    Raises:
      ValueError: no questions, or others after than before.
    """
    before = [value for one, _ in pairs for value in one.correct]
    after = [value for _, one in pairs for value in one.correct]
    if not before or any(len(a.correct) != len(b.correct) for a, b in pairs):
        raise ValueError("the models were not asked the same questions")
    flipped = list(zip(before, after, strict=True))
    sliced = [
        (right, share, old, new)
        for (a, b), known in zip(pairs, votes or [None] * len(pairs), strict=True)
        if known is not None
        for right, share, old, new in zip(
            known.right, known.confidence, a.correct, b.correct, strict=False
        )
    ]
    return Changes(
        questions=len(before),
        gained=_rate([new for old, new in flipped if not old]),
        lost=_rate([1 - new for old, new in flipped if old]),
        by_difficulty=_slices(_DIFFICULTIES, [(_difficulty(r), o, n) for r, _, o, n in sliced]),
        by_share=_slices(_SHARES, [(min(4, int(5 * s + 1e-9)), o, n) for _, s, o, n in sliced]),
        **{
            name: _drift([(getattr(a, name), getattr(b, name)) for a, b in pairs])
            for name in ("tokens", "parsed", "marked", "finished")
        },
    )


def _rate(outcomes: Sequence[int]) -> Rate:
    count, total = sum(outcomes), len(outcomes)
    return Rate(count, total, *wilson(count, total, Z_95))


def _difficulty(right: float) -> int:
    """Returns the place in `_DIFFICULTIES` of a share of right samples."""
    if right <= 0:
        return 0
    return 4 if right >= 1 else min(3, math.ceil(3 * right - 1e-9))


def _slices(names: Sequence[str], members: Iterable[tuple[int, int, int]]) -> tuple[Slice, ...]:
    """Returns the bins that have questions, of (bin, right before, right after)."""
    by_bin: dict[int, list[tuple[bool, bool]]] = {}
    for place, old, new in members:
        by_bin.setdefault(place, []).append((bool(old), bool(new)))
    slices = []
    for place, outcomes in sorted(by_bin.items()):
        before, after = ([outcome[i] for outcome in outcomes] for i in (0, 1))
        n = len(outcomes)
        gain = paired_difference(before, after)
        slices.append(Slice(names[place], n, sum(before) / n, sum(after) / n, *gain))
    return tuple(slices)


def _drift(tasks: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Drift | None:
    """Returns the paired drift over all questions; None if a task lacks the values."""
    if any(not a or len(a) != len(b) for a, b in tasks):
        return None
    before = [value for a, _ in tasks for value in a]
    after = [value for _, b in tasks for value in b]
    n = len(before)
    differences = [new - old for old, new in zip(before, after, strict=True)]
    mean = math.fsum(differences) / n
    half = Z_95 * math.sqrt(macro_variance([differences]))
    return Drift(math.fsum(before) / n, math.fsum(after) / n, mean, mean - half, mean + half)


def calibration_interval(
    confidences: Sequence[float],
    correct: Sequence[bool],
    bins: int = 5,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the expected calibration error, over questions.

    Resampling adds noise to each bin, so the interval leans upward where bins are small. Bins as of
    `accuracy.expected_calibration_error`; (0, 1) without votes.
    """
    if not confidences:
        return 0.0, 1.0
    import numpy as np

    sure = np.asarray(confidences, float)
    edges = [i / bins for i in range(bins + 1)]
    place = np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, bins - 1)
    gaps = np.zeros((len(sure), bins))
    gaps[np.arange(len(sure)), place] = np.asarray(correct, float) - sure
    drawn = np.random.default_rng(seed).integers(0, len(sure), (resamples, len(sure)))
    counts = np.stack([np.bincount(row, minlength=len(sure)) for row in drawn])
    errors = np.abs(counts @ gaps).sum(axis=1) / len(sure)
    low, high = np.quantile(errors, (0.025, 0.975))
    return float(low), float(high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Positions:
    """Counts of the places among the options that samples named, (a) first.

    Attributes:
      shown: by the place at which the option was shown to the sample.
      own: by its place in the question's own order; the same without rotated options.
      right: questions whose right option has that place; () without labels.
    """

    shown: tuple[int, ...]
    own: tuple[int, ...]
    right: tuple[int, ...] = ()


def position_counts(
    questions: Sequence[Question],
    votes: Sequence[Vote],
    indices: Sequence[Sequence[int]],
    rotated: bool,
) -> Positions | None:
    """Returns the counts over questions with options; None if there are none.

    Args:
      questions: of one task.
      votes: on each.
      indices: of each question's samples, rising.
      rotated: see `Voting.rotate_options`.
    """
    shown: dict[int, int] = {}
    own: dict[int, int] = {}
    right: dict[int, int] = {}
    places = 0
    for question, vote, numbers in zip(questions, votes, indices, strict=True):
        options = answers.options_of(question)
        places = max(places, len(options))
        count = answers.rotations(question) if rotated else 1
        letters = {"abcdefghijklmnopqrstuvwxyz"[i]: i for i in range(len(options))}
        for number, key in zip(numbers, vote.keys, strict=True):
            if key in letters:
                place = letters[key]
                own[place] = own.get(place, 0) + 1
                at = (place - number) % count if count > 1 else place
                shown[at] = shown.get(at, 0) + 1
        gold = answers.key(question.gold or "", question.kind, options) if options else None
        if gold in letters:
            right[letters[gold]] = right.get(letters[gold], 0) + 1
    if not places:
        return None
    return Positions(
        shown=tuple(shown.get(i, 0) for i in range(places)),
        own=tuple(own.get(i, 0) for i in range(places)),
        right=tuple(right.get(i, 0) for i in range(places)) if right else (),
    )
