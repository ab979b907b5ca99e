"""Declare the range of a setting beside its type, and check it when the settings are built.

    steps: Annotated[int, at_least(1, unit="steps")] = 10_000

Type checkers see an `int`; `check_fields` refuses a value outside the range, and the configuration
reference prints range and unit. A `Literal` is its own range.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from typing import Any

from lmsi_jax.errors import LmsiError


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a setting may take."""

    contains: Callable[[Any], bool]
    """Tells if a value is inside; not asked about None if that is a value too."""
    words: str
    """The range as messages and the reference print it, such as "1 or more"."""
    unit: str = ""
    """Unit of the number, such as "tokens"; "" for a plain number."""
    optional: bool = False
    """If None is a value too; set by the field's type."""

    @property
    def remedy(self) -> str:
        """The range with its unit, for an error message."""
        return f"{self.words} {self.unit}".strip() + (", or None" if self.optional else "")


def at_least(low: float, unit: str = "", note: str = "") -> Range:
    """Returns the range of finite numbers from `low` on.

    Args:
      low: the smallest value.
      unit: see `Range.unit`.
      note: what `low` means, such as "off".
    """
    words = f"{low} ({note}) or more" if note else f"{low} or more"
    return Range(lambda value: low <= value < math.inf, words, unit)


def above(low: float, unit: str = "", note: str = "") -> Range:
    """Returns the range of finite numbers above `low`; see `at_least`."""
    words = f"a number above {low}" + (f", {note}" if note else "")
    return Range(lambda value: low < value < math.inf, words, unit)


def fraction(note: str = "") -> Range:
    """Returns the range of fractions from 0 to 1."""
    return Range(lambda value: 0 <= value <= 1, "a share, 0 to 1" + (f" ({note})" if note else ""))


def positive_fraction(note: str = "") -> Range:
    """Returns the range of fractions above 0 and up to 1."""
    return Range(
        lambda value: 0 < value <= 1, "a share above 0, up to 1" + (f" ({note})" if note else "")
    )


def below_one() -> Range:
    """Returns the range of numbers from 0 up to, but without, 1."""
    return Range(lambda value: 0 <= value < 1, "0 or more, below 1")


SEED = Range(lambda value: 0 <= value < 2**31, "a number from 0 to 2147483647")
"""Seeds, which JAX takes as 32-bit integers."""


@functools.cache
def field_ranges(cls: type) -> dict[str, Range]:
    """Returns the declared range of each field of a dataclass that has one."""
    hints = typing.get_type_hints(cls, include_extras=True)
    declared = {field.name: _range(hints[field.name]) for field in dataclasses.fields(cls)}
    return {name: allowed for name, allowed in declared.items() if allowed is not None}


def _range(hint: Any) -> Range | None:
    if typing.get_origin(hint) is typing.Annotated:
        allowed = next((one for one in hint.__metadata__ if isinstance(one, Range)), None)
        optional = type(None) in typing.get_args(hint.__origin__)
        return allowed and dataclasses.replace(allowed, optional=optional)
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        *most, last = map(repr, choices)
        return Range(choices.__contains__, f"{', '.join(most)} or {last}" if most else last)
    return None


def check_fields(settings: object) -> None:
    """Checks every field of a dataclass against its declared range.

    Raises:
      LmsiError: names the first field outside its range, its value, and what to use.
    """
    cls: Any = type(settings)  # type checkers take no class for hashable
    for name, allowed in field_ranges(cls).items():
        value = getattr(settings, name)
        if value is None and allowed.optional:
            continue
        try:
            inside = allowed.contains(value)
        except TypeError:  # no number at all
            inside = False
        if not inside:
            refuse(settings, name, allowed.remedy)


def refuse(settings: object, name: str, remedy: str) -> typing.NoReturn:
    """Raises the LmsiError of a field whose value cannot be.

    Args:
      settings: the dataclass, called in gin by its class.
      name: the field.
      remedy: which values can be.
    """
    raise LmsiError(f"{type(settings).__name__}.{name} = {getattr(settings, name)!r}; use {remedy}")
