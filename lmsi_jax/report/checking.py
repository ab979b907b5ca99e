"""A summary, checked before anything is drawn: names, types, and that its parts fit together."""

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args, get_origin

from lmsi_jax.errors import LmsiError
from lmsi_jax.report.summary import Summary

REMEDY = "run `lmsi report` again with the version of lmsi_jax that made the run"


def validate(summary: Any) -> Summary:
    """Returns `summary` itself, checked: every field there, of its type, and consistent.

    Raises:
      LmsiError: the place of the first mistake, what stands there, and the remedy.
    """
    _check(summary, Summary, "summary")
    checked = cast(Summary, summary)
    _check_tasks(checked)
    _check_evals(checked)
    _check_early_stop(checked)
    _unique((row["round"] for row in checked["rounds"]), "summary.rounds", "round")
    watched = ((row["source"], row["round"]) for row in checked.get("watch", []))
    _unique(watched, "summary.watch", "(source, round)")
    for i, row in enumerate(checked["rounds"]):
        if row["round"] < 1:
            _fail(f"summary.rounds[{i}].round", "1 or more", row["round"])
        for j, step in enumerate(row["train"]):
            if "step" not in step:
                _fail(f"summary.rounds[{i}].train[{j}]", "a dictionary with a step", step)
    return checked


def _check_tasks(summary: Summary) -> None:
    _unique((task["name"] for task in summary["tasks"]), "summary.tasks", "task")


def _check_evals(summary: Summary) -> None:
    names = {task["name"] for task in summary["tasks"]}
    for i, row in enumerate(summary["evals"]):
        place = f"summary.evals[{i}]"
        if row["task"] not in names:
            _fail(
                f"{place}.task", f"one of summary.tasks ({', '.join(sorted(names))})", row["task"]
            )
        if row["round"] < 0:
            _fail(f"{place}.round", "0 or more", row["round"])
        if bad := [c for c in row["correct"] if c not in (0, 1)]:
            _fail(f"{place}.correct", "0 or 1 for each question", bad[0])
        n, confidence = len(row["correct"]), row["confidence"]
        if confidence and len(confidence) != n:
            _fail(f"{place}.confidence", f"one for each of {n} questions", confidence)
        if outside := [c for c in confidence if not 0 <= c <= 1]:
            _fail(f"{place}.confidence", "numbers in [0, 1]", outside[0])
    keys = ((e["round"], e["task"], e["prompting"]) for e in summary["evals"])
    _unique(keys, "summary.evals", "(round, task, prompting)")


def _check_early_stop(summary: Summary) -> None:
    names = {task["name"] for task in summary["tasks"]}
    rows = summary["early_stop"]["sets"]
    for i, row in enumerate(rows):
        place = f"summary.early_stop.sets[{i}]"
        if row["task"] not in names:
            _fail(f"{place}.task", "one of summary.tasks", row["task"])
        if outside := [n for n in row["taken"] if not 0 <= n <= row["paths"]]:
            _fail(f"{place}.taken", f"at most {row['paths']} paths a question", outside[0])
        n = len(row["taken"])
        correct, stopped = row["correct"], row["correct_stopped"]
        lists = {"same": row["same"], "correct": correct, "correct_stopped": stopped}
        for name, found in lists.items():
            if len(found) not in (0, n) or set(found) - {0, 1}:
                _fail(f"{place}.{name}", f"0 or 1 for each of {n} questions, or nothing", found)
        if len(correct) != len(stopped):
            _fail(f"{place}.correct_stopped", "as many as in correct", stopped)
    keys = ((row["source"], row["round"], row["task"]) for row in rows)
    _unique(keys, "summary.early_stop.sets", "(source, round, task)")


def _unique(values: Iterable[object], place: str, what: str) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            _fail(place, f"one entry for each {what}", value)
        seen.add(value)


def _check(value: Any, hint: Any, place: str) -> None:
    """Checks a JSON value against the type hints above, and names the first place that differs."""
    origin, arguments = get_origin(hint), get_args(hint)
    if typing.is_typeddict(hint):
        _check_fields(value, hint, place)
    elif origin in (types.UnionType, typing.Union):
        if value is not None:
            _check(value, next(a for a in arguments if a is not types.NoneType), place)
    elif origin is Literal:
        if value not in arguments:
            _fail(place, " or ".join(map(repr, arguments)), value)
    elif origin is list:
        if not isinstance(value, list):
            _fail(place, "a list", value)
        for i, item in enumerate(value):
            _check(item, arguments[0], f"{place}[{i}]")
    elif origin is dict:
        if not isinstance(value, Mapping):
            _fail(place, "a dictionary", value)
        for name, item in value.items():
            _check(item, arguments[1], f"{place}[{name!r}]")
    elif not _is(value, hint):
        _fail(place, {str: "text", int: "a whole number", float: "a number"}.get(hint, hint), value)


def _check_fields(value: Any, hint: Any, place: str) -> None:
    if not isinstance(value, Mapping):
        _fail(place, "a dictionary", value)
    hints = typing.get_type_hints(hint)
    for name in value:
        if name not in hints:
            _fail(place, f"only the fields {', '.join(hints)}", name)
    for name, kind in hints.items():
        if name not in value:
            if name in hint.__optional_keys__:
                continue
            _fail(place, f"a field {name!r}", sorted(value))
        _check(value[name], kind, f"{place}.{name}")


def _is(value: Any, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _fail(place: str, expected: object, found: object) -> typing.NoReturn:
    shown = repr(found)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    raise LmsiError(f"{place}: expected {expected}, found {shown}; {REMEDY}")
