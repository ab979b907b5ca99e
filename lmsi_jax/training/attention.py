"""Attention over packed rows that share a few-shot prefix, exact, without copying the prefix.

A packed row holds several examples; a token sees the earlier tokens of its own example (its
segment)
and the whole shared prefix, so every example is computed as if it stood alone behind the prefix.
Segment 0 pads. Queries are taken in blocks, so the part above the diagonal is not computed.
"""

import jax
import jax.numpy as jnp

from lmsi_jax.decoding.prefix import Cache, grouped, merge, over_cache, part, ungrouped
from lmsi_jax.models.decoder import Attend

_MASKED = -1e9


def packed_attention(segments: jax.Array, shared: Cache | None, block: int = 64) -> Attend:
    """Returns the `attend` callback for rows with segments [B, T] behind a shared prefix.

    Args:
      segments: example number of each token, 0 for padding.
      shared: cache of the one prefix that all rows see, or None.
      block: queries per block.
    """
    length = segments.shape[1]
    blocks = [(start, min(start + block, length)) for start in range(0, length, block)]
    order = jnp.arange(length)

    def bias(start: int, end: int) -> jax.Array:
        visible = segments[:, start:end, None] == segments[:, None, :end]
        visible &= order[start:end, None] >= order[None, :end]
        return jnp.where(visible, 0.0, _MASKED)  # [B, Tq, Tk]

    biases = [bias(start, end) for start, end in blocks]

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """[B, T, heads, width] over the own segment so far and the shared prefix."""
        batch, _, heads, width = q.shape
        groups = k.shape[2]
        keys = k.transpose(0, 2, 3, 1).reshape(batch * groups, width, length)
        values = v.transpose(0, 2, 1, 3).reshape(batch * groups, length, width)
        outputs = []
        for (start, end), mask in zip(blocks, biases, strict=True):
            rows = grouped(q[:, start:end], groups)
            # Rows of a group are ordered [query, head], see `grouped`.
            repeated = jnp.repeat(jnp.repeat(mask, heads // groups, axis=1), groups, axis=0)
            own = part(rows, keys[:, :, :end], values[:, :end], repeated)
            parts = [tuple(ungrouped(a, groups, heads) for a in own)]
            if shared is not None:
                parts.append(over_cache(q[:, start:end], shared, layer, groups))
            outputs.append(merge(parts))
        return jnp.concatenate(outputs, axis=1)

    return attend
