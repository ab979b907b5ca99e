"""Meshes of devices, and the placement of weights, batches and caches on them.

Sampling and training describe a mesh by the same three settings, `data`, `model` and `fsdp`, and
share one table (`RULES`) from the logical axes of a weight to the two axes of the mesh:

| axis    | training                        | decoding                                |
|---------|---------------------------------|-----------------------------------------|
| "data"  | rows of every microbatch        | groups of devices with their own slots  |
| "model" | heads, MLP and vocabulary       | the same                                |

With `fsdp` the weights are sharded over "data" too, and gathered where they are used (Rajbhandari
et al. 2020).

Training lets XLA partition the whole step (GSPMD). Decoding runs one program per device group
(`map_over_data`): along "data" nothing is exchanged but weights.

A decode mesh may span the processes of a replica group, a training mesh those of the whole run:

    Decoding.data x Decoding.model = 16, 8 processes of 4 devices:
    replica group 0 is processes 0 to 3, replica group 1 is processes 4 to 7

Every replica group samples shards of its own, as a single process does; its first process writes
them. Consecutive processes' chips are neighbours on a TPU slice.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from lmsi_jax.config import ModelConfig
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.params import (
    Params,
    arrays,
    cast_params,
    fuse_projections,
    split_weights,
    transpose_weights,
)

REPLICATED = PartitionSpec()
SLOTS = PartitionSpec("data")
"""Axis 0 of an array of slots, prompts or pages."""

# Logical axis -> mesh axis. With fsdp "embed" goes to "data".
RULES = {
    "vocab": "model",
    "mlp": "model",
    "joined_kv": "model",
    "kv": "model",
    "embed": None,
    "head_dim": None,  # the norms of queries and keys: each device has whole heads
}


class MeshSettings(Protocol):
    """The fields of `Decoding` and `Training` that describe a mesh."""

    @property
    def data(self) -> int:
        """Devices along "data"."""

    @property
    def model(self) -> int:
        """Devices along "model"."""

    @property
    def fsdp(self) -> bool:
        """True if weights are sharded over "data" too."""


@dataclasses.dataclass(frozen=True)
class DeviceMesh:
    """The devices that one model computes on.

    Attributes:
      mesh: with the axes "data" and "model"; None: JAX's default device alone.
      fsdp: whether weights are sharded over "data" too.
    """

    mesh: Mesh | None = None
    fsdp: bool = False

    @property
    def data(self) -> int:
        """Devices along "data": in decoding, the number of device groups."""
        return 1 if self.mesh is None else self.mesh.shape["data"]

    @property
    def model(self) -> int:
        """Devices along "model"."""
        return 1 if self.mesh is None else self.mesh.shape["model"]

    @property
    def multiprocess_mesh(self) -> Mesh | None:
        """The mesh if it spans several processes, else None."""
        if self.mesh is None or NamedSharding(self.mesh, REPLICATED).is_fully_addressable:
            return None
        return self.mesh

    @property
    def is_multiprocess(self) -> bool:
        """True if several processes compute together."""
        return self.multiprocess_mesh is not None

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context to trace a computation for this mesh in."""
        if self.mesh is None:
            return contextlib.nullcontext()
        return use_abstract_mesh(self.mesh.abstract_mesh)


def make_decode_mesh(settings: MeshSettings) -> DeviceMesh:
    """Lays out the devices of this process, or of its replica group if it needs more.

    Raises:
      LmsiError: see `replica_group_of`.
    """
    if settings.data * settings.model == 1:
        return DeviceMesh()
    devices = _DEVICES.get()
    if devices is None:
        group = local_replica_group(settings.data, settings.model)
        devices = replica_group_devices(group)
    else:
        replica_group_of(settings.data, settings.model, [len(devices)], 0)
    return DeviceMesh(make_mesh(devices, settings.data, settings.model), settings.fsdp)


def make_training_mesh(settings: MeshSettings) -> DeviceMesh:
    """Lays out the devices of this process, or of all processes if it needs more.

    Raises:
      LmsiError: there are not that many devices, or a process would have no part in the mesh.
    """
    devices = _DEVICES.get() or tuple(jax.local_devices())
    mesh = _training_mesh(settings.data, settings.model, devices)
    return DeviceMesh(mesh, settings.fsdp)


