"""The trainer: packed batches in, checkpoints and metrics out; resumes to the same bytes."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath

from lmsi_jax import files
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import Params
from lmsi_jax.progress import Progress
from lmsi_jax.training import packing, placement
from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.lora import Lora
from lmsi_jax.training.optimizers import Optimizer
from lmsi_jax.training.step import result, resumed, start, train_step

_METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is fine-tuned.

    Attributes:
      steps: optimiser steps.
      optimizer: what updates the parameters.
      microbatches: prefixes per step; the gradient is summed over them.
      rows: packed sequences behind each prefix.
      length: tokens per packed sequence.
      prefix_length: most tokens of a few-shot prompt.
      log_every: steps per line of metrics.
      save_every: steps between checkpoints (the last step is always saved).
      strong_rate: share of strong (human) examples in the mixture, where a run has some.
      compute_dtype: type of states and products, "float32" or "bfloat16"; parameters, the sums of
        their gradients and the optimiser's state are float32 in any case.
      lora: adapters to train in place of the parameters; None trains all of them.
      data, model: the mesh of devices: rows over "data"; heads, MLP and vocabulary over "model".
      fsdp: whether parameters and optimiser state are spread over "data" too.
    """

    steps: int = 10_000
    optimizer: Optimizer = Optimizer()
    microbatches: int = 4
    rows: int = 8
    length: int = 256
    prefix_length: int = 384
    log_every: int = 10
    save_every: int = 1000
    strong_rate: float = 0.0
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    lora: Lora | None = None
    data: int = 1
    model: int = 1
    fsdp: bool = False

    def __post_init__(self) -> None:
        least_one = ("steps", "microbatches", "rows", "length", "log_every", "save_every")
        checks = {name: getattr(self, name) >= 1 for name in (*least_one, "data", "model")}
        checks["prefix_length"] = self.prefix_length >= 0
        checks["compute_dtype"] = self.compute_dtype in ("float32", "bfloat16")
        checks["strong_rate"] = 0 <= self.strong_rate <= 1
        for name, good in checks.items():
            if not good:
                raise LmsiError(f"Training.{name} = {getattr(self, name)} is out of range")
        placement.check_rows(self.data, self.rows)

    @property
    def shape(self) -> packing.Shape:
        """The fixed shape of a step's batch."""
        return packing.Shape(
            microbatches=self.microbatches,
            rows=self.rows,
            length=self.length,
            prefix_length=self.prefix_length,
        )


def train(
    config: ModelConfig,
    training: Training,
    params: Params,
    rows: Iterable[packing.Row],
    directory: epath.PathLike,
    *,
    groups: Sequence[str] = ("all",),
    name: str = "training",
) -> Params:
    """Trains, or goes on from the newest checkpoint in `directory`.

    Args:
      config: the model's shape.
      training: steps, optimiser and batch shape.
      params: where a fresh run starts.
      rows: a deterministic, endless stream; a resumed run skips what was read.
      directory: gets `checkpoint_N` and metrics.jsonl.
      groups: names of the groups that `Row.group` counts, for metrics.
      name: what the progress bar says.

    Returns:
      The parameters after the last step.

    Raises:
      LmsiError: the stream ended early, or the loss is not a number any more.
    """
    placement.check_alone(training)
    checkpoints = Checkpoints(directory)
    base = params  # the step donates its arguments: keep the caller's
    params, state = start(config, training, base)
    first = checkpoints.latest or 0
    if first:
        saved = checkpoints.restore(first, params, state)
        params, state = resumed(config, training, base, *saved)
    stream = _skip(packing.batches(rows, training.shape), first)
    bar = Progress(name, training.steps, unit="steps", rate_unit="tokens", initial=first)
    with bar as progress:
        log = _Log(name, training, groups, epath.Path(directory) / _METRICS, first, progress)
        for step in range(first + 1, training.steps + 1):
            batch = _next(stream, name, step, training)
            batch = placement.fed(training, batch)
            params, state, metrics = train_step(config, training, len(groups), params, state, batch)
            log.add(step, metrics)
            if step % training.save_every == 0 or step == training.steps:
                log.write()
                checkpoints.save(step, result(training, params, state), state)
    checkpoints.close()
    return result(training, params, state)


def _next(
    stream: Iterator[packing.Batch], name: str, step: int, training: Training
) -> packing.Batch:
    batch = next(stream, None)
    if batch is None:
        raise LmsiError(
            f"{name}: the examples ended before step {step}; a step needs "
            f"{training.microbatches} microbatches, so lower Training.microbatches or rows"
        )
    return batch


class _Log:
    """Metrics of windows of `log_every` steps, as lines of a file and on the progress bar."""

    def __init__(
        self,
        name: str,
        training: Training,
        groups: Sequence[str],
        path: epath.Path,
        first: int,
        progress: Progress,
    ):
        self._name, self._training, self._groups = name, training, groups
        self._path, self._progress = path, progress
        self._lines = _lines_until(path, first)
        self._window: list[Any] = []

    def add(self, step: int, metrics: Any) -> None:
        """Takes a step's metrics, still on the device; reads them where a window ends.

        Windows also end with a checkpoint: a resumed run starts a window there too.

        Raises:
          LmsiError: the loss is not a number any more.
        """
        training = self._training
        self._window.append(metrics)
        if step % training.log_every and step % training.save_every and step != training.steps:
            return
        line = _line(step, training, self._window, self._groups)
        self._lines.append(line)
        self._progress.advance(
            len(self._window), amount=int(line["tokens"]), note=f"loss {line['loss']:.3f}"
        )
        self._window = []
        if not np.isfinite(line["loss"]):
            raise LmsiError(
                f"{self._name}: the loss is {line['loss']} at step {step}; lower "
                "Optimizer.learning_rate"
            )

    def write(self) -> None:
        """Writes the lines so far, before the checkpoint that they lead up to."""
        files.write_bytes(self._path, _jsonl(self._lines))


def read_metrics(directory: epath.PathLike) -> list[dict[str, float]]:
    """Returns the metrics that a training run wrote."""
    return _lines_until(epath.Path(directory) / _METRICS, 2**62)


def _line(
    step: int, training: Training, window: list[Any], groups: Sequence[str]
) -> dict[str, float]:
    """Averages a window of steps into one line; no clock in it, so resumed runs write the same."""
    by_group = np.array([np.asarray(m["by_group"], np.float64) for m in window])
    counts = np.isfinite(by_group).sum(0)
    sums = np.nansum(by_group, axis=0)
    line = {
        "step": step,
        "loss": round(float(np.mean([float(m["loss"]) for m in window])), 6),
        "grad_norm": round(float(np.mean([float(m["grad_norm"]) for m in window])), 6),
        "learning_rate": float(training.optimizer.schedule(training.steps)(step - 1)),
        "tokens": sum(int(m["tokens"]) for m in window),
    }
    for name, total, count in zip(groups, sums, counts, strict=True):
        if count:
            line[f"loss/{name}"] = round(float(total / count), 6)
    return line


def _jsonl(lines: list[dict[str, float]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _lines_until(path: epath.Path, step: int) -> list[dict[str, float]]:
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["step"] <= step]


def _skip(stream: Iterator[packing.Batch], count: int) -> Iterator[packing.Batch]:
    for _ in range(count):
        if next(stream, None) is None:
            break
    return stream
