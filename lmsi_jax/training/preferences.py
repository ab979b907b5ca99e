"""Learning from pairs: SPIN (Chen et al. 2024) and ScPO (Prasad et al. 2024).

A pair is a chosen and a rejected continuation of one prompt. Pairs are packed like other rows,
both members into one microbatch; `groups` then numbers the sequences: 2 i is pair i's chosen one,
2 i + 1 its rejected one.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import Params
from lmsi_jax.training.losses import Arrays, token_losses
from lmsi_jax.training.packing import Batch, Row, Shape, check, microbatches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """How pairs are learnt from.

    Attributes:
      form: "spin" or "scpo".
      beta: how strongly the margin over the reference counts; SPIN's paper has 0.1, ScPO's 0.5.
      likelihood: "scpo" only: weight of the chosen sequence's negative log-probability per token.

    Raises:
      LmsiError: a value out of range.
    """

    form: Literal["spin", "scpo"] = "scpo"
    beta: float = 0.5
    likelihood: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "form": self.form in ("spin", "scpo"),
            "beta": 0 < self.beta < np.inf,
            "likelihood": 0 <= self.likelihood < np.inf,
        }
        for name, good in checks.items():
            if not good:
                raise LmsiError(f"Preference.{name} = {getattr(self, name)!r} is out of range")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRows:
    """A pair as tokenised rows with one prefix; tokens of weight above 0 are their continuations.

    `weight` is the pair's: (V+ - V-) / k in ScPO, 1 in SPIN.
    """

    chosen: Row
    rejected: Row
    weight: float = 1.0


class SequenceLogprobs(NamedTuple):
    """Sums over each sequence's target tokens at temperature 1, [N] each.

    Attributes:
      logprobs: in nats; 0 where there is no such sequence.
      tokens: how many.
    """

    logprobs: jax.Array
    tokens: jax.Array


def margin(chosen: jax.Array, rejected: jax.Array, reference: tuple[jax.Array, jax.Array]):
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


def sequence_logprobs(
    config: ModelConfig, params: Params, batch: Arrays, count: int
) -> SequenceLogprobs:
    """Sums each sequence's log-probability, with the sequence's number in `groups`.

    Args:
      config: the model's shape.
      params: its parameter tree.
      batch: one microbatch, as `pair_batches` packs it, without the leading axis.
      count: sequences, N.
    """
    _, entropies = token_losses(config, params, batch)
    target = batch["weights"] > 0
    member = jax.nn.one_hot(batch["groups"], count) * target[..., None]
    logprobs = -jnp.einsum("bt,btn->n", entropies, member)
    return SequenceLogprobs(logprobs, member.sum((0, 1)))


def preference_loss_and_gradient(
    config: ModelConfig,
    params: Params,
    reference: Params,
    batch: Arrays,
    preference: Preference = Preference(),
) -> tuple[jax.Array, Params, dict[str, jax.Array]]:
    """Loss and gradient of a step over pairs, one microbatch at a time.

    Args:
      config: the shape of the model and of the reference.
      params: what is trained.
      reference: the model of the round before; no gradient goes there.
      batch: as `pair_batches` yields it.
      preference: which loss.

    Returns:
      The mean over the step's pairs, its gradient, and `accuracy` (share of pairs whose margin is
      above 0), `margin` (its mean, nats) and `pairs`. A mean over pairs, not over the sum of their
      weights: a step of unsure pairs is meant to move less.
    """
    gradient = jax.grad(_pair_sums, argnums=1, has_aux=True)

    def add(total: Any, one: Arrays) -> tuple[Any, None]:
        found = gradient(config, params, reference, one, preference)
        return jax.tree.map(jnp.add, total, found), None

    none = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    sums = {name: jnp.zeros(()) for name in ("loss", "accuracy", "margin", "pairs")}
    (grads, sums), _ = jax.lax.scan(add, (none, sums), batch)
    pairs = jnp.maximum(sums.pop("pairs"), 1)
    means = {name: value / pairs for name, value in sums.items()}
    loss = means.pop("loss")
    return loss, jax.tree.map(lambda g: g / pairs, grads), means | {"pairs": pairs}


def _pair_sums(
    config: ModelConfig, params: Params, reference: Params, batch: Arrays, preference: Preference
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sums over one microbatch's pairs."""
    weights = batch["pair_weights"]
    count = 2 * weights.shape[0]
    own = sequence_logprobs(config, params, batch, count)
    frozen = jax.lax.stop_gradient(reference)
    before = sequence_logprobs(config, frozen, batch, count).logprobs
    chosen, rejected = own.logprobs[::2], own.logprobs[1::2]
    theirs = (before[::2], before[1::2])
    if preference.form == "spin":
        losses = weights * spin_loss(chosen, rejected, theirs, preference.beta)
    else:
        losses = scpo_loss(
            chosen,
            rejected,
            theirs,
            chosen_tokens=own.tokens[::2],
            weights=weights,
            beta=preference.beta,
            likelihood=preference.likelihood,
        )
    present = (own.tokens[::2] > 0).astype(jnp.float32)
    ahead = margin(chosen, rejected, theirs)
    sums = {
        "loss": (losses * present).sum(),
        "accuracy": ((ahead > 0) * present).sum(),
        "margin": (ahead * present).sum(),
        "pairs": present.sum(),
    }
    return sums["loss"], sums


