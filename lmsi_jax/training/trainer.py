"""The trainer: packed batches in, checkpoints and metrics out; resumes to the same bytes."""

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import Params
from lmsi_jax.progress import Progress
from lmsi_jax.signals import Terminated, deferred
from lmsi_jax.training import packing, placement
from lmsi_jax.training.agreement import Agreement, meet
from lmsi_jax.training.beginning import Begin, Load, where_to_begin
from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.floor import matmul_rate, step_flops
from lmsi_jax.training.lora import Lora
from lmsi_jax.training.losses import Loss
from lmsi_jax.training.metrics import Line, Log
from lmsi_jax.training.optimizers import Optimizer
from lmsi_jax.training.preferences import Preference
from lmsi_jax.training.reading import Steps
from lmsi_jax.training.step import result, train_step
from lmsi_jax.training.teacher import Teacher
from lmsi_jax.training.validation import VALIDATION, Validation, check_none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is fine-tuned.

    Attributes:
      steps: optimiser steps.
      optimizer: what updates the parameters.
      loss: what is optimised.
      preference: pairs to learn from in place of `loss`, which is then left as it is by default.
      microbatches: prefixes per step; the gradient is summed over them.
      rows: packed sequences behind each prefix.
      length: tokens per packed sequence.
      prefix_length: most tokens of a few-shot prompt.
      rows_at_once: rows that are computed at once on one device, where none share a prompt
        (`prefix_length=0`); 0: about 512 tokens on a CPU, all rows elsewhere. It changes the order
        of sums alone.
      log_every: steps per line of metrics.
      save_every: steps between checkpoints (the last step is always saved).
      strong_rate: share of strong (human) examples in the mixture, where a run has some.
      task_rates: (task, rate) pairs: how often a task's examples are drawn within their source;
        tasks that are not named are left out. By default each example is drawn equally often.
      keep: newest checkpoints to keep; None keeps all.
      keep_best: best checkpoints to keep beside them.
      best_metric: what makes one better, a name in metrics.jsonl; "min" or "max" of it is best.
      deadline_seconds: after SIGTERM the step is finished and saved; if that takes longer than
        this, the process leaves with the last complete checkpoint.
      compute_dtype: type of states and products, "float32" or "bfloat16"; parameters, the sums of
        their gradients and the optimiser's state are float32 in any case.
      lora: adapters to train in place of the parameters; None trains all of them.
      validation_count: examples to hold out, see `lmsi_jax.training.validation`: not trained on,
        their loss is measured with every checkpoint, as "validation_loss" in metrics.jsonl.
      data, model: the mesh of devices: rows over "data"; heads, MLP and vocabulary over "model".
        Where one process has too few, it is made of all processes', and they train together.
      fsdp: whether parameters and optimiser state are spread over "data" too.
    """

    steps: int = 10_000
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    preference: Preference | None = None
    microbatches: int = 4
    rows: int = 8
    length: int = 256
    prefix_length: int = 384
    rows_at_once: int = 0
    log_every: int = 10
    save_every: int = 1000
    strong_rate: float = 0.0
    task_rates: tuple[tuple[str, float], ...] = ()
    keep: int | None = 1
    keep_best: int = 0
    best_metric: str = "loss"
    best_mode: Literal["min", "max"] = "min"
    deadline_seconds: float = 25.0
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    lora: Lora | None = None
    validation_count: int = 0
    data: int = 1
    model: int = 1
    fsdp: bool = False

    def __post_init__(self) -> None:
        least_one = ("steps", "microbatches", "rows", "length", "log_every", "save_every")
        checks = {name: getattr(self, name) >= 1 for name in (*least_one, "data", "model")}
        checks["rows_at_once"] = self.rows_at_once >= 0
        checks["prefix_length"] = self.prefix_length >= 0
        checks["compute_dtype"] = self.compute_dtype in ("float32", "bfloat16")
        checks["strong_rate"] = 0 <= self.strong_rate <= 1
        checks["task_rates"] = all(rate >= 0 for _, rate in self.task_rates)
        checks["keep"] = self.keep is None or self.keep >= 1
        checks["keep_best"] = self.keep_best >= 0
        checks["best_mode"] = self.best_mode in ("min", "max")
        checks["validation_count"] = self.validation_count >= 0
        checks["deadline_seconds"] = self.deadline_seconds > 0
        for name, good in checks.items():
            if not good:
                raise LmsiError(f"Training.{name} = {getattr(self, name)} is out of range")
        if self.keep_best and self.best_metric == VALIDATION and not self.validation_count:
            raise LmsiError(
                f"Training.best_metric = {VALIDATION!r} wants examples that are held out; set "
                "Training.validation_count"
            )
        placement.check_rows(self.data, self.rows)
        self._check_preference()

    def _check_preference(self) -> None:
        if self.preference is None:
            return
        check_none(self, "training on pairs")
        if self.loss != Loss():
            raise LmsiError(
                "Training.preference takes the place of Training.loss: bind one of the two"
            )

    @property
    def shape(self) -> packing.Shape:
        """The fixed shape of a step's batch."""
        return packing.Shape(
            microbatches=self.microbatches,
            rows=self.rows,
            length=self.length,
            prefix_length=self.prefix_length,
            top_k=self.loss.top_k if self.loss.distillation == "top_k" else 0,
            pairs=self.preference is not None,
        )


