"""When the figures of the rounds so far call for a look, in plain words."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lmsi_jax.watch.figures import EASY, Figures, Scored
from lmsi_jax.watch.settings import Watch

_SURE = 2.0
"""A fall of accuracy is one from so many of its standard errors on."""


class Alarm(NamedTuple):
    """What is wrong: its name, and what a person reads."""

    name: str
    words: str


def alarms(rounds: Mapping[int, Figures], watch: Watch) -> list[Alarm]:
    """Returns what is alarming about the last of the rounds.

    Args:
      rounds: comparable figures (as many paths, at the same temperature) by round; 0 is the base
        model.
      watch: from where on.

    Returns:
      At most one alarm of each of `settings.NAMES`, in their order. Too few questions say only
      whether they have answers; a single round is compared with nothing, and judged by itself.
    """
    order = sorted(rounds)
    if not order:
        return []
    now = rounds[order[-1]]
    if now.questions < watch.least_questions:
        words = _empty(now, watch)
        return [Alarm("empty", words)] if words else []
    # A second round has one round before it, which is the first and the last: both limits hold.
    since = [
        _Since(which, _place(index), rounds[index])
        for which, index in enumerate((order[0], *order[-2:-1]))
        if index != order[-1]
    ]
    alone = {"sure": _sure, "same": _same, "empty": _empty}
    found = [Alarm(name, words) for name, of in alone.items() if (words := of(now, watch))]
    for name, judge in _JUDGES.items():
        words = next(filter(None, (judge(now, one, watch) for one in since)), None)
        if words is not None:
            found.append(Alarm(name, words))
    return found


class _Since(NamedTuple):
    """A round that is compared with: 0 for the first and 1 for the one before, name, figures."""

    which: int
    place: str
    then: Figures


_Judge = Callable[[Figures, _Since, Watch], str | None]


def _place(index: int) -> str:
    return f"in round {index}" if index else "of the base model"


def _sure(now: Figures, watch: Watch) -> str | None:
    share, paths = watch.sure
    if not share or now.confidence < share or now.distinct_kept >= paths:
        return None
    return (
        f"the votes are sure (mean share {_percent(now.confidence)}) while only "
        f"{now.distinct_kept:.1f} different paths agree with a question's vote"
    )


def _same(now: Figures, watch: Watch) -> str | None:
    if now.entropy >= watch.same or now.empty == 1 or now.paths == now.questions:
        return None
    return (
        "a question's answers hardly differ any more: of the largest possible entropy there is "
        f"{now.entropy:.3f}"
    )


def _empty(now: Figures, watch: Watch) -> str | None:
    if not watch.empty or now.empty <= watch.empty:
        return None
    return f"{_percent(now.empty)} of the questions have no parsed answer"


def _surer(now: Figures, since: _Since, watch: Watch) -> str | None:
    a, b = since.then.scored, now.scored
    if not (a and b and watch.confidence_rise and watch.accuracy_fall):
        return None
    fell = _fell(a.majority, b.majority, a, b, watch.accuracy_fall)
    if not fell or b.confidence - a.confidence < watch.confidence_rise:
        return None
    return f"the votes got surer and less often right: {_both(b, a, since)}"


def _gap(now: Figures, since: _Since, watch: Watch) -> str | None:
    a, b = since.then.scored, now.scored
    if not (a and b and watch.gap):
        return None
    before, gap = a.confidence - a.majority, b.confidence - b.majority
    if gap < watch.gap or gap <= before:
        return None
    return f"the votes are far surer than right: {_both(b, a, since)}"


def _both(now: Scored, then: Scored, since: _Since) -> str:
    """Share and accuracy, now and then."""
    return (
        f"mean share {_percent(now.confidence)}, right {_percent(now.majority)}; {since.place} "
        f"{_percent(then.confidence)} and {_percent(then.majority)}"
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
