"""The trainer: packed batches in, checkpoints and metrics out; resumes to the same bytes.

`train` is the loop: restore, data, metrics, steps, checkpoints. Below it, in the order of their
use: where a run resumes, what its state is, and the compiled step.

A run's `params` are a plain parameter tree, and `state` is the Optax state over it. With LoRA
`params` are the frozen base, and `state` is {"adapters": ..., "optimizer": ...};
`merge_trained` merges them. So a checkpoint of a run is a plain model for all who read it, and its
state has all that a LoRA run resumes from, the base aside.
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

from lmsi_jax.config import Lora, ModelConfig, Training
from lmsi_jax.config.training_config import VALIDATION
from lmsi_jax.errors import LmsiError
from lmsi_jax.models import sharding
from lmsi_jax.models.params import Params, cast_params
from lmsi_jax.models.sharding import make_training_mesh, named_shardings
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
    Log,
    Track,
    matmul_rate,
    read_metrics,
    records,
    step_flops,
)
from lmsi_jax.training.optimizers import learning_rate_schedule, transformation
from lmsi_jax.training.packing import batch_shape
from lmsi_jax.training.scoring import Validation

Arrays = dict[str, jax.Array]
Load = Callable[[Any], Params]
"""Loads parameters onto a tree of shardings or, if that is None, onto the default device."""

_LOG = logging.getLogger(__name__)
_TOKENS_AT_ONCE = 512  # on a CPU


def train(
    config: ModelConfig,
    training: Training,
    base: Params | Load,
    rows: Iterable[packing.Row],
    directory: epath.PathLike,
    *,
    groups: Sequence[str] | None = None,
    name: str = "training",
    teacher: Teacher | None = None,
    held_out: Iterable[packing.Row] = (),
    track: Track | None = None,
) -> Params:
    """Trains from `base`, or from the newest checkpoint in `directory`.

    If the mesh spans several processes, all of them call this with the same arguments and read the
    same rows; process 0 writes the metrics, and each its part of the checkpoints.

    Args:
      config: the model's shape.
      training: steps, optimizer and batch shape.
      base: the model that a fresh run starts from; or a function that loads it, straight to its
        place and only if it is needed.
      rows: a deterministic, endless stream from its beginning; a resumed run skips the rows that
        were read, see `data.RowReader`.
      directory: gets `checkpoint_N` and the files of `lmsi_jax.training.metrics`.
      groups: names of the groups that `Row.group` counts, for metrics; None takes those of `rows`
        (`data.Examples.groups`), or one for all.
      name: label of the progress bar.
      teacher: for `Loss.distillation = "model"`; on a mesh it is sharded as the parameters are.
      held_out: rows whose loss is measured with every checkpoint.
      track: gets the metrics of each logged step while training goes on.

    Returns:
      The parameters after the last step.

    Raises:
      LmsiError: the stream ended early, a row has a group without a name, a step has no weight to
        learn from, or the loss is not finite.
      Terminated: SIGTERM reached one of the processes; the step it came in, or with several
        processes the one after it, is finished and saved.
    """
    if groups is None:
        groups = getattr(rows, "groups", ("all",))
    mesh = make_training_mesh(training)
    together = mesh.multiprocess_mesh
    leads = together is None or jax.process_index() == 0
    if together is not None:
        synchronize(together)

    # Restore.
    checkpoints = Checkpoints(
        directory,
        training.keep,
        keep_best=training.keep_best,
        best=training.best_metric,
        mode=training.best_mode,
        background=True,
        together=together is not None,
    )
    restored = restore_or_initialize(checkpoints, config, training, base)
    params, state = restored.params, restored.state

    # Data.
    batches = BatchIterator(rows, batch_shape(training), restored.data_state)
    if restored.data_state is None:  # T5X's checkpoints do not say which rows were read
        for _ in range(restored.step):
            batches.next()

    bar = Progress(
        name,
        training.steps,
        unit="steps",
        rate_unit="tokens",
        initial=restored.step,
        stream=None if leads else io.StringIO(),
    )
    with contextlib.ExitStack() as stack:
        # Left in reverse order: leaving by SIGTERM waits for what is being saved.
        requested = stack.enter_context(deferred_signals(training.deadline_seconds))
        stack.enter_context(contextlib.closing(checkpoints))
        stack.enter_context(bar)
        if restored.step == training.steps:
            checkpoints.prune()
            return merge_trained(training, params, state)
        folder = epath.Path(directory) if leads else None
        log = _open_log(config, training, restored, folder, groups, name, track)
        stack.enter_context(contextlib.closing(log))
        validation = Validation(config, training, held_out)
        if teacher is not None:
            teacher_params = sharding.shard_params(teacher.config, mesh, teacher.params)
            teacher = dataclasses.replace(teacher, params=teacher_params)
        if together is not None:
            synchronize(together)
        agreement = Agreement(together, requested, "read different examples")

        for step in range(restored.step + 1, training.steps + 1):
            # Step.
            batch = batches.next()
            if batch is None:
                raise LmsiError(
                    f"{name}: the examples ended before step {step}; a step needs "
                    f"{training.microbatches} microbatches, so lower Training.microbatches or "
                    "sequences_per_prefix"
                )
            _check_batch(batch, groups, training, f"{name}, step {step}")
            flags = losses.taught(training.loss, step, training.microbatches)
            params, state, metrics = train_step(
                config,
                training,
                len(groups),
                params,
                state,
                sharding.shard_batch(mesh, {**batch, **flags}),
                teacher,
            )
            # Asked once: the answer decides whether to save and to leave below.
            leave = agreement.leave(step, batch["tokens"].tobytes())

            # Metrics.
            line = log.add(step, metrics, batch)
            if line is not None:
                note = f"loss {line['loss']:.3f}"
                bar.advance(step - bar.done, amount=int(line["tokens"]), note=note)

            # Checkpoint.
            regular = step % training.save_every == 0 or step == training.steps
            if leave or regular:
                agreement.settle()
                log.check(step)
                model = merge_trained(training, params, state)
                # A step that is saved only because the process has to leave is no point of the
                # validation curve: a run without the signal would not measure it.
                if regular and validation:
                    log.measured(step, VALIDATION, validation.loss(model))
                data_state = {**batches.state, "window": log.window}
                log.write()
                checkpoints.save(step, model, state, data_state=data_state, metrics=log.line)
            if leave:
                checkpoints.wait()
                raise Terminated
        return merge_trained(training, params, state)


def _check_batch(
    batch: packing.Batch, groups: Sequence[str], training: Training, place: str
) -> None:
    """Checks on the host what would make a step's loss wrong in silence.

    Raises:
      LmsiError: a row's group is none of `groups`, and its weight would be in the sum of the losses
        but not in that of the weights; nothing has a weight, and the loss would be 0; or a weight
        is negative, and the loss of tokens to learn would be maximised without a bound.
    """
    highest = int(batch["groups"].max())
    if highest >= len(groups):
        raise LmsiError(
            f"{place}: a row is of group {highest}, and `groups` names {len(groups)} "
            f"({', '.join(groups)}), counted from 0; pass the groups of the rows, as in "
            "groups=examples.groups"
        )
    if training.loss.negatives == "refuse" and (batch["weights"] < 0).any():
        raise LmsiError(
            f"{place}: a row has a negative weight, to be punished; set Loss.negatives to "
            "'unlikelihood' or 'advantage', or take what gives it out of Mixing.selection"
        )
    if not batch["weights"].any():
        raise LmsiError(
            f"{place}: no token has a loss weight, so there is nothing to learn; leave out "
            "examples of weight 0, or loosen what gives it (Mixing.selection)"
        )


def _open_log(
    config: ModelConfig,
    training: Training,
    restored: "RestoredState",
    directory: epath.Path | None,
    groups: Sequence[str],
    name: str,
    track: Track | None,
) -> Log:
    """Opens the run's metrics; without a directory nothing is written or measured."""
    roofline_seconds: Callable[[packing.Batch], float] | None = None
    if directory is not None:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(restored.params))
        flop_rate = matmul_rate(devices=sharding.num_peak_devices(make_training_mesh(training)))
        frozen = training.lora is not None

        def least_seconds(batch: packing.Batch) -> float:
            return step_flops(config, parameters, batch, frozen=frozen) / flop_rate

        roofline_seconds = least_seconds

    return Log(
        name,
        directory,
        groups,
        ends=lambda step: not step % training.log_every or step == training.steps,
        rate=learning_rate_schedule(training.optimizer, training.steps),
        first=restored.step,
        window=restored.metrics_window,
        roofline_seconds=roofline_seconds,
        track=track,
    )


