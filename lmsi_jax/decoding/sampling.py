"""From scores to tokens: temperature, top-k, top-p, greedy, by the inverse cumulative distribution.

One uniform number per path and position is exact and needs no vocabulary's worth of random bits
(Gumbel noise does): a step over 256 lanes and 1,024 tokens takes 0.1 ms instead of 4 ms on a CPU.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lmsi_jax.errors import LmsiError, check_ranges
from lmsi_jax.prompts import STOP_STRINGS

_BLOCK = 32  # the cumulative sum goes by blocks of this many tokens, then inside one block


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How paths are drawn.

    Attributes:
      paths: paths per question (m).
      temperature: 0 is greedy; 0.7 is the paper's for the base model.
      top_k: keep this many most likely tokens; 0 keeps all.
      top_p: keep the smallest set of tokens with this much probability; 1 keeps all.
      min_p: keep tokens with at least this share of the most likely one's probability; 0 keeps all.
      max_new_tokens: a path is cut, and marked unfinished, after this many tokens.
      stop: a path ends before the first of these strings.
      token_logprobs: whether each path keeps the log-probability of each of its tokens.
      early_stop: no further path of a question is started once its leading answer will stay ahead
        with this probability, above 0.5 and below 1 (`voting.paths_needed`; 0.95 is Aggarwal et
        al.'s); None: all paths are sampled. Sure questions then have fewer paths: their
        confidence is a share of these, and with Mixing.normalise = "path" they weigh less.
      early_stop_every: the rule is looked at after this many paths, twice as many, ..., in index
        order, so the outcome does not depend on which paths end first.
    """

    paths: int = 32
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = STOP_STRINGS
    token_logprobs: bool = False
    early_stop: float | None = None
    early_stop_every: int = 4

    def __post_init__(self) -> None:
        stops = self.stop
        if not (isinstance(stops, tuple) and all(isinstance(s, str) and s for s in stops)):
            raise LmsiError(
                f"Sampling.stop = {stops!r}; use a tuple of strings that are not empty, such as "
                "('\\n\\n',), or () for none"
            )
        chance = self.early_stop
        ranges = {
            "paths": (self.paths >= 1, "1 or more"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "a probability above 0, 1 for off"),
            "min_p": (0 <= self.min_p <= 1, "0 (off) to 1"),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "early_stop": (
                chance is None or 0.5 < chance < 1,
                "a probability above 0.5 and below 1 (0.95), or None for no early stop",
            ),
            "early_stop_every": (self.early_stop_every >= 1, "1 or more"),
        }
        check_ranges(self, ranges)

    @property
    def filters(self) -> "Filters":
        """What the loop is compiled for."""
        return Filters(self.temperature == 0, self.top_k, self.top_p, self.min_p)


def filtered(scores: jax.Array, top_k: int, top_p: float, min_p: float = 0.0) -> jax.Array:
    """Masks scores [R, V] outside the top-k, top-p and min-p sets, in this order, with -inf."""
    if top_k and top_k < scores.shape[-1]:
        least = jax.lax.top_k(scores, top_k)[0][:, -1:]
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if top_p < 1.0:
        ordered = jnp.sort(scores, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if min_p > 0.0:
        least = scores.max(-1, keepdims=True) + math.log(min_p)
        scores = jnp.where(scores < least, -jnp.inf, scores)
    return scores


def inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws an index of each row of weights [R, V] >= 0 with one uniform number [R] each.

    Exact up to float rounding; an index of zero weight is never drawn.
    """
    rows, size = weights.shape
    padded = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK))).reshape(rows, -1, _BLOCK)
    sums = padded.sum(-1)  # [R, blocks]
    upto = _running(sums)
    target = uniform * upto[:, -1]
    block = _first_above(upto, sums, target)
    inside = jnp.take_along_axis(padded, block[:, None, None], axis=1)[:, 0]
    start = jnp.take_along_axis(upto - sums, block[:, None], axis=1)[:, 0]
    index = _first_above(_running(inside), inside, target - start)
    return block * _BLOCK + index


def _running(x: jax.Array) -> jax.Array:
    """Inclusive cumulative sum along the last axis, as a product with a triangle of ones."""
    size = x.shape[-1]
    if size > 1024:
        return jnp.cumsum(x, axis=-1)
    # In full precision: a TPU's or GPU's usual product of float32 would round the weights.
    below = jnp.tril(jnp.ones((size, size), x.dtype))
    # Stored [out, in], see `decoder.turned`.
    return jax.lax.dot_general(x, below, (((1,), (1,)), ((), ())), precision="highest")


def _first_above(upto: jax.Array, parts: jax.Array, target: jax.Array) -> jax.Array:
    """First index with upto > target; where rounding leaves none, the last with a part > 0."""
    last = upto.shape[-1] - 1 - jnp.argmax(parts[:, ::-1] > 0, axis=-1)
    found = (upto > target[:, None]) & (parts > 0)
    return jnp.where(found.any(-1), jnp.argmax(found, axis=-1), last).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Filters:
    """The part of `Sampling` that a loop is compiled for; temperature is an argument."""

    greedy: bool
    top_k: int
    top_p: float
    min_p: float = 0.0


def draw(
    scores: jax.Array, uniform: jax.Array, temperature: jax.Array | float, filters: Filters
) -> tuple[jax.Array, jax.Array]:
    """Draws a token per lane; scores [R, V], uniform [R] -> tokens [R] and log-probabilities [R].

    The log-probabilities are the model's own, at temperature 1 and unfiltered.
    """
    scores = scores.astype(jnp.float32)
    shifted = scores - scores.max(-1, keepdims=True)
    if filters.greedy:
        tokens = jnp.argmax(shifted, axis=-1).astype(jnp.int32)
    else:
        kept = filtered(shifted / temperature, filters.top_k, filters.top_p, filters.min_p)
        tokens = inverse_cdf(jnp.exp(kept), uniform)
    normaliser = jnp.log(jnp.exp(shifted).sum(-1))
    chosen = jnp.take_along_axis(shifted, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - normaliser
