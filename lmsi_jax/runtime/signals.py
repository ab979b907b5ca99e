"""Handles SIGTERM, which a cluster sends before it takes a machine away.

A stage that can stop between two steps checks for the signal and stops in order; any other code
stops at once, as with Ctrl-C. Nothing is lost either way: see `lmsi_jax.runtime.store`.

    with signals_as_exceptions():                  # a command: SIGTERM raises Terminated
        with deferred_signals() as requested:      # a stage: SIGTERM only sets a flag
            for step in steps:
                do(step)
                if requested():
                    raise Terminated
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Terminated(BaseException):
    """SIGTERM arrived. Not an `Exception`, so that no handler of those catches it."""


_Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raises `Terminated` at a SIGTERM inside the block, as Ctrl-C raises its exception."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    with _handler_installed(leave):
        yield


@contextlib.contextmanager
def deferred_signals(deadline: float | None = None) -> Iterator[Callable[[], bool]]:
    """Makes SIGTERM set a flag inside the block; yields the function that reads it.

    Signals reach the main thread only; in any other thread the flag stays unset.

    Args:
      deadline: seconds after the signal; if the block has not ended by then, the process exits at
        once with code 143, whatever its threads do.

    Raises:
      Terminated: at the end of the block, if the signal came.
    """
    received = threading.Event()
    timer = threading.Timer(deadline or 0.0, _exit_now, (deadline,))
    timer.daemon = True

    def note(_signal: int, _frame: FrameType | None) -> None:
        if deadline is not None and not received.is_set():
            timer.start()
        received.set()

    try:
        with _handler_installed(note):
            yield received.is_set
    finally:
        timer.cancel()
    if received.is_set():
        raise Terminated


def _exit_now(deadline: float) -> None:
    """Exits without waiting for threads, which may be writing to a slow disk."""
    message = (
        f"terminated; not all was saved within {deadline:g} s, earlier complete files remain\n"
    )
    os.write(2, message.encode())
    os._exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def _handler_installed(handler: _Handler) -> Iterator[None]:
    """Installs a handler of SIGTERM and restores the previous one; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        # None means a handler that Python cannot restore, such as one installed by a C library.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
