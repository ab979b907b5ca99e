"""Rankers: functions of a question and a path, which a configuration names "module:function".

One that has a method `many` is asked about several paths at once, as a model wants it; one with an
attribute `fingerprint` says itself what its scores depend on.
"""

import functools
import hashlib
import importlib
import inspect
import math
from collections.abc import Sequence
from typing import Any, cast

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Path, Question
from lmsi_jax.selection.rows import Ranker


@functools.cache
def load(name: str) -> Ranker:
    """Imports a ranker once.

    Raises:
      LmsiError: there is no such module or function; its own errors keep their traceback.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there and misses another one
        raise LmsiError(
            f"there is no module {error.name!r} for the ranker {name!r}; install it, or put its "
            "folder into PYTHONPATH"
        ) from error
    if not callable(found):
        raise LmsiError(
            f"the module {module} has no function {function!r} for the ranker {name!r}; name one "
            "that takes a Question and a Path"
        )
    return cast(Ranker, found)


def fingerprint(name: str) -> str:
    """Returns what a ranker's scores depend on, for a stage's record.

    That is what it says itself, in an attribute `fingerprint`; else the text of its function or
    class, so that scores of another one are not taken for its own.

    Raises:
      LmsiError: it is missing.
    """
    ranker = load(name)
    own = getattr(ranker, "fingerprint", None)
    if own is not None:
        return str(own)
    what = ranker if inspect.isroutine(ranker) or inspect.isclass(ranker) else type(ranker)
    try:
        return hashlib.sha256(inspect.getsource(what).encode()).hexdigest()
    except (OSError, TypeError):  # made without a file, or compiled
        return name


def rank(name: str, asked: Sequence[tuple[Question, Path]]) -> list[float]:
    """Returns what a ranker says of paths.

    Raises:
      LmsiError: it is missing, or does not give a finite number for each.
    """
    ranker = load(name)
    many = getattr(ranker, "many", None)
    found = list(many(asked) if many else [ranker(*one) for one in asked])
    if len(found) != len(asked):
        raise LmsiError(
            f"the ranker {name!r} gives {len(found)} numbers for {len(asked)} paths; its method "
            "`many` must give one for each"
        )
    return [_number(name, score, path) for score, (_, path) in zip(found, asked, strict=True)]


def _number(name: str, score: Any, path: Path) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise LmsiError(
            f"the ranker {name!r} gives {score!r} to path {path.index} of {path.uid!r}; it must "
            "give a finite number"
        )
    return number
