"""SIGTERM: what a cluster sends before it takes a machine away.

A stage that can stop between two of its steps asks whether the signal came, and leaves in order;
everything else leaves at once, as with Ctrl-C. Nothing is lost either way: see
`lmsi_jax.runtime.store`.

    with leaving():                        # the command: SIGTERM raises Terminated
        with deferred() as requested:      # a stage: SIGTERM waits until it is asked for
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
    """This process was asked to leave. No `Exception`, so that nothing swallows it on the way."""


_Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Within, SIGTERM raises `Terminated` wherever the program is, as Ctrl-C does its exception."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    with _handled(leave):
        yield


@contextlib.contextmanager
def deferred_signals(deadline: float | None = None) -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM only sets a flag; yields the function that reads it.

    Off the main thread no signal arrives, and the flag stays unset.

    Args:
      deadline: seconds after the signal; where the block has not ended by then, the process leaves
        at once, whatever its threads are at, with exit code 143.

    Raises:
      Terminated: at the end of the block, where the signal came and nobody asked any more.
    """
    came = threading.Event()
    timer = threading.Timer(deadline or 0.0, _leave_now, (deadline,))
    timer.daemon = True

    def note(_signal: int, _frame: FrameType | None) -> None:
        if deadline is not None and not came.is_set():
            timer.start()
        came.set()

    try:
        with _handled(note):
            yield came.is_set
    finally:
        timer.cancel()
    if came.is_set():
        raise Terminated


def _leave_now(deadline: float) -> None:
    """Threads that write to a slow disk would hold up the end of the program: it has none."""
    said = f"terminated; not all was saved within {deadline:g} s, what was whole before stands\n"
    os.write(2, said.encode())
    os._exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def _handled(handler: _Handler) -> Iterator[None]:
    """Puts a handler of SIGTERM in place, and the one before back; on the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        # None stands for a handler that Python cannot put back, such as a library's in C.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
