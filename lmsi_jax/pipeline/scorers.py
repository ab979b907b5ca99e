"""Scorers: functions of a question and a sample, which a configuration names "module:function".

A scorer with a method `many` scores several samples at once, as a model should; one with an
attribute `fingerprint` identifies its scores by that.
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
        scorer = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there and misses another one
        raise LmsiError(
            f"there is no module {error.name!r} for the scorer {name!r}; install it, or put its "
            "folder into PYTHONPATH"
        ) from error
    if not callable(scorer):
        raise LmsiError(
            f"the module {module} has no function {function!r} for the scorer {name!r}; name one "
            "that takes a Question and a Sample"
        )
    return cast(ScoringFunction, scorer)


def fingerprint(name: str) -> str:
    """Returns what identifies a scorer's scores, for a stage's record.

    That is its attribute `fingerprint` if it has one, else the hash of its function's or class's
    source, so that scores of another version are not taken for its own.

    Raises:
      LmsiError: it is missing.
    """
    scorer = load(name)
    declared = getattr(scorer, "fingerprint", None)
    if declared is not None:
        return str(declared)
    source = scorer if inspect.isroutine(scorer) or inspect.isclass(scorer) else type(scorer)
    try:
        return hashlib.sha256(inspect.getsource(source).encode()).hexdigest()
    except (OSError, TypeError):  # made without a file, or compiled
        return name


def apply_scorer(name: str, asked: Sequence[tuple[Question, Sample]]) -> list[float]:
    """Returns a scorer's scores of samples.

    Raises:
      LmsiError: it is missing, or does not give a finite number for each.
    """
    scorer = load(name)
    many = getattr(scorer, "many", None)
    scores = list(many(asked) if many else [scorer(*one) for one in asked])
    if len(scores) != len(asked):
        raise LmsiError(
            f"the scorer {name!r} gives {len(scores)} numbers for {len(asked)} samples; its method "
            "`many` must give one for each"
        )
    return [_number(name, score, sample) for score, (_, sample) in zip(scores, asked, strict=True)]


def _number(name: str, score: Any, sample: Sample) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise LmsiError(
            f"the scorer {name!r} gives {score!r} to sample {sample.sample_index} of "
            f"{sample.uid!r}; it must give a finite number"
        )
    return number
