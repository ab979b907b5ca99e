"""Whether a plain value is of the type that a parameter is annotated with, and what would be."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

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
