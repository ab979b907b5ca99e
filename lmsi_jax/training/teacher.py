"""What a student learns from a teacher's distribution over each token (Hinton et al. 2015).

The teacher's part is either its most probable tokens, stored with the data, or a model in memory.
Learning from the teacher's text alone, as LMSI's own distillation does, needs none of this.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model in memory; its parameters are arguments of compiled functions, not constants.

    Attributes:
      config: its shape; it must have the student's tokenizer.
      params: its parameter tree.
    """

    config: ModelConfig = dataclasses.field(metadata={"static": True})
    params: Params


def divergence(teacher: jax.Array, student: jax.Array, temperature: float) -> jax.Array:
    """Kullback-Leibler divergence of the softened distributions, teacher to student, in nats.

    Args:
      teacher: its scores, [..., V]; no gradient goes there.
      student: its scores, [..., V].
      temperature: both are divided by it.

    Returns:
      temperature**2 * sum_v p_v (log p_v - log q_v), [...]; the square keeps the gradient's size
      (Hinton et al. 2015, section 2).
    """
    p = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    q = jax.nn.log_softmax(student / temperature)
    return temperature**2 * jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def top_k_divergence(
    ids: jax.Array, logprobs: jax.Array, student: jax.Array, temperature: float, rest: str
) -> jax.Array:
    """The same against a teacher of whom only the k most probable tokens are known, [...].

    Args:
      ids: [..., k] token ids, all different.
      logprobs: [..., k] the teacher's log-probabilities of them, at temperature 1.
      student: scores [..., V].
      temperature: above 0; other than 1 only without the rest.
      rest: "bucket" takes all other tokens as one more outcome, with what the teacher and the
        student have left for them; "drop" scales both distributions to the k tokens.
    """
    known = jax.lax.stop_gradient(logprobs)
    chosen = jnp.take_along_axis(student, ids, axis=-1)
    if rest == "drop" or ids.shape[-1] == student.shape[-1]:
        return divergence(known, chosen, temperature)
    log_z = jax.nn.logsumexp(student, axis=-1, keepdims=True)
    inside = jnp.sum(jnp.exp(known) * (known - (chosen - log_z)), axis=-1)
    left = jnp.maximum(1.0 - jnp.exp(known).sum(-1), 0.0)
    # Summed over the others: 1 minus the sum over the k would lose a small rest to rounding.
    others = jnp.put_along_axis(student, ids, -jnp.inf, axis=-1, inplace=False)
    outside = jax.nn.logsumexp(others, axis=-1) - log_z[..., 0]
    log_left = jnp.log(jnp.where(left > 0, left, 1.0))
    return inside + jnp.where(left > 0, left * (log_left - outside), 0.0)


def check_same_tokens(teacher: Teacher, student: ModelConfig) -> None:
    """Raises LmsiError where the two models cannot have one tokenizer."""
    ours, theirs = student.vocab_size, teacher.config.vocab_size
    if ours != theirs:
        raise LmsiError(
            f"the teacher's vocabulary has {theirs} ids, the student's {ours}: their "
            "probabilities cannot be compared; use Loss.distillation = 'sequence'"
        )


def stored(batch: dict[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A batch's `teacher_ids`, `teacher_logprobs`, and where there are any, [B, T].

    Raises:
      LmsiError: the batch has none.
    """
    if "teacher_ids" not in batch:
        raise LmsiError(
            "Loss.distillation = 'top_k' wants the teacher's log-probabilities in the batch; "
            "store them with the rows (`scoring.with_top_k`) and set Shape.top_k"
        )
    ids, logprobs = batch["teacher_ids"], batch["teacher_logprobs"]
    present = logprobs[..., 0] > -jnp.inf
    # Where nothing is stored, any numbers do: the caller does not use what comes of them.
    ids = jnp.where(present[..., None], ids, jnp.arange(ids.shape[-1]))
    return ids, jnp.where(present[..., None], logprobs, jnp.log(0.5 / ids.shape[-1])), present
