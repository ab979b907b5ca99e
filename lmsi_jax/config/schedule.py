"""Values by round: parameters that change from one round to the next.

    Run.schedule = (('Training.human_rate', (0.5, 0.2)), ('Sampling.temperature', (0.7, 1.2)))

Round r has the r-th value, and the last one holds on. A stage's record has its own round's values
alone, so those of later rounds may be changed while a run goes on.

Whether a plain value is of the type that a parameter is annotated with, and what would be.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lmsi_jax.errors import LmsiError

_PLAIN = (type(None), bool, int, float, str, list, tuple, dict)
_SEQUENCES = (tuple, list, Sequence)


def fits(value: Any, hint: Any) -> bool:
    """Returns whether a literal fits an annotation.

    What is no literal (a reference to something that is still to be built), and what is annotated
    with anything but numbers, strings, tuples, lists, literals, dataclasses and unions of these,
    fits; except that None fits no class.
    """
    if not isinstance(value, _PLAIN):
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin in _SEQUENCES or hint in (tuple, list):
        items = [arg for arg in args if arg is not Ellipsis]
        uniform = len(items) == 1
        if not isinstance(value, (list, tuple)):
            return False
        return not uniform or all(fits(item, items[0]) for item in value)
    if hint in (int, float):
        number = (int, float) if hint is float else int
        return isinstance(value, number) and not isinstance(value, bool)
    if hint in (str, bool, type(None)) or dataclasses.is_dataclass(hint):
        return isinstance(value, hint)
    return value is not None or hint in (Any, object) or not isinstance(hint, type)


_ONE = {int: "a whole number", float: "a number", str: "text in quotes", bool: "True or False"}
_MANY = {int: "whole numbers", float: "numbers", str: "texts"}


def remedy(value: Any, hint: Any) -> str:
    """Says what to use in place of a literal that does not fit, in plain words."""
    item = _item(hint)
    if typing.get_origin(hint) is typing.Literal or typing.get_origin(item) is typing.Literal:
        choices = ", ".join(map(str, typing.get_args(hint if item is None else item)))
        said = f"choose from {choices}" + (", in a tuple" if item is not None else "")
    elif dataclasses.is_dataclass(hint):
        said = f"bind it to {_noun(hint)}"
    else:
        said = f"use {_noun(hint)}"
    return f"{said}, as in {(value,)!r}" if item is not None and fits((value,), hint) else said


def _item(hint: Any) -> Any:
    """Of what a tuple or list of any length holds; None for all else."""
    items = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
    return items[0] if typing.get_origin(hint) in _SEQUENCES and len(items) == 1 else None


def _noun(hint: Any) -> str:
    """The values that fit an annotation, with their article."""
    origin, args, item = typing.get_origin(hint), typing.get_args(hint), _item(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_noun, args))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if item is not None:
        return f"a tuple of {_MANY.get(item) or f'items, each {_noun(item)}'}"
    if origin in _SEQUENCES:
        return f"a tuple ({', '.join(map(_noun, args))})"
    if hint is type(None):
        return "None"
    name = getattr(hint, "__name__", str(hint).replace("typing.", ""))
    return _ONE.get(hint) or (f"@{name}()" if isinstance(hint, type) else name)


if TYPE_CHECKING:
    from lmsi_jax.config.run import Run

Schedule = tuple[tuple[str, tuple[Any, ...]], ...]
"""(parameter, its values by round) pairs."""

SCHEDULABLE: dict[str, tuple[str, ...]] = {
    "Sampling": ("num_samples", "temperature"),
    "Augmentation": ("min_confidence",),
    "Mixing": ("min_confidence", "cap"),
    "Preference": ("threshold",),
    "Training": ("steps", "human_rate"),
    "Optimizer": ("learning_rate",),
}
"""What may change, by class; of filters in `Mixing.selection`, every parameter may."""
_PARTS = ("augmentation", "sampling", "mixing", "training")


def apply_schedule(run: "Run", index: int) -> "Run":
    """Returns the run as round `index` (1, 2, ...) sees it, its `schedule` used up."""
    if not run.schedule:
        return run
    changes: dict[str, dict[str, Any]] = {}
    for name, values in run.schedule:
        part, _, field = name.partition(".")
        changes.setdefault(part, {})[field] = values[min(index, len(values)) - 1]
    parts = {name: _changed(getattr(run, name), changes) for name in _PARTS}
    return dataclasses.replace(run, schedule=(), **parts)


def scheduled_values(run: "Run", index: int) -> dict[str, Any]:
    """Returns the values that `schedule` gives a round, by parameter."""
    return {name: values[min(index, len(values)) - 1] for name, values in run.schedule}


def check_schedule(run: "Run") -> None:
    """Builds every round's configuration, so that a wrong value is found before the first one.

    Raises:
      LmsiError: an unknown parameter, one that may not change, one twice, or a value that its class
        refuses.
    """
    names = [name for name, _ in run.schedule]
    for name, values in run.schedule:
        if names.count(name) > 1:
            raise LmsiError(f"Run.schedule has {name} twice; write all its values in one tuple")
        _check_values(name, values, _hint(run, name))
    for index in range(1, max((len(values) for _, values in run.schedule), default=0) + 1):
        try:
            apply_schedule(run, index)
        except LmsiError as error:
            raise LmsiError(f"Run.schedule, round {index}: {error}") from None


def _hint(run: "Run", name: str) -> Any:
    """The annotation of a parameter that may change.

    Raises:
      LmsiError: it may not, or the run has no such part.
    """
    part, _, field = name.partition(".")
    filters: dict[str, Any] = {type(one).__name__: one for one in run.mixing.selection}
    of_filter = dataclasses.fields(filters[part]) if part in filters else ()
    if field not in (*SCHEDULABLE.get(part, ()), *(one.name for one in of_filter)):
        known = [f"{cls}.{one}" for cls, ones in SCHEDULABLE.items() for one in ones]
        raise LmsiError(
            f"Run.schedule cannot change {name!r}; choose from {', '.join(known)}, or a parameter "
            "of a filter in Mixing.selection"
        )
    found = {type(one).__name__: type(one) for one in _parts(run)}
    if part not in found:
        raise LmsiError(f"Run.schedule has {name}, and this run has no {part}; bind it or drop it")
    return typing.get_type_hints(found[part])[field]


def _check_values(name: str, values: Any, hint: Any) -> None:
    if not isinstance(values, (tuple, list)) or not values:
        raise LmsiError(
            f"Run.schedule wants a tuple of values for {name}, one for each round: "
            f"('{name}', (FIRST, SECOND))"
        )
    for value in values:
        if not fits(value, hint):
            raise LmsiError(f"Run.schedule: {name} = {value!r}; {remedy(value, hint)}")


def _changed(value: Any, changes: dict[str, dict[str, Any]]) -> Any:
    """A part of the configuration with its own changes and those of the parts within."""
    if isinstance(value, tuple):
        return tuple(_changed(one, changes) for one in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    within = {
        field.name: _changed(getattr(value, field.name), changes)
        for field in dataclasses.fields(value)
        if field.init
    }
    return dataclasses.replace(value, **within | changes.get(type(value).__name__, {}))


def _parts(run: "Run") -> Iterator[Any]:
    """All parts of the configuration in which something may change, those within others too."""
    waiting: list[Any] = [getattr(run, name) for name in _PARTS]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Sequence) and not isinstance(one, str):
            waiting += one
        elif dataclasses.is_dataclass(one) and not isinstance(one, type):
            yield one
            waiting += [getattr(one, field.name) for field in dataclasses.fields(one)]
