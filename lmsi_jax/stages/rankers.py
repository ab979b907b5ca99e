"""Rankers: functions of a question and a path, which a configuration names "module:function"."""

import functools
import importlib
import math
from typing import cast

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
        raise LmsiError(f"the module {module} has no function {function!r} for the ranker {name!r}")
    return cast(Ranker, found)


def rank(name: str, question: Question, path: Path) -> float:
    """Returns what a ranker says of a path.

    Raises:
      LmsiError: it is missing, or gives no finite number.
    """
    score = float(load(name)(question, path))
    if not math.isfinite(score):
        raise LmsiError(
            f"the ranker {name!r} gives {score} to path {path.index} of {path.uid!r}; it must give "
            "a finite number"
        )
    return score
