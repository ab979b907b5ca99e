"""The decode loop over a mesh: lanes over "data", heads, MLP and vocabulary over "model".

Along "data" each device group runs its own lanes, questions and pages, as one device would: the
axis is manual (`shard_map`), so nothing is exchanged but weights, where `fsdp` spreads them. Along
"model" XLA splits the products by the weights' sharding (`models.partitioning`).

The mesh may span the processes of a team (`teams`). Each of them then says the same of all lanes
before a chunk, and gets all tokens after it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmsi_jax.decoding.teams import team_devices, team_here, team_of
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.mesh import make_mesh, offered_devices
from lmsi_jax.models.params import Params
from lmsi_jax.models.partitioning import weight_specs
from lmsi_jax.models.weights import fuse, split_weights, turned

LANES = PartitionSpec("data")
EVERYWHERE = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mesh, and whether weights are spread over its "data" axis too; None: one device."""

    mesh: Mesh | None = None
    fsdp: bool = False

    @property
    def groups(self) -> int:
        """Device groups that decode side by side."""
        return 1 if self.mesh is None else self.mesh.shape["data"]

    @property
    def shared(self) -> Mesh | None:
        """The mesh where it spans several processes, else None."""
        mesh = self.mesh
        if mesh is None or NamedSharding(mesh, EVERYWHERE).is_fully_addressable:
            return None
        return mesh


def make_spread(data: int, model: int, fsdp: bool) -> Spread:
    """Lays out as a mesh the devices of this process, or of its team where it needs more.

    Raises:
      LmsiError: see `teams.team_of`.
    """
    if data * model == 1:
        return Spread()
    devices = offered_devices()
    if devices is None:
        devices = team_devices(team_here(data, model))
    else:
        team_of(data, model, [len(devices)], 0)  # as if one process had them
    return Spread(make_mesh(devices, data, model), fsdp)


def param_shardings(config: ModelConfig, spread: Spread) -> Any:
    """Returns the parameter tree with shardings in place of arrays; None on one device."""
    return None if spread.mesh is None else _on_mesh(spread.mesh, _param_specs(config, spread))


def _param_specs(config: ModelConfig, spread: Spread) -> Any:
    assert spread.mesh is not None
    shape = spread.mesh.shape
    return weight_specs(config, shape["model"], shape["data"], fsdp=spread.fsdp)


def _tree(config: ModelConfig, spread: Spread) -> Any:
    """`PartitionSpec`s of the decoding weights."""
    return split_weights(config, _param_specs(config, spread))


def _on_mesh(mesh: Mesh, specs: Any) -> Any:
    return jax.tree.map(
        functools.partial(NamedSharding, mesh),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def decoding_weights(
    config: ModelConfig, params: Params, dtype: Any, spread: Spread = Spread()
) -> Params:
    """Returns the parameters as the loop reads them: cast, laid out for products, and placed.

    What lies on the mesh in its type, as `param_shardings` says, is taken as it is.
    """
    if spread.mesh is None:
        return jax.jit(functools.partial(_joined, config, dtype))(params)
    where = _on_mesh(spread.mesh, _tree(config, spread))
    return jax.tree.map(
        functools.partial(_placed, dtype=dtype), split_weights(config, params), where
    )


def _joined(config: ModelConfig, dtype: Any, params: Params) -> Params:
    narrow = jax.tree.map(lambda a: a.astype(dtype), params)
    return turned(config, fuse(config, narrow))


def _placed(leaf: jax.Array, where: NamedSharding, dtype: Any) -> jax.Array:
    if getattr(leaf, "sharding", None) == where:
        return leaf.astype(dtype)
    if where.is_fully_addressable:
        return jax.device_put(leaf.astype(dtype), where)
    whole = np.asarray(leaf.astype(dtype))  # each process has all of it
    return jax.make_array_from_callback(whole.shape, where, lambda index: whole[index])


def decoding_shapes(
    config: ModelConfig, params: Params, dtype: Any, spread: Spread = Spread()
) -> Params:
    """Returns `decoding_weights` with shapes in place of arrays, those of a mesh with shardings."""
    if spread.mesh is None:
        return jax.eval_shape(functools.partial(_joined, config, dtype), params)
    return jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, jnp.dtype(dtype), sharding=where),
        split_weights(config, params),
        _on_mesh(spread.mesh, _tree(config, spread)),
    )


def manual_specs(config: ModelConfig, spread: Spread) -> Any:
    """The weights' specs along the manual axis alone: P("data") where `fsdp` spreads them."""

    def only_data(spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(axis if axis == "data" else None for axis in spec))

    return jax.tree.map(
        only_data, _tree(config, spread), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )


def whole(config: ModelConfig, spread: Spread, weights: Params) -> Params:
    """Inside `over_data`: the weights with what lies on other device groups gathered."""
    if not spread.fsdp or spread.mesh is None:
        return weights

    def gather(spec: PartitionSpec, weight: jax.Array) -> jax.Array:
        axes = [at for at, axis in enumerate(spec) if axis == "data"]
        return jax.lax.all_gather(weight, "data", axis=axes[0], tiled=True) if axes else weight

    return jax.tree.map(
        gather,
        manual_specs(config, spread),
        weights,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def over_data(
    spread: Spread, function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Runs a function once per device group, on that group's lanes."""
    if spread.mesh is None:
        return function
    return jax.shard_map(
        function,
        mesh=spread.mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=frozenset({"data"}),
        check_vma=False,
    )


def lanes_sharding(spread: Spread, kv_heads: int = 1) -> NamedSharding | None:
    """Where an array of lanes, questions or pages goes, with its kv heads, where it has such an
    axis, over "model" if they divide; None: the default device."""
    if spread.mesh is None:
        return None
    data, model = spread.mesh.shape["data"], spread.mesh.shape["model"]
    split = model > 1 and kv_heads > 1 and kv_heads % model == 0
    # An axis of one device is left out, as XLA does when it hands arrays back.
    axes = ["data" if data > 1 else None, "model" if split else None]
    while axes and axes[-1] is None:
        axes.pop()
    return NamedSharding(spread.mesh, PartitionSpec(*axes))


def as_placed(spread: Spread, caches: Any) -> Any:
    """Keeps caches, kv heads on axis 1, where they were made: else each chunk compiles anew."""
    if spread.mesh is None:
        return caches

    def held(a: jax.Array) -> jax.Array:
        place = lanes_sharding(spread, a.shape[1] if a.ndim > 1 else 1)
        return jax.lax.with_sharding_constraint(a, place)

    return jax.tree.map(held, caches)


def everywhere(spread: Spread, tree: Any) -> Any:
    """Within a compiled function: every device gets the whole of what the host is to read."""
    if spread.mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(spread.mesh, EVERYWHERE))