# Restore.


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestoredState:
    """The point at which a run starts or resumes.

    Attributes:
      step: steps taken so far.
      params: the run's own parameters, placed; a step may donate them.
      state: the optimizer state, placed; a step may donate it.
      data_state: of `BatchIterator.state`; None if no checkpoint has it.
      metrics_window: the metrics window that was open.
    """

    step: int
    params: Params
    state: Any
    data_state: dict[str, Any] | None = None
    metrics_window: Sequence[Any] = ()


def restore_or_initialize(
    checkpoints: Checkpoints, config: ModelConfig, training: Training, base: Params | Load
) -> RestoredState:
    """Reads the newest checkpoint straight to its place, or starts from the base model.

    Args:
      checkpoints: the run's.
      config: the model's shape.
      training: the mesh, the optimizer and the adapters.
      base: the model that the run starts from, or a function that loads it.

    Raises:
      LmsiError: the checkpoint is damaged, or of another model or optimizer.
    """
    step = checkpoints.latest or 0
    if not step:
        params, state = start(config, training, base)
        return RestoredState(step=0, params=params, state=state)
    shapes = parameter_shapes(config)
    like, placement = state_shapes(training, shapes), shardings(config, training, shapes)
    # With adapters the checkpoint has the merged model: the run resumes from the base itself.
    saved_shapes = shapes if training.lora is None else None
    saved, state = checkpoints.restore(step, saved_shapes, like, placement)
    params = _own_params(config, training, base) if saved is None else saved
    data_state = checkpoints.data_state(step)
    window = data_state.pop("window") if data_state else ()
    return RestoredState(
        step=step, params=params, state=state, data_state=data_state, metrics_window=window
    )


