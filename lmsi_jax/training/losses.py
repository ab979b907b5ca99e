"""Target-only losses with per-token weights, normalised by their sum.

Of each token: cross entropy, which is what metrics report, and what is optimised: label smoothing,
a teacher's distribution and a z-loss may be added to it. Without them the two are the same.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.errors import LmsiError, check_ranges
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import logits
from lmsi_jax.models.params import Params
from lmsi_jax.training.packed import packed_states
from lmsi_jax.training.teacher import (
    Teacher,
    check_same_tokens,
    divergence,
    stored,
    top_k_divergence,
)

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """What is optimised at each target token y; Z is the sum of exp(scores), q the model's softmax.

    (1 - a) * smoothed cross entropy + a * divergence from the teacher + z_loss * log(Z)**2.

    Attributes:
      z_loss: coefficient of log(Z)**2, as in T5X; 1e-4 is usual.
      label_smoothing: s. The target is 1 - s at y and s / (V - 1) at each of the V - 1 others, as
        in T5X.
      smoothing_constant: subtract the target's entropy, as T5X does: the least loss is then 0. The
        gradient is the same.
      distillation: "sequence" learns from the teacher's text alone (as LMSI does), "top_k"
        also from its most probable tokens, stored with the rows, "model" from one in memory.
      distillation_weight: a, the share of the divergence in "top_k" and "model". A token of which
        nothing is stored keeps a = 0.
      temperature: of teacher and student within the divergence.
      top_k: "top_k" only: how many tokens are stored at each place.
      rest: "top_k" only: the tokens that are not stored are one "bucket", or are left out: "drop"
        scales both distributions to the stored ones.

    Raises:
      LmsiError: a value out of range, or a temperature where only some tokens are known.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    smoothing_constant: bool = False
    distillation: Literal["sequence", "top_k", "model"] = "sequence"
    distillation_weight: float = 0.5
    temperature: float = 1.0
    top_k: int = 8
    rest: Literal["bucket", "drop"] = "bucket"

    def __post_init__(self) -> None:
        forms, rests = ("sequence", "top_k", "model"), ("bucket", "drop")
        ranges = {
            "z_loss": (0 <= self.z_loss < math.inf, "0 or more"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "0 or more, below 1"),
            "distillation": (self.distillation in forms, f"one of {', '.join(forms)}"),
            "distillation_weight": (0 <= self.distillation_weight <= 1, "a share, 0 to 1"),
            "temperature": (0 < self.temperature < math.inf, "a number above 0"),
            "top_k": (self.top_k >= 1, "1 or more"),
            "rest": (self.rest in rests, "'bucket' or 'drop'"),
        }
        check_ranges(self, ranges)
        if self.distillation == "top_k" and self.rest == "bucket" and self.temperature != 1:
            raise LmsiError(
                f"Loss.temperature = {self.temperature}: how a temperature shares out the tokens "
                "that are not stored is not known; use 1.0, or Loss.rest = 'drop'"
            )

    @property
    def plain(self) -> bool:
        """Whether the optimised loss is the cross entropy."""
        smooth = self.z_loss or self.label_smoothing
        return not smooth and (self.distillation == "sequence" or not self.distillation_weight)


class Sums(NamedTuple):
    """A step's means over target weight, or sums before they are divided.

    Attributes:
      total: what is optimised.
      cross_entropy: what is reported.
      by_group: cross entropy by group, [groups].
      weights: by group, [groups].
    """

    total: jax.Array
    cross_entropy: jax.Array
    by_group: jax.Array
    weights: jax.Array


def token_scores(config: ModelConfig, params: Params, batch: Arrays) -> jax.Array:
    """Scores of each token but the first of a row, given those before it: [B, T - 1, V], float32.

    Args:
      config: the model's shape.
      params: its parameter tree.
      batch: one microbatch of `packing.Batch`, without the leading axis.
    """
    weights, states = packed_states(config, params, batch)
    return logits(config, weights, states[:, :-1])


