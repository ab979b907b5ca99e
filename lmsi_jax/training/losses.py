"""Losses of tokens and of pairs, with weights, normalised by a step's sum of them.

Tokens: the optimised loss is the cross entropy of the targets, which is also the reported one, with
optional label smoothing, z-loss, and divergence from a teacher (Hinton et al. 2015). The teacher is
either its most probable tokens, stored with the data, or a model in memory. Learning from a
teacher's text alone, as LMSI's own distillation does, needs neither.

Rows with a negative weight are punished: a bounded loss of theirs takes the cross entropy's place,
and counts with the size of the weight (`Loss.negatives`).

Pairs: SPIN (Chen et al. 2024) and ScPO (Prasad et al. 2024). A pair is a chosen and a rejected
continuation of one prompt, packed as one row of two sequences (`packing.PairRow`). The reference is
the model that training starts from; its log-probabilities are computed once, and come with the
rows.

Shapes: B rows of T tokens, V vocabulary.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.config import Loss, ModelConfig, Preference
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.params import Params
from lmsi_jax.models.transformer import logits
from lmsi_jax.training.forward import packed_states


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
    """Returns the Kullback-Leibler divergence of two softened distributions, in nats.

    Args:
      teacher: its logits, [..., V]; they get no gradient.
      student: its logits, [..., V].
      temperature: divides both.

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
    """Returns the divergence from a teacher's k most probable tokens, [...].

    Args:
      ids: [..., k] token ids, all different.
      logprobs: [..., k] the teacher's log-probabilities of them, at temperature 1.
      student: logits [..., V].
      temperature: above 0; other than 1 only without the rest.
      rest: "bucket" makes all other tokens one more outcome, with the rest of the teacher's and
        of the student's probability; "drop" rescales both distributions to the k tokens.
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
    """Raises LmsiError if the two models cannot have one tokenizer."""
    ours, theirs = student.vocab_size, teacher.config.vocab_size
    if ours != theirs:
        raise LmsiError(
            f"the teacher's vocabulary has {theirs} ids, the student's {ours}: their "
            "probabilities cannot be compared; use Loss.distillation = 'sequence'"
        )


def stored(batch: dict[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns a batch's `teacher_ids`, `teacher_logprobs`, and the places that have any, [B, T].

    Raises:
      LmsiError: the batch has none.
    """
    if "teacher_ids" not in batch:
        raise LmsiError(
            "Loss.distillation = 'top_k' needs the teacher's log-probabilities in the batch; "
            "store them with the rows (`scoring.with_top_k`) and set Shape.top_k"
        )
    ids, logprobs = batch["teacher_ids"], batch["teacher_logprobs"]
    present = logprobs[..., 0] > -jnp.inf
    # Places without any get numbers that are finite; the caller does not use their divergence.
    ids = jnp.where(present[..., None], ids, jnp.arange(ids.shape[-1]))
    return ids, jnp.where(present[..., None], logprobs, jnp.log(0.5 / ids.shape[-1])), present


Arrays = dict[str, jax.Array]
TAUGHT = "taught"
"""Name of the flag of a batch whose loss has the divergence from the teacher."""


class Sums(NamedTuple):
    """A step's weighted sums over target tokens, or its means once they are divided.

    Attributes:
      total: the optimised loss.
      cross_entropy: the reported loss.
      by_group: cross entropy by group, [groups].
      weights: by group, [groups].
      punished: weights of the tokens to punish, as positive numbers; None without `Loss.negatives`.
        They count in `total` alone.
    """

    total: jax.Array
    cross_entropy: jax.Array
    by_group: jax.Array
    weights: jax.Array
    punished: jax.Array | None = None


