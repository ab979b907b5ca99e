"""The trainer: packed batches in, checkpoints and metrics out; resumes to the same bytes."""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from etils import epath

from lmsi_jax.agreement import Agreement, meet
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import Params
from lmsi_jax.progress import Progress
from lmsi_jax.signals import Terminated, deferred
from lmsi_jax.training import packing, placement
from lmsi_jax.training.beginning import Begin, Load, where_to_begin
from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.floor import matmul_rate, step_flops
from lmsi_jax.training.metrics import Line, Log
from lmsi_jax.training.optimizers import learning_rate_schedule
from lmsi_jax.training.packing import batch_shape
from lmsi_jax.training.reading import Steps
from lmsi_jax.training.settings import VALIDATION, Training
from lmsi_jax.training.step import result, train_step
from lmsi_jax.training.teacher import Teacher
from lmsi_jax.training.validation import Validation


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
    _meet(training)
    checkpoints = _checkpoints(training, directory)
    begin = where_to_begin(checkpoints, config, training, params)
    steps = _steps(training, rows, begin)
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
            return loop.run(begin, _agreement(training, requested))


def _checkpoints(training: Training, directory: epath.PathLike) -> Checkpoints:
    return Checkpoints(
        directory,
        training.keep,
        keep_best=training.keep_best,
        best=training.best_metric,
        mode=training.best_mode,
        background=True,
        together=placement.spans(training),
    )


def _steps(training: Training, rows: Iterable[packing.Row], begin: Begin) -> Steps:
    """The batches that are left."""
    steps = Steps(rows, batch_shape(training), begin.position)
    if begin.position is None:  # fresh, or T5X's checkpoint, which does not say what was read
        for _ in range(begin.step):
            steps.next()
    return steps


def _agreement(training: Training, requested: Callable[[], bool]) -> Agreement:
    """With the processes that train together, once all of them are here; else with nobody."""
    _meet(training)
    mesh = placement.mesh_of(training) if placement.spans(training) else None
    return Agreement(mesh, requested, "read different examples")


def _meet(training: Training) -> None:
    mesh = placement.mesh_of(training)
    if mesh is not None and placement.spans(training):
        meet(mesh)


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
    params = placement.spread(teacher.config, training, teacher.params)
    return dataclasses.replace(teacher, params=params)


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
        rate=learning_rate_schedule(training.optimizer, training.steps),
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
            leave = agreement.leave(
                step, batch["tokens"].tobytes()
            )  # asked once: what is decided here holds below
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
