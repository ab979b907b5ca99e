"""Attention of decoding and training: one exact softmax over keys stored in several places.

A query may see several sets of keys: a task prompt that all sequences share, a question that its
samples share, the tokens of its own sequence. Each set yields a `Part`, and `merge` joins parts by
log-sum-exp, so that no shared key or value is ever copied.

    part = cache_attention(q, prompt.layer(i))    # keys that all sequences share
    own = head_attention(q, keys, values, bias)   # keys of each sequence
    attended = merge([own, part])                 # the softmax over all of them

Products are plain batched matmuls over keys stored [..., L, K]. They are fast on XLA's CPU backend,
and the bits of a row do not depend on the number of rows.

Shapes: B sequences, n queries of each, H query heads, G key/value heads, per = H / G, K head dim,
L cached positions, T tokens of a packed row.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmsi_jax.config import ModelConfig
from lmsi_jax.models.params import Params, soft_cap, wide_matmul
from lmsi_jax.models.transformer import Angles, Attend, angles_of, block, embed

MASKED = -1e9
_CPU_BLOCK = 64
# An accelerator's products need more rows, and each block is compiled on its own.
_ACCELERATOR_BLOCK = 512


class Part(NamedTuple):
    """Attention over one set of keys, not yet normalized; float32, of any leading shape [...].

    Attributes:
      top: [...] the largest logit.
      total: [...] the sum of exp(logit - top).
      values: [..., K] the sum of exp(logit - top) * value.
    """

    top: jax.Array
    total: jax.Array
    values: jax.Array


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

    def layer(self, layer: int) -> "LayerCache":
        """Returns one layer's keys and values."""
        return LayerCache(self.keys[layer], self.values[layer], self.lengths)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of B sequences in one layer.

    Attributes:
      keys: [B, G, L, K].
      values: the same.
      lengths: [B] how many positions of each sequence are real.
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array


def partial_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array, softcap: float = 0.0
) -> Part:
    """Attends keys and values [B, G, L, K] without normalizing.

    Args:
      queries: [B, G, n, K], scaled; or [B, G, per, n, K], and so is the result then.
      keys: of any float type; products take them as they are and add up in float32.
      values: likewise.
      bias: [B, G, n, L] or what broadcasts to it, added after the soft cap.
      softcap: `ModelConfig.attention_softcap`.
    """
    logits = soft_cap(wide_matmul(queries, keys, transposed=True), softcap) + bias
    # The maximum cancels in `merge`, so no gradient need flow through it.
    top = jax.lax.stop_gradient(logits.max(-1))
    weights = jnp.exp(logits - top[..., None])
    return Part(top, weights.sum(-1), wide_matmul(weights.astype(values.dtype), values))


def merge(parts: list[Part]) -> jax.Array:
    """Joins parts that share their leading shape into one exact softmax, [..., K]."""
    if len(parts) == 1:
        return parts[0].values / parts[0].total[..., None]
    top = functools.reduce(jnp.maximum, [part.top for part in parts])
    scales = [jnp.exp(part.top - top) for part in parts]
    totals = [scale * part.total for scale, part in zip(scales, parts, strict=True)]
    values = [scale[..., None] * part.values for scale, part in zip(scales, parts, strict=True)]
    return functools.reduce(jnp.add, values) / functools.reduce(jnp.add, totals)[..., None]


def join(one: Part, other: Part) -> Part:
    """Joins two parts of one shape; one that sees nothing leaves the other's bits as they are."""
    top = jnp.maximum(one.top, other.top)
    scales = jnp.exp(one.top - top), jnp.exp(other.top - top)
    total = scales[0] * one.total + scales[1] * other.total
    return Part(top, total, scales[0][..., None] * one.values + scales[1][..., None] * other.values)


def is_traced_on_mesh() -> bool:
    """Returns whether this is traced for several devices, see `jax.sharding.use_abstract_mesh`."""
    return not jax.sharding.get_abstract_mesh().empty


