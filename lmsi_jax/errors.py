"""The exceptions that the command line turns into a short message and an exit code."""

from collections.abc import Mapping
from typing import Any


class LmsiError(Exception):
    """A mistake that the user can mend; the message says what was found and names the remedy.

    Everything else that is raised is a bug and keeps its traceback.
    """

    exit_code = 2


class TryAgain(LmsiError):
    """No mistake of the user's: another process is gone, and the same command goes on.

    Its exit code is EX_TEMPFAIL of sysexits.h (BSD): whoever starts processes starts them anew on
    it, and not on a mistake.
    """

    exit_code = 75


def check_ranges(settings: Any, ranges: Mapping[str, tuple[bool, str]]) -> None:
    """Refuses the first setting that is out of its range.

    Args:
      settings: a configuration, as it is called in gin by its class.
      ranges: by field, whether the value is inside, and which values are, in words.

    Raises:
      LmsiError: names the field, its value, and what to use.
    """
    for name, (inside, wanted) in ranges.items():
        if not inside:
            field = f"{type(settings).__name__}.{name}"
            raise LmsiError(f"{field} = {getattr(settings, name)!r}; use {wanted}")


def check_scorer(parameter: str, scorer: str) -> None:
    """Raises LmsiError where a name is not "module:function"."""
    module, _, function = scorer.partition(":")
    if not (module and function.isidentifier()):
        raise LmsiError(f"{parameter} = {scorer!r}; write 'module:function'")
