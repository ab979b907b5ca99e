"""Several processes of one run on this machine, each with its own virtual CPU devices.

  python launch/local.py --processes=2 --devices=4 -- run quickstart --gin.Run.output_dir=runs/two

Lines of their output begin with the process's number. SIGINT, SIGTERM and SIGHUP are passed on.
When one process fails, the others have ten seconds to follow by themselves, then get SIGTERM, and
SIGKILL after --grace_seconds; the exit code is that of the first one to fail.
"""

import argparse
import contextlib
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO

# Run as a file, Python looks in launch/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import arguments  # noqa: E402
from launch.commands import Command, script  # noqa: E402
from lmsi_jax.errors import LmsiError  # noqa: E402

_FOLLOW = 10.0  # seconds in which lmsi's processes notice that one of them has left
_POLL = 0.05
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def commands(
    words: Sequence[str], processes: int, devices: int, port: int, python: str
) -> tuple[Command, ...]:
    """Returns the commands of the processes of a run.

    Args:
      words: arguments of lmsi.
      processes: number of processes.
      devices: virtual CPU devices of each.
      port: the port of process 0 on this machine.
      python: the interpreter.
    """
    env = (
        ("JAX_PLATFORMS", "cpu"),
        ("JAX_NUM_CPU_DEVICES", str(devices)),
        ("JAX_CPU_COLLECTIVES_IMPLEMENTATION", "gloo"),
        ("PYTHONUNBUFFERED", "1"),
    )
    processes_of_run = []
    for index in range(processes):
        flags = (
            f"--coordinator_address=localhost:{port}",
            f"--process_count={processes}",
            f"--process_index={index}",
        )
        argv = (python, "-m", "lmsi_jax.cli.main", *words, *(flags if processes > 1 else ()))
        processes_of_run.append(Command(argv=argv, why=f"process {index} of {processes}", env=env))
    return tuple(processes_of_run)


def run_together(commands: Sequence[Command], grace: float) -> int:
    """Runs commands side by side until all have ended.

    Args:
      commands: the commands.
      grace: seconds from SIGTERM to SIGKILL, once one of them has failed.

    Returns:
      0, or the exit code of the first to fail; 128 + N if signal N ended it.
    """
    children: list[subprocess.Popen[bytes]] = []
    with _signals_forwarded(children):
        for command in commands:
            children.append(_start(command))
        readers = list(_readers(children))
        code = _first_failure(children)
        if code:
            _end(children, grace)
        for reader in readers:
            reader.join()
    return 128 - code if code < 0 else code


def _first_failure(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits until one process has failed or all have succeeded; returns the exit code."""
    while True:
        codes = [child.poll() for child in children]
        failed = [code for code in codes if code]
        if failed or None not in codes:
            return failed[0] if failed else 0
        time.sleep(_POLL)


def _start(command: Command) -> subprocess.Popen[bytes]:
    # In a session of its own, so that a terminal's Ctrl-C comes once, from here.
    return subprocess.Popen(
        command.argv,
        env=command.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@contextlib.contextmanager
def _signals_forwarded(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Forwards signals to the processes inside the block, while this one waits for their end."""

    def forward(number: int, _frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)  # does nothing if the process has ended

    before = {number: signal.signal(number, forward) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _alive(children: Sequence[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    return [child for child in children if child.poll() is None]


def _end(children: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Waits for the remaining processes to follow, then terminates them."""
    _wait(children, _FOLLOW)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for child in _alive(children):
            child.send_signal(number)
        _wait(children, grace)


def _wait(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while _alive(children) and time.monotonic() < end:
        time.sleep(_POLL)


def _readers(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[threading.Thread]:
    lock = threading.Lock()
    for index, child in enumerate(children):
        assert child.stdout is not None and child.stderr is not None
        for source, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
            reader = threading.Thread(
                target=_prefix, args=(f"[{index}] ".encode(), source, target.buffer, lock)
            )
            reader.start()
            yield reader


def _prefix(prefix: bytes, source: IO[bytes], target: IO[bytes], lock: threading.Lock) -> None:
    """Copies whole lines, each after `prefix`, until the source ends."""
    for line in source:
        with lock:
            target.write(prefix + line.removesuffix(b"\n") + b"\n")
            target.flush()


def free_port() -> int:
    """Returns an unused port of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def _shown(commands: Sequence[Command]) -> str:
    lines = [f"# {command.why}\n{command.shown()} &\n" for command in commands]
    return "".join([*lines, "wait\n"])


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    flags, words = arguments.split(argv)
    options = _parser().parse_args(flags)
    arguments.check_words(words)
    if options.processes < 1 or options.devices < 1:
        raise LmsiError("--processes and --devices are at least 1")
    if shutil.which(options.python) is None:
        raise LmsiError(f"--python={options.python}: there is no such interpreter")
    port = options.port or free_port()
    to_run = commands(words, options.processes, options.devices, port, options.python)
    if options.dry_run:
        print(_shown(to_run), end="")
        return 0
    return run_together(to_run, options.grace_seconds)


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    parser.add_argument("--processes", type=int, default=2, help="how many (%(default)s)")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each (%(default)s)")
    parser.add_argument("--port", type=int, help="of process 0; a free one by default")
    parser.add_argument("--python", default=sys.executable, help="the interpreter (this one)")
    parser.add_argument("--grace_seconds", type=float, default=60.0, help="(%(default)s)")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(script(main))
