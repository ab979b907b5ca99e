"""Values by round: parameters that change from one round to the next.

    Run.by_round = (('Training.strong_rate', (0.5, 0.2)), ('Sampling.temperature', (0.7, 1.2)))

Round r has the r-th value, and the last one holds on. A stage's record has its own round's values
alone, so those of later rounds may be changed while a run goes on.
"""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lmsi_jax.errors import LmsiError
from lmsi_jax.literals import fits, remedy

if TYPE_CHECKING:
    from lmsi_jax.run import Run

Schedule = tuple[tuple[str, tuple[Any, ...]], ...]
"""(parameter, its values by round) pairs."""

CHANGING: dict[str, tuple[str, ...]] = {
    "Sampling": ("paths", "temperature"),
    "Generation": ("min_confidence",),
    "Mixing": ("min_confidence", "cap"),
    "Preference": ("threshold",),
    "Training": ("steps", "strong_rate"),
    "Optimizer": ("learning_rate",),
}
"""What may change, by class; of filters in `Mixing.selection`, every parameter may."""
_PARTS = ("generation", "sampling", "mixing", "training")


def in_round(run: "Run", index: int) -> "Run":
    """Returns the run as round `index` (1, 2, ...) sees it, its `by_round` used up."""
    if not run.by_round:
        return run
    changes: dict[str, dict[str, Any]] = {}
    for name, values in run.by_round:
        part, _, field = name.partition(".")
        changes.setdefault(part, {})[field] = values[min(index, len(values)) - 1]
    parts = {name: _changed(getattr(run, name), changes) for name in _PARTS}
    return dataclasses.replace(run, by_round=(), **parts)


def values_in(run: "Run", index: int) -> dict[str, Any]:
    """Returns the values that `by_round` gives a round, by parameter."""
    return {name: values[min(index, len(values)) - 1] for name, values in run.by_round}


def check_schedule(run: "Run") -> None:
    """Builds every round's configuration, so that a wrong value is found before the first one.

    Raises:
      LmsiError: an unknown parameter, one that may not change, one twice, or a value that its class
        refuses.
    """
    names = [name for name, _ in run.by_round]
    for name, values in run.by_round:
        if names.count(name) > 1:
            raise LmsiError(f"Run.by_round has {name} twice; write all its values in one tuple")
        _check_values(name, values, _hint(run, name))
    for index in range(1, max((len(values) for _, values in run.by_round), default=0) + 1):
        try:
            in_round(run, index)
        except LmsiError as error:
            raise LmsiError(f"Run.by_round, round {index}: {error}") from None


def _hint(run: "Run", name: str) -> Any:
    """The annotation of a parameter that may change.

    Raises:
      LmsiError: it may not, or the run has no such part.
    """
    part, _, field = name.partition(".")
    filters: dict[str, Any] = {type(one).__name__: one for one in run.mixing.selection}
    of_filter = dataclasses.fields(filters[part]) if part in filters else ()
    if field not in (*CHANGING.get(part, ()), *(one.name for one in of_filter)):
        known = [f"{cls}.{one}" for cls, ones in CHANGING.items() for one in ones]
        raise LmsiError(
            f"Run.by_round cannot change {name!r}; choose from {', '.join(known)}, or a parameter "
            "of a filter in Mixing.selection"
        )
    found = {type(one).__name__: type(one) for one in _parts(run)}
    if part not in found:
        raise LmsiError(f"Run.by_round has {name}, and this run has no {part}; bind it or drop it")
    return typing.get_type_hints(found[part])[field]


def _check_values(name: str, values: Any, hint: Any) -> None:
    if not isinstance(values, (tuple, list)) or not values:
        raise LmsiError(
            f"Run.by_round wants a tuple of values for {name}, one for each round: "
            f"('{name}', (FIRST, SECOND))"
        )
    for value in values:
        if not fits(value, hint):
            raise LmsiError(f"Run.by_round: {name} = {value!r}; {remedy(value, hint)}")


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
