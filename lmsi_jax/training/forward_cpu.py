"""`decoder.block` over packed rows for CPUs: features lie in rows, tokens in columns.

XLA's CPU back end multiplies matrices as fast whichever way they lie, but cutting, joining and
transposing arrays along their last axis takes it half as long as the products themselves. Here the
last axis is that of the tokens: query, key, value, gate and up are cut along the first axis, the
halves that rotary positions turn are whole rows, and heads need no transposes before their
products. States between the layers lie so too, [D, B, T]; numbers are those of `block`.

Shapes: B rows, T tokens, D embed, H query heads, G kv heads, K head dim, M mlp, P prefix tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lmsi_jax.config.architecture import ModelConfig
from lmsi_jax.models.attention import MASKED
from lmsi_jax.models.params import Params
from lmsi_jax.models.transformer import gated

_BLOCK = 128  # queries; of 64, 128 and 256 the fastest by a little
# What a model may set; whatever else differs from PaLM's block takes the general way.
_FREE = {
    *("vocab_size", "num_layers", "embed_dim", "num_heads", "head_dim", "mlp_dim", "num_kv_heads"),
    *("max_length", "rope_theta", "norm_epsilon", "logits_softcap", "remat", "scan_layers"),
    "query_block",
}


def supports_feature_major(config: ModelConfig, weights: Params) -> bool:
    """Whether a model's layers can be computed so, and should: float32, on a CPU."""
    plain = all(
        getattr(config, field.name) == field.default
        for field in dataclasses.fields(config)
        if field.name not in _FREE
    )
    layer = weights["layer_0"]
    if not plain or "adapters" in layer or jax.default_backend() != "cpu":
        return False
    return layer["norm"].dtype == jnp.float32


def feature_major_angles(angles: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """`decoder.angles_of` [..., B, T, 1, K/2] -> [..., K/2, B, T]."""
    cos, sin = (jnp.moveaxis(a[..., 0, :], -1, -3) for a in angles)
    return cos, sin


def feature_major_block(
    config: ModelConfig,
    p: Params,
    x: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    segments: jax.Array,
    shared: tuple[jax.Array, jax.Array, jax.Array] | None,
) -> jax.Array:
    """One layer: x [D, B, T] -> [D, B, T].

    Args:
      config: a shape that `suits`.
      p: the layer's weights, `decoder.fuse`d.
      x: the rows' states.
      angles: `feature_major_angles`.
      segments: [B, T] example number of each token, 0 for padding.
      shared: keys and values [G, P, K] of the prefix that all rows see and its length; or None.
    """
    heads, groups, width = config.num_heads, config.num_kv_heads, config.head_dim
    normed = _normed(x, p["norm"], config.norm_epsilon).reshape(len(x), -1)
    joined = _product(0, 0, p["into"], normed).reshape(-1, *x.shape[1:])
    sizes = (heads * width, groups * width, groups * width, config.mlp_dim)
    q, k, v, gate, up = jnp.split(joined, [sum(sizes[: i + 1]) for i in range(4)], axis=0)
    q, k = _rotated(q, angles) * width**-0.5, _rotated(k, angles)
    v = v.reshape(k.shape)
    rows = [
        _attended(config, (q[:, :, row], k[:, :, row], v[:, :, row]), segments[row], shared)
        for row in range(len(segments))
    ]
    both = jnp.concatenate([jnp.stack(rows, axis=1), gated(config.activation, gate, up)], axis=0)
    return x + _product(0, 0, p["out"], both.reshape(len(both), -1)).reshape(x.shape)


def _normed(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """`decoder.rms_norm` over the first axis."""
    inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=0, keepdims=True) + epsilon)
    return x * inverse * scale[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(of_a: int, of_b: int, a: jax.Array, b: jax.Array) -> jax.Array:
    """Sums products over axis `of_a` of a and `of_b` of b, matrices or, with a first axis in
    common, stacks of matrices: -> [..., a's other axis, b's other axis]."""
    batch = tuple(range(a.ndim - 2))
    return jax.lax.dot_general(a, b, (((of_a,), (of_b,)), (batch, batch)))


def _product_backward(
    of_a: int, of_b: int, factors: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Each as the product that has the wanted axes in order; JAX's own would be transposed."""
    a, b = factors
    row, column = gradient.ndim - 2, gradient.ndim - 1
    of_rows, of_columns = row + column - of_a, row + column - of_b
    if of_a == row:
        of_first = _product(of_columns, column, b, gradient)
    else:
        of_first = _product(column, of_columns, gradient, b)
    if of_b == row:
        return of_first, _product(of_rows, row, a, gradient)
    return of_first, _product(row, of_rows, gradient, a)


_product.defvjp(lambda of_a, of_b, a, b: (_product(of_a, of_b, a, b), (a, b)), _product_backward)


def _rotated(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """[heads * K, B, T] -> [heads, K, B, T], rotated."""
    cos, sin = angles
    half = cos.shape[0]
    x = x.reshape(-1, 2, half, *x.shape[1:])
    first, second = x[:, 0], x[:, 1]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)


def _attended(
    config: ModelConfig,
    projections: tuple[jax.Array, jax.Array, jax.Array],
    segments: jax.Array,
    shared: tuple[jax.Array, jax.Array, jax.Array] | None,
) -> jax.Array:
    """One row: q [H, K, T], k and v [G, K, T] -> [H * K, T], a block of queries at a time."""
    q, k, v = projections
    length, order = q.shape[-1], jnp.arange(q.shape[-1])
    size = config.query_block or _BLOCK
    outputs = []
    for start in range(0, length, size):
        end = min(start + size, length)
        visible = segments[start:end, None] == segments[:end]
        visible &= order[start:end, None] >= order[:end]
        bias = jnp.where(visible, 0.0, MASKED)
        own = k[:, :, :end], v[:, :, :end], bias
        outputs.append(_over_keys(q[:, :, start:end], own, shared))
    return jnp.concatenate(outputs, axis=1)


def _over_keys(
    q: jax.Array,
    own: tuple[jax.Array, jax.Array, jax.Array],
    shared: tuple[jax.Array, jax.Array, jax.Array] | None,
) -> jax.Array:
    """A block of n queries [H, K, n] over keys and values [G, K, L] with a bias [n, L], and over
    those of the prefix: one exact softmax, [H * K, n]."""
    keys, values, bias = own
    groups, per = keys.shape[0], q.shape[0] // keys.shape[0]
    q = _joined(q.reshape(groups, per, *q.shape[1:]))
    scores = _product(1, 1, q, keys) + jnp.tile(bias, (per, 1))
    top = scores.max(-1, keepdims=True)
    if shared is not None:
        known = jnp.arange(shared[0].shape[1]) < shared[2]
        before = _product(1, 2, q, shared[0]) + jnp.where(known, 0.0, MASKED)
        top = jnp.maximum(top, before.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)  # it cancels
    weights = jnp.exp(scores - top)
    total, mixed = weights.sum(-1), _product(2, 2, values, weights)
    if shared is not None:
        weights = jnp.exp(before - top)
        total += weights.sum(-1)
        mixed += _product(1, 2, shared[1], weights)
    apart = (mixed / total[:, None]).reshape(groups, mixed.shape[1], per, -1)
    return apart.transpose(0, 2, 1, 3).reshape(-1, apart.shape[-1])


def _joined(q: jax.Array) -> jax.Array:
    """[G, per, K, n] -> [G, K, per * n]."""
    groups, per, width, count = q.shape
    return q.transpose(0, 2, 1, 3).reshape(groups, width, per * count)