def token_losses(
    config: ModelConfig,
    params: Params,
    batch: Arrays,
    loss: Loss = Loss(),
    teacher: Teacher | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What is optimised and the cross entropy of each token, [B, T] each, nats; 0 at row starts.

    Args:
      config: the model's shape.
      params: its parameter tree.
      batch: one microbatch of `packing.Batch`, without the leading axis.
      loss: what to optimise.
      teacher: for `Loss.distillation = "model"`.

    Raises:
      LmsiError: the teacher, or what is stored of it, is missing or of another vocabulary.
    """
    scores = token_scores(config, params, batch)
    log_z = jax.nn.logsumexp(scores, axis=-1)
    entropy = log_z - _picked(scores, batch["tokens"][:, 1:])
    total = entropy
    if loss.label_smoothing:
        total = _smoothed(loss, scores, log_z, entropy)
    if loss.distillation != "sequence" and loss.distillation_weight:
        apart, share = _from_teacher(config, batch, loss, teacher, scores)
        total = (1 - share) * total + share * apart
    if loss.z_loss:
        total += loss.z_loss * log_z**2
    ahead = ((0, 0), (1, 0))
    return jnp.pad(total, ahead), jnp.pad(entropy, ahead)


@jax.custom_vjp
def _picked(scores: jax.Array, tokens: jax.Array) -> jax.Array:
    """The tokens' own scores: [..., V] and [...] -> [...]."""
    return jnp.take_along_axis(scores, tokens[..., None], axis=-1)[..., 0]


def _picked_backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None]:
    scores, tokens = kept
    hit = jnp.arange(scores.shape[-1]) == tokens[..., None]
    return jnp.where(hit, gradient[..., None], 0.0), None


# JAX would scatter into zeros and add them to the softmax: three more passes over all scores.
_picked.defvjp(lambda scores, tokens: (_picked(scores, tokens), (scores, tokens)), _picked_backward)


def _smoothed(loss: Loss, scores: jax.Array, log_z: jax.Array, entropy: jax.Array) -> jax.Array:
    """Cross entropy with the smoothed target: (c - o) * CE + o * (sum over all tokens of CE)."""
    size = scores.shape[-1]
    on, off = 1 - loss.label_smoothing, loss.label_smoothing / (size - 1)
    smoothed = (on - off) * entropy + off * (size * log_z - scores.sum(-1))
    if loss.smoothing_constant:
        smoothed += on * np.log(on) + (size - 1) * off * np.log(off)
    return smoothed


def _from_teacher(
    config: ModelConfig, batch: Arrays, loss: Loss, teacher: Teacher | None, scores: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Divergence from the teacher, and its share, [B, T - 1] each."""
    share = jnp.asarray(loss.distillation_weight)
    if loss.distillation == "top_k":
        ids, logprobs, present = (value[:, 1:] for value in stored(batch))
        apart = top_k_divergence(ids, logprobs, scores, loss.temperature, loss.rest)
        return jnp.where(present, apart, 0.0), jnp.where(present, share, 0.0)
    if teacher is None:
        raise LmsiError("Loss.distillation = 'model' wants a teacher; use 'sequence' without one")
    check_same_tokens(teacher, config)
    theirs = token_scores(teacher.config, jax.lax.stop_gradient(teacher.params), batch)
    return divergence(theirs, scores, loss.temperature), share


def weighted_sums(
    config: ModelConfig,
    params: Params,
    batch: Arrays,
    groups: int,
    loss: Loss = Loss(),
    teacher: Teacher | None = None,
) -> tuple[jax.Array, Sums]:
    """Sum of weight * optimised loss over a microbatch; and the sums that metrics are made of."""
    optimised, entropies = token_losses(config, params, batch, loss, teacher)
    total, entropy = (optimised * batch["weights"], entropies * batch["weights"])
    member = jax.nn.one_hot(batch["groups"], groups)
    by_group = jnp.einsum("bt,btg->g", entropy, member)
    weights = jnp.einsum("bt,btg->g", batch["weights"], member)
    return total.sum(), Sums(total.sum(), entropy.sum(), by_group, weights)


def averaged(sums: Sums, gradient: Params) -> tuple[Sums, Params]:
    """Divides a step's sums and gradient by its target weight; a group without weight is NaN."""
    weight = jnp.maximum(sums.weights.sum(), 1e-6)
    means = Sums(
        sums.total / weight, sums.cross_entropy / weight, sums.by_group / sums.weights, sums.weights
    )
    return means, jax.tree.map(lambda g: g / weight, gradient)
