"""The commands of `lmsi` that are no stage of a run: one module each.

Such a module is imported for `lmsi --help`, so it imports nothing heavy before it runs. It has:

  NAME, HELP, EXAMPLE   the command, one line about it, an example's arguments
  TAKES_CONFIG          whether its first argument is a run's configuration, with gin flags
  add_arguments(parser)
  run(args, load)       `load` builds the `Run`; it raises LmsiError where TAKES_CONFIG is False
"""

import argparse
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from lmsi_jax.run import Run

_MODULES: tuple[str, ...] = ()


class Command(Protocol):
    """What a module of this folder offers."""

    NAME: str
    HELP: str
    EXAMPLE: str
    TAKES_CONFIG: bool

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the command's own arguments."""

    def run(self, args: argparse.Namespace, load: Callable[[], "Run"]) -> None:
        """Carries the command out."""


def commands() -> dict[str, Command]:
    """Returns every command by its name."""
    modules = (importlib.import_module(f"{__name__}.{name}") for name in _MODULES)
    return {command.NAME: command for command in (cast(Command, module) for module in modules)}
