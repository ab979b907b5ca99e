"""The commands that a launcher runs, or prints with --dry_run."""

import dataclasses
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence

from lmsi_jax.errors import LmsiError

END = "LMSI_END"  # ends the standard input of a printed command; must not be a line of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a launcher.

    Attributes:
      argv: its words, which no shell interprets.
      why: its purpose and time, printed above it.
      env: (name, value) pairs to add to the environment.
      stdin: its standard input, in whole lines.
    """

    argv: tuple[str, ...]
    why: str
    env: tuple[tuple[str, str], ...] = ()
    stdin: str = ""

    def shown(self) -> str:
        """Returns the command in shell syntax, without `why`."""
        settings = ("env", *(f"{name}={value}" for name, value in self.env)) if self.env else ()
        line = shlex.join([*settings, *self.argv])
        return f"{line} <<'{END}'\n{self.stdin}{END}" if self.stdin else line

    def run(self) -> subprocess.CompletedProcess[str]:
        """Runs the command and captures its standard output; stderr is that of this process.

        Raises:
          LmsiError: the program is not installed.
        """
        try:
            return subprocess.run(
                self.argv,
                env=self.environment(),
                input=self.stdin or None,
                stdin=None if self.stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise self._missing() from error

    def attach(self) -> int:
        """Runs the command on the terminal of this process; returns its exit code.

        Raises:
          LmsiError: the program is not installed.
        """
        try:
            return subprocess.run(
                self.argv, env=self.environment(), input=self.stdin or None, text=True, check=False
            ).returncode
        except FileNotFoundError as error:
            raise self._missing() from error

    def environment(self) -> dict[str, str]:
        """Returns the environment of the command."""
        return {**os.environ, **dict(self.env)}

    def _missing(self) -> LmsiError:
        return LmsiError(
            f"there is no {self.argv[0]} here; install it, or print the commands with --dry_run "
            "and run them on a machine that has it"
        )


def shown(commands: Iterable[Command]) -> str:
    """Formats commands with their purposes, to be read or copied into a shell."""
    return "".join(f"# {command.why}\n{command.shown()}\n" for command in commands)


def script(main: Callable[[Sequence[str]], int]) -> int:
    """Runs the `main` of a launcher; an LmsiError is printed as one line, with exit code 2."""
    try:
        return main(sys.argv[1:])
    except LmsiError as error:
        print(f"launch: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
