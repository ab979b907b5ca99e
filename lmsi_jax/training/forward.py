"""The decoder over packed rows and the few-shot prefix that they share; gradients of a step.

Every layer takes the prefix and the rows together, so the prefix's keys and values are used where
they are made and nothing of a layer outlives it but its output. That is what lets a layer be
recomputed on the backward pass (`ModelConfig.remat`) or be one iteration of a loop (`scan_layers`).

`packed_states` is the forward pass. Two variants compute the same numbers faster: features before
tokens on CPUs, and prefix and rows in one array on a mesh.

Shapes: M microbatches of B rows of T tokens after a prefix of P tokens; D embed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, get_abstract_mesh

from lmsi_jax.config import ModelConfig
from lmsi_jax.models.attention import MASKED, LayerCache, attend_packed, is_traced_on_mesh
from lmsi_jax.models.params import Params, fuse_projections, split_weights
from lmsi_jax.models.transformer import Angles, angles_of, apply_layers, block, embed, gated, norm

Microbatch = dict[str, Any]
"""One microbatch of `packing.Batch`, without the leading axis."""


def packed_states(
    config: ModelConfig, params: Params, batch: Microbatch
) -> tuple[Params, jax.Array]:
    """Runs the model over one microbatch.

    Args:
      config: the model's shape, and how its layers are run.
      params: its parameter tree, or `prepare_weights` of it; states have the parameters' type.
      batch: one microbatch; may have `with_angles` already.

    Returns:
      The weights as `transformer.logits` takes them, and the rows' normalised states [B, T, D].
    """
    weights = prepare_weights(config, params)
    if "angles" not in batch:
        batch = with_angles(config, weights, batch)
    if supports_mesh_layout(batch):
        states = row_states(config, weights, batch)
    else:
        states = _row_states(config, weights, batch)
    return weights, norm(config, weights["final_norm"], states)


def prepare_weights(config: ModelConfig, params: Params) -> Params:
    """Returns the weights as `packed_states` multiplies by them; linear in the parameters.

    The projections of a layer that read one input are one matrix. On a mesh they stay apart: a
    joined matrix would have to be shuffled among the devices that hold parts of each. With
    several microbatches, call it once; prepared weights are returned as they are.
    """
    if not isinstance(params["final_norm"], dict):
        return params
    return (
        split_weights(config, params) if is_traced_on_mesh() else fuse_projections(config, params)
    )


def with_angles(config: ModelConfig, weights: Params, batch: dict[str, Any]) -> dict[str, Any]:
    """Adds the rotary angles of the rows' positions to one or several microbatches.

    With several microbatches in a loop, call it before the loop: inside, XLA computes the cosines
    anew for every head and layer.
    """
    angles = angles_of(config, batch["positions"])
    if _is_feature_major(config, weights):
        return batch | {"angles": feature_major_angles(angles[0])}
    return batch | {"angles": angles}


def _is_feature_major(config: ModelConfig, weights: Params) -> bool:
    return not is_traced_on_mesh() and supports_feature_major(config, weights)


def _row_states(config: ModelConfig, weights: Params, batch: Microbatch) -> jax.Array:
    """Returns the rows' states [B, T, D] after all layers."""
    feature_major = _is_feature_major(config, weights)
    segments, positions, angles = batch["segments"], batch["positions"], batch["angles"]
    length = batch["prefix_length"][None]

    def layer(p: Params, index: int, states: Any) -> Any:
        prefix, rows = states
        shared = None
        if prefix is not None:
            prefix, shared = _prefix_layer(config, p, index, prefix, length)

        def attend(index: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attend_packed(config, index, (q, k, v), segments, positions, shared)

        if feature_major:
            rows = feature_major_block(config, p, rows, angles, segments, shared)
        else:
            rows = block(config, p, index, rows, angles, attend)
        if is_traced_on_mesh():
            rows = jax.lax.with_sharding_constraint(rows, PartitionSpec("data"))
        return prefix, rows

    prefix = embed(config, weights, batch["prefix"])[None] if batch["prefix"].shape[0] else None
    rows = embed(config, weights, batch["tokens"])
    if feature_major:
        rows = jnp.moveaxis(rows, -1, 0)
    _, rows = apply_layers(config, layer, weights, (prefix, rows))
    return jnp.moveaxis(rows, 0, -1) if feature_major else rows


def _prefix_layer(
    config: ModelConfig, p: Params, index: int, states: jax.Array, length: jax.Array
) -> tuple[jax.Array, LayerCache]:
    """Runs a layer over the prefix [1, P, D]; returns its states, and its keys and values."""
    positions = jnp.arange(states.shape[1])[None]
    segments = (positions < length[:, None]).astype(jnp.int32)
    caches = []

    def attend(index: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        caches.append(LayerCache(k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), length))
        return attend_packed(config, index, (q, k, v), segments, positions, None)

    states = block(config, p, index, states, angles_of(config, positions), attend)
    return states, caches[0]


def regroup_rows(batch: dict[str, Any], rows: int) -> dict[str, Any]:
    """Cuts microbatches that share no prefix into ones of at most `rows` rows, for less memory.

    The sums over all of them stay the same.
    """
    whole = batch["tokens"].shape[1]
    size = max(count for count in range(1, min(rows, whole) + 1) if whole % count == 0)
    if batch["prefix"].shape[1] or size == whole:
        return batch
    parts = whole // size

    def cut(array: jax.Array) -> jax.Array:
        """[M, B, ...] -> [M * parts, size, ...]; a prefix is repeated."""
        if array.ndim < 3:
            return jnp.repeat(array, parts, axis=0)
        return array.reshape(-1, size, *array.shape[2:])

    return jax.tree.map(cut, batch)


Objective = Callable[[Params, Microbatch], tuple[jax.Array, Any]]
"""(differentiated tree, microbatch) -> (sum to minimise, sums to report)."""


def accumulate_gradients(objective: Objective, trained: Params, batch: Any) -> tuple[Any, Params]:
    """Adds up an objective's sums, and its gradients, over a step's microbatches.

    Args:
      objective: of one microbatch; its sums are means once they are divided by a count.
      trained: the tree to differentiate by; its gradient is float32 whatever its type.
      batch: arrays of M microbatches, [M, ...] each.

    Returns:
      The sums to report, and the gradient of the sum to minimise.
    """
    gradient = jax.grad(objective, has_aux=True)

    def add(total: Any, microbatch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(trained, microbatch)), None

    first = jax.tree.map(lambda array: array[0], batch)
    _, sums_shape = jax.eval_shape(objective, trained, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), (trained, sums_shape))
    (grads, sums), _ = jax.lax.scan(add, zeros, batch)
    return sums, grads


