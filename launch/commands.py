"""What a launcher runs, and prints with --dry_run: the same objects."""

import dataclasses
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence

from lmsi_jax.errors import LmsiError

END = "LMSI_END"  # ends what a printed command reads; no line of it may be just this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
      argv: its words; no shell looks at them.
      why: what it is for, and when it runs; printed above it.
      env: (name, value) pairs, added to the environment.
      stdin: what it reads; whole lines.
    """

    argv: tuple[str, ...]
    why: str
    env: tuple[tuple[str, str], ...] = ()
    stdin: str = ""

    def shown(self) -> str:
        """The command as a shell takes it, without `why`."""
        settings = ("env", *(f"{name}={value}" for name, value in self.env)) if self.env else ()
        line = shlex.join([*settings, *self.argv])
        return f"{line} <<'{END}'\n{self.stdin}{END}" if self.stdin else line

    def run(self) -> subprocess.CompletedProcess[str]:
        """Runs it to its end and keeps its standard output; errors go where this process's go.

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
        """Runs it with this process's terminal; returns its exit code.

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
        """The environment that it runs in."""
        return {**os.environ, **dict(self.env)}

    def _missing(self) -> LmsiError:
        return LmsiError(
            f"there is no {self.argv[0]} here; install it, or print the commands with --dry_run "
            "and run them where it is"
        )


def shown(commands: Iterable[Command]) -> str:
    """All commands with what they are for, to be read, or copied into a shell."""
    return "".join(f"# {command.why}\n{command.shown()}\n" for command in commands)


def script(main: Callable[[Sequence[str]], int]) -> int:
    """Runs a launcher's `main`; what the user can mend is one line and exit code 2."""
    try:
        return main(sys.argv[1:])
    except LmsiError as error:
        print(f"launch: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