@functools.cache
def _training_mesh(data: int, model: int, devices: tuple[jax.Device, ...]) -> Mesh | None:
    count = data * model
    if count == 1:
        return None
    if count > len(devices):
        devices = tuple(jax.devices())
        if count != len(devices):
            raise LmsiError(
                f"Training.data = {data} and Training.model = {model} need {count} devices; this "
                f"process has {jax.local_device_count()}, all processes {len(devices)} together. "
                "Use at most the first number, or exactly the second"
            )
    return make_mesh(devices, data, model)


def make_mesh(devices: Sequence[jax.Device], data: int, model: int) -> Mesh:
    """Arranges the first data * model devices with those of a "model" group next to each other.

    If they are all devices of one or several machines, JAX fits the axes to the links between
    the chips.
    """
    count = data * model
    if count == len(devices) and _fill_a_box(devices):
        grid = mesh_utils.create_device_mesh((data, model), devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices[:count]).reshape(data, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def _fill_a_box(devices: Sequence[jax.Device]) -> bool:
    """Returns True if the chips' coordinates have no gap, or the devices have none."""
    coordinates = {tuple(device.coords) for device in devices if hasattr(device, "coords")}
    sides = [max(axis) - min(axis) + 1 for axis in zip(*coordinates, strict=True)]
    return math.prod(sides) == len(coordinates) or not coordinates


_DEVICES: contextvars.ContextVar[tuple[jax.Device, ...] | None] = contextvars.ContextVar(
    "devices", default=None
)


@contextlib.contextmanager
def use_devices(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Makes meshes of these devices, as if this process had them: to compile ahead of time for
    machines that are elsewhere (`lmsi_jax.tools`)."""
    token = _DEVICES.set(tuple(devices))
    try:
        yield
    finally:
        _DEVICES.reset(token)


def num_peak_devices(mesh: DeviceMesh) -> int:
    """Returns the mesh's peak rate over that of one device.

    Virtual CPU devices of one process share its cores, and count as one.
    """
    if mesh.mesh is None:
        return 1
    if jax.default_backend() == "cpu":
        return len({device.process_index for device in mesh.mesh.devices.flat})
    return mesh.mesh.size


@dataclasses.dataclass(frozen=True)
class ReplicaGroup:
    """The processes that hold one decode engine together, as one of them sees them.

    Attributes:
      index: the group's number.
      count: number of groups in the run.
      members: the numbers of its processes, consecutive.
      process: the number of this process.
    """

    index: int = 0
    count: int = 1
    members: range = range(1)
    process: int = 0

    @property
    def first(self) -> bool:
        """True if this process looks for shards and writes them."""
        return self.process == self.members[0]

    @property
    def several(self) -> bool:
        """True if the group has more than one process."""
        return len(self.members) > 1


def replica_group_of(data: int, model: int, devices: Sequence[int], process: int) -> ReplicaGroup:
    """Returns the replica group of a process.

    Args:
      data: `Decoding.data`.
      model: `Decoding.model`.
      devices: number of devices of each process.
      process: the number of the process.

    Raises:
      LmsiError: there are not that many devices, or the processes make no equal groups; the
        message is the same in all of them.
    """
    needed, each, count = data * model, min(devices), len(devices)
    if needed <= each:
        return ReplicaGroup(process, count, range(process, process + 1), process)
    needs = f"Decoding.data = {data} and Decoding.model = {model} need {needed} devices"
    if needed > sum(devices):
        all_of_them = f", all {count} processes {sum(devices)} together" if count > 1 else ""
        raise LmsiError(
            f"{needs}, this process has {devices[process]}{all_of_them}; lower one of them"
        )
    if max(devices) != each:
        raise LmsiError(
            f"{needs}, of several processes, which have {each} to {max(devices)} each; start them "
            f"with equally many, or choose a mesh of at most {each}"
        )
    size, remainder = divmod(needed, each)
    if remainder:
        raise LmsiError(
            f"{needs}, no multiple of the {each} that a process has; use {each * size} or "
            f"{each * (size + 1)}"
        )
    if count % size:
        divisors = [n for n in range(1, count + 1) if count % n == 0]
        raise LmsiError(
            f"{needs}, those of {size} processes, and {count} processes are no multiple of {size}; "
            f"start {count - count % size} or {count + size - count % size}, or choose a mesh of "
            f"{' or '.join(str(each * n) for n in divisors)} devices"
        )
    index = process // size
    return ReplicaGroup(index, count // size, range(index * size, (index + 1) * size), process)


def local_replica_group(data: int, model: int) -> ReplicaGroup:
    """Returns the replica group of this process in `jax.distributed`; see `replica_group_of`."""
    held = Counter(device.process_index for device in jax.devices())
    devices = [held[process] for process in range(jax.process_count())]
    return replica_group_of(data, model, devices, jax.process_index())


def replica_group_devices(group: ReplicaGroup) -> tuple[jax.Device, ...]:
    """Returns the devices of a replica group, in the order of its processes."""
    devices = [device for device in jax.devices() if device.process_index in group.members]
    return tuple(sorted(devices, key=lambda device: (device.process_index, device.id)))


def logical_axes(config: ModelConfig) -> Any:
    """Returns the parameter tree with the names of each array's axes in place of the array."""
    return jax.tree.map(lambda array: array.axes, arrays(config))


def weight_specs(config: ModelConfig, model: int = 1, data: int = 1, fsdp: bool = False) -> Any:
    """Returns the parameter tree with each array's `PartitionSpec` in place of the array.

    Args:
      config: the model's shape.
      model: devices along "model"; an axis whose size they do not divide is not sharded.
      data: devices along "data", likewise.
      fsdp: whether "embed" is sharded over "data".
    """
    rules = RULES | {"embed": "data" if fsdp else None}
    remainders = {
        "vocab": config.vocab_size % model,
        "mlp": config.mlp_dim % model,
        "joined_kv": config.num_heads % model,
        "kv": config.num_kv_heads % model,
        "embed": config.embed_dim % data,
    }
    rules |= {name: None for name, remainder in remainders.items() if remainder}
    return jax.tree.map(
        lambda names: spec(names, rules),
        logical_axes(config),
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def spec(names: tuple[str | None, ...], rules: dict[str, str | None]) -> PartitionSpec:
    """Returns the `PartitionSpec` of an array with these logical axes.

    Raises:
      LmsiError: no rule names an axis, or two axes of the array would share a mesh axis.
    """
    unknown = [name for name in names if name is not None and name not in rules]
    if unknown:
        raise LmsiError(f"no partitioning rule names the axis {unknown[0]!r}; add it to RULES")
    axes = [rules[name] if name is not None else None for name in names]
    used = [axis for axis in axes if axis is not None]
    if len(used) != len(set(used)):
        raise LmsiError(
            f"the axes {names} would be on {axes}: one mesh axis twice; change one rule of RULES"
        )
    return PartitionSpec(*axes)


def param_specs(config: ModelConfig, mesh: DeviceMesh) -> Any:
    """Returns the parameter tree with `PartitionSpec`s in place of arrays."""
    return weight_specs(config, mesh.model, mesh.data, fsdp=mesh.fsdp)


def param_shardings(config: ModelConfig, mesh: DeviceMesh) -> Any:
    """Returns the parameter tree with shardings in place of arrays; None on one device."""
    return None if mesh.mesh is None else named_shardings(mesh.mesh, param_specs(config, mesh))


def named_shardings(mesh: Mesh, specs: Any) -> Any:
    """Turns a tree of `PartitionSpec`s into one of shardings, written as XLA writes them.

    XLA leaves out axes of one device. Shardings of a step's results then equal those of its
    arguments, and the step is compiled once.
    """

    def sharding(spec: PartitionSpec) -> NamedSharding:
        axes = [axis if axis is not None and mesh.shape[axis] > 1 else None for axis in spec]
        while axes and axes[-1] is None:
            axes.pop()
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(sharding, specs, is_leaf=_is_spec)


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def opt_state_specs(specs: Any, params: Any, state: Any) -> Any:
    """Returns an optimizer state with each array's `PartitionSpec`: that of its parameter.

    Args:
      specs: like `params`, with `PartitionSpec`s.
      params: arrays or their shapes.
      state: an Optax state over them. An array belongs to the parameter whose path its own ends
        with; Adafactor's factored moments (Shazeer and Stern 2018) lack one of its axes. An array
        of no parameter, or of another shape, is replicated.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    leaves = jax.tree.leaves(specs, is_leaf=_is_spec)
    owners = {path: (leaf.shape, spec) for (path, leaf), spec in zip(flat, leaves, strict=True)}

    def leaf_spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        for start in range(len(path)):
            if path[start:] in owners:
                shape, spec = owners[path[start:]]
                return _moment_spec(path[:start], leaf.shape, shape, spec)
        return REPLICATED

    return jax.tree_util.tree_map_with_path(leaf_spec, state)


def _moment_spec(
    path: tuple[Any, ...],
    moment_shape: tuple[int, ...],
    param_shape: tuple[int, ...],
    spec: PartitionSpec,
) -> PartitionSpec:
    if moment_shape == param_shape:
        return spec
    # As Optax: rows lack the largest axis, columns the second largest.
    by_size = np.argsort(param_shape)
    missing = {"v_row": by_size[-1:], "v_col": by_size[-2:-1]}
    for entry in path:
        name = getattr(entry, "name", getattr(entry, "key", None))
        if name in missing and moment_shape == tuple(np.delete(param_shape, missing[name])):
            return PartitionSpec(*(a for at, a in enumerate(spec) if at not in missing[name]))
    return REPLICATED


def device_put_tree(tree: Any, shardings: Any) -> Any:
    """Copies a tree of arrays to the given shardings, so that a step may donate the copies.

    Every process holds all of an array, unless it is sharded that way already.
    """
    return jax.tree.map(_device_put, tree, shardings)


def _device_put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return jnp.copy(leaf)
    if sharding.is_fully_addressable:
        return jax.device_put(jnp.array(leaf), sharding)
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def shard_params(config: ModelConfig, mesh: DeviceMesh, params: Params) -> Params:
    """Places the parameters of any model on a mesh; those already in place are not copied.

    On one device nothing is copied. Do not donate the result.
    """
    shardings = param_shardings(config, mesh)
    if shardings is None:
        return params

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        return leaf if getattr(leaf, "sharding", None) == sharding else _device_put(leaf, sharding)

    return jax.tree.map(put, params, shardings)


def shard_batch(mesh: DeviceMesh, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Places a step's batch: rows [M, B, ...] over "data", all else on every device.

    All processes read the same stream, and each contributes the rows of its own devices.
    """
    if mesh.mesh is None:
        return dict(batch)
    rows = PartitionSpec(None, "data")
    specs = {name: rows if array.ndim > 2 else REPLICATED for name, array in batch.items()}
    return device_put_tree(batch, named_shardings(mesh.mesh, specs))


def replicate(mesh: DeviceMesh, tree: Any) -> Any:
    """Inside a compiled function: puts all of a tree on every device, for the host to read."""
    if mesh.mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh.mesh, REPLICATED))


def fetch_tree(tree: Any) -> Any:
    """Copies a tree's arrays to this process' memory, gathering those of other processes.

    All processes that a mesh spans call it together.
    """
    return jax.tree.map(lambda leaf: np.asarray(_gather(leaf)), tree)


def _gather(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    assert isinstance(leaf.sharding, NamedSharding)
    return _replicator(leaf.sharding.mesh)(leaf).addressable_data(0)


@functools.cache
def _replicator(mesh: Any) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda leaf: leaf, out_shardings=NamedSharding(mesh, REPLICATED))


def decoding_weights(
    config: ModelConfig, params: Params, dtype: Any, mesh: DeviceMesh = DeviceMesh()
) -> Params:
    """Returns the parameters as the decode step multiplies by them: cast, laid out and placed.

    An array that is in place and of this type (`param_shardings`) is not copied.
    """
    if mesh.mesh is None:
        return jax.jit(functools.partial(_fused_weights, config, dtype))(params)

    def put(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        in_place = getattr(leaf, "sharding", None) == sharding
        return leaf.astype(dtype) if in_place else _device_put(leaf.astype(dtype), sharding)

    shardings = named_shardings(mesh.mesh, _decoding_specs(config, mesh))
    return jax.tree.map(put, split_weights(config, params), shardings)


def decoding_shapes(
    config: ModelConfig, params: Params, dtype: Any, mesh: DeviceMesh = DeviceMesh()
) -> Params:
    """Returns `decoding_weights` with shapes in place of arrays; on a mesh with shardings."""
    if mesh.mesh is None:
        return jax.eval_shape(functools.partial(_fused_weights, config, dtype), params)
    return jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, jnp.dtype(dtype), sharding=sharding),
        split_weights(config, params),
        named_shardings(mesh.mesh, _decoding_specs(config, mesh)),
    )


