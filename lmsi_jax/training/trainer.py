"""The trainer: packed batches in, checkpoints and metrics out; resumes to the same bytes.

Where a training run begins: at its base model, or as its newest checkpoint left it.

One optimiser step, compiled: a batch in, new parameters and metrics out.

A run's `params` are a plain parameter tree, and `state` is the Optax state over it. With LoRA
`params` are the frozen base, and `state` is {"adapters": ..., "optimizer": ...}; `result` merges
them. So a checkpoint of `result` and `state` is a plain model for all who read it, and holds all
that a LoRA run goes on from, the base aside.
"""

import contextlib
import dataclasses
import functools
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath

from lmsi_jax.config.architecture import ModelConfig
from lmsi_jax.config.optimization import VALIDATION, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models import sharding
from lmsi_jax.models.params import Params
from lmsi_jax.models.sharding import (
    cast_params,
    device_put_tree,
    is_traced_on_mesh,
    mesh_context,
    mesh_of,
    opt_state_specs,
    param_specs,
    replicate_over_mesh,
    training_param_shardings,
)
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.runtime.files import remove
from lmsi_jax.runtime.processes import Agreement, synchronize
from lmsi_jax.runtime.progress import Progress
from lmsi_jax.runtime.signals import Terminated, deferred_signals
from lmsi_jax.training import checkpoints as stored
from lmsi_jax.training import losses, packing
from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.data import BatchIterator
from lmsi_jax.training.forward import parameter_gradients, regroup_rows
from lmsi_jax.training.lora import adapter_gradients, adapter_specs, fresh_adapters, merge_adapters
from lmsi_jax.training.losses import Teacher, pair_sums, weighted_sums
from lmsi_jax.training.metrics import (
    METRICS,
    Line,
    Log,
    matmul_rate,
    read_metrics,
    records,
    step_flops,
)
from lmsi_jax.training.optimizers import learning_rate_schedule, transformation
from lmsi_jax.training.packing import batch_shape
from lmsi_jax.training.validation import Validation

Arrays = dict[str, jax.Array]
_TOKENS = 512


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def train_step(
    config: ModelConfig,
    training: Training,
    groups: int,
    params: Params,
    state: Any,
    batch: Arrays,
    teacher: Teacher | None = None,
) -> tuple[Params, Any, Arrays]:
    """One optimiser step; returns new parameters, optimiser state and metrics.

    All three lie where `beginning.start` and `placement.fed` put params, state and batch.
    """
    metrics, gradient = _gradient(config, training, groups, params, state, batch, teacher)
    optimizer = transformation(training.optimizer, training.steps)
    if training.lora is None:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    else:
        updates, inner = optimizer.update(gradient, state["optimizer"], state["adapters"])
        adapters = optax.apply_updates(state["adapters"], updates)
        state = {"adapters": adapters, "optimizer": inner}
    metrics |= {
        "grad_norm": optax.global_norm(gradient),
        "tokens": (batch["segments"] > 0).sum(),
    }
    params, state = _kept(config, training, params, state)
    return params, state, replicate_over_mesh(training, metrics)


def _gradient(
    config: ModelConfig,
    training: Training,
    groups: int,
    params: Params,
    state: Any,
    batch: Arrays,
    teacher: Teacher | None,
) -> tuple[Arrays, Params]:
    """A step's losses, and the float32 gradient of what is trained.

    The parameters are rounded to the type of the computation once a step; the sums over
    microbatches, and the update of the parameters themselves, are float32.
    """
    preference = training.preference

    def objective(weights: Params, one: Arrays) -> tuple[jax.Array, Any]:
        if preference is not None:
            return pair_sums(config, weights, one, groups, preference)
        return weighted_sums(config, weights, one, groups, training.loss, teacher)

    if mesh_of(training) is None and preference is None:
        batch = regroup_rows(batch, _rows_at_once(training))
    with mesh_context(training):
        rounded = cast_params(training, params)
        if training.lora is None:
            sums, gradient = parameter_gradients(config, rounded, objective, batch)
        else:
            own = cast_params(training, state["adapters"])
            sums, gradient = adapter_gradients(
                config, training.lora, rounded, own, objective, batch
            )
    if preference is None:
        means, gradient = losses.normalize_sums(sums, gradient)
        more = {} if training.loss.plain else {"optimised": means.total}
        return {"loss": means.cross_entropy, "by_group": means.by_group, **more}, gradient
    of_pairs, gradient = losses.averaged_pairs(sums, gradient)
    return {
        name: getattr(of_pairs, name)
        for name in ("loss", "by_group", "accuracy", "margin", "pairs")
    }, gradient