def train(
    config: ModelConfig,
    training: Training,
    params: Params | Load,
    rows: Iterable[packing.Row],
    directory: epath.PathLike,
    *,
    groups: Sequence[str] = ("all",),
    name: str = "training",
    teacher: Teacher | None = None,
    held_out: Iterable[packing.Row] = (),
) -> Params:
    """Trains, or goes on from the newest checkpoint in `directory`.

    Where the mesh spans several processes, all of them call it with the same arguments and read the
    same rows; process 0 writes the metrics, and each its part of the checkpoints.

    Args:
      config: the model's shape.
      training: steps, optimiser and batch shape.
      params: where a fresh run starts; or what loads that, straight to its place and only if it is
        needed.
      rows: a deterministic, endless stream from its beginning; a resumed run passes over what was
        read, see `reading.Rows`.
      directory: gets `checkpoint_N` and the files of `lmsi_jax.training.metrics`.
      groups: names of the groups that `Row.group` counts, for metrics.
      name: what the progress bar says.
      teacher: for `Loss.distillation = "model"`; on a mesh it lies as the parameters do.
      held_out: rows whose loss is measured with every checkpoint.

    Returns:
      The parameters after the last step.

    Raises:
      LmsiError: the stream ended early, or the loss is not a number any more.
      Terminated: SIGTERM came, to any of the processes; the step it came in, or with several
        processes the one after it, is finished and saved.
    """
    spans = placement.spans(training)
    if spans:
        meet()
    checkpoints = Checkpoints(
        directory,
        training.keep,
        keep_best=training.keep_best,
        best=training.best_metric,
        mode=training.best_mode,
        background=True,
        together=spans,
    )
    begin = where_to_begin(checkpoints, config, training, params)
    steps = Steps(rows, training.shape, begin.position)
    if begin.position is None:  # fresh, or T5X's checkpoint, which does not say what was read
        for _ in range(begin.step):
            steps.next()
    bar = _bar(training, name, begin.step)
    # The order matters: leaving by SIGTERM waits for what is being saved.
    with deferred(training.deadline_seconds) as requested, contextlib.closing(checkpoints), bar:
        if begin.step == training.steps:
            return result(training, begin.params, begin.state)
        log = _log(config, training, begin, epath.Path(directory), groups, name)
        with contextlib.closing(log):
            loop = _Loop(
                config=config,
                training=training,
                checkpoints=checkpoints,
                steps=steps,
                log=log,
                groups=len(groups),
                progress=bar,
                name=name,
                teacher=None if teacher is None else _with_us(training, teacher),
                validation=Validation(config, training, held_out),
            )
            if not spans:
                return loop.run(begin, Agreement(None, requested))
            meet()
            return loop.run(begin, Agreement(placement.mesh_of(training), requested))


def _leads(training: Training) -> bool:
    """Whether this process writes what one process is to write."""
    return not placement.spans(training) or jax.process_index() == 0


def _bar(training: Training, name: str, done: int) -> Progress:
    stream = None if _leads(training) else io.StringIO()
    return Progress(
        name, training.steps, unit="steps", rate_unit="tokens", initial=done, stream=stream
    )


def _with_us(training: Training, teacher: Teacher) -> Teacher:
    """The teacher on the mesh that the student is on."""
    where = placement.weights_on_mesh(teacher.config, training)
    there = jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), teacher.params)
    if where is None or there == where:
        return teacher
    return dataclasses.replace(teacher, params=placement.placed(teacher.params, where))


def _log(
    config: ModelConfig,
    training: Training,
    begin: Begin,
    directory: epath.Path,
    groups: Sequence[str],
    name: str,
) -> Log:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(begin.params))
    leads = _leads(training)
    rate = matmul_rate(devices=placement.machines(training)) if leads else 1.0
    return Log(
        name,
        directory if leads else None,
        groups,
        ends=lambda step: not step % training.log_every or step == training.steps,
        rate=training.optimizer.schedule(training.steps),
        first=begin.step,
        window=begin.window,
        floor_seconds=lambda batch: (
            step_flops(config, parameters, batch, frozen=training.lora is not None) / rate
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loop:
    """The steps of one process, between a start and the end or SIGTERM."""

    config: ModelConfig
    training: Training
    checkpoints: Checkpoints
    steps: Steps
    log: Log
    groups: int
    progress: Progress
    name: str
    teacher: Teacher | None
    validation: Validation

    def run(self, begin: Begin, agreement: Agreement) -> Params:
        """Trains to the last step; returns the parameters."""
        training, params, state = self.training, begin.params, begin.state
        for step in range(begin.step + 1, training.steps + 1):
            batch = self._batch(step)
            fed = placement.fed(training, batch)
            params, state, metrics = train_step(
                self.config, training, self.groups, params, state, fed, self.teacher
            )
            leave = agreement.leave(step, batch)  # asked once: what is decided here holds below
            self._note(step, self.log.add(step, metrics, batch))
            regular = step % training.save_every == 0 or step == training.steps
            if leave or regular:
                agreement.settle()
                self._save(step, params, state, regular)
            if leave:
                self.checkpoints.wait()
                raise Terminated
        return result(training, params, state)

    def _note(self, step: int, line: Line | None) -> None:
        if line is not None:
            done = step - self.progress.done
            note = f"loss {line['loss']:.3f}"
            self.progress.advance(done, amount=int(line["tokens"]), note=note)

    def _save(self, step: int, params: Params, state: Any, regular: bool) -> None:
        model = result(self.training, params, state)
        # A step that is saved because the process has to leave is none that others would measure.
        if regular and self.validation:
            self.log.measured(step, VALIDATION, self.validation.loss(model))
        reading = {**self.steps.position, "window": self.log.window}
        self.log.write()
        self.checkpoints.save(step, model, state, reading=reading, metrics=self.log.line)

    def _batch(self, step: int) -> packing.Batch:
        batch = self.steps.next()
        if batch is None:
            raise LmsiError(
                f"{self.name}: the examples ended before step {step}; a step needs "
                f"{self.training.microbatches} microbatches, so lower Training.microbatches or rows"
            )
        return batch
