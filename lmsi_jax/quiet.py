"""Keeps other libraries' routine messages off the console, when `lmsi` runs as a command.

TensorFlow and its SentencePiece write INFO lines from C++ straight to file descriptor 2, whatever
levels are set. A small child process stands behind the descriptor and passes on all else, even the
last words of a process that dies. Python's own stderr does not go through it.
"""

import os
import re
import signal
import sys

_CHATTER = re.compile(
    rb"I\d{4} \d\d:\d\d:|WARNING: All log messages before absl::InitializeLog|"
    rb"\S+\.cc\(\d+\) LOG\(INFO\)"
)


def quiet_libraries() -> None:
    """Drops INFO lines from C++ and warnings from absl's logger; call it before heavy imports."""
    from absl import logging

    # Orbax and SeqIO warn of what is meant here: no metadata above an item, tasks in memory.
    logging.set_verbosity(logging.ERROR)
    if hasattr(os, "fork"):
        _filter_descriptor()


def _filter_descriptor() -> None:
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        try:
            for name in (signal.SIGINT, signal.SIGTERM):  # these reach a whole process group
                signal.signal(name, signal.SIG_IGN)
            for descriptor in (0, 1, writing):
                os.close(descriptor)
            _pass_on(reading)
        finally:
            os._exit(0)
    os.close(reading)
    # Python's stderr keeps the terminal itself, for progress bars and tracebacks.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(writing, 2)
    os.close(writing)


def _pass_on(reading: int) -> None:
    """Copies lines to stderr until every writer is gone, but for the chatter."""
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if not _CHATTER.match(line):
                os.write(2, line)
