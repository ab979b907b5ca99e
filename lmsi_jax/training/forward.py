"""The decoder over packed rows and the few-shot prefix that they share; gradients of a step.

Every layer takes the prefix and the rows together, so the prefix's keys and values are used where
they are made and nothing of a layer outlives it but its output. That is what lets a layer be
recomputed on the backward pass (`ModelConfig.remat`) or be one iteration of a loop (`scan_layers`).

`packed_states` is the forward pass. `forward_variants` has two that compute the same numbers
faster: features before tokens on CPUs, and prefix and rows in one array on a mesh.

Shapes: M microbatches of B rows of T tokens after a prefix of P tokens; D embed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmsi_jax.config import ModelConfig
from lmsi_jax.models.attention import LayerCache, attend_packed, is_traced_on_mesh
from lmsi_jax.models.params import Params, fuse_projections, split_weights
from lmsi_jax.models.transformer import angles_of, apply_layers, block, embed, norm
from lmsi_jax.training import forward_variants

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
    if forward_variants.supports_mesh_layout(batch):
        states = forward_variants.row_states(config, weights, batch)
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
        return batch | {"angles": forward_variants.feature_major_angles(angles[0])}
    return batch | {"angles": angles}


def _is_feature_major(config: ModelConfig, weights: Params) -> bool:
    return not is_traced_on_mesh() and forward_variants.supports_feature_major(config, weights)


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
            rows = forward_variants.feature_major_block(config, p, rows, angles, segments, shared)
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
    shapes = jax.eval_shape(gradient, trained, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
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
