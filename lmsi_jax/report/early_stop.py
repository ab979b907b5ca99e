"""The part of the report about early stop: paths saved, and what the vote loses by it."""

import dataclasses
from collections.abc import Sequence

from lmsi_jax.evaluation.statistics import Difference, paired_difference
from lmsi_jax.report.compare import round_name
from lmsi_jax.report.markup import (
    DASH,
    Html,
    bar,
    element,
    joined,
    part,
    points,
    scrolling,
    several,
    whole,
)
from lmsi_jax.report.summary import EarlyStop, EarlyStopSet, Summary

_HEAD = (
    *("Task", "Questions", "Paths taken", "Paths saved", "Same vote"),
    *("Vote of all", "Stopped", "Change in points"),
)
_SOURCES = ("test", "train")


@dataclasses.dataclass(frozen=True)
class Effect:
    """The rule on some questions, each counting alike.

    `taken` of `possible` paths; the vote on them has the winner of the vote on all on `same` of
    the questions. None where not all paths were sampled, or where there are no labels.
    """

    questions: int
    taken: int
    possible: int
    same: int | None
    right: int | None
    right_stopped: int | None
    change: Difference | None
    """Stopped minus all, with its 95 % interval for pairs."""

    @property
    def saved(self) -> str:
        """The share of the paths that are not sampled, in percent."""
        return part(self.possible - self.taken, self.possible)


def effect(rows: Sequence[EarlyStopSet]) -> Effect:
    """Returns the rule's effect over the questions of some sets; what not all know is None."""
    taken = [n for row in rows for n in row["taken"]]
    same = [c for row in rows for c in row["same"]]
    before = [bool(c) for row in rows for c in row["correct"]]
    after = [bool(c) for row in rows for c in row["correct_stopped"]]
    replayed = len(same) == len(taken) > 0
    judged = len(before) == len(taken) > 0
    return Effect(
        questions=len(taken),
        taken=sum(taken),
        possible=sum(row["paths"] * len(row["taken"]) for row in rows),
        same=sum(same) if replayed else None,
        right=sum(before) if judged else None,
        right_stopped=sum(after) if judged else None,
        change=paired_difference(before, after) if judged else None,
    )


def sentences(summary: Summary) -> list[str]:
    """Returns in words what the rule does to the last model's votes and to the last sampling."""
    found = summary["early_stop"]
    said = []
    for source in _SOURCES:
        rounds = _rounds(found, source)
        if rounds:
            one = effect(_rows(found, source, rounds[-1]))
            model = "the base model" if rounds[-1] == 0 else f"round {rounds[-1]}"
            said.append(_sentence(one, f"{source} questions of {model}"))
    return said


def section(summary: Summary) -> Html:
    """Returns what the rule is, and its effect on each task; nothing without any paths."""
    found = summary["early_stop"]
    said = [element("p", sentence) for sentence in sentences(summary)]
    if not said:
        return Html("")
    bodies, between = [], False
    for source in _SOURCES:
        rounds = _rounds(found, source)
        between |= len(rounds) > 2
        for number in sorted({*rounds[:1], *rounds[-1:]}):
            bodies.append(_group(found, source, number))
    head = [
        element("th", name, scope="col", cls="num" if i else "text") for i, name in enumerate(_HEAD)
    ]
    caption = (
        "Same vote: questions on which the vote on the paths taken has the winner of the vote on "
        "all. Vote of all, stopped: their accuracy in percent, where there are labels. Change: "
        "stopped minus all on the same questions, [95 % interval, Newcombe’s for pairs]. All "
        "tasks: every question counts alike."
    )
    caption += " Rounds between the first and the last are left out." if between else ""
    figure = scrolling(element("thead", element("tr", *head)), bodies, caption)
    return joined([*said, element("p", _note(found), cls="note"), figure])


def _note(found: EarlyStop) -> str:
    threshold = f"{100 * found['threshold']:g}\N{NO-BREAK SPACE}%"
    rule = (
        f"Adaptive-Consistency (Aggarwal et al. 2023): after every {found['every']} paths of a "
        "question, in the order of their indices, no further one is started once its leading "
        f"answer will stay ahead of the second with a probability of {threshold} or more."
    )
    if found["on"]:
        return (
            f"{rule} Train questions were sampled with it. On test questions, of which all paths "
            "are sampled, it is replayed, to see what the vote loses by it."
        )
    return (
        f"{rule} It was off, so all paths were sampled; here it is replayed on them. "
        f"Sampling.early_stop = {found['threshold']:g} turns it on for train questions."
    )


def _sentence(one: Effect, where: str) -> str:
    if one.same is None:
        return (
            f"Early stop saved {one.saved} of the paths on the {where}: {whole(one.taken)} of "
            f"{whole(one.possible)} were sampled."
        )
    said = (
        f"Early stop would save {one.saved} of the paths on the {where}; the vote is the same on "
        f"{part(one.same, one.questions)} of the {several(one.questions, 'question')}"
    )
    if one.right is None or one.right_stopped is None:
        return f"{said}."
    before, after = (part(n, one.questions) for n in (one.right, one.right_stopped))
    return f"{said}, and right on {after} instead of {before}."


def _group(found: EarlyStop, source: str, number: int) -> Html:
    """One table body: a title, all tasks together, each task."""
    rows = _rows(found, source, number)
    most = several(max(row["paths"] for row in rows), "path")
    stopped = found["on"] and source == "train"
    how = (
        f"at most {most} each, sampled with early stop" if stopped else f"{most} each, all sampled"
    )
    name = f"{source.capitalize()} questions, {round_name(number).lower()}"
    title = joined([element("strong", name), " ", how])
    top = element("tr", element("th", title, colspan=len(_HEAD), scope="rowgroup", cls="group"))
    lines = [_line(element("b", "All tasks"), effect(rows))] if len(rows) > 1 else []
    lines += [_line(row["task"], effect([row])) for row in rows]
    return element("tbody", top, *lines)


def _line(name: object, one: Effect) -> Html:
    n = one.questions
    saved = (one.possible - one.taken) / one.possible if one.possible else 0.0
    cells: list[object] = [
        whole(n),
        whole(one.taken),
        bar(saved, one.saved),
        DASH if one.same is None else part(one.same, n),
        DASH if one.right is None else f"{100 * one.right / n:.1f}",
        DASH if one.right_stopped is None else f"{100 * one.right_stopped / n:.1f}",
        DASH if one.change is None else _change(one.change),
    ]
    first = element("th", name, scope="row", cls="text")
    return element("tr", first, *(element("td", cell, cls="num") for cell in cells))


def _change(change: Difference) -> Html:
    interval = f"[{points(change.low)}, {points(change.high)}]"
    value = element("b", points(change.difference))
    return joined([value, " ", element("span", interval, cls="interval")])


def _rows(found: EarlyStop, source: str, number: int) -> list[EarlyStopSet]:
    return [row for row in found["sets"] if (row["source"], row["round"]) == (source, number)]


def _rounds(found: EarlyStop, source: str) -> list[int]:
    """The rounds with at least one question, in order."""
    rows = (row for row in found["sets"] if row["source"] == source and row["taken"])
    return sorted({row["round"] for row in rows})
