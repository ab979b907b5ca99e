"""Shows the progress of a stage, and hides routine messages of other libraries.

`Progress` is a live bar in a terminal, otherwise a line every few seconds. `SlowWork` reports what
has no units to count, loading and compiling, once it takes longer than a moment:

    compiling decoding, program 2 ...
    compiling decoding, program 2 · 0:32 so far
    compiling decoding, program 2 in 0:47

TensorFlow and its SentencePiece write INFO lines from C++ directly to file descriptor 2, at any log
level. `quiet_libraries` forks a small process that reads this descriptor and passes everything else
on, even the last message of a process that dies. Python's own stderr bypasses it.
"""

import collections
import contextlib
import logging as standard_logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from types import TracebackType
from typing import Any, Self, TextIO

from lmsi_jax.runtime import console


class Progress:
    """Counts the finished units of a stage and shows them with throughput and remaining time.

        with Progress("sampling", total=500, unit="questions", rate_unit="tokens") as progress:
            for batch in batches:
                progress.advance(len(batch), amount=tokens, note="parsed 93 %")

    Args:
      description: the name of the stage.
      total: number of units; None if unknown.
      unit: name of the units.
      rate_unit: name of the units of throughput, `amount` of `advance`; by default those of `done`.
      initial: units finished by an earlier process, which do not count as throughput.
      stream: the stream to write to; stderr by default.
      every: seconds between two lines if the stream is not a terminal.
      clock: returns seconds.
    """

    def __init__(
        self,
        description: str,
        total: int | None = None,
        *,
        unit: str = "",
        rate_unit: str | None = None,
        initial: int = 0,
        stream: TextIO | None = None,
        every: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.description, self.total, self.done = description, total, initial
        self.amount = 0.0
        self.note = ""
        self._unit, self._rate_unit = unit, rate_unit if rate_unit is not None else unit
        self._initial, self._every, self._clock = initial, every, clock
        self._stream = stream if stream is not None else sys.stderr
        self._start = self._shown = clock()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self._start = self._shown = self._clock()
        if self._stream.isatty():
            self._open_bar()
        _stages.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _stages.remove(self)
        ended = "in" if kind is None else "stopped after"
        if self._bar is not None:
            self._draw(ended)
            self._bar.stop()
            _open_bars.remove(self._bar)
        else:
            self._print(self.line(ended))

    def advance(
        self, done: int = 1, *, amount: float | None = None, note: str | None = None
    ) -> None:
        """Adds finished units.

        Args:
          done: newly finished units.
          amount: units of throughput; by default `done`.
          note: text to show from now on, such as "parsed 93 %".
        """
        self.done += done
        self.amount += done if amount is None else amount
        if note is not None:
            self.note = note
        if self._bar is not None:
            self._draw()
        elif self._clock() - self._shown >= self._every:
            self._shown = self._clock()
            self._print(self.line())

    @property
    def seconds(self) -> float:
        """Seconds since this process began the stage."""
        return self._clock() - self._start

    @property
    def rate(self) -> float:
        """Throughput of this process, in rate units per second."""
        return self.amount / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Remaining seconds at the present speed; None while unknown."""
        done = self.done - self._initial
        if self.total is None or done <= 0:
            return None
        return max(self.total - self.done, 0) * self.seconds / done

    def line(self, ended: str | None = None) -> str:
        """Formats the state as one line; `ended` ("in", "stopped after") precedes the time."""
        return f"{self.description} {self._state(ended)}"

    def _state(self, ended: str | None) -> str:
        details = [self._count()]
        if ended is not None:
            details[0] += f" {ended} {_time(self.seconds)}"
        if self.rate > 0:
            details.append(f"{_number(self.rate)}{' ' * bool(self._rate_unit)}{self._rate_unit}/s")
        if ended is None and self.eta is not None:
            details.append(f"{_time(self.eta)} left")
        return " · ".join([*details, self.note] if self.note else details)

    def _count(self) -> str:
        of = "" if self.total is None else f"/{self.total:,}"
        percent = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        return f"{self.done:,}{of}{' ' * bool(self._unit)}{self._unit}{percent}"

    def _print(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        text = [
            TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[text]")
        ]
        self._bar = Bar(
            text[0],
            BarColumn(bar_width=24),
            text[1],
            console=Console(file=console.unguarded(self._stream)),
        )
        self._task = self._bar.add_task(self.description, total=self.total, text="")
        self._bar.start()
        _open_bars.append(self._bar)
        self._draw()

    def _draw(self, ended: str | None = None) -> None:
        self._bar.update(self._task, completed=self.done, text=self._state(ended))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _time(seconds: float) -> str:
    """Formats seconds as "1:05" or "2:03:09"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


_stages: list[Progress] = []
"""The stages in progress, the innermost last."""
_open_bars: list[Any] = []
"""The live bars in the terminal; other lines go above the last of them."""
_LOOKS_EVERY = 0.5  # seconds


class SlowWork:
    """Reports work that takes long: at its beginning, now and then, and at its end.

    Work that ends within `after` seconds is not mentioned. A thread looks at what is going on.

    Args:
      after: seconds until the first line.
      every: seconds between the lines that follow.
      stream: the stream to write to; stderr by default.
      clock: returns seconds.
    """

    def __init__(
        self,
        *,
        after: float = 2.0,
        every: float = 30.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._after, self._every, self._stream, self._clock = after, every, stream, clock
        self._lock = threading.Lock()
        self._begun: dict[Hashable, tuple[str, float]] = {}
        self._shown: dict[Hashable, float] = {}
        self._closed = threading.Event()

    def begin(self, key: Hashable, what: str) -> None:
        """Notes that work begins, in place of earlier work of the same key."""
        with self._lock:
            self._begun[key] = (what, self._clock())
            self._shown.pop(key, None)

    def end(self, key: Hashable) -> None:
        """Notes that work has ended; writes how long it took if it was mentioned."""
        with self._lock:
            what, start = self._begun.pop(key, ("", 0.0))
            if self._shown.pop(key, None) is not None:
                self._print(f"{what} in {_time(self._clock() - start)}")

    def look(self) -> None:
        """Writes a line for each work that is due for one."""
        with self._lock:
            now = self._clock()
            for key, (what, start) in self._begun.items():
                if key not in self._shown:
                    if now - start < self._after:
                        continue
                    self._print(f"{what} ...")
                elif now - self._shown[key] >= self._every:
                    self._print(f"{what} · {_time(now - start)} so far")
                else:
                    continue
                self._shown[key] = now

    def latest(self) -> str:
        """Returns the work that began last and continues, or ""."""
        works = [*self._begun.values()]  # without the lock, which a stopped thread may hold
        return works[-1][0] if works else ""

    def watch(self) -> None:
        """Looks now and then until `close`, in a thread of its own."""

        def look_on() -> None:
            while not self._closed.wait(_LOOKS_EVERY):
                self.look()

        threading.Thread(target=look_on, name="slow work", daemon=True).start()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()

    def _print(self, line: str) -> None:
        if self._stream is None and _open_bars:
            _open_bars[-1].console.print(line, markup=False, highlight=False)
            return
        stream = self._stream if self._stream is not None else sys.stderr
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more
            stream.write(f"{line}\n")
            stream.flush()


_slow_work: SlowWork | None = None


@contextlib.contextmanager
def slow_work_reported() -> Iterator[None]:
    """Has the block's slow work reported: that of `doing`, and each program that JAX compiles."""
    global _slow_work
    before, _slow_work = _slow_work, SlowWork()
    _listen_to_compiler()
    _slow_work.watch()
    try:
        yield
    finally:
        _slow_work.close()
        _slow_work = before


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Reports the block as slow work, such as "loading the model", if that was asked for."""
    reporter, key = _slow_work, object()
    if reporter is None:
        yield
        return
    reporter.begin(key, what)
    try:
        yield
    finally:
        reporter.end(key)


def current_work() -> str:
    """Returns the name of the work in progress, such as "compiling decoding, program 2", or ""."""
    slow = _slow_work.latest() if _slow_work is not None else ""
    return slow or (_stages[-1].description if _stages else "")


_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
# What users call the programs that take long to compile.
_PROGRAMS = {
    "decode_chunk": "decoding",
    "prefill_prompt": "prefill of a task prompt",
    "prefill_questions": "prefill of questions",
    "move_pages": "growing the page pool",
    "train_step": "a training step",
}
_listens = False


def _listen_to_compiler() -> None:
    """Registers with JAX, once: lowering ends where XLA's compiler begins."""
    global _listens
    if _listens:
        return
    from jax import monitoring

    counts: collections.Counter[str] = collections.Counter()

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs
        if event not in (_LOWERED, _COMPILED) or _slow_work is None:
            return
        key = ("compiling", threading.get_ident())
        if event == _COMPILED:
            _slow_work.end(key)
            return
        name = str(kwargs.get("fun_name", "a program")).removeprefix("jit_").removeprefix("jit(")
        name = _PROGRAMS.get(name.rstrip(")"), name.rstrip(")"))
        counts[name] += 1
        _slow_work.begin(key, f"compiling {name}, program {counts[name]}")

    monitoring.register_event_duration_secs_listener(listen)
    _listens = True


_INFO_LINE = re.compile(
    rb"I\d{4} \d\d:\d\d:|WARNING: All log messages before absl::InitializeLog|"
    rb"\S+\.cc\(\d+\) LOG\(INFO\)"
)


def quiet_libraries() -> None:
    """Drops INFO lines from C++ and warnings from absl's logger; call it before heavy imports."""
    from absl import logging

    # Orbax and SeqIO warn of what is intended here: no metadata above an item, tasks in memory.
    logging.set_verbosity(logging.ERROR)
    # Orbax logs the traceback of a failed save once for each of its threads, and raises it besides.
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
    before = sys.unraisablehook

    def report(unraisable: "sys.UnraisableHookArgs") -> None:
        # TensorStore's other writes tell a loop that has ended with the first failed one.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = report
    if hasattr(os, "fork"):
        _filter_descriptor()


def _filter_descriptor() -> None:
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        try:
            # These are sent to the whole process group.
            for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(name, signal.SIG_IGN)
            for descriptor in (0, 1, writing):
                os.close(descriptor)
            _forward_lines(reading)
        finally:
            os._exit(0)
    os.close(reading)
    # Python's stderr keeps the terminal itself, for progress bars and tracebacks.
    stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    sys.stderr = console.guarded(stderr)
    os.dup2(writing, 2)
    os.close(writing)


def _forward_lines(reading: int) -> None:
    """Copies all lines but the INFO lines to stderr until every writer has closed."""
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if not _INFO_LINE.match(line):
                os.write(2, line)
