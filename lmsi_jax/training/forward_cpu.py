"""A layer over packed rows for CPUs: features before tokens, [D, B, T].

XLA's CPU back end multiplies matrices equally fast in any layout, but cutting, joining and
transposing arrays along their last axis takes it half as long as the products themselves. With the
tokens last, query, key, value, gate and up are cut along the first axis, the halves that rotary
positions rotate are whole rows, and heads need no transposes before their products. The numbers
are those of `transformer.block`.

Measured gain over the general path, whole optimizer steps in turn on two busy cores (`python -m
bench.forward_variants`, medians): 34 M parameters 1.09 times behind a prefix and 1.06 without one,
the embedded model 1.07 without a prefix and none (0.95) behind one. On two quiet cores a layer of
512 tokens of the first takes 159 ms instead of 178 (bench/README.md).

Shapes: B rows, T tokens, D embed, H query heads, G kv heads, K head dim, P prefix tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lmsi_jax.config import ModelConfig
from lmsi_jax.models.attention import MASKED, LayerCache
from lmsi_jax.models.params import Params
from lmsi_jax.models.rotary import Angles
from lmsi_jax.models.transformer import gated

_BLOCK = 128  # queries; of 64, 128 and 256 the fastest by a little
# Settings that a model may change; any other change from PaLM's block takes the general path.
_FREE = {
    *("vocab_size", "num_layers", "embed_dim", "num_heads", "head_dim", "mlp_dim", "num_kv_heads"),
    *("max_length", "rope_theta", "norm_epsilon", "logits_softcap", "remat", "scan_layers"),
    "query_block",
}


def supports_feature_major(config: ModelConfig, weights: Params) -> bool:
    """Returns True if a model can be computed this way and gains by it: float32, on a CPU."""
    is_palm = all(
        getattr(config, field.name) == field.default
        for field in dataclasses.fields(config)
        if field.name not in _FREE
    )
    layer = weights["layer_0"]
    if not is_palm or "adapters" in layer or jax.default_backend() != "cpu":
        return False
    return layer["norm"].dtype == jnp.float32


def feature_major_angles(angles: Angles) -> Angles:
    """`rotary_angles` [..., B, T, 1, K/2] -> [..., K/2, B, T]."""
    cos, sin = (jnp.moveaxis(a[..., 0, :], -1, -3) for a in angles)
    return cos, sin


def feature_major_block(
    config: ModelConfig,
    p: Params,
    x: jax.Array,
    angles: Angles,
    segments: jax.Array,
    shared: LayerCache | None,
) -> jax.Array:
    """Runs one layer: x [D, B, T] -> [D, B, T].

    Args:
      config: a shape that `supports_feature_major`.
      p: the layer's weights, of `fuse_projections`.
      x: the rows' states.
      angles: of `feature_major_angles`.
      segments: [B, T] example number of each token, 0 for padding.
      shared: keys and values of the one prefix that all rows see, or None.
    """
    heads, groups, width = config.num_heads, config.num_kv_heads, config.head_dim
    normed = _rms_norm(x, p["norm"], config.norm_epsilon).reshape(len(x), -1)
    projections = _product(0, 0, p["into"], normed).reshape(-1, *x.shape[1:])
    sizes = (heads * width, groups * width, groups * width, config.mlp_dim)
    ends = [sum(sizes[: i + 1]) for i in range(4)]
    q, k, v, gate, up = jnp.split(projections, ends, axis=0)
    q, k = _rotate(q, angles) * width**-0.5, _rotate(k, angles)
    v = v.reshape(k.shape)
    rows = [
        _attend_row(config, (q[:, :, row], k[:, :, row], v[:, :, row]), segments[row], shared)
        for row in range(len(segments))
    ]
    both = jnp.concatenate([jnp.stack(rows, axis=1), gated(config.activation, gate, up)], axis=0)
    return x + _product(0, 0, p["out"], both.reshape(len(both), -1)).reshape(x.shape)


def _rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """`transformer.rms_norm` over the first axis."""
    inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=0, keepdims=True) + epsilon)
    return x * inverse * scale[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(axis_a: int, axis_b: int, a: jax.Array, b: jax.Array) -> jax.Array:
    """Contracts an axis of a with one of b, matrices or stacks of them with a first axis in common:
    -> [..., a's other axis, b's other axis]."""
    batch = tuple(range(a.ndim - 2))
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), (batch, batch)))


def _product_backward(
    axis_a: int, axis_b: int, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes each cotangent in its operand's layout; autodiff would insert transposes.

    With i the contracted axis and c = a b of axes [r, s], the cotangents are products over the
    other axis: of b and c over s for a, of a and c over r for b. If a is [r, i] (its contracted
    axis is the last), its cotangent is [r, i] = c b; if a is [i, r], it is b c. Likewise for b.
    """
    a, b = operands
    row, column = gradient.ndim - 2, gradient.ndim - 1
    other_a, other_b = row + column - axis_a, row + column - axis_b
    if axis_a == row:
        of_a = _product(other_b, column, b, gradient)
    else:
        of_a = _product(column, other_b, gradient, b)
    if axis_b == row:
        return of_a, _product(other_a, row, a, gradient)
    return of_a, _product(row, other_a, gradient, a)


