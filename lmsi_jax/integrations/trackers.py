"""Sends a run's metrics to experiment trackers; a resumed run continues the same tracker runs.

A `Writer` is one tracker's run. TensorBoard and JSON Lines are here, the services of others in
`tracker_services`. `Trackers` sends `Measurements` to all of them, and keeps `trackers.json` in
the run's folder:

    {"stages": {"train/1": FINGERPRINT}, "runs": {"WandB": {"id": ID, "sent": {"train": 40}}}}

A step is noted as sent before it is sent, so none is sent twice: a killed process repeats steps,
with the same values, and leaves at most the last one unsent. A stage that was made again of other
settings has other values; then all trackers start a new run, which gets everything anew.
"""

import base64
import dataclasses
import json
import logging
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from lmsi_jax.config import JsonLines, TensorBoard, Tracker
from lmsi_jax.errors import Damaged, LmsiError
from lmsi_jax.runtime.files import read_record, remove, write_record
from lmsi_jax.training.metrics import Track

_LOG = logging.getLogger(__name__)
STATE = "trackers.json"
_RUNS, _STAGES, _SENT, _RECORDS = "runs", "stages", "sent", "records"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of plain values under named columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurements:
    """Everything that is sent at one step of one series; names are `PART/NAME`.

    Attributes:
      scalars: numbers.
      tables: tables.
      texts: Markdown.
      images: arrays [height, width, 3], uint8.
    """

    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    images: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def count(self) -> int:
        """Calls of a writer that they take."""
        others = len(self.tables) + len(self.texts) + len(self.images)
        return int(bool(self.scalars)) + others


class Writer(Protocol):
    """One run of one tracker.

    The part of a name before its first "/" tells the axis of its steps: "train" and "pretrain"
    count optimizer steps, all others rounds (`axis`).
    """

    run_id: str
    """Identifies the run to the tracker; "" for files."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers."""

    def table(self, step: int, name: str, table: Table) -> None:
        """Writes a table."""

    def text(self, step: int, name: str, text: str) -> None:
        """Writes Markdown."""

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes an image, [height, width, 3] uint8."""

    def close(self, failed: bool = False) -> None:
        """Ends the tracker's run, as finished or as failed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The description of a run that trackers show.

    Attributes:
      name: its title.
      folder: its folder.
      settings: every parameter by its gin name.
    """

    name: str
    folder: epath.Path
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def axis(name: str) -> str:
    """Returns the name that counts a name's steps: "train/step", "pretrain/step" or "round"."""
    part = name.partition("/")[0]
    return f"{part}/step" if part in ("train", "pretrain") else "round"


class Trackers:
    """All trackers of a run. Each is opened when it gets its first measurements.

    A tracker that fails is reported and left out for the rest of the process: no training ends
    because a server is down. The next start sends what it missed.

    Args:
      settings: the trackers; () sends nothing and writes no file.
      info: the run.

    Raises:
      LmsiError: the package of a tracker is not installed.
    """

    def __init__(self, settings: Sequence[Tracker], info: RunInfo):
        from lmsi_jax.integrations import tracker_services

        self._settings = {type(one).__name__: one for one in settings}
        for one in settings:
            tracker_services.check_installed(one)
        self._info, self._path = info, info.folder / STATE
        self._writers: dict[str, Writer] = {}
        self._broken: set[str] = set()
        self._state: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        return bool(self._settings)

    def is_new(self, stage: str, fingerprint: str) -> bool:
        """Notes a stage that is measured next; returns True if all trackers started a new run.

        Args:
          stage: its name, unique in the run.
          fingerprint: its settings and inputs. If it was measured with another one before, the
            trackers' runs have values that this run does not have any more.
        """
        if not self:
            return False
        known = self._read()[_STAGES].get(stage)
        stale = known not in (None, fingerprint)
        if stale:
            self.close()
            for one in self._settings.values():
                _remove_files(one, self._info)
            self._state = {_STAGES: {}, _RUNS: {}}
        if known != fingerprint:
            self._read()[_STAGES][stage] = fingerprint
            self._write()
        return stale

    def send(self, series: str, step: int, measure: Callable[[], Measurements]) -> None:
        """Sends the measurements of a step to each tracker that does not have them yet.

        Args:
          series: what is measured; its steps rise.
          step: the step, see `axis`.
          measure: returns the measurements; called if a tracker lacks them.
        """
        lacking = self.lacks(series, step)
        if not lacking:
            return
        measured = measure()
        for name in lacking:
            before = self._last(name, series)
            try:
                writer = self._open(name)
                self._run(name)[_RECORDS] = self._records(name) + measured.count
                self._mark(name, series, step)
                _write_all(writer, step, measured)
            except LmsiError:
                raise
            except Exception as error:  # of a library, a server or the network
                self._mark(name, series, before)
                self._broken.add(name)
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                print(f"tracker {name} failed and is left out until the next start: {reason}")

    def lacks(self, series: str, step: int) -> list[str]:
        """Returns the trackers that work and do not have a step yet."""
        working = [name for name in self._settings if name not in self._broken]
        return [name for name in working if self._last(name, series) < step]

    def of_training(
        self, part: str = "train", before: int = 0, more: Mapping[str, float] | None = None
    ) -> Track:
        """Returns the function that gets the metrics of a training's steps.

        Args:
          part: the series, and the first part of the names.
          before: steps of earlier trainings of the series, from which these count on.
          more: further numbers of each step, by their whole names.
        """

        def track(step: int, values: Mapping[str, float]) -> None:
            named = {f"{part}/{name}": float(value) for name, value in values.items()}
            self.send(part, before + step, lambda: Measurements(scalars=named | dict(more or {})))

        return track

    def close(self, failed: bool = False) -> None:
        """Ends the runs of all trackers that were opened."""
        for name, writer in self._writers.items():
            try:
                writer.close(failed)
            except Exception as error:  # as in `send`
                _LOG.warning("tracker %s did not close: %s", name, error)
        self._writers.clear()

    def _open(self, name: str) -> Writer:
        if name not in self._writers:
            from lmsi_jax.integrations import tracker_services

            known = self._run(name)
            one = self._settings[name]
            writer: Writer
            if isinstance(one, TensorBoard):
                writer = EventFiles(_place(one, self._info))
            elif isinstance(one, JsonLines):
                writer = LinesFile(_place(one, self._info))
            else:
                run_id, records = known.get("id", ""), self._records(name)
                writer = tracker_services.open_service(one, self._info, run_id, records)
            self._writers[name] = writer
            if writer.run_id:
                known["id"] = writer.run_id
        return self._writers[name]

    def _last(self, name: str, series: str) -> int:
        return int(self._run(name)[_SENT].get(series, -1))

    def _records(self, name: str) -> int:
        return int(self._run(name).get(_RECORDS, 0))

    def _mark(self, name: str, series: str, step: int) -> None:
        self._run(name)[_SENT][series] = step
        self._write()

    def _run(self, name: str) -> dict[str, Any]:
        return self._read()[_RUNS].setdefault(name, {_SENT: {}})

    def _read(self) -> dict[str, Any]:
        if self._state is None:
            self._state = {_STAGES: {}, _RUNS: {}}
            try:
                if self._path.exists():
                    self._state = read_record(self._path)
            except Damaged:
                _LOG.warning("%s was altered; all trackers start a new run", self._path)
                for one in self._settings.values():
                    _remove_files(one, self._info)
        return self._state

    def _write(self) -> None:
        write_record(self._path, self._read())


