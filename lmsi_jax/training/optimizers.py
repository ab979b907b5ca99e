"""Optax optimizers and learning rate schedules."""

from typing import Any

import jax
import optax
from optax import contrib

from lmsi_jax.config import Optimizer


def learning_rate_schedule(optimizer: Optimizer, steps: int) -> optax.Schedule:
    """Returns the learning rate by step, of a run of `steps` steps."""
    return _schedule(optimizer, optimizer.learning_rate, steps)


def _schedule(optimizer: Optimizer, rate: float, steps: int) -> optax.Schedule:
    warm = optimizer.warmup_steps
    rest = max(1, steps - warm)
    if optimizer.decay == "cosine":
        after = optax.cosine_decay_schedule(rate, rest)
    elif optimizer.decay == "linear":
        falling = max(1, int(rest * optimizer.decay_share))
        after = optax.linear_schedule(rate, 0.0, falling, rest - falling)
    else:
        after = optax.constant_schedule(rate)
    return optax.join_schedules([optax.linear_schedule(0.0, rate, max(1, warm)), after], [warm])


def transformation(optimizer: Optimizer, steps: int) -> optax.GradientTransformation:
    """Returns the Optax optimizer for a run of `steps` steps."""
    rate = learning_rate_schedule(optimizer, steps)
    if optimizer.name == "adamw":
        core = optax.adamw(rate, b1=0.9, b2=optimizer.b2, weight_decay=optimizer.weight_decay)
    elif optimizer.name == "adafactor":
        core = optax.adafactor(rate, multiply_by_parameter_scale=True)
    elif optimizer.name == "rmsprop":  # PyTorch's, with epsilon outside of the root
        core = optax.rmsprop(rate, decay=optimizer.b2, eps_in_sqrt=False)
    else:
        core = contrib.muon(
            _schedule(optimizer, optimizer.muon_learning_rate, steps),
            adam_learning_rate=rate,
            adam_b2=optimizer.b2,
            weight_decay=optimizer.weight_decay,
            adam_weight_decay=optimizer.weight_decay,
            muon_weight_dimension_numbers=_matrices,
        )
    return (
        optax.chain(optax.clip_by_global_norm(optimizer.max_grad_norm), core)
        if optimizer.max_grad_norm
        else core
    )


def _matrices(params: Any) -> Any:
    """Marks the leaves that Muon updates: the matrices of the layers, not the embedding."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            contrib.MuonDimensionNumbers() if leaf.ndim == 2 and len(path) > 1 else None
        ),
        params,
    )
