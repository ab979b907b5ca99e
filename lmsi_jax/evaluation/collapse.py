"""The collapse monitor: metrics of a round's samples and votes, and alarms about them. PURE.

Label-free training fails by gaining confidence without getting better (TTRL, SRT): the vote's share
rises while its accuracy falls, answers and words differ less and less, pass@m falls while single
samples get better, samples get short, easy questions crowd out hard ones. `measure` turns a round's
records into metrics; `alarms` compares the metrics of the rounds so far with the limits of
`CollapseMonitor`. Means are over questions unless a name says otherwise.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from lmsi_jax.config import CollapseMonitor
from lmsi_jax.records import Example, ExamplePair, Question, Sample, Vote
from lmsi_jax.selection.filters import relative_entropy
from lmsi_jax.voting import right_keys

EASY = 0.9
"""A question is easy if more than this share of its samples agrees with the vote."""
LONGEST = 3
"""Distinct-n is measured for n = 1 to this."""
_WORD = re.compile(r"\w+|[^\w\s]")  # a run of letters and digits, or a single other character
_STANDARD_ERRORS = 2.0
"""A fall of accuracy counts from this many of its standard errors on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledMetrics:
    """Metrics of the questions that have a gold answer.

    Attributes:
      questions: how many.
      confidence: mean share of the samples that agree with the vote.
      majority: share of questions whose vote over all m samples is right (majority@m).
      passed: share of questions with a right sample among m (pass@m).
      single: share of right samples (pass@1).
    """

    questions: int
    confidence: float
    majority: float
    passed: float
    single: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollapseMetrics:
    """Metrics of one round, or of one model on some questions.

    Attributes:
      questions: how many.
      samples: samples of all of them.
      confidence: share of the samples that agree with the vote.
      entropy: of a question's answers, over the largest possible, log m.
      distinct: distinct-n for n = 1, 2, 3 (Li et al. 2016): different n-grams of words over all,
        among the samples of one question. Comparable between equal numbers of samples.
      length: tokens of a sample, mean over samples.
      unparsed: share of the samples without an answer.
      easy: share of the questions whose confidence is above `EASY`.
      distinct_kept: different texts among the samples that agree with a question's vote.
      empty: share of the questions without a parsed answer.
      kept: share of the questions with at least one training row; None before rows are made.
      rows: self-generated training rows; None before they are made.
      easy_weight: share of their weight on easy questions; None before they are made.
      scored: metrics by gold answers; None without any.
    """

    questions: int
    samples: int
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
      questions: all of the round; those with `gold` are scored.
      samples: of each question, by uid.
      votes: one on each question, in their order.
      examples: the training rows; rows of other questions (human solutions) are not counted. None:
        none were made yet.
    """
    all_samples = [sample for vote in votes for sample in samples[vote.uid]]
    parsed = sum(vote.parsed for vote in votes)
    easy = {vote.uid for vote in votes if vote.confidence > EASY}
    kept, rows, easy_weight = _training_share(votes, easy, examples)
    return CollapseMetrics(
        questions=len(votes),
        samples=len(all_samples),
        confidence=_mean([vote.confidence for vote in votes]),
        entropy=_mean([relative_entropy(vote) for vote in votes]),
        distinct=_distinct([sample.text for sample in samples[vote.uid]] for vote in votes),
        length=_mean([sample.tokens for sample in all_samples]),
        unparsed=1 - parsed / len(all_samples) if all_samples else 0.0,
        easy=len(easy) / max(1, len(votes)),
        distinct_kept=_mean([distinct_kept(vote, samples[vote.uid]) for vote in votes]),
        empty=_mean([vote.winner is None for vote in votes]),
        kept=kept,
        rows=rows,
        easy_weight=easy_weight,
        scored=_labelled_metrics(questions, votes),
    )


def distinct_kept(vote: Vote, samples: Iterable[Sample]) -> int:
    """Returns the number of different texts among the samples that a vote keeps."""
    kept = set(vote.kept)
    return len({sample.text for sample in samples if sample.sample_index in kept})


def _distinct(questions: Iterable[Sequence[str]]) -> tuple[float, ...]:
    """Distinct-n for n = 1 to `LONGEST`, means over the questions that have n-grams."""
    shares: list[list[float]] = [[] for _ in range(LONGEST)]
    for texts in questions:
        words = [_WORD.findall(text) for text in texts]
        for n, of_n in enumerate(shares, start=1):
            grams = [
                gram for text in words for gram in zip(*(text[i:] for i in range(n)), strict=False)
            ]
            if grams:
                of_n.append(len(set(grams)) / len(grams))
    return tuple(map(_mean, shares))


def _training_share(
    votes: Sequence[Vote], easy: set[str], examples: Iterable[Example | ExamplePair] | None
) -> tuple[float | None, int | None, float | None]:
    """(kept, rows, easy_weight) of `CollapseMetrics`."""
    if examples is None:
        return None, None, None
    uids = {vote.uid for vote in votes}
    rows = [row for row in examples if row.uid in uids and row.weight > 0]
    total = math.fsum(row.weight for row in rows)
    easy_weight = math.fsum(row.weight for row in rows if row.uid in easy)
    kept = len({row.uid for row in rows}) / max(1, len(votes))
    return kept, len(rows), easy_weight / total if total else 0.0


def _labelled_metrics(
    questions: Sequence[Question], votes: Sequence[Vote]
) -> LabelledMetrics | None:
    labelled = [
        (vote, right_keys(question))
        for question, vote in zip(questions, votes, strict=True)
        if question.gold is not None
    ]
    if not labelled:
        return None
    right = [sum(key in gold for key in vote.keys if key is not None) for vote, gold in labelled]
    return LabelledMetrics(
        questions=len(labelled),
        confidence=_mean([vote.confidence for vote, _ in labelled]),
        majority=_mean([vote.winner in gold for vote, gold in labelled]),
        passed=_mean([count > 0 for count in right]),
        single=_mean(
            [count / max(1, vote.total) for count, (vote, _) in zip(right, labelled, strict=True)]
        ),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


class Alarm(NamedTuple):
    """An alarm: its name in `lmsi_jax.config.steps.ALARMS`, and its text."""

    name: str
    words: str


class _Reference(NamedTuple):
    """A round to compare with: 0 for the first and 1 for the previous one, name, metrics."""

    which: int
    place: str
    metrics: CollapseMetrics


_Judge = Callable[[CollapseMetrics, _Reference, CollapseMonitor], str | None]


def alarms(rounds: Mapping[int, CollapseMetrics], monitor: CollapseMonitor) -> list[Alarm]:
    """Returns the alarms about the last of the rounds.

    Args:
      rounds: comparable metrics (as many samples, at the same temperature) by round; 0 is the base
        model.
      monitor: the limits.

    Returns:
      At most one alarm of each name, in the order of the names. Too few questions raise "empty"
      alone; a single round is compared with nothing, and raises only the alarms about itself.
    """
    order = sorted(rounds)
    if not order:
        return []
    now = rounds[order[-1]]
    if now.questions < monitor.least_questions:
        words = _empty(now, monitor)
        return [Alarm("empty", words)] if words else []
    # The only round before the second one is both the first and the previous: both limits hold.
    references = [
        _Reference(which, f"in round {number}" if number else "of the base model", rounds[number])
        for which, number in enumerate((order[0], *order[-2:-1]))
        if number != order[-1]
    ]
    single = {"saturated": _saturated, "no_diversity": _no_diversity, "empty": _empty}
    raised = [Alarm(name, words) for name, of in single.items() if (words := of(now, monitor))]
    for name, judge in _JUDGES.items():
        words = next(filter(None, (judge(now, one, monitor) for one in references)), None)
        if words is not None:
            raised.append(Alarm(name, words))
    return raised


def _saturated(now: CollapseMetrics, monitor: CollapseMonitor) -> str | None:
    share, fewest = monitor.saturated
    if not share or now.confidence < share or now.distinct_kept >= fewest:
        return None
    return (
        f"the votes are sure (mean share {_percent(now.confidence)}) while only "
        f"{now.distinct_kept:.1f} different samples agree with a question's vote"
    )


def _no_diversity(now: CollapseMetrics, monitor: CollapseMonitor) -> str | None:
    if now.entropy >= monitor.no_diversity or now.empty == 1 or now.samples == now.questions:
        return None
    return (
        "a question's answers hardly differ any more: of the largest possible entropy there is "
        f"{now.entropy:.3f}"
    )


def _empty(now: CollapseMetrics, monitor: CollapseMonitor) -> str | None:
    if not monitor.empty or now.empty <= monitor.empty:
        return None
    return f"{_percent(now.empty)} of the questions have no parsed answer"


def _overconfident(now: CollapseMetrics, since: _Reference, monitor: CollapseMonitor) -> str | None:
    a, b = since.metrics.scored, now.scored
    if not (a and b and monitor.confidence_rise and monitor.accuracy_fall):
        return None
    fell = _fell(a.majority, b.majority, a, b, monitor.accuracy_fall)
    if not fell or b.confidence - a.confidence < monitor.confidence_rise:
        return None
    return f"the votes got surer and less often right: {_shares_and_accuracies(b, a, since)}"


def _calibration_gap(
    now: CollapseMetrics, since: _Reference, monitor: CollapseMonitor
) -> str | None:
    a, b = since.metrics.scored, now.scored
    if not (a and b and monitor.calibration_gap):
        return None
    before, gap = a.confidence - a.majority, b.confidence - b.majority
    if gap < monitor.calibration_gap or gap <= before:
        return None
    return f"the votes are far surer than right: {_shares_and_accuracies(b, a, since)}"


def _shares_and_accuracies(now: LabelledMetrics, then: LabelledMetrics, since: _Reference) -> str:
    return (
        f"mean share {_percent(now.confidence)}, right {_percent(now.majority)}; {since.place} "
        f"{_percent(then.confidence)} and {_percent(then.majority)}"
    )


def _pass_at_m_drop(
    now: CollapseMetrics, since: _Reference, monitor: CollapseMonitor
) -> str | None:
    a, b, limit = since.metrics.scored, now.scored, monitor.pass_at_m_drop
    if not (a and b and limit) or not _fell(a.passed, b.passed, a, b, limit):
        return None
    return (
        f"fewer questions have a right sample at all: pass@m {_percent(b.passed)}, {since.place} "
        f"{_percent(a.passed)}"
    )


def _unparsed(now: CollapseMetrics, since: _Reference, monitor: CollapseMonitor) -> str | None:
    before, share = since.metrics.unparsed, now.unparsed
    if not monitor.unparsed or share - before < monitor.unparsed:
        return None
    return (
        f"more samples end without an answer: {_percent(share)}, {since.place} {_percent(before)}"
    )


def _easy(now: CollapseMetrics, since: _Reference, monitor: CollapseMonitor) -> str | None:
    before, share = since.metrics.easy_weight, now.easy_weight
    if not monitor.easy or share is None or before is None or share <= max(monitor.easy, before):
        return None
    return (
        f"easy questions (over {_percent(EASY)} of the samples agree) crowd out hard ones: they "
        f"have {_percent(share)} of the training weight, {since.place} {_percent(before)}"
    )


def _ratio(name: str, metric: Callable[[CollapseMetrics], float | None], words: str) -> _Judge:
    """Builds a judge of a metric's ratio to its former value; "longer" is the only upper limit."""
    sign = -1 if name == "longer" else 1

    def judge(now: CollapseMetrics, since: _Reference, monitor: CollapseMonitor) -> str | None:
        a, b, limit = metric(since.metrics), metric(now), getattr(monitor, name)[since.which]
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
        lambda metrics: metrics.entropy,
        "a question's answers differ far less: of the largest possible entropy there is",
    ),
    "distinct": _ratio(
        "distinct",
        lambda metrics: metrics.distinct[1],
        "a question's samples use the same words again and again: distinct-2 is",
    ),
    "shorter": _ratio(
        "shorter", lambda metrics: metrics.length, "the samples got short: tokens a sample"
    ),
    "longer": _ratio(
        "longer", lambda metrics: metrics.length, "the samples got long: tokens a sample"
    ),
    "unparsed": _unparsed,
    "easy": _easy,
    "kept": _ratio(
        "kept", lambda metrics: metrics.kept, "far fewer questions give training rows: a share of"
    ),
}


def _fell(
    before: float, after: float, a: LabelledMetrics, b: LabelledMetrics, least: float
) -> bool:
    """Returns True if a share of questions fell by `least` and by more than chance allows."""
    error = math.hypot(_standard_error(before, a), _standard_error(after, b))
    return before - after >= max(least, _STANDARD_ERRORS * error)


def _standard_error(share: float, metrics: LabelledMetrics) -> float:
    """Standard error of a share; half a question is added to both sides, so that it is never 0."""
    n = metrics.questions + 1
    smooth = (share * metrics.questions + 0.5) / n
    return math.sqrt(smooth * (1 - smooth) / n)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _short(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