def _write_all(writer: Writer, step: int, measured: Measurements) -> None:
    if measured.scalars:
        writer.scalars(step, measured.scalars)
    for name, table in measured.tables.items():
        writer.table(step, name, table)
    for name, text in measured.texts.items():
        writer.text(step, name, text)
    for name, pixels in measured.images.items():
        writer.image(step, name, pixels)


def _place(tracker: TensorBoard | JsonLines, info: RunInfo) -> epath.Path:
    if isinstance(tracker, TensorBoard):
        return epath.Path(tracker.folder or info.folder / "tensorboard")
    return epath.Path(tracker.file or info.folder / "tracker.jsonl")


def _remove_files(tracker: Tracker, info: RunInfo) -> None:
    """Removes what a tracker of files wrote; services keep their old runs."""
    if isinstance(tracker, TensorBoard):
        folder = _place(tracker, info)
        for file in folder.iterdir() if folder.exists() else ():
            if ".tfevents." in file.name:
                remove(file)
    elif isinstance(tracker, JsonLines):
        remove(_place(tracker, info))


class _AppendedFile:
    """A file that grows by whole records, so that a killed process leaves none in part."""

    def __init__(self, path: epath.Path):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, data: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(data)


class LinesFile(Writer):
    """A JSON Lines file; images are PNG in base64.

    Args:
      path: the file, which is continued if it exists.
    """

    run_id = ""

    def __init__(self, path: epath.Path):
        self._file = _AppendedFile(path)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        numbers = {name: _json_number(value) for name, value in values.items()}
        self._line({"step": step, "axis": axis(next(iter(values))), **numbers})

    def table(self, step: int, name: str, table: Table) -> None:
        self._line({"step": step, "table": name, "columns": table.columns, "rows": table.rows})

    def text(self, step: int, name: str, text: str) -> None:
        self._line({"step": step, "text": name, "value": text})

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._line({"step": step, "image": name, "png": base64.b64encode(png(pixels)).decode()})

    def close(self, failed: bool = False) -> None:
        """Does nothing: every line is written."""

    def _line(self, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        self._file.write(f"{text}\n".encode())


def _json_number(value: float) -> float | None:
    return value if np.isfinite(value) else None


class EventFiles(Writer):
    """TensorBoard's event files, by the package tensorboard alone.

    Args:
      folder: gets one file for each process that writes.
    """

    run_id = ""

    def __init__(self, folder: epath.Path):
        from tensorboard.summary.writer.record_writer import RecordWriter

        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(_AppendedFile(folder / name))
        self._event(file_version="brain.Event:2")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        summary = Summary()
        for name, value in values.items():
            summary.value.extend(scalar_pb(name, value).value)
        self._event(step=step, summary=summary)

    def table(self, step: int, name: str, table: Table) -> None:
        self.text(step, name, markdown(table))

    def text(self, step: int, name: str, text: str) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._event(step=step, summary=text_pb(name, text))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        height, width, _ = pixels.shape
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=png(pixels)
        )
        self._event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def close(self, failed: bool = False) -> None:
        """Does nothing: every event is written."""

    def _event(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())


def markdown(table: Table) -> str:
    """Returns a table as Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def png(pixels: np.ndarray) -> bytes:
    """Returns an image [height, width, 3] uint8 as a PNG file (ISO/IEC 15948, no filters)."""
    height, width, _ = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
