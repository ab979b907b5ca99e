"""Check the values of settings: their types when gin is parsed, their ranges when they are built.

A field declares its range beside its type:

    steps: Annotated[int, at_least(1, unit="steps")] = 10_000

Type checkers see an `int`; `check_fields` refuses a value outside the range, and the configuration
reference prints range and unit. A `Literal` is its own range. `fits` compares a literal of a gin
file with the annotation of its parameter.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

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


def temperatures(*, greedy: bool = False, note: str = "") -> Range:
    """Returns the range of temperatures: scores over a smaller one overflow in float32.

    Args:
      greedy: 0 is a value too.
      note: as of `at_least`.
    """
    words = "0 (greedy) or more, if not 0 at least 1e-30" if greedy else "1e-30 or more"
    return Range(
        lambda value: (greedy and value == 0) or 1e-30 <= value < math.inf,
        words + (f", {note}" if note else ""),
    )


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


@dataclasses.dataclass(frozen=True)
class Anchor:
    """Marks texts of a setting that are paths, or relative to the gin file that has them.

    `gin_loader` makes the latter absolute, and replaces "~" by the home folder in all. Settings
    that are built in Python are relative to the current folder.
    """

    what: Literal["path", "object", "cwd_path"]
    """A file, folder or pattern, relative to its gin file; an object of Python code there,
    "module:object"; or a path relative to the current folder."""


PATH, OBJECT, CWD_PATH = Anchor("path"), Anchor("object"), Anchor("cwd_path")


def without_folder(name: str) -> str:
    """Returns "module:object" of "/folder/module:object", as records have it: folders move."""
    return name.rpartition("/")[2]


HUB = "hub:"
"""Prefix of a name that is a data set on the Hugging Face hub and no path."""


@functools.cache
def field_anchors(cls: Any) -> dict[str, Anchor]:
    """Returns the mark of each field of a dataclass that has one; {} for all else."""
    if not dataclasses.is_dataclass(cls):
        return {}
    hints = typing.get_type_hints(cls, include_extras=True)
    marked = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {
        name: mark for name, marks in marked.items() for mark in marks if isinstance(mark, Anchor)
    }


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


_PLAIN = (type(None), bool, int, float, str, list, tuple, dict)
_SEQUENCES = (tuple, list, Sequence)
_NOUNS = {int: "a whole number", float: "a number", str: "text in quotes", bool: "True or False"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def fits(value: Any, hint: Any) -> bool:
    """Tells if a literal fits an annotation.

    Values that are no literals (references to objects that gin builds later) fit, and so does
    everything if the annotation has anything but numbers, strings, tuples, lists, literals,
    dataclasses and unions of these; except that None fits no class.
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


def remedy(value: Any, hint: Any) -> str:
    """Returns advice on what to use instead of a literal that does not fit an annotation."""
    item = _item(hint)
    if typing.get_origin(hint) is typing.Literal or typing.get_origin(item) is typing.Literal:
        choices = ", ".join(map(str, typing.get_args(hint if item is None else item)))
        advice = f"choose from {choices}" + (", in a tuple" if item is not None else "")
    elif dataclasses.is_dataclass(hint):
        advice = f"bind it to {noun(hint)}"
    else:
        advice = f"use {noun(hint)}"
    return f"{advice}, as in {(value,)!r}" if item is not None and fits((value,), hint) else advice


def _item(hint: Any) -> Any:
    """Returns the type of the items of a tuple or list of any length; None for all else."""
    items = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
    return items[0] if typing.get_origin(hint) in _SEQUENCES and len(items) == 1 else None


def noun(hint: Any) -> str:
    """Returns a noun phrase for the values of an annotation, such as "a tuple of numbers"."""
    origin, args, item = typing.get_origin(hint), typing.get_args(hint), _item(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(noun, args))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if item is not None:
        return f"a tuple of {_PLURALS.get(item) or f'items, each {noun(item)}'}"
    if origin in _SEQUENCES:
        return f"a tuple ({', '.join(map(noun, args))})"
    if hint is type(None):
        return "None"
    name = getattr(hint, "__name__", str(hint).replace("typing.", ""))
    return _NOUNS.get(hint) or (f"@{name}()" if isinstance(hint, type) else name)
