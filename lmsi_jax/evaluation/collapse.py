"""The collapse monitor: figures of a round's paths and votes, and when they call for a look.

Label-free training fails by getting surer without getting better (TTRL, SRT): the vote's share
rises while its accuracy falls, answers and words differ less and less, pass@m falls while single
paths get better, paths get short, easy questions crowd out hard ones. Pure functions of records.

When the figures of the rounds so far call for a look, in plain words.

Records in, a round's figures out. Means are over questions unless it says otherwise.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from lmsi_jax.config.stages import CollapseMonitor
from lmsi_jax.records import Example, ExamplePair, Question, Sample, Vote
from lmsi_jax.selection.filters import relative_entropy
from lmsi_jax.voting import right_keys

EASY = 0.9
"""A question is easy where more than this share of its paths agrees with the vote."""
LONGEST = 3
"""Distinct-n is measured for n = 1 to this."""
_WORD = re.compile(r"\w+|[^\w\s]")  # a run of letters and digits, or a single other character


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledMetrics:
    """What gold answers say of questions that have one.

    Attributes:
      questions: how many.
      confidence: mean share of the paths that agree with the vote.
      majority: share of questions whose vote over all m paths is right (majority@m).
      passed: share of questions with a right path among m (pass@m).
      single: share of right paths (pass@1).
    """

    questions: int
    confidence: float
    majority: float
    passed: float
    single: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollapseMetrics:
    """One round, or one model on some questions.

    Attributes:
      questions: how many.
      paths: of all of them.
      confidence: share of the paths that agree with the vote.
      entropy: of a question's answers, over the largest possible, log m.
      distinct: distinct-n for n = 1, 2, 3 (Li et al. 2016): different n-grams of words over all,
        among the paths of one question. Comparable between equal numbers of paths.
      length: tokens of a path, mean over paths.
      unparsed: share of the paths without an answer.
      easy: share of the questions whose confidence is above `EASY`.
      distinct_kept: different texts among the paths that agree with a question's vote.
      empty: share of the questions without a parsed answer.
      kept: share of the questions with at least one training row; None where none were made yet.
      rows: the model's own training rows.
      easy_weight: share of their weight that is of easy questions.
      scored: what gold answers say; None without any.
    """

    questions: int
    paths: int
    confidence: float
    entropy: float
    distinct: tuple[float, ...]
    length: float
    unparsed: float
    easy: float
    distinct_kept: float
    empty: float
    kept: float | None
    rows: int | None
    easy_weight: float | None
    scored: LabelledMetrics | None


def measure(
    questions: Sequence[Question],
    samples: Mapping[str, Sequence[Sample]],
    votes: Sequence[Vote],
    examples: Iterable[Example | ExamplePair] | None = None,
) -> CollapseMetrics:
    """Measures a round.

    Args:
      questions: what was asked; those with `gold` are scored.
      samples: of each question, by uid.
      votes: one on each question, in their order.
      examples: what training learns of it; rows of other questions (given solutions) are not
        counted. None: nothing was made yet.
    """
    flat = [sample for vote in votes for sample in samples[vote.uid]]
    easy = {vote.uid for vote in votes if vote.confidence > EASY}
    kept, rows, easy_weight = _learnt(votes, easy, examples)
    return CollapseMetrics(
        questions=len(votes),
        paths=len(flat),
        confidence=_mean([vote.confidence for vote in votes]),
        entropy=_mean([relative_entropy(vote) for vote in votes]),
        distinct=_distinct([sample.text for sample in samples[vote.uid]] for vote in votes),
        length=_mean([sample.tokens for sample in flat]),
        unparsed=1 - sum(vote.parsed for vote in votes) / len(flat) if flat else 0.0,
        easy=len(easy) / max(1, len(votes)),
        distinct_kept=_mean([distinct_kept(vote, samples[vote.uid]) for vote in votes]),
        empty=_mean([vote.winner is None for vote in votes]),
        kept=kept,
        rows=rows,
        easy_weight=easy_weight,
        scored=_scored(questions, votes),
    )


def distinct_kept(vote: Vote, samples: Iterable[Sample]) -> int:
    """Returns how many different texts a question's kept paths have."""
    kept = set(vote.kept)
    return len({sample.text for sample in samples if sample.sample_index in kept})


