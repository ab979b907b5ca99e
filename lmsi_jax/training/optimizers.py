"""Optimisers and schedules, from Optax."""

import dataclasses
import math
from typing import Any, Literal

import jax
import optax
from optax import contrib

from lmsi_jax.errors import check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What updates the parameters.

    Attributes:
      name: "adamw", "adafactor", or "muon" (Jordan et al. 2024: orthogonalised momentum for the
        layers' matrices, AdamW with Nesterov momentum for the rest).
      learning_rate: peak rate; the paper's is 5e-5 for PaLM-540B.
      warmup_steps: linear rise from zero.
      decay: what follows: "constant" (the paper's literal reading), "linear" or "cosine" to zero.
      decay_share: share of the steps, at the end, that "linear" decays over ("cosine" uses all).
      weight_decay: decoupled; not with Adafactor.
      clip: largest global gradient norm; 0 does not clip.
      b2: AdamW's second decay.
      matrix_rate: "muon" only: the matrices' peak rate; `learning_rate` is then that of the rest.
    """

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    learning_rate: float = 5e-5
    warmup_steps: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    decay_share: float = 1.0
    weight_decay: float = 0.0
    clip: float = 1.0
    b2: float = 0.99
    matrix_rate: float = 0.02

    def __post_init__(self) -> None:
        names, decays = ("adamw", "adafactor", "muon"), ("constant", "linear", "cosine")
        rates = ("learning_rate", "matrix_rate", "weight_decay")
        ranges = {
            "name": (self.name in names, f"one of {', '.join(names)}"),
            **{name: (0 <= getattr(self, name) < math.inf, "0 or more") for name in rates},
            "warmup_steps": (self.warmup_steps >= 0, "0 or more"),
            "decay": (self.decay in decays, f"one of {', '.join(decays)}"),
            "decay_share": (0 < self.decay_share <= 1, "a share above 0, 1 for all steps"),
            "clip": (self.clip >= 0, "0 (off) or more"),
            "b2": (0 <= self.b2 < 1, "0 or more, below 1"),
        }
        check_ranges(self, ranges)


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
    else:
        core = contrib.muon(
            _schedule(optimizer, optimizer.matrix_rate, steps),
            adam_learning_rate=rate,
            adam_b2=optimizer.b2,
            weight_decay=optimizer.weight_decay,
            adam_weight_decay=optimizer.weight_decay,
            muon_weight_dimension_numbers=_matrices,
        )
    return optax.chain(optax.clip_by_global_norm(optimizer.clip), core) if optimizer.clip else core


def _matrices(params: Any) -> Any:
    """Which leaves Muon takes: the matrices of the layers, not the embedding."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            contrib.MuonDimensionNumbers() if leaf.ndim == 2 and len(path) > 1 else None
        ),
        params,
    )
