"""Attention over shared prefixes: task prompt, question and path, each stored once.

The softmax over all keys is exact: each part gives its maximum, its sum and its weighted values,
and the parts are merged by log-sum-exp. Products are plain batched matmuls; with keys stored
[.., L, K] they are fast on XLA's CPU back end, and the bits of a row do not depend on how many rows
there are.

Shapes: B sequences, n queries of each, H heads, G kv heads, per = H / G, K head dim, L cached
positions.

Attention over packed rows that share a few-shot prefix, exact, without copying the prefix.

A packed row holds several examples; a token sees the earlier tokens of its own example (its
segment) and the whole shared prefix, so every example is computed as if it stood alone behind the
prefix. In a layer with a sliding window it sees what lies within the window, which may reach into
the prefix. Segment 0 pads. Queries are taken in blocks, so the part above the diagonal is not
computed, nor the part before the window.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lmsi_jax.config.architecture import ModelConfig
from lmsi_jax.models.params import Params, soft_cap, wide_matmul
from lmsi_jax.models.rotary import angles_of
from lmsi_jax.models.transformer import Attend, hidden_states

MASKED = -1e9
Part = tuple[jax.Array, ...]
"""Unmerged attention: maximum, sum of exponentials, weighted values, relative to the maximum."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of B sequences, one entry per layer.

    Attributes:
      keys: per layer [B, G, L, K].
      values: the same.
      lengths: [B] how many positions of each sequence are real.
    """

    keys: list[jax.Array]
    values: list[jax.Array]
    lengths: jax.Array


def partial_attention(
    rows: jax.Array, keys: jax.Array, values: jax.Array, bias: Any, softcap: float = 0.0
) -> Part:
    """Unmerged attention of rows [B, G, n, K] over keys and values [B, G, L, K].

    Args:
      rows: scaled queries, or [B, G, per, n, K]; so are the results then.
      keys: of any float type; products take it as it is and add up in float32.
      values: likewise.
      bias: [B, G, n, L] or what broadcasts to it, added after the soft cap.
      softcap: `ModelConfig.attention_softcap`.

    Returns:
      maximum [B, G, n], sum of exponentials [B, G, n], weighted values [B, G, n, K], all relative
      to the maximum and float32.
    """
    scores = soft_cap(wide_matmul(rows, keys, transposed=True), softcap) + bias
    # The maximum cancels in `merge`, so no gradient need flow through it.
    top = jax.lax.stop_gradient(scores.max(-1))
    weights = jnp.exp(scores - top[..., None])
    return top, weights.sum(-1), wide_matmul(weights.astype(values.dtype), values)


def merge(parts: list[Part]) -> jax.Array:
    """Joins parts that share their leading shape into one exact softmax, [..., K]."""
    if len(parts) == 1:
        _, total, mixed = parts[0]
        return mixed / total[..., None]
    top = parts[0][0]
    for other, _, _ in parts[1:]:
        top = jnp.maximum(top, other)
    scales = [jnp.exp(own - top) for own, _, _ in parts]
    totals = [scale * z for scale, (_, z, _) in zip(scales, parts, strict=True)]
    values = [scale[..., None] * o for scale, (_, _, o) in zip(scales, parts, strict=True)]
    return functools.reduce(jnp.add, values) / functools.reduce(jnp.add, totals)[..., None]


def _padding_bias(lengths: jax.Array, size: int) -> jax.Array:
    """[B, 1, size]: 0 where a position is real."""
    return jnp.where(jnp.arange(size) < lengths[:, None], 0.0, MASKED)[:, None]


def is_traced_on_mesh() -> bool:
    """Whether this is traced for several devices, see `jax.sharding.use_abstract_mesh`."""
    return not jax.sharding.get_abstract_mesh().empty


def grouped(q: jax.Array, groups: int) -> jax.Array:
    """Splits heads: q [B, n, H, K] -> [B, G, n * per, K]; on a mesh [B, G, per, n, K].

    One matmul's rows are fastest on a CPU. But heads that lie on several devices cannot be joined
    with queries: XLA would first gather all heads on each of them.
    """
    batch, n, heads, width = q.shape
    split = q.reshape(batch, n, groups, heads // groups, width)
    if is_traced_on_mesh():
        return split.transpose(0, 2, 3, 1, 4)
    return split.transpose(0, 2, 1, 3, 4).reshape(batch, groups, n * (heads // groups), width)


def grouped_bias(bias: jax.Array, per: int) -> jax.Array:
    """Gives bias [B, n, L], or [B, 1, L], the axes of `grouped`'s scores."""
    if is_traced_on_mesh():
        return bias[:, None, None]
    return (bias if bias.shape[1] == 1 else jnp.repeat(bias, per, axis=1))[:, None]


def ungrouped(a: jax.Array, heads: int) -> jax.Array:
    """Undoes `grouped` on a part: [B, G, n * per, ...] -> [B, n, H, ...]."""
    batch, groups = a.shape[:2]
    per = heads // groups
    if is_traced_on_mesh():
        split = jnp.moveaxis(a, 3, 1)
    else:
        split = jnp.moveaxis(a.reshape(batch, groups, -1, per, *a.shape[3:]), 1, 2)
    return split.reshape(batch, split.shape[1], heads, *split.shape[4:])


