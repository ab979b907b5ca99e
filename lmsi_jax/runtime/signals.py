"""Handles the signals that end a command: Ctrl-C, a cluster's SIGTERM, and a terminal's SIGHUP.

A stage that can stop between two steps checks for SIGTERM and stops in order; any other code stops
at once, as with Ctrl-C. Nothing is lost either way: see `lmsi_jax.runtime.store`. SIGHUP counts as
SIGTERM, unless it is ignored as under nohup.

    with watched_signals():                            # the whole command, imports included
        with signals_as_exceptions():                  # a run: SIGTERM raises Terminated
            with deferred_signals() as requested:      # a stage: SIGTERM only sets a flag
                for step in steps:
                    do(step)
                    if requested():
                        raise Terminated

Python runs a handler between two instructions of the main thread. A compiler or a large product may
keep that thread for half a minute, so a thread of its own, which the operating system's handler
wakes, says what is waited for and, at a second Ctrl-C, ends the process.
"""

import _thread
import concurrent.futures
import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime import progress


class Terminated(BaseException):
    """SIGTERM arrived. Not an `Exception`, so that no handler of those catches it."""


_Value = TypeVar("_Value")
_Handler = Callable[[int, FrameType | None], None]
_TERMINATING = (signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 1.5  # seconds until a line says what is waited for
# A launcher may pass on the signal that the terminal sent to the whole group already.
_SAME = 0.25  # seconds
_LOOK = 0.5  # seconds
# A closing session sends several signals, which must not interrupt the answer to the first. After
# this time a signal is raised again: libraries swallow exceptions within their callbacks.
_ANSWERING = 5.0  # seconds


class _Raise:
    """A handler that raises an exception, unless it has done so just now."""

    def __init__(self, error: type[BaseException]):
        self._error, self._raised = error, -math.inf

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._raised >= _ANSWERING:
            self._raised = now
            raise self._error


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raises `Terminated` at a SIGTERM inside the block, as Ctrl-C raises its exception."""
    with _handler_installed(_Raise(Terminated)):
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


def interruptible(work: Callable[[], _Value]) -> _Value:
    """Does work in a thread of its own, so that a signal ends the wait for it at once.

    Only for work that leaves nothing behind, in a process that then exits without an orderly end
    of its threads, as `lmsi` does: the thread goes on until then.

    Returns:
      What `work` returns; what it raises is raised here.
    """
    outcome: concurrent.futures.Future[_Value] = concurrent.futures.Future()

    def do() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=do, name="interruptible work", daemon=True).start()
    # Not one wait: a signal that comes just before it begins would not interrupt it.
    while not outcome.done():
        concurrent.futures.wait([outcome], timeout=_LOOK)
    return outcome.result()


@contextlib.contextmanager
def watched_signals() -> Iterator[None]:
    """Ends the block at the first signal, and the process at a second Ctrl-C, even after the block.

    Meanwhile it says what is waited for, and repeats the signal as long as the block runs. Only
    for a process that exits soon after the block.

    Raises:
      Terminated, KeyboardInterrupt: at the signal.
    """
    watcher = _Watcher()
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:  # as in the background of a shell
        signal.signal(signal.SIGINT, _Raise(KeyboardInterrupt))
    try:
        with signals_as_exceptions():
            yield
    except (KeyboardInterrupt, Terminated, LmsiError):
        raise
    except BaseException:
        # Libraries turn an exception that interrupts their import into one of their own.
        watcher.look()  # its thread may not have come to it
        if watcher.cause is None:
            raise
        raise watcher.cause() from None
    finally:
        watcher.left.set()
        if watcher.cause is None:
            watcher.close()
            signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def exit_at_signals(code: int) -> None:
    """Makes any further signal end the process at once with an exit code: its work is done.

    For the time in which Python calls exit functions, where an exception is printed and ignored.
    """

    def leave(_signal: int, _frame: FrameType | None) -> None:
        os._exit(code)

    for number in (signal.SIGINT, *_TERMINATING):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, leave)


class _Watcher:
    """Reads the numbers of arriving signals in a thread.

    Attributes:
      cause: the exception of the first signal; None before any.
      left: set once the block has been left.
    """

    def __init__(self) -> None:
        self.cause: type[BaseException] | None = None
        self.left = threading.Event()
        self._interrupts = self._repeated = 0
        self._reading, self._writing = os.pipe()
        for end in (self._reading, self._writing):
            os.set_blocking(end, False)
        self._lock = threading.Lock()
        self._unraisable = unraisable = sys.unraisablehook

        def report(lost: "sys.UnraisableHookArgs") -> None:
            """Leaves out the signal's exception in a library's callback: it is raised again."""
            if self.cause is None and not isinstance(
                lost.exc_value, KeyboardInterrupt | Terminated
            ):
                unraisable(lost)

        self._thread_failed = thread_failed = threading.excepthook

        def report_thread(failed: "threading.ExceptHookArgs") -> None:
            """Leaves out threads that fail because the main one leaves."""
            with contextlib.suppress(OSError):
                self.look()  # the main thread may have heard of the signal first
            if self.cause is None:
                thread_failed(failed)

        sys.unraisablehook = report
        threading.excepthook = report_thread
        self._since = 0.0
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def close(self) -> None:
        sys.unraisablehook, threading.excepthook = self._unraisable, self._thread_failed
        signal.set_wakeup_fd(self._before)
        os.close(self._writing)  # the thread ends, and closes the other end

    def look(self) -> bool:
        """Reads what has arrived; returns False once nothing more will."""
        with self._lock:
            try:
                numbers = os.read(self._reading, 64)
            except BlockingIOError:
                return True
            for number in numbers:
                self._arrived(number)
            return bool(numbers)

    def _watch(self) -> None:
        while select.select([self._reading], [], []) and self.look():
            pass
        os.close(self._reading)

    def _arrived(self, number: int) -> None:
        if number not in (signal.SIGINT, *_TERMINATING):
            return
        if self._repeated:  # by itself, see `_repeat`
            self._repeated -= 1
            return
        now = time.monotonic()
        self._interrupts += number == signal.SIGINT
        if self.cause is None:
            self.cause = KeyboardInterrupt if number == signal.SIGINT else Terminated
            self._since = now
            threading.Thread(target=self._wait, args=(number,), daemon=True).start()
        elif number == signal.SIGINT and now - self._since > _SAME:
            self._end_now()

    def _wait(self, number: int) -> None:
        """Says what the block waits for, and repeats the signal until it is left."""
        time.sleep(_PATIENCE)
        if self._interrupts > 1:  # the thread that reads them may have been kept from it
            self._end_now()
        name = "interrupted" if number == signal.SIGINT else "terminated"
        work = progress.current_work() or "the work at hand"
        _write(f"{name}: waiting for {work}; Ctrl-C ends it at once, what is finished is kept")
        while not self.left.wait(_ANSWERING):
            self._repeated += 1
            _thread.interrupt_main(signal.Signals(number))

    def _end_now(self) -> None:
        _write("interrupted; the same command continues where it stopped")
        os._exit(128 + signal.SIGINT)


def _exit_now(deadline: float) -> None:
    """Exits without waiting for threads, which may be writing to a slow disk."""
    _write(f"terminated; not all was saved within {deadline:g} s, earlier complete files remain")
    os._exit(128 + signal.SIGTERM)


def _write(line: str) -> None:
    """Writes a line from any thread: the main thread may hold the lock of Python's stderr."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


@contextlib.contextmanager
def _handler_installed(handler: _Handler) -> Iterator[None]:
    """Installs a handler of SIGTERM and SIGHUP and restores the previous ones.

    Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, handler)
        for number in _TERMINATING
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, previous in before.items():
            # None means a handler that Python cannot restore, such as one of a C library.
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
