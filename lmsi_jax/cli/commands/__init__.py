"""The commands of `lmsi` that are no stage of a run: one module each.

Such a module is imported for `lmsi --help`, so it imports nothing heavy before it runs. It has:

  NAME, HELP, EXAMPLE   the command, one line about it, an example's arguments
  CONFIGS               the folder of gin_configs whose files its first argument names, "runs" or
                        "studies", gin flags beside; "" where it takes none
  add_arguments(parser)
  run(args, load)       `load` builds the `Run`, with further bindings where it is given some; it
                        raises LmsiError where CONFIGS is ""
"""

import argparse
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from lmsi_jax.config.run import Run

_MODULES: tuple[str, ...] = ("import_hf", "export_hf", "aot", "study")

Load = Callable[[Sequence[str]], "Run"]
"""Builds the `Run` of the command's configuration with further bindings, each "NAME = VALUE"."""


class Command(Protocol):
    """What a module of this folder offers."""

    NAME: str
    HELP: str
    EXAMPLE: str
    CONFIGS: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the command's own arguments."""

    def run(self, args: argparse.Namespace, load: Load) -> None:
        """Carries the command out."""


def commands() -> dict[str, Command]:
    """Returns every command by its name."""
    modules = (importlib.import_module(f"{__name__}.{name}") for name in _MODULES)
    return {command.NAME: command for command in (cast(Command, module) for module in modules)}