def over_cache(
    q: jax.Array,
    cache: Cache,
    layer: int,
    groups: int,
    since: jax.Array | None = None,
    softcap: float = 0.0,
) -> Part:
    """The part of q [B, n, H, K] over a cache of B sequences, or of one that all B share.

    Args:
      q: scaled queries.
      cache: keys and values.
      layer: which layer's.
      groups: kv heads.
      since: [B, n] first place in the cache that a query sees, None for the very first. For a
        query at position p and a cache that starts at position s, `p - window + 1 - s`; it may be
        negative, or behind the cache's end (the part then weighs nothing in `merge`).
      softcap: `ModelConfig.attention_softcap`.

    Returns:
      maximum [B, n, H], sum [B, n, H] and values [B, n, H, K].
    """
    batch, n, heads, width = q.shape
    sequences = cache.lengths.shape[0]
    rows = grouped(q.reshape(sequences, batch * n // sequences, heads, width), groups)
    size = cache.keys[layer].shape[2]
    bias = _padding_bias(cache.lengths, size)
    if since is not None:
        seen = jnp.arange(size) >= since.reshape(sequences, -1, 1)
        bias = jnp.where(seen, bias, MASKED)
    bias = grouped_bias(bias, heads // groups)
    own = partial_attention(rows, cache.keys[layer], cache.values[layer], bias, softcap)
    joined = (ungrouped(a, heads) for a in own)
    return tuple(a.reshape(batch, n, *a.shape[2:]) for a in joined)


def _causal_bias(length: int, window: int) -> jax.Array:
    """[length, length]: 0 where a query (row) sees a key."""
    visible = jnp.tril(jnp.ones((length, length), bool))
    if window:
        visible &= ~jnp.tril(visible, -window)
    return jnp.where(visible, 0.0, MASKED)


def prefill(
    config: ModelConfig, fused: Params, tokens: jax.Array, lengths: jax.Array, before: Cache | None
) -> Cache:
    """Computes the cache of tokens [B, L] that follow the one sequence cached in `before`.

    Args:
      config: the model's shape.
      fused: `weights.fuse` of the parameters.
      tokens: padded on the right.
      lengths: [B] real tokens in each row.
      before: the shared sequence that stands before every row, or None.
    """
    length = tokens.shape[1]
    start = before.lengths[0] if before is not None else 0
    positions = jnp.broadcast_to(start + jnp.arange(length), tokens.shape)
    keys: list[jax.Array] = []
    values: list[jax.Array] = []
    causal = {window: _causal_bias(length, window) for window in config.windows}
    per = config.num_heads // config.num_kv_heads
    softcap = config.attention_softcap

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Keeps the layer's keys and values; [B, T, heads, width] over itself and `before`."""
        groups, window = config.num_kv_heads, config.window(layer)
        keys.append(k.transpose(0, 2, 1, 3))
        values.append(v.transpose(0, 2, 1, 3))
        bias = grouped_bias(causal[window][None], per)
        own = partial_attention(grouped(q, groups), keys[-1], values[-1], bias, softcap)
        parts = [tuple(ungrouped(a, config.num_heads) for a in own)]
        if before is not None:
            since = positions - window + 1 if window else None
            parts.append(over_cache(q, before, layer, groups, since, softcap))
        return merge(parts)

    hidden_states(config, fused, tokens, angles_of(config, positions), attend)
    return Cache(keys, values, lengths)


_MASKED = -1e9
_BLOCK = 64
# An accelerator's products want more rows, and each block is compiled on its own.
_WIDE_BLOCK = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
    """Queries from `start` to `end` over the row's keys from `first` to `end`.

    Attributes:
      bias: [B, end - start, end - first], 0 where a query sees a key.
    """

    first: int
    start: int
    end: int
    bias: jax.Array


def _blocks(segments: jax.Array, window: int, block: int) -> Iterator[_Block]:
    """Cuts rows with segments [B, T] into blocks of queries; window as `ModelConfig.windows`."""
    length = segments.shape[1]
    order = jnp.arange(length)
    for start in range(0, length, block):
        end = min(start + block, length)
        first = max(0, start - window + 1) if window else 0
        visible = segments[:, start:end, None] == segments[:, None, first:end]
        visible &= order[start:end, None] >= order[None, first:end]
        if window:  # within a segment, places are as far apart as positions
            visible &= order[start:end, None] - order[None, first:end] < window
        bias = jnp.where(visible, 0.0, _MASKED)
        yield _Block(first=first, start=start, end=end, bias=bias)


def packed_attention(
    config: ModelConfig,
    segments: jax.Array,
    positions: jax.Array,
    shared: Cache | None,
    block: int = 0,
) -> Attend:
    """Returns the `attend` callback for rows with segments [B, T] behind a shared prefix.

    Args:
      config: the model's windows and soft cap.
      segments: example number of each token, 0 for padding.
      positions: [B, T] position of each token, counted from the start of the shared prefix.
      shared: cache of the one prefix that all rows see, or None.
      block: queries per block; 0: `ModelConfig.query_block`, or what suits the devices.
    """
    narrow = jax.default_backend() == "cpu" and not is_traced_on_mesh()
    size = block or config.query_block or (_BLOCK if narrow else _WIDE_BLOCK)
    softcap = config.attention_softcap

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """[B, T, heads, width] over the own segment so far and the shared prefix."""
        heads, groups, window = q.shape[2], k.shape[2], config.window(layer)
        keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        outputs = []
        for one in _blocks(segments, window, size):
            own, queries = slice(one.first, one.end), q[:, one.start : one.end]
            bias = grouped_bias(one.bias, heads // groups)
            rows = grouped(queries, groups)
            mine = partial_attention(rows, keys[:, :, own], values[:, :, own], bias, softcap)
            parts = [tuple(ungrouped(a, heads) for a in mine)]
            if shared is not None:
                since = positions[:, one.start : one.end] - window + 1 if window else None
                parts.append(over_cache(queries, shared, layer, groups, since, softcap))
            outputs.append(merge(parts))
        return jnp.concatenate(outputs, axis=1)

    return attend