def group_heads(q: jax.Array, groups: int) -> jax.Array:
    """Groups heads by their key/value head: [B, n, H, K] -> [B, G, n * per, K].

    One matmul over all rows of a group is fastest on a CPU. On a mesh the result is
    [B, G, per, n, K]: heads that are split over devices cannot be joined with queries, or XLA would
    first gather all heads on each device.
    """
    batch, n, heads, width = q.shape
    split = q.reshape(batch, n, groups, heads // groups, width)
    if is_traced_on_mesh():
        return split.transpose(0, 2, 3, 1, 4)
    return split.transpose(0, 2, 1, 3, 4).reshape(batch, groups, n * (heads // groups), width)


def group_bias(bias: jax.Array, per: int) -> jax.Array:
    """Gives bias [B, n, L], or [B, 1, L], the axes of the logits of `group_heads`."""
    if is_traced_on_mesh():
        return bias[:, None, None]
    return (bias if bias.shape[1] == 1 else jnp.repeat(bias, per, axis=1))[:, None]


def ungroup_heads(a: jax.Array, heads: int) -> jax.Array:
    """Undoes `group_heads` on an array of a part: [B, G, n * per, ...] -> [B, n, H, ...]."""
    batch, groups = a.shape[:2]
    if is_traced_on_mesh():
        split = jnp.moveaxis(a, 3, 1)
    else:
        per = heads // groups
        split = jnp.moveaxis(a.reshape(batch, groups, -1, per, *a.shape[3:]), 1, 2)
    return split.reshape(batch, split.shape[1], heads, *split.shape[4:])


def head_attention(
    q: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array, softcap: float = 0.0
) -> Part:
    """Attends with all heads of queries that are still apart by position.

    Args:
      q: [B, n, H, K], scaled.
      keys: [B, G, L, K].
      values: the same.
      bias: [B, n, L] or [B, 1, L].
      softcap: `ModelConfig.attention_softcap`.

    Returns:
      top and total [B, n, H], values [B, n, H, K].
    """
    heads, groups = q.shape[2], keys.shape[1]
    bias = group_bias(bias, heads // groups)
    part = partial_attention(group_heads(q, groups), keys, values, bias, softcap)
    return Part(*(ungroup_heads(a, heads) for a in part))


def cache_attention(
    q: jax.Array,
    cache: LayerCache,
    first_visible: jax.Array | None = None,
    softcap: float = 0.0,
) -> Part:
    """Attends a layer's cache of B sequences, or of one sequence that all B share.

    Args:
      q: [B, n, H, K], scaled.
      cache: keys and values.
      first_visible: [B, n] first cached position that a query sees; None: the very first. For a
        query at position p and a cache that starts at position s it is `p - window + 1 - s`; it may
        be negative, or beyond the end of the cache (the part then weighs nothing in `merge`).
      softcap: `ModelConfig.attention_softcap`.

    Returns:
      top and total [B, n, H], values [B, n, H, K].
    """
    batch, n, heads, width = q.shape
    sequences, size = cache.lengths.shape[0], cache.keys.shape[2]
    rows = q.reshape(sequences, batch * n // sequences, heads, width)
    bias = jnp.where(jnp.arange(size) < cache.lengths[:, None], 0.0, MASKED)[:, None]
    if first_visible is not None:
        visible = jnp.arange(size) >= first_visible.reshape(sequences, -1, 1)
        bias = jnp.where(visible, bias, MASKED)
    part = head_attention(rows, cache.keys, cache.values, bias, softcap)
    return Part(*(a.reshape(batch, n, *a.shape[2:]) for a in part))


# (a layer's earlier keys, queries [B, n, H, K] scaled, first visible position [B, n] or None, soft
# cap) -> their part of the attention, [B, n, H, ...]
AttendBefore = Callable[[Any, jax.Array, jax.Array | None, float], Part]


def prefill(
    config: ModelConfig, fused: Params, tokens: jax.Array, lengths: jax.Array, before: Cache | None
) -> Cache:
    """Computes the cache of tokens [B, L] that follow the one sequence cached in `before`.

    Args:
      config: the model's shape.
      fused: parameters from `params.fuse_projections`.
      tokens: padded on the right.
      lengths: [B] real tokens of each sequence.
      before: the shared sequence that precedes every other one, or None.
    """
    if before is None:
        start, layers = jnp.zeros_like(lengths), None
    else:
        start = jnp.broadcast_to(before.lengths, lengths.shape)
        layers = [before.layer(layer) for layer in range(config.num_layers)]
    return prefill_after(config, fused, tokens, lengths, start, layers, _attend_cache)


def _attend_cache(
    cache: LayerCache, q: jax.Array, first_visible: jax.Array | None, softcap: float
) -> Part:
    return cache_attention(q, cache, first_visible, softcap)


def prefill_after(
    config: ModelConfig,
    fused: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    start: jax.Array,
    before: Sequence[Any] | None,
    attend_before: AttendBefore,
) -> Cache:
    """Computes the cache of tokens [B, L] that follow cached ones.

    Args:
      config: the model's shape.
      fused: parameters from `params.fuse_projections`.
      tokens: padded on the right.
      lengths: [B] real tokens of each sequence.
      start: [B] the position of each sequence's first token.
      before: per layer what `attend_before` takes first; None if nothing precedes.
      attend_before: attends the keys that precede; a function of a module, as its identity is a
        part of what is compiled.
    """
    length = tokens.shape[1]
    positions = start[:, None] + jnp.arange(length)
    causal = {window: _causal_bias(length, window)[None] for window in config.windows}
    angles = angles_of(config, positions)
    x = embed(config, fused, tokens)
    keys: list[jax.Array] = []
    values: list[jax.Array] = []
    for layer in range(config.num_layers):
        place = layer % config.layer_cycle
        x, k, v = _prefill_layer(
            *(config, place, attend_before, fused[f"layer_{layer}"], x, angles),
            *(causal[config.window(layer)], positions, None if before is None else before[layer]),
        )
        keys.append(k)
        values.append(v)
    return Cache(keys, values, lengths)


# Compiled on its own in name only: layers of one kind are traced once, and XLA inlines the calls.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill_layer(
    config: ModelConfig,
    place: int,
    attend_before: AttendBefore,
    p: Params,
    x: jax.Array,
    angles: tuple[Angles, ...],
    causal: jax.Array,
    positions: jax.Array,
    before: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs the layer at a place of the cycle; returns its output, keys and values [B, G, L, K]."""
    softcap = config.attention_softcap
    keys, values = jnp.zeros(()), jnp.zeros(())

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        nonlocal keys, values
        window = config.window(layer)
        keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        parts = [head_attention(q, keys, values, causal, softcap)]
        if before is not None:
            first_visible = positions - window + 1 if window else None
            parts.append(attend_before(before, q, first_visible, softcap))
        return merge(parts)

    x = block(config, p, place, x, angles, attend)
    return x, keys, values


def _causal_bias(length: int, window: int) -> jax.Array:
    """[length, length]: 0 if the query (row) sees the key (column)."""
    visible = jnp.tril(jnp.ones((length, length), bool))
    if window:
        visible &= ~jnp.tril(visible, -window)
    return jnp.where(visible, 0.0, MASKED)


def packed_attention(
    config: ModelConfig, segments: jax.Array, positions: jax.Array, shared: Cache | None
) -> Attend:
    """Returns the `attend` callback of all layers for packed rows, see `attend_packed`.

    Args:
      config: the model's windows and soft cap.
      segments: [B, T] number of each token's example, 0 for padding.
      positions: [B, T] position of each token, counted from the start of the prefix.
      shared: cache of the one prefix that all rows see, or None.
    """

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        prefix = None if shared is None else shared.layer(layer)
        return attend_packed(config, layer, (q, k, v), segments, positions, prefix)

    return attend


def attend_packed(
    config: ModelConfig,
    layer: int,
    projections: tuple[jax.Array, jax.Array, jax.Array],
    segments: jax.Array,
    positions: jax.Array,
    shared: LayerCache | None,
    block: int = 0,
) -> jax.Array:
    """Attends packed rows after a shared prefix: [B, T, H, K].

    A packed row holds several examples. A token sees the earlier tokens of its own example (its
    segment) and the whole prefix, so each example is computed as if it were alone after the
    prefix. In a layer with a sliding window it sees the window, which may reach into the prefix.
    Queries are taken in blocks, so neither the part above the diagonal nor the part before the
    window is computed.

    Args:
      config: the model's windows and soft cap.
      layer: number of the layer, or its place in the cycle of windows.
      projections: scaled queries [B, T, H, K], keys and values [B, T, G, K].
      segments: [B, T] number of each token's example, 0 for padding.
      positions: [B, T] position of each token, counted from the start of the prefix.
      shared: the layer's cache of the one prefix that all rows see, or None.
      block: queries per block; 0: `ModelConfig.query_block`, or a size that suits the devices.
    """
    on_cpu = jax.default_backend() == "cpu" and not is_traced_on_mesh()
    size = block or config.query_block or (_CPU_BLOCK if on_cpu else _ACCELERATOR_BLOCK)
    softcap, window = config.attention_softcap, config.window(layer)
    q, k, v = projections
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    outputs = []
    for one in _blocks(segments, window, size):
        queries, visible = q[:, one.start : one.end], slice(one.first, one.end)
        parts = [
            head_attention(queries, keys[:, :, visible], values[:, :, visible], one.bias, softcap)
        ]
        if shared is not None:
            first_visible = positions[:, one.start : one.end] - window + 1 if window else None
            parts.append(cache_attention(queries, shared, first_visible, softcap))
        outputs.append(merge(parts))
    return jnp.concatenate(outputs, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
    """Queries from `start` to `end`, and keys from `first` to `end`, of each row.

    Attributes:
      bias: [B, end - start, end - first], 0 if the query sees the key.
    """

    first: int
    start: int
    end: int
    bias: jax.Array


def _blocks(segments: jax.Array, window: int, size: int) -> Iterator[_Block]:
    """Cuts rows with segments [B, T] into blocks of queries; window as `ModelConfig.windows`."""
    length = segments.shape[1]
    order = jnp.arange(length)
    for start in range(0, length, size):
        end = min(start + size, length)
        first = max(0, start - window + 1) if window else 0
        visible = segments[:, start:end, None] == segments[:, None, first:end]
        visible &= order[start:end, None] >= order[None, first:end]
        if window:  # within a segment, columns are as far apart as positions
            visible &= order[start:end, None] - order[None, first:end] < window
        bias = jnp.where(visible, 0.0, MASKED)
        yield _Block(first=first, start=start, end=end, bias=bias)