def parameter_gradients(
    config: ModelConfig, params: Params, objective: Objective, batch: Any
) -> tuple[Any, Params]:
    """Returns `accumulate_gradients` by the parameters, prepared once for all microbatches."""
    weights = prepare_weights(config, params)
    batch = with_angles(config, weights, batch)
    sums, grads = accumulate_gradients(objective, weights, batch)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), params)
    (param_grads,) = jax.linear_transpose(lambda p: prepare_weights(config, p), shapes)(grads)
    return sums, param_grads


# --- fast variants --------------------------------------------------------------------------------
#
# On CPUs: features before tokens, [D, B, T]
#   XLA's CPU back end multiplies matrices equally fast in any layout, but cutting, joining and
#   transposing arrays along their last axis takes it half as long as the products themselves. With
#   the tokens last, query, key, value, gate and up are cut along the first axis, the halves that
#   rotary positions rotate are whole rows, and heads need no transposes before their products. The
#   numbers are those of `transformer.block`.
#
#   Measured gain over the general path, whole optimizer steps in turn on two busy cores (`python -m
#   bench.forward_variants`, medians): 34 M parameters 1.09 times after a prefix and 1.06 without
#   one, the embedded model 1.07 without a prefix and none (0.95) after one. On two quiet cores a
#   layer of 512 tokens of the first takes 159 ms instead of 178 (bench/README.md).
#
# On a mesh: a microbatch's rows and the prefix that they share as one array
#   In two arrays, each weight would be part of two products and each gradient of a weight would be
#   added up between the devices twice: XLA adds the two only after its reductions. In one array
#   every device group ("data") has the tokens of its rows and, after them, its share of the prefix.
#
#   Measured gain over two arrays: 1.10 times, the embedded model's optimizer steps on a mesh of two
#   virtual CPU devices, median of steps taken in turn (`python -m bench.forward_variants
#   --devices=2 --case=embedded`); not measured on chips.
#
# Shapes: B rows of T tokens, D embed, H query heads, G kv heads, K head dim; S device groups, P
# places of the prefix, on a mesh a multiple of S; n = (B * T + P) / S.

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
