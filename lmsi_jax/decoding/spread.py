"""The decode loop over a mesh: lanes over "data", heads, MLP and vocabulary over "model".

Along "data" each device group runs its own lanes, questions and pages, as one device would: the
axis is manual (`shard_map`), so nothing is exchanged but weights, where `fsdp` spreads them. Along
"model" XLA splits the products by the weights' sharding (`models.partitioning`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.config import ModelConfig
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


def make_spread(data: int, model: int, fsdp: bool) -> Spread:
    """Lays this process' devices out as a mesh.

    Raises:
      LmsiError: there are not that many devices.
    """
    if data * model == 1:
        return Spread()
    devices = jax.local_devices()
    if data * model > len(devices):
        raise LmsiError(
            f"Decoding.data = {data} and Decoding.model = {model} need {data * model} devices, "
            f"this process has {len(devices)}; lower one of them"
        )
    grid = np.asarray(devices[: data * model]).reshape(data, model)
    mesh = Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    return Spread(mesh, fsdp)


def _tree(config: ModelConfig, spread: Spread) -> Any:
    """`PartitionSpec`s of the decoding weights."""
    assert spread.mesh is not None
    shape = spread.mesh.shape
    return split_weights(
        config, weight_specs(config, shape["model"], shape["data"], fsdp=spread.fsdp)
    )


def decoding_weights(
    config: ModelConfig, params: Params, dtype: Any, spread: Spread = Spread()
) -> Params:
    """Returns the parameters as the loop reads them: cast, laid out for products, and placed."""

    def prepared(tree: Params) -> Params:
        narrow = jax.tree.map(lambda a: a.astype(dtype), tree)
        if spread.mesh is None:
            return turned(config, fuse(config, narrow))
        return split_weights(config, narrow)

    if spread.mesh is None:
        return jax.jit(prepared)(params)
    placed = jax.tree.map(
        functools.partial(NamedSharding, spread.mesh),
        _tree(config, spread),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    return jax.jit(prepared, out_shardings=placed)(params)


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