def _distinct_n(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """Different n-grams over all of them, of texts in words; None where there is none."""
    grams: list[tuple[str, ...]] = []
    for words in texts:
        grams += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else None


def _distinct(questions: Iterable[Sequence[str]]) -> tuple[float, ...]:
    """Means over questions for n = 1 to `LONGEST`; questions without n-grams are left out."""
    found: list[list[float]] = [[] for _ in range(LONGEST)]
    for texts in questions:
        words = [_WORD.findall(text) for text in texts]
        for n, shares in enumerate(found, start=1):
            share = _distinct_n(words, n)
            if share is not None:
                shares.append(share)
    return tuple(map(_mean, found))


def _learnt(
    votes: Sequence[Vote], easy: set[str], examples: Iterable[Example | ExamplePair] | None
) -> tuple[float | None, int | None, float | None]:
    """(kept, rows, easy_weight) of `CollapseMetrics`."""
    if examples is None:
        return None, None, None
    asked = {vote.uid for vote in votes}
    own = [row for row in examples if row.uid in asked]
    total = math.fsum(row.weight for row in own)
    of_easy = math.fsum(row.weight for row in own if row.uid in easy)
    kept = len({row.uid for row in own}) / max(1, len(votes))
    return kept, len(own), of_easy / total if total else 0.0


def _scored(questions: Sequence[Question], votes: Sequence[Vote]) -> LabelledMetrics | None:
    both = [
        (vote, right_keys(question))
        for question, vote in zip(questions, votes, strict=True)
        if question.gold is not None
    ]
    if not both:
        return None
    right = [sum(key in gold for key in vote.keys if key is not None) for vote, gold in both]
    return LabelledMetrics(
        questions=len(both),
        confidence=_mean([vote.confidence for vote, _ in both]),
        majority=_mean([vote.winner in gold for vote, gold in both]),
        passed=_mean([count > 0 for count in right]),
        single=_mean(
            [count / max(1, vote.total) for count, (vote, _) in zip(right, both, strict=True)]
        ),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


_SURE = 2.0
"""A fall of accuracy is one from so many of its standard errors on."""


class Alarm(NamedTuple):
    """What is wrong: its name, and what a person reads."""

    name: str
    words: str


def alarms(rounds: Mapping[int, CollapseMetrics], monitor: CollapseMonitor) -> list[Alarm]:
    """Returns what is alarming about the last of the rounds.

    Args:
      rounds: comparable figures (as many paths, at the same temperature) by round; 0 is the base
        model.
      monitor: from where on.

    Returns:
      At most one alarm of each of `settings.NAMES`, in their order. Too few questions say only
      whether they have answers; a single round is compared with nothing, and judged by itself.
    """
    order = sorted(rounds)
    if not order:
        return []
    now = rounds[order[-1]]
    if now.questions < monitor.least_questions:
        words = _empty(now, monitor)
        return [Alarm("empty", words)] if words else []
    # A second round has one round before it, which is the first and the last: both limits hold.
    since = [
        _Since(which, _place(index), rounds[index])
        for which, index in enumerate((order[0], *order[-2:-1]))
        if index != order[-1]
    ]
    alone = {"saturated": _saturated, "no_diversity": _no_diversity, "empty": _empty}
    found = [Alarm(name, words) for name, of in alone.items() if (words := of(now, monitor))]
    for name, judge in _JUDGES.items():
        words = next(filter(None, (judge(now, one, monitor) for one in since)), None)
        if words is not None:
            found.append(Alarm(name, words))
    return found


class _Since(NamedTuple):
    """A round that is compared with: 0 for the first and 1 for the one before, name, figures."""

    which: int
    place: str
    then: CollapseMetrics


_Judge = Callable[[CollapseMetrics, _Since, CollapseMonitor], str | None]


def _place(index: int) -> str:
    return f"in round {index}" if index else "of the base model"


def _saturated(now: CollapseMetrics, monitor: CollapseMonitor) -> str | None:
    share, paths = monitor.saturated
    if not share or now.confidence < share or now.distinct_kept >= paths:
        return None
    return (
        f"the votes are sure (mean share {_percent(now.confidence)}) while only "
        f"{now.distinct_kept:.1f} different paths agree with a question's vote"
    )


def _no_diversity(now: CollapseMetrics, monitor: CollapseMonitor) -> str | None:
    if now.entropy >= monitor.no_diversity or now.empty == 1 or now.paths == now.questions:
        return None
    return (
        "a question's answers hardly differ any more: of the largest possible entropy there is "
        f"{now.entropy:.3f}"
    )


def _empty(now: CollapseMetrics, monitor: CollapseMonitor) -> str | None:
    if not monitor.empty or now.empty <= monitor.empty:
        return None
    return f"{_percent(now.empty)} of the questions have no parsed answer"


def _overconfident(now: CollapseMetrics, since: _Since, monitor: CollapseMonitor) -> str | None:
    a, b = since.then.scored, now.scored
    if not (a and b and monitor.confidence_rise and monitor.accuracy_fall):
        return None
    fell = _fell(a.majority, b.majority, a, b, monitor.accuracy_fall)
    if not fell or b.confidence - a.confidence < monitor.confidence_rise:
        return None
    return f"the votes got surer and less often right: {_both(b, a, since)}"


def _calibration_gap(now: CollapseMetrics, since: _Since, monitor: CollapseMonitor) -> str | None:
    a, b = since.then.scored, now.scored
    if not (a and b and monitor.calibration_gap):
        return None
    before, gap = a.confidence - a.majority, b.confidence - b.majority
    if gap < monitor.calibration_gap or gap <= before:
        return None
    return f"the votes are far surer than right: {_both(b, a, since)}"


def _both(now: LabelledMetrics, then: LabelledMetrics, since: _Since) -> str:
    """Share and accuracy, now and then."""
    return (
        f"mean share {_percent(now.confidence)}, right {_percent(now.majority)}; {since.place} "
        f"{_percent(then.confidence)} and {_percent(then.majority)}"
    )


def _pass_at_m_drop(now: CollapseMetrics, since: _Since, monitor: CollapseMonitor) -> str | None:
    a, b = since.then.scored, now.scored
    if not (a and b and monitor.pass_at_m_drop) or not _fell(
        a.passed, b.passed, a, b, monitor.pass_at_m_drop
    ):
        return None
    return (
        f"fewer questions have a right path at all: pass@m {_percent(b.passed)}, {since.place} "
        f"{_percent(a.passed)}"
    )


def _unparsed(now: CollapseMetrics, since: _Since, monitor: CollapseMonitor) -> str | None:
    before, share = since.then.unparsed, now.unparsed
    if not monitor.unparsed or share - before < monitor.unparsed:
        return None
    return f"more paths end without an answer: {_percent(share)}, {since.place} {_percent(before)}"


def _easy(now: CollapseMetrics, since: _Since, monitor: CollapseMonitor) -> str | None:
    before, share = since.then.easy_weight, now.easy_weight
    if not monitor.easy or share is None or before is None or share <= max(monitor.easy, before):
        return None
    return (
        f"easy questions (over {_percent(EASY)} of the paths agree) crowd out hard ones: they have "
        f"{_percent(share)} of the training weight, {since.place} {_percent(before)}"
    )


def _ratio(name: str, figure: Callable[[CollapseMetrics], float | None], words: str) -> _Judge:
    """Judges a figure by how many times its former value it is; "longer" looks upwards."""
    sign = -1 if name == "longer" else 1

    def judge(now: CollapseMetrics, since: _Since, monitor: CollapseMonitor) -> str | None:
        """See `_Judge`."""
        a, b, limit = figure(since.then), figure(now), getattr(monitor, name)[since.which]
        if not (a and limit) or b is None or sign * b >= sign * limit * a:
            return None
        return f"{words} {_short(b)}, {since.place} {_short(a)}"

    return judge


_JUDGES: dict[str, _Judge] = {
    "overconfident": _overconfident,
    "calibration_gap": _calibration_gap,
    "pass_at_m_drop": _pass_at_m_drop,
    "entropy": _ratio(
        "entropy",
        lambda one: one.entropy,
        "a question's answers differ far less: of the largest possible entropy there is",
    ),
    "distinct": _ratio(
        "distinct",
        lambda one: one.distinct[1],
        "a question's paths use the same words again and again: distinct-2 is",
    ),
    "shorter": _ratio("shorter", lambda one: one.length, "the paths got short: tokens a path"),
    "longer": _ratio("longer", lambda one: one.length, "the paths got long: tokens a path"),
    "unparsed": _unparsed,
    "easy": _easy,
    "kept": _ratio(
        "kept",
        lambda one: one.kept,
        "far fewer questions give training rows: a share of",
    ),
}


def _fell(
    before: float, after: float, a: LabelledMetrics, b: LabelledMetrics, least: float
) -> bool:
    """Whether a share of questions fell by `least`, and by more than chance would let it."""
    return before - after >= max(least, _SURE * math.hypot(_error(before, a), _error(after, b)))


def _error(share: float, of: LabelledMetrics) -> float:
    """Standard error of a share; a half is added to both sides, so that 0 and 1 have one too."""
    n = of.questions + 1
    smooth = (share * of.questions + 0.5) / n
    return math.sqrt(smooth * (1 - smooth) / n)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _short(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
