"""Whether a plain value is of the type that a parameter is annotated with."""

import types
import typing
from collections.abc import Sequence
from typing import Any

_PLAIN = (type(None), bool, int, float, str, list, tuple, dict)


def fits(value: Any, hint: Any) -> bool:
    """Returns whether a literal fits an annotation.

    What is no literal (a reference to something that is still to be built), and what is annotated
    with anything but numbers, strings, tuples, lists, literals and unions of these, fits.
    """
    if not isinstance(value, _PLAIN):
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin in (tuple, list, Sequence) or hint in (tuple, list):
        items = [arg for arg in args if arg is not Ellipsis]
        uniform = len(items) == 1
        if not isinstance(value, (list, tuple)):
            return False
        return not uniform or all(fits(item, items[0]) for item in value)
    if hint is type(None):
        return value is None
    if hint in (int, float):
        number = (int, float) if hint is float else int
        return isinstance(value, number) and not isinstance(value, bool)
    return hint not in (str, bool) or isinstance(value, hint)


def written(hint: Any) -> str:
    """Returns an annotation as a person would write it."""
    name = getattr(hint, "__name__", "")
    if not name or typing.get_origin(hint) is not None:
        return str(hint).replace("typing.", "")
    return str(name)
