"""Shows the progress of a stage, and hides routine messages of other libraries.

`Progress` is a live bar in a terminal, otherwise a line every few seconds.

TensorFlow and its SentencePiece write INFO lines from C++ directly to file descriptor 2, at any log
level. `quiet_libraries` forks a small process that reads this descriptor and passes everything else
on, even the last message of a process that dies. Python's own stderr bypasses it.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO


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
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ended = "in" if kind is None else "stopped after"
        if self._bar is not None:
            self._draw(ended)
            self._bar.stop()
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
            text[0], BarColumn(bar_width=24), text[1], console=Console(file=self._stream)
        )
        self._task = self._bar.add_task(self.description, total=self.total, text="")
        self._bar.start()
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


_INFO_LINE = re.compile(
    rb"I\d{4} \d\d:\d\d:|WARNING: All log messages before absl::InitializeLog|"
    rb"\S+\.cc\(\d+\) LOG\(INFO\)"
)


def quiet_libraries() -> None:
    """Drops INFO lines from C++ and warnings from absl's logger; call it before heavy imports."""
    from absl import logging

    # Orbax and SeqIO warn of what is intended here: no metadata above an item, tasks in memory.
    logging.set_verbosity(logging.ERROR)
    if hasattr(os, "fork"):
        _filter_descriptor()


def _filter_descriptor() -> None:
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        try:
            for name in (signal.SIGINT, signal.SIGTERM):  # sent to the whole process group
                signal.signal(name, signal.SIG_IGN)
            for descriptor in (0, 1, writing):
                os.close(descriptor)
            _forward_lines(reading)
        finally:
            os._exit(0)
    os.close(reading)
    # Python's stderr keeps the terminal itself, for progress bars and tracebacks.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(writing, 2)
    os.close(writing)


def _forward_lines(reading: int) -> None:
    """Copies all lines but the INFO lines to stderr until every writer has closed."""
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if not _INFO_LINE.match(line):
                os.write(2, line)
