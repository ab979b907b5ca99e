"""CLU metric writers: JSON Lines that are replaced as a whole, and TensorBoard's event files.

Importing this imports TensorFlow, so it is imported when a training run starts.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from clu import metric_writers
from etils import epath

from lmsi_jax.runtime import files
from lmsi_jax.training.metrics import METRICS, SPEED, read_lines


class JsonLines(metric_writers.MetricWriter):
    """Scalars as one JSON object a step, in a file that is complete after every `flush`.

    Args:
      path: the file.
      first: its lines after this step are dropped: their checkpoint was not completed.
    """

    def __init__(self, path: epath.Path, first: int):
        self._path, self._lines = path, list(read_lines(path, first))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds to the line of the step; written with the next `flush`."""
        if not self._lines or self._lines[-1]["step"] != step:
            self._lines.append({"step": step})
        self._lines[-1] |= {name: _number(value) for name, value in scalars.items()}

    def flush(self) -> None:
        """Writes all lines."""
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        files.write_bytes(self._path, text.encode())

    def close(self) -> None:
        """Does nothing: what was not flushed is not part of a checkpoint."""

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("JSON Lines hold scalars alone")

    write_summaries = write_images = write_videos = write_audios = _refuse
    write_texts = write_histograms = write_hparams = _refuse


class Writers:
    """The writers of one training run, see `lmsi_jax.training.metrics`."""

    def __init__(self, directory: epath.Path, first: int):
        self._events = metric_writers.SummaryWriter(str(directory / "tensorboard"))
        self._metrics = JsonLines(directory / METRICS, first)
        self._speed = JsonLines(directory / SPEED, first)

    def metrics(self, step: int, line: Mapping[str, float]) -> None:
        """Writes the values that a resumed run repeats byte by byte."""
        scalars = {name: value for name, value in line.items() if name != "step"}
        metric_writers.MultiWriter([self._metrics, self._events]).write_scalars(step, scalars)

    def speed(self, step: int, line: Mapping[str, float]) -> None:
        """Writes the values that depend on the clock."""
        metric_writers.MultiWriter([self._speed, self._events]).write_scalars(step, line)

    def flush(self) -> None:
        """Writes the lines so far."""
        for writer in (self._metrics, self._speed, self._events):
            writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


def _number(value: Any) -> float:
    return value if isinstance(value, int) else float(np.asarray(value))