_product.defvjp(
    lambda axis_a, axis_b, a, b: (_product(axis_a, axis_b, a, b), (a, b)), _product_backward
)


def _rotate(x: jax.Array, angles: Angles) -> jax.Array:
    """[heads * K, B, T] -> [heads, K, B, T], rotated."""
    cos, sin = angles
    half = cos.shape[0]
    x = x.reshape(-1, 2, half, *x.shape[1:])
    first, second = x[:, 0], x[:, 1]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)


def _attend_row(
    config: ModelConfig,
    projections: tuple[jax.Array, jax.Array, jax.Array],
    segments: jax.Array,
    shared: LayerCache | None,
) -> jax.Array:
    """Attention of one row, block by block: q [H, K, T], k and v [G, K, T] -> [H * K, T]."""
    q, k, v = projections
    length, order = q.shape[-1], jnp.arange(q.shape[-1])
    size = config.query_block or _BLOCK
    outputs = []
    for start in range(0, length, size):
        end = min(start + size, length)
        visible = segments[start:end, None] == segments[:end]
        visible &= order[start:end, None] >= order[:end]
        bias = jnp.where(visible, 0.0, MASKED)
        outputs.append(
            _attend_block(q[:, :, start:end], k[:, :, :end], v[:, :, :end], bias, shared)
        )
    return jnp.concatenate(outputs, axis=1)


def _attend_block(
    q: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array, shared: LayerCache | None
) -> jax.Array:
    """Exact softmax attention of n queries [H, K, n] over keys and values [G, K, L] with a bias
    [n, L], and over those of the prefix: [H * K, n]."""
    heads, width, count = q.shape
    groups = keys.shape[0]
    per = heads // groups
    q = q.reshape(groups, per, width, count).transpose(0, 2, 1, 3).reshape(groups, width, -1)
    scores = _product(1, 1, q, keys) + jnp.tile(bias, (per, 1))
    top = scores.max(-1, keepdims=True)
    if shared is not None:
        prefix_keys, prefix_values = shared.keys[0], shared.values[0]  # [G, P, K]
        real = jnp.arange(prefix_keys.shape[1]) < shared.lengths[0]
        prefix_scores = _product(1, 2, q, prefix_keys) + jnp.where(real, 0.0, MASKED)
        top = jnp.maximum(top, prefix_scores.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)  # it cancels
    weights = jnp.exp(scores - top)
    total, mixed = weights.sum(-1), _product(2, 2, values, weights)
    if shared is not None:
        weights = jnp.exp(prefix_scores - top)
        total += weights.sum(-1)
        mixed += _product(1, 2, prefix_values, weights)
    split = (mixed / total[:, None]).reshape(groups, width, per, count)
    return split.transpose(0, 2, 1, 3).reshape(-1, count)
