"""Attention over packed rows that share a few-shot prefix, exact, without copying the prefix.

A packed row holds several examples; a token sees the earlier tokens of its own example (its
segment) and the whole shared prefix, so every example is computed as if it stood alone behind the
prefix. In a layer with a sliding window it sees what lies within the window, which may reach into
the prefix. Segment 0 pads. Queries are taken in blocks, so the part above the diagonal is not
computed, nor the part before the window.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from lmsi_jax.decoding.prefix import (
    Cache,
    grouped,
    grouped_bias,
    merge,
    on_mesh,
    over_cache,
    part,
    ungrouped,
)
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import Attend

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
    narrow = jax.default_backend() == "cpu" and not on_mesh()
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
            mine = part(rows, keys[:, :, own], values[:, :, own], bias, softcap)
            parts = [tuple(ungrouped(a, heads) for a in mine)]
            if shared is not None:
                since = positions[:, one.start : one.end] - window + 1 if window else None
                parts.append(over_cache(queries, shared, layer, groups, since, softcap))
            outputs.append(merge(parts))
        return jnp.concatenate(outputs, axis=1)

    return attend
