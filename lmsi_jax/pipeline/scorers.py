"""Scorers: functions of a question and a path, which a configuration names "module:function".

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
from lmsi_jax.records import Question, Sample
from lmsi_jax.selection.rows import ScoringFunction


@functools.cache
def load(name: str) -> ScoringFunction:
    """Imports a scorer once.

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
            f"there is no module {error.name!r} for the scorer {name!r}; install it, or put its "
            "folder into PYTHONPATH"
        ) from error
    if not callable(found):
        raise LmsiError(
            f"the module {module} has no function {function!r} for the scorer {name!r}; name one "
            "that takes a Question and a Sample"
        )
    return cast(ScoringFunction, found)


def fingerprint(name: str) -> str:
    """Returns what a scorer's scores depend on, for a stage's record.

    That is what it says itself, in an attribute `fingerprint`; else the text of its function or
    class, so that scores of another one are not taken for its own.

    Raises:
      LmsiError: it is missing.
    """
    scorer = load(name)
    own = getattr(scorer, "fingerprint", None)
    if own is not None:
        return str(own)
    what = scorer if inspect.isroutine(scorer) or inspect.isclass(scorer) else type(scorer)
    try:
        return hashlib.sha256(inspect.getsource(what).encode()).hexdigest()
    except (OSError, TypeError):  # made without a file, or compiled
        return name


def apply_scorer(name: str, asked: Sequence[tuple[Question, Sample]]) -> list[float]:
    """Returns what a scorer says of paths.

    Raises:
      LmsiError: it is missing, or does not give a finite number for each.
    """
    scorer = load(name)
    many = getattr(scorer, "many", None)
    found = list(many(asked) if many else [scorer(*one) for one in asked])
    if len(found) != len(asked):
        raise LmsiError(
            f"the scorer {name!r} gives {len(found)} numbers for {len(asked)} paths; its method "
            "`many` must give one for each"
        )
    return [_number(name, score, sample) for score, (_, sample) in zip(found, asked, strict=True)]


def _number(name: str, score: Any, sample: Sample) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise LmsiError(
            f"the scorer {name!r} gives {score!r} to path {sample.sample_index} of "
            f"{sample.uid!r}; it must "
            "give a finite number"
        )
    return number
