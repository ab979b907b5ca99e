"""When the figures of the rounds so far call for a look, in plain words."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lmsi_jax.errors import LmsiError
from lmsi_jax.watch.figures import EASY, Figures, Scored

NAMES = (
    *("surer", "gap", "passed", "entropy", "distinct"),
    *("shorter", "longer", "unparsed", "easy", "kept"),
)
"""All alarms; the first three need gold answers."""
_SURE = 2.0
"""A fall of accuracy is one from so many of its standard errors on."""


class Alarm(NamedTuple):
    """What is wrong: its name, and what a person reads."""

    name: str
    words: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """From where on a figure is an alarm. Each is a switch, and 0 turns it off.

    Pairs are against the first comparable round and against the round before.

    Attributes:
      confidence_rise: the vote's share rose by this ...
      accuracy_fall: ... while its accuracy fell by this, and by two of its standard errors.
      gap: the vote's mean share is above its accuracy by this.
      pass_fall: pass@m fell by this, and by two of its standard errors.
      entropy: the answers' entropy is below these shares of what it was.
      distinct: likewise distinct-2.
      shorter: likewise the paths' length.
      longer: the paths' length is above these multiples of what it was.
      unparsed: the share of unparsed paths rose by this.
      easy: easy questions have more than this share of the training weight, and more than before.
      kept: the share of questions that give training rows is below these shares of what it was.
      least_questions: fewer questions say nothing.
      stop: names of alarms after which no further round follows; () only warns. "surer", "gap" and
        "passed" look at gold answers of the test questions, so a run that they end has seen labels.
    """

    confidence_rise: float = 0.05
    accuracy_fall: float = 0.03
    gap: float = 0.25
    pass_fall: float = 0.05
    entropy: tuple[float, float] = (0.25, 0.5)
    distinct: tuple[float, float] = (0.4, 0.6)
    shorter: tuple[float, float] = (0.5, 0.7)
    longer: tuple[float, float] = (2.0, 1.5)
    unparsed: float = 0.1
    easy: float = 0.8
    kept: tuple[float, float] = (0.5, 0.7)
    least_questions: int = 30
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.stop:
            if name not in NAMES:
                raise LmsiError(f"Watch.stop has {name!r}; choose from {', '.join(NAMES)}")
        for name in ("entropy", "distinct", "shorter", "longer", "kept"):
            pair = getattr(self, name)
            if len(pair) != 2 or min(pair) < 0:
                raise LmsiError(
                    f"Watch.{name} = {pair}; two numbers of 0 or more: against the first round, "
                    "and against the round before"
                )


def alarms(rounds: Mapping[int, Figures], watch: Watch) -> list[Alarm]:
    """Returns what is alarming about the last of the rounds.

    Args:
      rounds: comparable figures (as many paths, at the same temperature) by round; 0 is the base
        model.
      watch: from where on.

    Returns:
      At most one alarm of each name, in the order of `NAMES`; [] where nothing is there to compare
      with, or there are too few questions.
    """
    order = sorted(rounds)
    if len(order) < 2 or rounds[order[-1]].questions < watch.least_questions:
        return []
    now, earlier = rounds[order[-1]], list(dict.fromkeys((order[0], order[-2])))
    since = [_Since(which, _place(index), rounds[index]) for which, index in enumerate(earlier)]
    said = [(name, judge(now, one, watch)) for name, judge in _JUDGES.items() for one in since]
    found = {
        name: words for name, words in reversed(said) if words
    }  # the first round's comes first
    return [Alarm(name, found[name]) for name in NAMES if name in found]


class _Since(NamedTuple):
    """A round that is compared with: 0 for the first and 1 for the one before, name, figures."""

    which: int
    place: str
    then: Figures


_Judge = Callable[[Figures, _Since, Watch], str | None]


def _place(index: int) -> str:
    return f"in round {index}" if index else "of the base model"


def _surer(now: Figures, since: _Since, watch: Watch) -> str | None:
    a, b = since.then.scored, now.scored
    if not (a and b and watch.confidence_rise and watch.accuracy_fall):
        return None
    fell = _fell(a.majority, b.majority, a, b, watch.accuracy_fall)
    if not fell or b.confidence - a.confidence < watch.confidence_rise:
        return None
    return (
        f"the votes got surer and less often right: mean share {_percent(b.confidence)}, right "
        f"{_percent(b.majority)}; {since.place} {_percent(a.confidence)} and {_percent(a.majority)}"
    )


def _gap(now: Figures, since: _Since, watch: Watch) -> str | None:
    a, b = since.then.scored, now.scored
    if not (a and b and watch.gap):
        return None
    before, gap = a.confidence - a.majority, b.confidence - b.majority
    if gap < watch.gap or gap <= before:
        return None
    return (
        f"the votes are far surer than right: mean share {_percent(b.confidence)}, right "
        f"{_percent(b.majority)}; {since.place} {_percent(a.confidence)} and {_percent(a.majority)}"
    )


def _passed(now: Figures, since: _Since, watch: Watch) -> str | None:
    a, b = since.then.scored, now.scored
    if not (a and b and watch.pass_fall) or not _fell(a.passed, b.passed, a, b, watch.pass_fall):
        return None
    return (
        f"fewer questions have a right path at all: pass@m {_percent(b.passed)}, {since.place} "
        f"{_percent(a.passed)}"
    )


def _unparsed(now: Figures, since: _Since, watch: Watch) -> str | None:
    before, share = since.then.unparsed, now.unparsed
    if not watch.unparsed or share - before < watch.unparsed:
        return None
    return f"more paths end without an answer: {_percent(share)}, {since.place} {_percent(before)}"


def _easy(now: Figures, since: _Since, watch: Watch) -> str | None:
    before, share = since.then.easy_weight, now.easy_weight
    if not watch.easy or share is None or before is None or share <= max(watch.easy, before):
        return None
    return (
        f"easy questions (over {_percent(EASY)} of the paths agree) crowd out hard ones: they have "
        f"{_percent(share)} of the training weight, {since.place} {_percent(before)}"
    )


def _ratio(name: str, figure: Callable[[Figures], float | None], words: str) -> _Judge:
    """Judges a figure by how many times its former value it is; "longer" looks upwards."""
    sign = -1 if name == "longer" else 1

    def judge(now: Figures, since: _Since, watch: Watch) -> str | None:
        """See `_Judge`."""
        a, b, limit = figure(since.then), figure(now), getattr(watch, name)[since.which]
        if not (a and limit) or b is None or sign * b >= sign * limit * a:
            return None
        return f"{words} {_short(b)}, {since.place} {_short(a)}"

    return judge


_JUDGES: dict[str, _Judge] = {
    "surer": _surer,
    "gap": _gap,
    "passed": _passed,
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


def _fell(before: float, after: float, a: Scored, b: Scored, least: float) -> bool:
    """Whether a share of questions fell by `least`, and by more than chance would let it."""
    return before - after >= max(least, _SURE * math.hypot(_error(before, a), _error(after, b)))


def _error(share: float, of: Scored) -> float:
    """Standard error of a share; a half is added to both sides, so that 0 and 1 have one too."""
    n = of.questions + 1
    smooth = (share * of.questions + 0.5) / n
    return math.sqrt(smooth * (1 - smooth) / n)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _short(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