def _fused_weights(config: ModelConfig, dtype: Any, params: Params) -> Params:
    return transpose_weights(config, fuse_projections(config, cast_params(params, dtype)))


def _decoding_specs(config: ModelConfig, mesh: DeviceMesh) -> Any:
    return split_weights(config, param_specs(config, mesh))


def manual_specs(config: ModelConfig, mesh: DeviceMesh) -> Any:
    """Returns the decoding weights' specs along the manual axis "data" alone (`fsdp`)."""

    def only_data(spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(axis if axis == "data" else None for axis in spec))

    return jax.tree.map(only_data, _decoding_specs(config, mesh), is_leaf=_is_spec)


def map_over_data(
    mesh: DeviceMesh, function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Returns a function that runs once per device group, on that group's slots."""
    if mesh.mesh is None:
        return function
    return jax.shard_map(
        function,
        mesh=mesh.mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=frozenset({"data"}),
        check_vma=False,
    )


def all_gather(config: ModelConfig, mesh: DeviceMesh, weights: Params) -> Params:
    """Inside `map_over_data`: gathers the weights that `fsdp` shards over device groups."""
    if not mesh.fsdp or mesh.mesh is None:
        return weights

    def gather(spec: PartitionSpec, weight: jax.Array) -> jax.Array:
        axes = [at for at, axis in enumerate(spec) if axis == "data"]
        return jax.lax.all_gather(weight, "data", axis=axes[0], tiled=True) if axes else weight

    return jax.tree.map(gather, manual_specs(config, mesh), weights, is_leaf=_is_spec)


def slots_sharding(mesh: DeviceMesh, kv_heads: int = 1) -> NamedSharding | None:
    """Returns the sharding of an array of slots, prompts or pages; None on one device.

    Args:
      mesh: the mesh.
      kv_heads: size of axis 1 if that is the kv heads': it is sharded over "model" if the devices
        divide it.
    """
    if mesh.mesh is None:
        return None
    split = kv_heads > 1 and kv_heads % mesh.model == 0
    sharding: NamedSharding = named_shardings(
        mesh.mesh, PartitionSpec("data", "model" if split else None)
    )
    return sharding


def constrain_caches(mesh: DeviceMesh, caches: Any) -> Any:
    """Keeps caches, kv heads on axis 1, in their sharding; else each chunk compiles anew."""
    if mesh.mesh is None:
        return caches

    def constrain(a: jax.Array) -> jax.Array:
        sharding = slots_sharding(mesh, a.shape[1] if a.ndim > 1 else 1)
        return jax.lax.with_sharding_constraint(a, sharding)

    return jax.tree.map(constrain, caches)


def blocks_sharding(mesh: DeviceMesh, kv_heads: int) -> NamedSharding | None:
    """Returns the sharding of blocks that all device groups hold, kv heads on axis 1."""
    if mesh.mesh is None:
        return None
    split = kv_heads > 1 and kv_heads % mesh.model == 0
    sharding: NamedSharding = named_shardings(
        mesh.mesh, PartitionSpec(None, "model" if split else None)
    )
    return sharding


def constrain_blocks(mesh: DeviceMesh, blocks: Any) -> Any:
    """Keeps blocks in their sharding; else each chunk compiles anew."""
    if mesh.mesh is None:
        return blocks
    return jax.tree.map(
        lambda a: jax.lax.with_sharding_constraint(a, blocks_sharding(mesh, a.shape[1])), blocks
    )
