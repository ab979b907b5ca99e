"""Change parameters from one round to the next.

    Run.schedule = (('Training.human_rate', (0.5, 0.2)), ('Sampling.temperature', (0.7, 1.2)))

Round r uses the r-th value; the last one holds for all later rounds. A stage's record has the
values of its own round alone, so later rounds may be changed during a run.
"""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lmsi_jax.config.gin_errors import renamed
from lmsi_jax.config.value_checks import fits, remedy
from lmsi_jax.errors import LmsiError

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
"""Parameters that may change, by class; parameters of filters in `Mixing.selection` may too."""
_PARTS = ("augmentation", "sampling", "mixing", "training")


def apply_schedule(run: "Run", index: int) -> "Run":
    """Returns the run with the values of round `index` (1, 2, ...) and without a schedule."""
    if not run.schedule:
        return run
    changes: dict[str, dict[str, Any]] = {}
    for name, value in scheduled_values(run, index).items():
        part, _, field = name.partition(".")
        changes.setdefault(part, {})[field] = value
    parts = {name: _changed(getattr(run, name), changes) for name in _PARTS}
    return dataclasses.replace(run, schedule=(), **parts)


def scheduled_values(run: "Run", index: int) -> dict[str, Any]:
    """Returns the values that the schedule gives round `index`, by parameter."""
    return {name: values[min(index, len(values)) - 1] for name, values in run.schedule}


def check_schedule(run: "Run") -> None:
    """Builds every round's configuration, so that a wrong value is found before the first one.

    Raises:
      LmsiError: a parameter is unknown, may not change or appears twice, or its class refuses a
        value.
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
    """Returns the annotation of a schedulable parameter.

    Raises:
      LmsiError: it may not change, or the run has no such part.
    """
    if change := renamed(name):
        raise LmsiError(f"Run.schedule: {change}")
    part, _, field = name.partition(".")
    filters: dict[str, Any] = {type(rule).__name__: rule for rule in run.mixing.selection}
    filter_fields = dataclasses.fields(filters[part]) if part in filters else ()
    if field not in (*SCHEDULABLE.get(part, ()), *(one.name for one in filter_fields)):
        known = [f"{cls}.{one}" for cls, fields in SCHEDULABLE.items() for one in fields]
        raise LmsiError(
            f"Run.schedule cannot change {name!r}; choose from {', '.join(known)}, or a parameter "
            "of a filter in Mixing.selection"
        )
    classes = {type(one).__name__: type(one) for one in _nested_parts(run)}
    if part not in classes:
        raise LmsiError(f"Run.schedule has {name}, and this run has no {part}; bind it or drop it")
    return typing.get_type_hints(classes[part])[field]


def _check_values(name: str, values: Any, hint: Any) -> None:
    if not isinstance(values, (tuple, list)) or not values:
        raise LmsiError(
            f"Run.schedule needs a tuple of values for {name}, one for each round: "
            f"('{name}', (FIRST, SECOND))"
        )
    for value in values:
        if not fits(value, hint):
            raise LmsiError(f"Run.schedule: {name} = {value!r}; {remedy(value, hint)}")


def _changed(value: Any, changes: dict[str, dict[str, Any]]) -> Any:
    """Returns a part of the configuration with its own changes and those of its nested parts."""
    if isinstance(value, tuple):
        return tuple(_changed(one, changes) for one in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    nested = {
        field.name: _changed(getattr(value, field.name), changes)
        for field in dataclasses.fields(value)
        if field.init
    }
    return dataclasses.replace(value, **nested | changes.get(type(value).__name__, {}))


def _nested_parts(run: "Run") -> Iterator[Any]:
    """Yields all parts of the configuration in which something may change."""
    queue: list[Any] = [getattr(run, name) for name in _PARTS]
    while queue:
        one = queue.pop()
        if isinstance(one, Sequence) and not isinstance(one, str):
            queue += one
        elif dataclasses.is_dataclass(one) and not isinstance(one, type):
            yield one
            queue += [getattr(one, field.name) for field in dataclasses.fields(one)]
