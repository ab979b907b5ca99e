"""The trainer: packed batches in, checkpoints and metrics out; resumes to the same bytes."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from lmsi_jax import files
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import Params
from lmsi_jax.progress import Progress
from lmsi_jax.training import packing
from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.losses import Loss, step_losses
from lmsi_jax.training.optimizers import Optimizer
from lmsi_jax.training.teacher import Teacher

_METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is fine-tuned.

    Attributes:
      steps: optimiser steps.
      optimizer: what updates the parameters.
      loss: what is optimised.
      microbatches: prefixes per step; the gradient is summed over them.
      rows: packed sequences behind each prefix.
      length: tokens per packed sequence.
      prefix_length: most tokens of a few-shot prompt.
      log_every: steps per line of metrics.
      save_every: steps between checkpoints (the last step is always saved).
      strong_rate: share of strong (human) examples in the mixture, where a run has some.
    """

    steps: int = 10_000
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    microbatches: int = 4
    rows: int = 8
    length: int = 256
    prefix_length: int = 384
    log_every: int = 10
    save_every: int = 1000
    strong_rate: float = 0.0

    def __post_init__(self) -> None:
        least_one = ("steps", "microbatches", "rows", "length", "log_every", "save_every")
        checks = {name: getattr(self, name) >= 1 for name in least_one}
        checks["prefix_length"] = self.prefix_length >= 0
        checks["strong_rate"] = 0 <= self.strong_rate <= 1
        for name, good in checks.items():
            if not good:
                raise LmsiError(f"Training.{name} = {getattr(self, name)} is out of range")

    @property
    def shape(self) -> packing.Shape:
        """The fixed shape of a step's batch."""
        return packing.Shape(
            microbatches=self.microbatches,
            rows=self.rows,
            length=self.length,
            prefix_length=self.prefix_length,
            top_k=self.loss.top_k if self.loss.distillation == "top_k" else 0,
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def train_step(
    config: ModelConfig,
    training: Training,
    groups: int,
    params: Params,
    state: Any,
    batch: dict[str, jax.Array],
    teacher: Teacher | None = None,
) -> tuple[Params, Any, dict[str, jax.Array]]:
    """One optimiser step; returns new parameters, optimiser state and metrics."""
    means, gradient = step_losses(config, params, batch, groups, training.loss, teacher)
    updates, state = training.optimizer.transformation(training.steps).update(
        gradient, state, params
    )
    metrics = {
        "loss": means.cross_entropy,
        "grad_norm": optax.global_norm(gradient),
        "by_group": means.by_group,
        "tokens": (batch["segments"] > 0).sum(),
    }
    if not training.loss.plain:
        metrics["optimised"] = means.total
    return optax.apply_updates(params, updates), state, metrics


def train(
    config: ModelConfig,
    training: Training,
    params: Params,
    rows: Iterable[packing.Row],
    directory: epath.PathLike,
    *,
    groups: Sequence[str] = ("all",),
    name: str = "training",
    teacher: Teacher | None = None,
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
      teacher: for `Loss.distillation = "model"`.

    Returns:
      The parameters after the last step.

    Raises:
      LmsiError: the stream ended early, or the loss is not a number any more.
    """
    checkpoints = Checkpoints(directory)
    state = training.optimizer.transformation(training.steps).init(params)
    params = jax.tree.map(jnp.array, params)  # the step donates its arguments: keep the caller's
    first = checkpoints.latest or 0
    if first:
        params, state = checkpoints.restore(first, params, state)
    stream = _skip(packing.batches(rows, training.shape), first)
    bar = Progress(name, training.steps, unit="steps", rate_unit="tokens", initial=first)
    with bar as progress:
        log = _Log(name, training, groups, epath.Path(directory) / _METRICS, first, progress)
        for step in range(first + 1, training.steps + 1):
            batch = _next(stream, name, step, training)
            params, state, metrics = train_step(
                config, training, len(groups), params, state, batch, teacher
            )
            log.add(step, metrics)
            if step % training.save_every == 0 or step == training.steps:
                log.write()
                checkpoints.save(step, params, state)
    checkpoints.close()
    return params


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
    if "optimised" in window[0]:
        line["optimised"] = round(float(np.mean([float(m["optimised"]) for m in window])), 6)
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