def pair_batches(pairs: Iterable[PairRows], shape: Shape, most: int) -> Iterator[Batch]:
    """Yields steps of stacked microbatches of up to `most` pairs that share a prefix.

    As `packing.batches`, with `pair_weights` [M, most] (float32, 0 where there is no pair). A
    finite stream's last step is filled up with empty microbatches.

    Raises:
      LmsiError: a pair does not fit.
    """
    waiting: list[Batch] = []
    for one in _pair_microbatches(pairs, shape, most):
        waiting.append(one)
        if len(waiting) == shape.microbatches:
            yield _stacked(waiting)
            waiting = []
    if waiting:
        empty = {name: np.zeros_like(value) for name, value in waiting[0].items()}
        yield _stacked(waiting + [empty] * (shape.microbatches - len(waiting)))


def _stacked(ones: Sequence[Batch]) -> Batch:
    return {name: np.stack([one[name] for one in ones]) for name in ones[0]}


def _pair_microbatches(pairs: Iterable[PairRows], shape: Shape, most: int) -> Iterator[Batch]:
    by_prefix: dict[tuple[int, ...], list[PairRows]] = {}
    for pair in pairs:
        _check_pair(pair, shape)
        together = by_prefix.setdefault(pair.chosen.prefix, [])
        together.append(pair)
        if len(together) == most:
            yield from _packed(together, shape, most)
            by_prefix[pair.chosen.prefix] = []
    for together in by_prefix.values():
        if together:
            yield from _packed(together, shape, most)


def _packed(pairs: Sequence[PairRows], shape: Shape, most: int) -> Iterator[Batch]:
    """Packs pairs into one microbatch, or where they have no room, each half of them."""
    rows = [
        dataclasses.replace(row, group=2 * number + side)
        for number, pair in enumerate(pairs)
        for side, row in enumerate((pair.chosen, pair.rejected))
    ]
    made = list(microbatches(rows, shape))
    if len(made) == 1:
        weights = np.zeros(most, np.float32)
        weights[: len(pairs)] = [pair.weight for pair in pairs]
        yield made[0] | {"pair_weights": weights}
        return
    if len(pairs) == 1:
        raise LmsiError(
            f"a pair of {' and '.join(str(len(row.tokens)) for row in rows)} tokens does not fit "
            f"into {shape.rows} rows of {shape.length}; raise rows or length"
        )
    half = len(pairs) // 2
    yield from _packed(pairs[:half], shape, most)
    yield from _packed(pairs[half:], shape, most)


def _check_pair(pair: PairRows, shape: Shape) -> None:
    if pair.chosen.prefix != pair.rejected.prefix:
        raise LmsiError("the members of a pair have different prefixes; build both from one prompt")
    for row in (pair.chosen, pair.rejected):
        try:
            check(row, shape)
        except ValueError as reason:
            raise LmsiError(f"a pair does not fit: {reason}; raise length") from None
        if not any(weight > 0 for weight in row.weights[1:]):
            raise LmsiError("a pair has a member without target tokens; leave it out")
