"""A small decoder with the interface that T5X's `DecoderOnlyModel` asks of its module.

Shapes: B rows, T positions, D width, H heads, K head dim, F mlp, V vocabulary, L cache length.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes

from bench.workloads import Model

_MASKED = -1e9


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def _rotary(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotates x [B, H, T, K] by its positions [B, T]."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-jnp.arange(half) / half)
    angle = positions[:, None, :, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _attend(q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """q [B, H, T, K], keys [B, H, K, L], values [B, H, L, K], mask [B or 1, 1, T, L]."""
    scores = jnp.where(mask, q @ keys, _MASKED)
    return jax.nn.softmax(scores, axis=-1) @ values


class Attention(nn.Module):
    """Causal self-attention; its cache has rows on axis 0 and an index per row."""

    model: Model

    @nn.compact
    def __call__(
        self, x: jax.Array, decode: bool, prefill: bool, lengths: jax.Array | None
    ) -> jax.Array:
        """x [B, T, D] -> [B, T, D]."""
        m, (rows, size) = self.model, x.shape[:2]
        inner = m.heads * m.head_dim
        into = _matrix("into", (m.width, 3 * inner), ("embed", "joined_kv"))
        out = _matrix("out", (inner, m.width), ("joined_kv", "embed"))
        # [B, T, 3, H, K] -> three of [B, H, T, K]
        parts = (x @ into).reshape(rows, size, 3, m.heads, m.head_dim).transpose(2, 0, 3, 1, 4)
        q, k, v = parts
        started = self.has_variable("cache", "index")
        shape = (rows, m.heads, m.head_dim, size)
        keys = values = index = None
        if decode or prefill:
            keys = self.variable("cache", "keys", jnp.zeros, shape)
            values = self.variable("cache", "values", jnp.zeros, (*shape[:2], size, m.head_dim))
            index = self.variable("cache", "index", jnp.zeros, (rows,), jnp.int32)
        step = decode and started
        positions = index.value[:, None] if step else jnp.arange(size)[None]
        q, k = _rotary(q, positions) * m.head_dim**-0.5, _rotary(k, positions).swapaxes(2, 3)
        mask = jnp.tril(jnp.ones((size, size), bool))[None, None]
        if step:
            at = index.value
            keys.value = _put(keys.value, k, at, axis=2)
            values.value = _put(values.value, v, at, axis=1)
            index.value = at + 1
            k, v = keys.value, values.value
            mask = (jnp.arange(k.shape[-1]) <= at[:, None])[:, None, None]
        elif prefill:
            keys.value, values.value, index.value = k, v, lengths
        mixed = _attend(q, k, v, mask).transpose(0, 2, 1, 3).reshape(rows, size, inner)
        return mixed @ out


def _put(cache: jax.Array, new: jax.Array, at: jax.Array, axis: int) -> jax.Array:
    """Writes each row's new entry at the row's own index."""
    write = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda c, n, i: write(c, n, i, axis))(cache, new, at)


def _matrix(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
    return param_with_axes(name, nn.initializers.normal(shape[0] ** -0.5), shape, axes=axes)


class Block(nn.Module):
    """Attention, then a gated MLP, each on a normalised input."""

    model: Model

    @nn.compact
    def __call__(
        self, x: jax.Array, decode: bool, prefill: bool, lengths: jax.Array | None
    ) -> jax.Array:
        """x [B, T, D] -> [B, T, D]."""
        m, ones = self.model, nn.initializers.ones
        norms = [param_with_axes(f"norm_{i}", ones, (m.width,), axes=("embed",)) for i in (0, 1)]
        attention = Attention(m, name="attention")
        x = x + attention(_norm(x, norms[0]), decode, prefill, lengths)
        into = _matrix("into", (m.width, 2 * m.mlp), ("embed", "mlp"))
        down = _matrix("down", (m.mlp, m.width), ("mlp", "embed"))
        gate, up = jnp.split(_norm(x, norms[1]) @ into, 2, axis=-1)
        return x + (nn.silu(gate) * up) @ down


class Decoder(nn.Module):
    """What `t5x.models.DecoderOnlyModel` calls to initialise, prefill and step."""

    model: Model

    @nn.compact
    def __call__(
        self,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        decoder_segment_ids: jax.Array | None = None,
        decoder_positions: jax.Array | None = None,
        decoder_causal_attention: jax.Array | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        prefill: bool = False,
        prefill_lengths: jax.Array | None = None,
    ) -> jax.Array:
        """Tokens [B, T] -> logits [B, T, V]; segments are not needed to decode and are ignored."""
        m = self.model
        initializer = nn.initializers.normal(m.width**-0.5)
        shape, axes = (m.vocabulary, m.width), ("vocab", "embed")
        embedding = param_with_axes("embedding", initializer, shape, axes=axes)
        x = embedding[decoder_input_tokens.astype(jnp.int32)]
        for layer in range(m.layers):
            x = Block(m, name=f"layer_{layer}")(x, decode, prefill, prefill_lengths)
        scale = param_with_axes("norm", nn.initializers.ones, (m.width,), axes=("embed",))
        return _norm(x, scale) @ embedding.T
