"""One optimiser step, compiled: a batch in, new parameters and metrics out."""

import functools
from typing import TYPE_CHECKING, Any

import jax
import optax

from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import Params
from lmsi_jax.training.losses import loss_and_gradient

if TYPE_CHECKING:
    from lmsi_jax.training.trainer import Training


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def train_step(
    config: ModelConfig,
    training: "Training",
    groups: int,
    params: Params,
    state: Any,
    batch: dict[str, jax.Array],
) -> tuple[Params, Any, dict[str, jax.Array]]:
    """One optimiser step; returns new parameters, optimiser state and metrics."""
    loss, gradient, by_group = loss_and_gradient(config, params, batch, groups)
    updates, state = training.optimizer.transformation(training.steps).update(
        gradient, state, params
    )
    metrics = {
        "loss": loss,
        "grad_norm": optax.global_norm(gradient),
        "by_group": by_group,
        "tokens": (batch["segments"] > 0).sum(),
    }
    return optax.apply_updates(params, updates), state, metrics