def start(config: ModelConfig, training: Training, base: Params | Load) -> tuple[Params, Any]:
    """Returns the params and state of a run's beginning, placed; the base survives."""
    params = _own_params(config, training, base)
    return params, fresh_state(config, training, params)


def _own_params(config: ModelConfig, training: Training, base: Params | Load) -> Params:
    """Returns the base, placed, as copies that a step may donate."""
    placement = sharding.param_shardings(config, make_training_mesh(training))
    if placement is None:
        return jax.tree.map(jnp.array, base(None) if callable(base) else base)
    return base(placement) if callable(base) else sharding.device_put_tree(base, placement)


def drop_unrecorded(directory: epath.PathLike) -> None:
    """Drops a run's checkpoints if the metrics that lead up to them are missing or damaged.

    No checkpoint has those, so all steps are taken again, to the same bytes. T5X's checkpoints,
    which come without our metrics, are kept.

    Raises:
      LmsiError: the folder cannot be written.
    """
    folder = epath.Path(directory)
    ours = stored.has_checkpoint(folder) and stored.has_data_state(stored.find(folder))
    if not ours or _is_recorded(folder):
        return
    _LOG.warning(
        "%s is missing or was altered, and no checkpoint has its content: this model is trained "
        "again from its first step",
        folder / METRICS,
    )
    # First: a process that is killed after this finds its checkpoints unrecorded again.
    remove(folder / METRICS)
    stored.drop(folder)


def _is_recorded(folder: epath.Path) -> bool:
    try:
        read_metrics(folder)
    except LmsiError:
        return False
    return bool(records(folder))


# State.


def fresh_state(config: ModelConfig, training: Training, params: Params) -> Any:
    """Returns the state of a run's beginning, placed.

    Args:
      config: the model's shape.
      training: the mesh, the optimizer and the adapters.
      params: the run's own, placed.
    """
    placement = shardings(config, training, params)
    if placement is None:
        return _init_state(training, params)
    init = functools.partial(_init_state, training)
    return jax.jit(init, out_shardings=placement[1])(params)


