"""The decoder over packed rows and the few-shot prefix that they share, layer by layer.

Each layer takes the prefix and the rows forward together, so that its keys and values are used
where they are made: nothing of a layer outlives it but its output. That lets a layer be computed
anew on the backward pass (`ModelConfig.remat`) or be one turn of a loop (`scan_layers`).

On a mesh (`jax.sharding.use_abstract_mesh` around this) rows lie over "data", prefix and rows are
one array (`joint`), and the projections stay apart: joined, a matrix would have to be shuffled
among the devices that hold parts of each.

On a mesh, a microbatch's rows and the prefix that they share as one array.

Apart, each weight would be part of two products, and each gradient of a weight would be added up
between the devices twice: XLA adds the two only behind its reductions. Joined, each device group
("data") has its rows' tokens and, behind them, its share of the prefix's places.

Shapes: S groups, B rows of T tokens, P places of the prefix, a multiple of S; n = (B * T + P) / S.

Sums and gradients over the microbatches of a step, one at a time, in float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, get_abstract_mesh

from lmsi_jax.config.architecture import ModelConfig
from lmsi_jax.models.attention import Cache, is_traced_on_mesh, packed_attention
from lmsi_jax.models.params import Params, fuse_projections, split_weights
from lmsi_jax.models.rotary import Angles, angles_of
from lmsi_jax.models.transformer import Attend, block, embed, norm
from lmsi_jax.training import forward_cpu

# Keys and values [1, P, G, K] with all places on each device; heads lie where they lie.
_ALL_PLACES = PartitionSpec(None, None, PartitionSpec.UNCONSTRAINED, None)


def supports_mesh_layout(batch: dict[str, Any]) -> bool:
    """Whether a microbatch is traced for a mesh, and has a prefix."""
    return is_traced_on_mesh() and batch["prefix"].shape[0] > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshLayout:
    """The sizes of a joined array; S, B, T and P of the module's notation."""

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

    def rows_of(self, joint: jax.Array) -> jax.Array:
        """[S, n, ...] -> [B, T, ...]."""
        own = joint[:, : self.rows * self.length // self.groups]
        return own.reshape(self.rows, self.length, *joint.shape[2:])

    def prefix_of(self, joint: jax.Array) -> jax.Array:
        """[S, n, ...] -> [1, P, ...]."""
        own = joint[:, self.rows * self.length // self.groups :]
        return own.reshape(1, self.places, *joint.shape[2:])


def mesh_layout(batch: dict[str, Any]) -> MeshLayout:
    """Returns how a microbatch is joined on the mesh that it is traced for."""
    groups = get_abstract_mesh().shape["data"]
    rows, length = batch["tokens"].shape
    places = -(-batch["prefix"].shape[0] // groups) * groups
    return MeshLayout(groups=groups, rows=rows, length=length, places=places)


def mesh_angles(
    config: ModelConfig, layout: MeshLayout, batch: dict[str, Any]
) -> tuple[Angles, ...]:
    """The rotary angles of all tokens, from those of the rows in `batch`."""
    prefix = angles_of(config, jnp.arange(layout.places))
    angles: tuple[Angles, ...] = jax.tree.map(layout.join, batch["angles"], prefix)
    return angles


def mesh_layer(
    config: ModelConfig,
    layout: MeshLayout,
    batch: dict[str, Any],
    angles: tuple[Angles, ...],
    layer: int,
) -> Callable[[Params, jax.Array], jax.Array]:
    """Returns what a layer does whose place in the pattern of windows is `layer`.

    That is: the layer's weights and states [S, n, D] -> states.
    """

    def run(p: Params, states: jax.Array) -> jax.Array:
        """The layer with weights p."""
        attend = _attention(config, layout, batch)
        states = block(config, p, layer, states, angles, attend)
        return jax.lax.with_sharding_constraint(states, PartitionSpec("data"))

    return run


def _attention(config: ModelConfig, layout: MeshLayout, batch: dict[str, Any]) -> Attend:
    """The prefix over itself, the rows over themselves and the prefix."""
    length = batch["prefix_length"][None]
    places = jnp.arange(layout.places)[None]
    real = (places < length[:, None]).astype(jnp.int32)
    # In one block: each device takes its share of the queries.
    within_prefix = packed_attention(config, real, places, None, layout.places)

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """[S, n, heads, width]."""
        keys, values = (  # every row sees all of them
            jax.lax.with_sharding_constraint(layout.prefix_of(a), _ALL_PLACES) for a in (k, v)
        )
        cached = [[a.transpose(0, 2, 1, 3)] * (layer + 1) for a in (keys, values)]
        shared = Cache(cached[0], cached[1], length)  # whatever layer is asked for, it is this one
        of_rows = packed_attention(config, batch["segments"], batch["positions"], shared)
        rows = of_rows(layer, *(layout.rows_of(a) for a in (q, k, v)))
        prefix = within_prefix(layer, layout.prefix_of(q), keys, values)
        return layout.join(rows, prefix[0])

    return attend


# The prefix (None without one) and the rows on their way through the layers.
_States = tuple[jax.Array | None, jax.Array]
_Layer = Callable[[Params, Any], Any]


def prepare_weights(config: ModelConfig, params: Params) -> Params:
    """The weights as `packed_states` multiplies by them; linear in the parameters.

    Who runs several microbatches lays them out once; what is laid out already passes as it is.
    """
    if not isinstance(params["final_norm"], dict):
        return params
    return (
        split_weights(config, params) if is_traced_on_mesh() else fuse_projections(config, params)
    )


def _upright(config: ModelConfig, weights: Params) -> bool:
    """Whether rows go through `columns.block`."""
    return not is_traced_on_mesh() and forward_cpu.supports_feature_major(config, weights)


def with_angles(config: ModelConfig, weights: Params, batch: dict[str, Any]) -> dict[str, Any]:
    """Adds the rotary angles of the rows' positions, as the layers take them.

    Who runs several microbatches in a loop adds them before it: inside, XLA takes the cosines anew
    for every head and layer.

    Args:
      config: the model's shape.
      weights: `laid_out`'s.
      batch: one or several microbatches.
    """
    angles = angles_of(config, batch["positions"])
    upright = _upright(config, weights)
    return batch | {"angles": forward_cpu.feature_major_angles(angles[0]) if upright else angles}


def regroup_rows(batch: dict[str, Any], rows: int) -> dict[str, Any]:
    """Cuts microbatches that share no prefix into ones of at most `rows` rows, for less memory.

    The sums over all of them stay what they were.
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


def packed_states(
    config: ModelConfig, params: Params, batch: dict[str, Any]
) -> tuple[Params, jax.Array]:
    """Runs the model over one microbatch.

    Args:
      config: the model's shape, and how its layers are run.
      params: its parameter tree, or `laid_out`'s; states have the parameters' type.
      batch: one microbatch of `packing.Batch`, without the leading axis.

    Returns:
      The weights as `decoder.logits` takes them, and the rows' normalised states [B, T, D].
    """
    weights = prepare_weights(config, params)
    if "angles" not in batch:
        batch = with_angles(config, weights, batch)
    every = [weights[f"layer_{layer}"] for layer in range(config.num_layers)]
    rows = (_joined if supports_mesh_layout(batch) else _apart)(config, weights, every, batch)
    return weights, norm(config, weights["final_norm"], rows)


def _joined(
    config: ModelConfig, weights: Params, every: list[Params], batch: dict[str, Any]
) -> jax.Array:
    """The rows' states [B, T, D] behind all layers, prefix and rows in one array."""
    sizes = mesh_layout(batch)
    angles = mesh_angles(config, sizes, batch)
    states = embed(config, weights, sizes.join(batch["tokens"], batch["prefix"]))
    layers = [
        _remat(config, mesh_layer(config, sizes, batch, angles, layer))
        for layer in range(len(config.windows))
    ]
    return sizes.rows_of(_through(config, layers, every, states))


def _apart(
    config: ModelConfig, weights: Params, every: list[Params], batch: dict[str, Any]
) -> jax.Array:
    """The rows' states [B, T, D] behind all layers, prefix and rows in an array each."""
    upright = _upright(config, weights)
    prefix = embed(config, weights, batch["prefix"])[None] if batch["prefix"].shape[0] else None
    rows = embed(config, weights, batch["tokens"])
    states = (prefix, jnp.moveaxis(rows, -1, 0) if upright else rows)
    layers = [
        _remat(config, _layer(config, batch, layer, upright))
        for layer in range(len(config.windows))
    ]
    _, rows = _through(config, layers, every, states)
    return jnp.moveaxis(rows, 0, -1) if upright else rows


def _layer(config: ModelConfig, batch: dict[str, Any], layer: int, feature_major: bool) -> _Layer:
    """Returns what a layer does whose place in the pattern of windows is `layer`."""
    length = batch["prefix_length"][None]
    places = jnp.arange(batch["prefix"].shape[0])[None]

    def run(p: Params, states: _States) -> _States:
        """The layer with weights p: states before it -> states after it."""
        prefix, rows = states
        shared = None
        if prefix is not None:
            prefix, shared = _prefix_layer(config, p, layer, prefix, places, length)
        if feature_major:
            before = None
            if shared is not None:
                before = shared.keys[layer][0], shared.values[layer][0], length[0]
            rows = forward_cpu.feature_major_block(
                config, p, rows, batch["angles"], batch["segments"], before
            )
        else:
            attend = packed_attention(config, batch["segments"], batch["positions"], shared)
            rows = block(config, p, layer, rows, batch["angles"], attend)
        if is_traced_on_mesh():
            rows = jax.lax.with_sharding_constraint(rows, PartitionSpec("data"))
        return prefix, rows

    return run


def _prefix_layer(
    config: ModelConfig,
    p: Params,
    layer: int,
    prefix: jax.Array,
    places: jax.Array,
    length: jax.Array,
) -> tuple[jax.Array, Cache]:
    """A layer over the prefix [1, P, D]; returns its output, and its keys and values."""
    real = (places < length[:, None]).astype(jnp.int32)
    own = packed_attention(config, real, places, None)
    made: list[tuple[jax.Array, jax.Array]] = []

    def attend(at: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        made.append((k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)))
        return own(at, q, k, v)

    prefix = block(config, p, layer, prefix, angles_of(config, places), attend)
    ((keys, values),) = made
    # Whatever layer is asked for, it is this one.
    return prefix, Cache([keys] * (layer + 1), [values] * (layer + 1), length)


def _remat(config: ModelConfig, run: _Layer) -> _Layer:
    """The layer, computed anew on the backward pass as `ModelConfig.remat` says."""
    policies = jax.checkpoint_policies
    again = not config.scan_layers  # XLA cannot join what a loop computes with what it did before
    if config.remat == "layer":
        return jax.checkpoint(run, prevent_cse=again)
    if config.remat == "dots":
        kept = policies.dots_with_no_batch_dims_saveable
        return jax.checkpoint(run, prevent_cse=again, policy=kept)
    return run


def _through(config: ModelConfig, layers: list[_Layer], every: list[Params], states: Any) -> Any:
    """All layers, one after the other."""
    return (_scanned if config.scan_layers else _in_turn)(layers, every, states)


def _in_turn(layers: list[_Layer], weights: list[Params], states: Any) -> Any:
    """Layer after layer, each compiled on its own."""
    for number, p in enumerate(weights):
        states = layers[number % len(layers)](p, states)
    return states


def _scanned(layers: list[_Layer], weights: list[Params], states: Any) -> Any:
    """A loop whose turn is one period of windows, compiled once; what is left over in turn."""
    period = len(layers)
    turns = len(weights) // period
    scanned, rest = weights[: turns * period], weights[turns * period :]
    stacked = [
        jax.tree.map(lambda *each: jnp.stack(each), *scanned[place::period])
        for place in range(period)
    ]

    def turn(states: Any, own: list[Params]) -> tuple[Any, None]:
        return _in_turn(layers, own, states), None

    if turns:
        states, _ = jax.lax.scan(turn, states, stacked)
    return _in_turn(layers, rest, states)


Objective = Callable[[Params, dict[str, jax.Array]], tuple[jax.Array, Any]]
"""(what is differentiated, one microbatch) -> a sum to minimise, and sums to report."""


def accumulate_gradients(objective: Objective, trained: Params, batch: Any) -> tuple[Any, Params]:
    """Adds up an objective's sums, and its gradient with regard to `trained`.

    Args:
      objective: of one microbatch; its sums are means once they are divided by what it counts.
      trained: what it is differentiated by; the gradient is float32 whatever its type.
      batch: arrays of M microbatches, [M, ...] each.

    Returns:
      The sums to report, and the gradient of the sum to minimise.
    """
    gradient = jax.grad(objective, has_aux=True)

    def add(total: Any, one: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(trained, one)), None

    first = jax.tree.map(lambda array: array[0], batch)
    shapes = jax.eval_shape(gradient, trained, first)
    none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    (grads, sums), _ = jax.lax.scan(add, none, batch)
    return sums, grads


def parameter_gradients(
    config: ModelConfig, params: Params, objective: Objective, batch: Any
) -> tuple[Any, Params]:
    """`accumulated` with regard to the parameters, which are laid out once for all microbatches."""
    weights = prepare_weights(config, params)
    sums, grads = accumulate_gradients(objective, weights, with_angles(config, weights, batch))
    wide = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), params)
    (of_params,) = jax.linear_transpose(lambda p: prepare_weights(config, p), wide)(grads)
    return sums, of_params
