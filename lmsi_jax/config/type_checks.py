"""Compare the literals of a gin file with the annotations of their parameters."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

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
