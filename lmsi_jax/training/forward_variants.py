"""Variants of the forward pass over packed rows that compute the same numbers faster.

On CPUs: features before tokens, [D, B, T]
  XLA's CPU back end multiplies matrices equally fast in any layout, but cutting, joining and
  transposing arrays along their last axis takes it half as long as the products themselves. With
  the tokens last, query, key, value, gate and up are cut along the first axis, the halves that
  rotary positions rotate are whole rows, and heads need no transposes before their products. The
  numbers are those of `transformer.block`.

  Measured gain over the general path, whole optimizer steps in turn on two busy cores (`python -m
  bench.forward_variants`, medians): 34 M parameters 1.09 times after a prefix and 1.06 without
  one, the embedded model 1.07 without a prefix and none (0.95) after one. On two quiet cores a
  layer of 512 tokens of the first takes 159 ms instead of 178 (bench/README.md).

On a mesh: a microbatch's rows and the prefix that they share as one array
  In two arrays, each weight would be part of two products and each gradient of a weight would be
  added up between the devices twice: XLA adds the two only after its reductions. In one array
  every device group ("data") has the tokens of its rows and, after them, its share of the prefix.

  Measured gain over two arrays: 1.10 times, the embedded model's optimizer steps on a mesh of two
  virtual CPU devices, median of steps taken in turn (`python -m bench.forward_variants --devices=2
  --case=embedded`); not measured on chips.

Shapes: B rows of T tokens, D embed, H query heads, G kv heads, K head dim; S device groups, P
places of the prefix, on a mesh a multiple of S; n = (B * T + P) / S.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, get_abstract_mesh

from lmsi_jax.config import ModelConfig
from lmsi_jax.models.attention import MASKED, LayerCache, attend_packed, is_traced_on_mesh
from lmsi_jax.models.params import Params
from lmsi_jax.models.transformer import Angles, angles_of, apply_layers, block, embed, gated

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


# Keys and values [1, P, G, K] with all places on each device; heads stay where they are.
_ALL_PLACES = PartitionSpec(None, None, PartitionSpec.UNCONSTRAINED, None)


def supports_mesh_layout(batch: dict[str, Any]) -> bool:
    """Returns True if a microbatch is traced for a mesh and has a prefix."""
    return is_traced_on_mesh() and batch["prefix"].shape[0] > 0


def row_states(config: ModelConfig, weights: Params, batch: dict[str, Any]) -> jax.Array:
    """Returns the rows' states [B, T, D] after all layers.

    Args:
      config: the model's shape.
      weights: of `forward.prepare_weights`.
      batch: a microbatch with the rows' `angles`.
    """
    layout = mesh_layout(batch)
    prefix_angles = angles_of(config, jnp.arange(layout.places))
    angles = jax.tree.map(layout.join, batch["angles"], prefix_angles)
    length = batch["prefix_length"][None]
    positions = jnp.arange(layout.places)[None]
    segments = (positions < length[:, None]).astype(jnp.int32)

    def attend(index: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """[S, n, heads, width]: the prefix over itself, the rows over themselves and the prefix."""
        keys, values = (  # every row sees all of them
            jax.lax.with_sharding_constraint(layout.prefix_of(a), _ALL_PLACES) for a in (k, v)
        )
        shared = LayerCache(keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3), length)
        of_rows = (layout.rows_of(q), layout.rows_of(k), layout.rows_of(v))
        rows = attend_packed(config, index, of_rows, batch["segments"], batch["positions"], shared)
        # In one block: each device takes its share of the queries.
        of_prefix = (layout.prefix_of(q), keys, values)
        prefix = attend_packed(config, index, of_prefix, segments, positions, None, layout.places)
        return layout.join(rows, prefix[0])

    def layer(p: Params, index: int, states: jax.Array) -> jax.Array:
        states = block(config, p, index, states, angles, attend)
        return jax.lax.with_sharding_constraint(states, PartitionSpec("data"))

    states = embed(config, weights, layout.join(batch["tokens"], batch["prefix"]))
    return layout.rows_of(apply_layers(config, layer, weights, states))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshLayout:
    """The sizes of a joined array: S, B, T and P of the module's notation."""

    groups: int
    rows: int
    length: int
    places: int

    def join(self, rows: jax.Array, prefix: jax.Array) -> jax.Array:
        """rows [B, T, ...] and prefix [at most P, ...] -> [S, n, ...]."""
        missing = self.places - prefix.shape[0]
        padded = jnp.pad(prefix, [(0, missing)] + [(0, 0)] * (prefix.ndim - 1))
        parts = (a.reshape(self.groups, -1, *rows.shape[2:]) for a in (rows, padded))
        return jnp.concatenate(list(parts), axis=1)

    def rows_of(self, joined: jax.Array) -> jax.Array:
        """[S, n, ...] -> [B, T, ...]."""
        rows = joined[:, : self.rows * self.length // self.groups]
        return rows.reshape(self.rows, self.length, *joined.shape[2:])

    def prefix_of(self, joined: jax.Array) -> jax.Array:
        """[S, n, ...] -> [1, P, ...]."""
        prefix = joined[:, self.rows * self.length // self.groups :]
        return prefix.reshape(1, self.places, *joined.shape[2:])


def mesh_layout(batch: dict[str, Any]) -> MeshLayout:
    """Returns the layout of a microbatch on the mesh that it is traced for."""
    groups = get_abstract_mesh().shape["data"]
    rows, length = batch["tokens"].shape
    places = -(-batch["prefix"].shape[0] // groups) * groups
    return MeshLayout(groups=groups, rows=rows, length=length, places=places)