class _AllParameters:
    """Training of all parameters: the state is the optimizer's."""

    def init(self, optimizer: optax.GradientTransformation, params: Params) -> Any:
        return optimizer.init(params)

    def specs(self, specs: Any, params: Params, state: Any) -> Any:
        return sharding.opt_state_specs(specs, params, state)

    def gradients(
        self,
        config: ModelConfig,
        params: Params,
        state: Any,
        dtype: str,
        objective: Any,
        batch: Any,
    ) -> tuple[Any, Params]:
        return parameter_gradients(config, cast_params(params, dtype), objective, batch)

    def update(
        self, optimizer: optax.GradientTransformation, gradient: Any, params: Params, state: Any
    ) -> tuple[Params, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def merge(self, params: Params, state: Any) -> Params:
        del state
        return params


@dataclasses.dataclass(frozen=True)
class _Adapters:
    """Training of adapters over frozen parameters: the state has both adapters and optimizer."""

    lora: Lora

    def init(self, optimizer: optax.GradientTransformation, params: Params) -> Any:
        adapters = fresh_adapters(self.lora, params)
        return {"adapters": adapters, "optimizer": optimizer.init(adapters)}

    def specs(self, specs: Any, params: Params, state: Any) -> Any:
        del params
        adapters = adapter_specs(self.lora, specs)
        inner = sharding.opt_state_specs(adapters, state["adapters"], state["optimizer"])
        return {"adapters": adapters, "optimizer": inner}

    def gradients(
        self,
        config: ModelConfig,
        params: Params,
        state: Any,
        dtype: str,
        objective: Any,
        batch: Any,
    ) -> tuple[Any, Params]:
        rounded, adapters = cast_params(params, dtype), cast_params(state["adapters"], dtype)
        return adapter_gradients(config, self.lora, rounded, adapters, objective, batch)

    def update(
        self, optimizer: optax.GradientTransformation, gradient: Any, params: Params, state: Any
    ) -> tuple[Params, Any]:
        updates, inner = optimizer.update(gradient, state["optimizer"], state["adapters"])
        adapters = optax.apply_updates(state["adapters"], updates)
        return params, {"adapters": adapters, "optimizer": inner}

    def merge(self, params: Params, state: Any) -> Params:
        placement = jax.tree.map(lambda leaf: leaf.sharding, params)
        merge = jax.jit(merge_adapters, static_argnums=0, out_shardings=placement)
        return merge(self.lora, params, state["adapters"])


def _trained(training: Training) -> _AllParameters | _Adapters:
    """Returns how a run's weights are trained."""
    return _AllParameters() if training.lora is None else _Adapters(training.lora)


def _init_state(training: Training, params: Params) -> Any:
    return _trained(training).init(transformation(training.optimizer, training.steps), params)


def state_shapes(training: Training, params: Params) -> Any:
    """Returns a run's state with shapes in place of arrays.

    Args:
      training: the optimizer and the adapters.
      params: arrays or their shapes.
    """
    return jax.eval_shape(functools.partial(_init_state, training), params)


def shardings(config: ModelConfig, training: Training, params: Params) -> Any:
    """Returns (params, state) with shardings in place of arrays; None on one device.

    Args:
      config: the model's shape.
      training: the mesh and the optimizer.
      params: arrays or their shapes.
    """
    mesh = make_training_mesh(training).mesh
    if mesh is None:
        return None
    return named_shardings(mesh, _specs(config, training, params, state_shapes(training, params)))


def _specs(config: ModelConfig, training: Training, params: Params, state: Any) -> Any:
    """Returns (params, state) with `PartitionSpec`s in place of arrays."""
    specs = sharding.param_specs(config, make_training_mesh(training))
    return specs, _trained(training).specs(specs, params, state)


def merge_trained(training: Training, params: Params, state: Any) -> Params:
    """Returns the plain model that a run has reached, placed as its params are."""
    return _trained(training).merge(params, state)


# Step.


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
    """Takes one optimizer step; returns new parameters, optimizer state and metrics.

    Params and state are placed as by `start`, the batch as by `sharding.shard_batch`.
    """
    mesh = make_training_mesh(training)
    metrics, gradient = _gradients(config, training, groups, params, state, batch, teacher)
    optimizer = transformation(training.optimizer, training.steps)
    params, state = _trained(training).update(optimizer, gradient, params, state)
    metrics |= {
        "grad_norm": optax.global_norm(gradient),
        "tokens": (batch["segments"] > 0).sum(),
    }
    if mesh.mesh is not None:  # results are sharded as the arguments, so the step compiles once
        placement = named_shardings(mesh.mesh, _specs(config, training, params, state))
        params, state = jax.lax.with_sharding_constraint((params, state), placement)
    return params, state, sharding.replicate(mesh, metrics)


def _gradients(
    config: ModelConfig,
    training: Training,
    groups: int,
    params: Params,
    state: Any,
    batch: Arrays,
    teacher: Teacher | None,
) -> tuple[Arrays, Params]:
    """Returns a step's losses, and the float32 gradient of the trained tree.

    The parameters are rounded to the type of the computation once a step; the sums over
    microbatches, and the update of the parameters themselves, are float32.
    """
    mesh, preference = make_training_mesh(training), training.preference

    def objective(weights: Params, microbatch: Arrays) -> tuple[jax.Array, Any]:
        if preference is not None:
            return pair_sums(config, weights, microbatch, groups, preference)
        return weighted_sums(config, weights, microbatch, groups, training.loss, teacher)

    if mesh.mesh is None and preference is None:
        batch = regroup_rows(batch, _sequences_at_once(training))
    with mesh.context():
        sums, gradient = _trained(training).gradients(
            config, params, state, training.compute_dtype, objective, batch
        )
    if preference is not None:
        pairs, gradient = losses.normalize_pair_sums(sums, gradient)
        names = ("loss", "by_group", "accuracy", "margin", "pairs")
        return {name: getattr(pairs, name) for name in names}, gradient
    means, gradient = losses.normalize_sums(sums, gradient)
    optimised = {} if training.loss.plain else {"optimised": means.total}
    return {"loss": means.cross_entropy, "by_group": means.by_group, **optimised}, gradient


def _sequences_at_once(training: Training) -> int:
    """Returns how many sequences without a prefix are computed at once: fixed by the settings and
    the kind of device alone."""
    if training.sequences_at_once:
        return training.sequences_at_once
    if jax.default_backend() == "cpu":  # more are no faster, and overflow the caches
        return max(1, _TOKENS_AT_ONCE // training.sequence_length)
    return training.sequences_per_prefix