def _rows_at_once(training: Training) -> int:
    """How many rows without a prefix are computed at once: by shapes and kind of device alone."""
    if training.sequences_at_once:
        return training.sequences_at_once
    # More gain nothing on a CPU, and leave its caches.
    return (
        max(1, _TOKENS // training.sequence_length)
        if jax.default_backend() == "cpu"
        else training.sequences_per_prefix
    )


def _kept(config: ModelConfig, training: Training, params: Params, state: Any) -> Any:
    """Lets parameters and state lie where they lay."""
    mesh = mesh_of(training)
    if mesh is None:
        return params, state
    specs = _specs(config, training, params, state)
    return jax.lax.with_sharding_constraint((params, state), is_traced_on_mesh(mesh, specs))


def _specs(config: ModelConfig, training: Training, params: Params, state: Any) -> Any:
    """(params, state) with `PartitionSpec`s in place of arrays."""
    specs = param_specs(config, training)
    if training.lora is None:
        return specs, opt_state_specs(specs, params, state)
    own = adapter_specs(training.lora, specs)
    inner = opt_state_specs(own, state["adapters"], state["optimizer"])
    return specs, {"adapters": own, "optimizer": inner}


def _fresh_state(training: Training, params: Params) -> Any:
    optimizer = transformation(training.optimizer, training.steps)
    if training.lora is None:
        return optimizer.init(params)
    adapters = fresh_adapters(training.lora, params)
    return {"adapters": adapters, "optimizer": optimizer.init(adapters)}


def state_shapes(training: Training, params: Params) -> Any:
    """Returns a run's state with shapes in place of arrays.

    Args:
      training: the optimiser and the adapters.
      params: arrays or their shapes.
    """
    return jax.eval_shape(functools.partial(_fresh_state, training), params)


def shardings(config: ModelConfig, training: Training, params: Params) -> Any:
    """Returns (params, state) with shardings in place of arrays; None on one device.

    Args:
      config: the model's shape.
      training: the mesh and the optimiser.
      params: arrays or their shapes.
    """
    mesh = mesh_of(training)
    if mesh is None:
        return None
    state = state_shapes(training, params)
    return is_traced_on_mesh(mesh, _specs(config, training, params, state))


def fresh_state(config: ModelConfig, training: Training, params: Params) -> Any:
    """Returns a run's state where it begins, placed.

    Args:
      config: the model's shape.
      training: the mesh, the optimiser and the adapters.
      params: the run's own, placed.
    """
    where = shardings(config, training, params)
    make = functools.partial(_fresh_state, training)
    return make(params) if where is None else jax.jit(make, out_shardings=where[1])(params)


def result(training: Training, params: Params, state: Any) -> Params:
    """Returns the plain model that a run has reached, placed as its params are."""
    if training.lora is None:
        return params
    where = jax.tree.map(lambda leaf: leaf.sharding, params)
    merge = jax.jit(merge_adapters, static_argnums=0, out_shardings=where)
    return merge(training.lora, params, state["adapters"])


_LOG = logging.getLogger(__name__)
Load = Callable[[Any], Params]
"""Loads parameters, onto a tree of shardings or, where that is None, as a whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestoredState:
    """Where a run begins.

    Attributes:
      step: steps that are taken.
      params: its own parameters, placed; a step may use them up.
      state: likewise.
      data_state: where the data stands; None where no checkpoint says so.
      metrics_window: the window of metrics that was open.
    """

    step: int
    params: Params
    state: Any
    data_state: dict[str, Any] | None = None
    metrics_window: Sequence[Any] = ()


def restore_or_initialize(
    checkpoints: Checkpoints, config: ModelConfig, training: Training, base: Params | Load
) -> RestoredState:
    """Takes up the newest checkpoint, read straight to its place; or begins at the base.

    Args:
      checkpoints: the run's.
      config: the model's shape.
      training: the mesh, the optimiser and the adapters.
      base: the model that the run starts from, or what loads it.

    Raises:
      LmsiError: the checkpoint is damaged, or of another model or optimiser.
    """
    step = checkpoints.latest or 0
    if not step:
        params, state = start(config, training, base)
        return RestoredState(step=0, params=params, state=state)
    shapes = parameter_shapes(config)
    state_like, where = state_shapes(training, shapes), shardings(config, training, shapes)
    # With adapters what was saved is the merged model: their run goes on from the base itself.
    wanted = shapes if training.lora is None else None
    found, state = checkpoints.restore(step, wanted, state_like, where)
    params = _own(config, training, base) if found is None else found
    position = checkpoints.data_state(step)
    window = position.pop("window") if position else ()
    return RestoredState(
        step=step, params=params, state=state, data_state=position, metrics_window=window
    )


def drop_unrecorded(directory: epath.PathLike) -> None:
    """Drops a run's checkpoints where the metrics that lead up to them are missing or damaged.

    No checkpoint holds those, so all steps are taken again, to the same bytes. T5X's checkpoints,
    which come without metrics of ours, are kept.

    Raises:
      LmsiError: the folder cannot be written.
    """
    folder = epath.Path(directory)
    ours = stored.has_checkpoint(folder) and stored.has_data_state(stored.find(folder))
    if not ours or _recorded(folder):
        return
    _LOG.warning(
        "%s is missing or was altered, and no checkpoint holds what stood there: this model is "
        "trained again from its first step",
        folder / METRICS,
    )
    remove(
        folder / METRICS
    )  # first: a process that is killed here finds its checkpoints unrecorded
    stored.drop(folder)


def _recorded(folder: epath.Path) -> bool:
    try:
        read_metrics(folder)
    except LmsiError:
        return False
    return bool(records(folder))


def start(config: ModelConfig, training: Training, base: Params | Load) -> tuple[Params, Any]:
    """Returns a run's params and state where it begins, placed; the base survives."""
    params = _own(config, training, base)
    return params, fresh_state(config, training, params)


def _own(config: ModelConfig, training: Training, base: Params | Load) -> Params:
    """The base, placed, and nobody else's."""
    where = training_param_shardings(config, training)
    if where is None:
        return jax.tree.map(jnp.array, base(None) if callable(base) else base)
    return base(where) if callable(base) else device_put_tree(base, where)


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
    restored = restore_or_initialize(checkpoints, config, training, params)
    steps = _steps(training, rows, restored)
    bar = _bar(training, name, restored.step)
    # The order matters: leaving by SIGTERM waits for what is being saved.
    with (
        deferred_signals(training.deadline_seconds) as requested,
        contextlib.closing(checkpoints),
        bar,
    ):
        if restored.step == training.steps:
            return result(training, restored.params, restored.state)
        log = _log(config, training, restored, epath.Path(directory), groups, name)
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
            return loop.run(restored, _agreement(training, requested))


def _checkpoints(training: Training, directory: epath.PathLike) -> Checkpoints:
    return Checkpoints(
        directory,
        training.keep,
        keep_best=training.keep_best,
        best=training.best_metric,
        mode=training.best_mode,
        background=True,
        together=sharding.is_multiprocess(training),
    )


def _steps(
    training: Training, rows: Iterable[packing.Row], restored: RestoredState
) -> BatchIterator:
    """The batches that are left."""
    steps = BatchIterator(rows, batch_shape(training), restored.data_state)
    if restored.data_state is None:  # fresh, or T5X's checkpoint, which does not say what was read
        for _ in range(restored.step):
            steps.next()
    return steps


def _agreement(training: Training, requested: Callable[[], bool]) -> Agreement:
    """With the processes that train together, once all of them are here; else with nobody."""
    _meet(training)
    mesh = sharding.mesh_of(training) if sharding.is_multiprocess(training) else None
    return Agreement(mesh, requested, "read different examples")


def _meet(training: Training) -> None:
    mesh = sharding.mesh_of(training)
    if mesh is not None and sharding.is_multiprocess(training):
        synchronize(mesh)


def _leads(training: Training) -> bool:
    """Whether this process writes what one process is to write."""
    return not sharding.is_multiprocess(training) or jax.process_index() == 0


def _bar(training: Training, name: str, done: int) -> Progress:
    stream = None if _leads(training) else io.StringIO()
    return Progress(
        name, training.steps, unit="steps", rate_unit="tokens", initial=done, stream=stream
    )


def _with_us(training: Training, teacher: Teacher) -> Teacher:
    """The teacher on the mesh that the student is on."""
    params = sharding.shard_params(teacher.config, training, teacher.params)
    return dataclasses.replace(teacher, params=params)


def _log(
    config: ModelConfig,
    training: Training,
    restored: RestoredState,
    directory: epath.Path,
    groups: Sequence[str],
    name: str,
) -> Log:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(restored.params))
    leads = _leads(training)
    rate = matmul_rate(devices=sharding.num_peak_devices(training)) if leads else 1.0
    return Log(
        name,
        directory if leads else None,
        groups,
        ends=lambda step: not step % training.log_every or step == training.steps,
        rate=learning_rate_schedule(training.optimizer, training.steps),
        first=restored.step,
        window=restored.metrics_window,
        roofline_seconds=lambda batch: (
            step_flops(config, parameters, batch, frozen=training.lora is not None) / rate
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loop:
    """The steps of one process, between a start and the end or SIGTERM."""

    config: ModelConfig
    training: Training
    checkpoints: Checkpoints
    steps: BatchIterator
    log: Log
    groups: int
    progress: Progress
    name: str
    teacher: Teacher | None
    validation: Validation

    def run(self, restored: RestoredState, agreement: Agreement) -> Params:
        """Trains to the last step; returns the parameters."""
        training, params, state = self.training, restored.params, restored.state
        for step in range(restored.step + 1, training.steps + 1):
            batch = self._batch(step)
            fed = sharding.shard_batch(training, batch)
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
        reading = {**self.steps.state, "window": self.log.window}
        self.log.write()
        self.checkpoints.save(step, model, state, data_state=reading, metrics=self.log.line)

    def _batch(self, step: int) -> packing.Batch:
        batch = self.steps.next()
        if batch is None:
            raise LmsiError(
                f"{self.name}: the examples ended before step {step}; a step needs "
                f"{self.training.microbatches} microbatches, so lower Training.microbatches or rows"
            )
        return batch