def token_logits(config: ModelConfig, params: Params, batch: Arrays) -> jax.Array:
    """Returns the logits of each token but the first of a row: [B, T - 1, V], float32.

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
    """Returns each token's optimised loss and cross entropy, [B, T] each, in nats; 0 at row starts.

    Args:
      config: the model's shape.
      params: its parameter tree.
      batch: one microbatch of `packing.Batch`, without the leading axis.
      loss: the optimised loss.
      teacher: for `Loss.distillation = "model"`.

    Raises:
      LmsiError: the teacher, or its stored tokens, are missing or of another vocabulary.
    """
    logits = token_logits(config, params, batch)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    entropy = log_z - _picked(logits, batch["tokens"][:, 1:])
    total = entropy
    if loss.label_smoothing:
        total = _smoothed(loss, logits, log_z, entropy)
    if loss.distillation != "sequence" and loss.distillation_weight:
        total = _taught(config, batch, loss, teacher, logits, total)
    if loss.z_loss:
        total += loss.z_loss * log_z**2
    ahead = ((0, 0), (1, 0))
    return jnp.pad(total, ahead), jnp.pad(entropy, ahead)


@jax.custom_vjp
def _picked(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]


def _picked_backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None]:
    logits, tokens = kept
    hit = jnp.arange(logits.shape[-1]) == tokens[..., None]
    return jnp.where(hit, gradient[..., None], 0.0), None


# JAX would scatter into zeros and add them to the softmax: three more passes over all logits.
_picked.defvjp(lambda scores, tokens: (_picked(scores, tokens), (scores, tokens)), _picked_backward)


def _smoothed(loss: Loss, logits: jax.Array, log_z: jax.Array, entropy: jax.Array) -> jax.Array:
    """Returns on * CE + off * (sum of the other tokens' CE), less the target's entropy if set."""
    size = logits.shape[-1]
    on, off = 1 - loss.label_smoothing, loss.label_smoothing / (size - 1)
    smoothed = (on - off) * entropy + off * (size * log_z - logits.sum(-1))
    if loss.smoothing_constant:
        smoothed += on * np.log(on) + (size - 1) * off * np.log(off)
    return smoothed


def _taught(
    config: ModelConfig,
    batch: Arrays,
    loss: Loss,
    teacher: Teacher | None,
    logits: jax.Array,
    total: jax.Array,
) -> jax.Array:
    """Returns the loss with the divergence's share, [B, T - 1]; without it after the last step."""

    def learn(total: jax.Array, logits: jax.Array) -> jax.Array:
        from_teacher, share = _teacher_divergence(config, batch, loss, teacher, logits)
        return (1 - share) * total + share * from_teacher

    if loss.distillation_until is None:
        return learn(total, logits)
    if TAUGHT not in batch:
        raise LmsiError(
            "Loss.distillation_until counts the steps of this package's trainer; leave it None in "
            "another one"
        )
    # One program for both phases; in the second one the teacher is not run.
    return jax.lax.cond(batch[TAUGHT], learn, lambda total, _: total, total, logits)


def taught(loss: Loss, step: int, microbatches: int) -> dict[str, np.ndarray]:
    """Returns what a step's batch says of the teacher: {"taught": [M]}, or {} if it never ends.

    Args:
      loss: the loss.
      step: the step, 1, 2, ...
      microbatches: M.
    """
    if loss.distillation_until is None:
        return {}
    return {TAUGHT: np.full(microbatches, step <= loss.distillation_until)}


def _teacher_divergence(
    config: ModelConfig, batch: Arrays, loss: Loss, teacher: Teacher | None, logits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the divergence from the teacher, and its share of the loss, [B, T - 1] each."""
    share = jnp.asarray(loss.distillation_weight)
    if loss.distillation == "top_k":
        ids, logprobs, present = (value[:, 1:] for value in stored(batch))
        known = top_k_divergence(ids, logprobs, logits, loss.temperature, loss.rest)
        return jnp.where(present, known, 0.0), jnp.where(present, share, 0.0)
    if teacher is None:
        raise LmsiError("Loss.distillation = 'model' needs a teacher; use 'sequence' without one")
    check_same_tokens(teacher, config)
    theirs = token_logits(teacher.config, jax.lax.stop_gradient(teacher.params), batch)
    return divergence(theirs, logits, loss.temperature), share


# -log(1 - q) of a token that is certain is bounded by this: -log(1 - exp(-1e-6)).
_LEAST_ENTROPY = 1e-6


def negative_losses(entropies: jax.Array, loss: Loss) -> jax.Array:
    """Returns the loss of tokens y that are punished, bounded from both sides.

    Args:
      entropies: -log q(y), in nats.
      loss: its `negatives` and `least_probability`.

    Returns:
      "unlikelihood": -log(1 - q(y)), from 0 to 13.8; its derivative by y's logit is q(y).
      "advantage": max(log q(y), log(least_probability)); its derivative is 1 - q(y), or 0.
    """
    if loss.negatives == "unlikelihood":
        return -jnp.log(-jnp.expm1(-jnp.maximum(entropies, _LEAST_ENTROPY)))
    return jnp.maximum(-entropies, np.log(loss.least_probability))


def weighted_sums(
    config: ModelConfig,
    params: Params,
    batch: Arrays,
    groups: int,
    loss: Loss = Loss(),
    teacher: Teacher | None = None,
) -> tuple[jax.Array, Sums]:
    """Returns a microbatch's sum of weight * optimised loss, and its sums for metrics."""
    optimised, entropies = token_losses(config, params, batch, loss, teacher)
    learnt, punished = batch["weights"], None
    total = optimised * learnt
    if loss.negatives != "refuse":
        punishment = jnp.maximum(-learnt, 0.0)
        learnt = jnp.maximum(learnt, 0.0)
        total = optimised * learnt + negative_losses(entropies, loss) * punishment
        punished = punishment.sum()
    entropy = entropies * learnt
    member = jax.nn.one_hot(batch["groups"], groups)
    by_group = jnp.einsum("bt,btg->g", entropy, member)
    weights = jnp.einsum("bt,btg->g", learnt, member)
    return total.sum(), Sums(total.sum(), entropy.sum(), by_group, weights, punished)


def normalize_sums(sums: Sums, gradient: Params) -> tuple[Sums, Params]:
    """Divides a step's sums and gradient by its target weight; a group without weight gets NaN.

    The optimised loss and the gradient are divided by the size of all weights, of tokens to learn
    and to punish.
    """
    learnt = every = sums.weights.sum()
    if sums.punished is not None:
        every = learnt + sums.punished
    learnt, every = (jnp.where(weight > 0, weight, 1.0) for weight in (learnt, every))
    means = Sums(
        sums.total / every,
        sums.cross_entropy / learnt,
        sums.by_group / sums.weights,
        sums.weights,
        sums.punished,
    )
    return means, jax.tree.map(lambda g: g / every, gradient)


class Members(NamedTuple):
    """Sums over each sequence's target tokens, [B, most pairs in a row, 2]: chosen, rejected.

    Attributes:
      logprobs: at temperature 1, in nats; 0 if there is no such sequence.
      tokens: number of target tokens.
    """

    logprobs: jax.Array
    tokens: jax.Array


class PairSums(NamedTuple):
    """Sums over the pairs of a microbatch or a step, or their means.

    Attributes:
      loss: the optimised loss.
      accuracy: pairs whose margin is above 0.
      margin: chosen over rejected, both relative to the reference, in nats.
      pairs: number of pairs.
      by_group: loss by group, [groups].
      members: pairs by group, [groups].
    """

    loss: jax.Array
    accuracy: jax.Array
    margin: jax.Array
    pairs: jax.Array
    by_group: jax.Array
    members: jax.Array


def margin(
    chosen: jax.Array, rejected: jax.Array, reference: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Returns (log p(y) - log p_t(y)) - (log p(y') - log p_t(y')); p_t is the reference."""
    return (chosen - reference[0]) - (rejected - reference[1])


def spin_loss(
    chosen: jax.Array, rejected: jax.Array, reference: tuple[jax.Array, jax.Array], beta: float
) -> jax.Array:
    """Returns -log sigmoid(beta * margin): y is a given answer, y' the reference's own (SPIN).

    Args:
      chosen: log-probabilities of whole sequences y, [N].
      rejected: those of y', [N].
      reference: the reference's of y and of y'.
      beta: SPIN's lambda.
    """
    return -jax.nn.log_sigmoid(beta * margin(chosen, rejected, reference))


def scpo_loss(
    chosen: jax.Array,
    rejected: jax.Array,
    reference: tuple[jax.Array, jax.Array],
    *,
    chosen_tokens: jax.Array,
    weights: jax.Array,
    beta: float = 0.5,
    likelihood: float = 1.0,
) -> jax.Array:
    """Returns weight * (-log sigmoid(beta * margin) - likelihood * log p(y) / |y|) (ScPO, sec. 2).

    Args:
      chosen: log-probabilities of the sequences with the most voted answers, [N].
      rejected: of those with the least voted answers, [N].
      reference: the last round's model's log-probabilities of both.
      chosen_tokens: |y|, [N].
      weights: (V+ - V-) / k, [N].
      beta: of DPO.
      likelihood: weight of the second term.
    """
    nll = -chosen / jnp.maximum(chosen_tokens, 1)
    return weights * (spin_loss(chosen, rejected, reference, beta) + likelihood * nll)


def members(config: ModelConfig, params: Params, batch: Arrays) -> Members:
    """Sums the log-probabilities of each pair's sequences.

    Args:
      config: the model's shape.
      params: its parameter tree.
      batch: one microbatch of pairs, `packing.Batch` without the leading axis.
    """
    _, entropies = token_losses(config, params, batch)
    target = (batch["weights"] > 0).astype(jnp.float32)
    segments = batch["segments"]
    return Members(_by_member(-entropies * target, segments), _by_member(target, segments))


def _most(segments: jax.Array) -> int:
    """Returns how many pairs fit into a packed sequence: a member has two tokens or more."""
    return segments.shape[-1] // 4


def _by_member(values: jax.Array, segments: jax.Array) -> jax.Array:
    """Sums [B, T] over the tokens of each sequence: [B, most, 2]; padding, segment 0, is omitted.

    Row by row, so that on a mesh each device adds up its own.
    """
    most = _most(segments)
    add = functools.partial(jax.ops.segment_sum, num_segments=2 * most + 1)
    return jax.vmap(add)(values, segments)[:, 1:].reshape(-1, most, 2)


def pair_groups(batch: Arrays) -> jax.Array:
    """Returns the group of each pair, [B, most pairs in a row]; below 0 for padding."""
    most = _most(batch["segments"])
    highest = functools.partial(jax.ops.segment_max, num_segments=2 * most + 1)
    return jax.vmap(highest)(batch["groups"], batch["segments"])[:, 1::2]


def pair_sums(
    config: ModelConfig, params: Params, batch: Arrays, groups: int, preference: Preference
) -> tuple[jax.Array, PairSums]:
    """Returns a microbatch's sum of pairwise losses, and its sums for metrics."""
    sums = members(config, params, batch)
    before = _by_member(batch["reference"], batch["segments"])
    chosen, rejected = sums.logprobs[..., 0], sums.logprobs[..., 1]
    theirs = (before[..., 0], before[..., 1])
    tokens = sums.tokens[..., 0]
    # Every target token of the chosen sequence carries the pair's weight.
    weights = _by_member(batch["weights"], batch["segments"])[..., 0] / jnp.maximum(tokens, 1)
    if preference.form == "spin":
        losses = weights * spin_loss(chosen, rejected, theirs, preference.beta)
    else:
        losses = scpo_loss(
            chosen,
            rejected,
            theirs,
            chosen_tokens=tokens,
            weights=weights,
            beta=preference.beta,
            likelihood=preference.likelihood,
        )
    present = (tokens > 0).astype(jnp.float32)
    losses *= present
    ahead = margin(chosen, rejected, theirs)
    member = jax.nn.one_hot(pair_groups(batch), groups) * present[..., None]
    totals = PairSums(
        loss=losses.sum(),
        accuracy=((ahead > 0) * present).sum(),
        margin=(ahead * present).sum(),
        pairs=present.sum(),
        by_group=jnp.einsum("bn,bng->g", losses, member),
        members=member.sum((0, 1)),
    )
    return totals.loss, totals


def normalize_pair_sums(sums: PairSums, gradient: Params) -> tuple[PairSums, Params]:
    """Divides a step's sums and gradient by its number of pairs; a group without pairs gets NaN.

    Not by the sum of their weights: a step of unsure pairs is meant to move the model less.
    """
    pairs = jnp.maximum(sums.pairs, 1)
    means = PairSums(
        loss=sums.loss / pairs,
        accuracy=sums.accuracy / pairs,
        margin=sums.margin / pairs,
        pairs=sums.pairs,
        by_group=sums.by_group / sums.members,
        members=sums.members,
    )
    return means, jax.tree.map(lambda g: g / pairs, gradient)
