"""Learning from pairs: SPIN (Chen et al. 2024) and ScPO (Prasad et al. 2024).

A pair is a chosen and a rejected continuation of one prompt, packed as one row of two sequences
(`packing.pair_row`). What the reference, the model that training starts from, says of them is
computed once and comes with the rows.
"""

import dataclasses
import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lmsi_jax.errors import check_ranges
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import Params
from lmsi_jax.training.losses import Arrays, token_losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """Which pairs are made, and how they are learnt from.

    Attributes:
      form: "scpo": paths of the most and of the least voted answer, without labels. "spin": a given
        answer against the model's own path (the run has as many as `Mixing.strong_count`).
      beta: how strongly the margin over the reference counts. 0.5 is ScPO's. SPIN's formula leaves
        it open; its published recipe has 0.1.
      likelihood: "scpo" only: how much of the chosen sequence's negative log-probability per token
        is added. The paper has that term; 1.0 is our choice of its size.
      threshold: "scpo" only: tau as a share of the k paths, the least votes of a chosen answer. The
        paper has tau; half of the paths is our choice.

    Raises:
      LmsiError: a value out of range.
    """

    form: Literal["spin", "scpo"] = "scpo"
    beta: float = 0.5
    likelihood: float = 1.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        ranges = {
            "form": (self.form in ("spin", "scpo"), "'spin' or 'scpo'"),
            "beta": (0 < self.beta < math.inf, "a number above 0"),
            "likelihood": (0 <= self.likelihood < math.inf, "0 or more"),
            "threshold": (0 <= self.threshold <= 1, "a share of the paths, 0 to 1"),
        }
        check_ranges(self, ranges)


class Members(NamedTuple):
    """Sums over each sequence's target tokens, [B, most pairs in a row, 2]: chosen, rejected.

    Attributes:
      logprobs: at temperature 1, in nats; 0 where there is no such sequence.
      tokens: how many.
    """

    logprobs: jax.Array
    tokens: jax.Array


class PairSums(NamedTuple):
    """Sums over the pairs of a microbatch or a step, or their means.

    Attributes:
      loss: what is optimised.
      accuracy: pairs whose margin is above 0.
      margin: chosen over rejected, both relative to the reference, in nats.
      pairs: how many.
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
    """(log p(y) - log p_t(y)) - (log p(y') - log p_t(y')), elementwise; p_t is the reference."""
    return (chosen - reference[0]) - (rejected - reference[1])


def spin_loss(
    chosen: jax.Array, rejected: jax.Array, reference: tuple[jax.Array, jax.Array], beta: float
) -> jax.Array:
    """-log sigmoid(beta * margin): y is a given answer, y' the reference's own (SPIN).

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
    """weight * (-log sigmoid(beta * margin) - likelihood * log p(y) / |y|) (ScPO, section 2).

    Args:
      chosen: log-probabilities of whole sequences, [N]: of the most voted answer.
      rejected: of the least voted one.
      reference: the last round's model's of both.
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
    """Pairs that a packed sequence has room for: each has two tokens and a target in both."""
    return segments.shape[-1] // 4


def _by_member(values: jax.Array, segments: jax.Array) -> jax.Array:
    """Sums [B, T] over the tokens of each sequence: [B, most, 2]; padding, segment 0, is left out.

    Row by row, so that on a mesh each device adds up its own.
    """
    most = _most(segments)
    add = functools.partial(jax.ops.segment_sum, num_segments=2 * most + 1)
    return jax.vmap(add)(values, segments)[:, 1:].reshape(-1, most, 2)


def pair_groups(batch: Arrays) -> jax.Array:
    """The group of each pair, [B, most pairs in a row]; below 0 where there is none."""
    most = _most(batch["segments"])
    highest = functools.partial(jax.ops.segment_max, num_segments=2 * most + 1)
    return jax.vmap(highest)(batch["groups"], batch["segments"])[:, 1::2]


def pair_sums(
    config: ModelConfig, params: Params, batch: Arrays, groups: int, preference: Preference
) -> tuple[jax.Array, PairSums]:
    """Sum of a microbatch's pairwise losses; and the sums that metrics are made of."""
    own = members(config, params, batch)
    before = _by_member(batch["reference"], batch["segments"])
    chosen, rejected = own.logprobs[..., 0], own.logprobs[..., 1]
    theirs = (before[..., 0], before[..., 1])
    tokens = own.tokens[..., 0]
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
    sums = PairSums(
        loss=losses.sum(),
        accuracy=((ahead > 0) * present).sum(),
        margin=(ahead * present).sum(),
        pairs=present.sum(),
        by_group=jnp.einsum("bn,bng->g", losses, member),
        members=member.sum((0, 1)),
    )
    return sums.loss, sums


def averaged(sums: PairSums, gradient: Params) -> tuple[PairSums, Params]:
    """Divides a step's sums and gradient by its pairs; a group without pairs is NaN.

    By their number, not by the sum of their weights: a step of unsure pairs is meant to move less.
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
