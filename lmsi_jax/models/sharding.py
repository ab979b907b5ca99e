"""Meshes of devices with the axes "data" and "model"; the devices may be of a machine elsewhere.

One table from logical axes to mesh axes, for weights; checked before anything is placed.

The mesh has two axes: "data" (rows of a batch, slots of the decoder) and "model" (heads, the MLP,
the vocabulary). With `fsdp` the weights are spread over "data" too, and gathered where they are
used (Rajbhandari et al. 2020).

Which processes hold one engine together: a replica group.

    Decoding.data x Decoding.model = 16, 8 processes of 4 devices:
    replica group 0 is processes 0 to 3, replica group 1 is processes 4 to 7

Every replica group makes shards of its own, as a single process does; its first process writes
them. Consecutive processes' chips are neighbours on a TPU slice.

The decode loop over a mesh: slots over "data", heads, MLP and vocabulary over "model".

Along "data" each device group runs its own slots, questions and pages, as one device would: the
axis is manual (`shard_map`), so nothing is exchanged but weights, where `fsdp` spreads them. Along
"model" XLA splits the products by the weights' sharding (`models.partitioning`).

The mesh may span the processes of a replica group (`teams`). Each of them then says the same of all
slots before a chunk, and gets all tokens after it.

Where training keeps its arrays: one device, or a mesh ("data", "model") of this process or all.

Rows of every microbatch lie over "data", weights where `models.partitioning` says, and each array
of the optimiser's state where its parameter lies. XLA splits the products and adds what the devices
found (GSPMD); the numbers are those of one device, up to the order of sums.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from lmsi_jax.config.architecture import ModelConfig
from lmsi_jax.config.optimization import Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.params import (
    Params,
    arrays,
    fuse_projections,
    split_weights,
    transpose_weights,
)

_OFFERED: contextvars.ContextVar[tuple[jax.Device, ...] | None] = contextvars.ContextVar(
    "offered devices", default=None
)


@contextlib.contextmanager
def use_devices(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Within it meshes are made of these devices, as if one process had them: to compile for them
    where they are not (`lmsi_jax.tools`)."""
    token = _OFFERED.set(tuple(devices))
    try:
        yield
    finally:
        _OFFERED.reset(token)


def offered_devices() -> tuple[jax.Device, ...] | None:
    """Returns what is `offered` here; None where nothing is."""
    return _OFFERED.get()


def local_devices() -> tuple[jax.Device, ...]:
    """Returns the devices that this process computes on."""
    return _OFFERED.get() or tuple(jax.local_devices())


def make_mesh(devices: Sequence[jax.Device], data: int, model: int) -> Mesh:
    """Lays data * model devices out so that those of one "model" group are neighbours.

    Where they are all of a machine's, or of several, JAX fits the axes to the links between chips.
    """
    wanted = data * model
    if wanted == len(devices) and _without_hole(devices):
        grid = mesh_utils.create_device_mesh((data, model), devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices[:wanted]).reshape(data, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def _without_hole(devices: Sequence[jax.Device]) -> bool:
    """Whether chips fill a box; devices that are no chips have no places."""
    places = {tuple(device.coords) for device in devices if hasattr(device, "coords")}
    sides = [max(axis) - min(axis) + 1 for axis in zip(*places, strict=True)]
    return math.prod(sides) == len(places) or not places


# Logical axis -> mesh axis. "embed" is spread over "data" with fsdp alone.
RULES = {
    "vocab": "model",
    "mlp": "model",
    "joined_kv": "model",
    "kv": "model",
    "embed": None,
    "head_dim": None,  # the norms of queries and keys: each device has whole heads
}


def logical_axes(config: ModelConfig) -> Any:
    """Returns the parameter tree with the names of each array's axes in place of the array."""
    return jax.tree.map(lambda array: array.axes, arrays(config))


def weight_specs(config: ModelConfig, model: int = 1, data: int = 1, fsdp: bool = False) -> Any:
    """Returns the parameter tree with each array's `PartitionSpec` in place of the array.

    Args:
      config: the model's shape.
      model: devices along the "model" axis; an axis that they do not divide stays whole.
      data: devices along the "data" axis, likewise.
      fsdp: whether "embed" is spread over "data".
    """
    rules = RULES | {"embed": "data" if fsdp else None}
    whole = {
        "vocab": config.vocab_size % model,
        "mlp": config.mlp_dim % model,
        "joined_kv": config.num_heads % model,
        "kv": config.num_kv_heads % model,
        "embed": config.embed_dim % data,
    }
    rules |= {name: None for name, rest in whole.items() if rest}
    return jax.tree.map(
        lambda names: spec(names, rules),
        logical_axes(config),
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def spec(names: tuple[str | None, ...], rules: dict[str, str | None]) -> PartitionSpec:
    """Returns where an array with these logical axes goes.

    Raises:
      LmsiError: an axis that no rule names, or two axes of one array on one mesh axis.
    """
    unknown = [name for name in names if name is not None and name not in rules]
    if unknown:
        raise LmsiError(f"no partitioning rule names the axis {unknown[0]!r}; add it to RULES")
    axes = [rules[name] if name is not None else None for name in names]
    used = [axis for axis in axes if axis is not None]
    if len(used) != len(set(used)):
        raise LmsiError(
            f"the axes {names} would lie on {axes}: one mesh axis twice; change one rule of RULES"
        )
    return PartitionSpec(*axes)


@dataclasses.dataclass(frozen=True)
class ReplicaGroup:
    """The processes that hold an engine together, as one of them sees them.

    Attributes:
      index: the replica group's number.
      count: how many replica groups the run has.
      members: the numbers of its processes, consecutive.
      process: that of the one that looks.
    """

    index: int = 0
    count: int = 1
    members: range = range(1)
    process: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that looks for shards and writes them."""
        return self.process == self.members[0]

    @property
    def several(self) -> bool:
        """Whether it has more than one process."""
        return len(self.members) > 1


def replica_group_of(data: int, model: int, devices: Sequence[int], process: int) -> ReplicaGroup:
    """Returns the replica group of a process.

    Args:
      data: `Decoding.data`.
      model: `Decoding.model`.
      devices: how many devices each process has.
      process: the number of the process.

    Raises:
      LmsiError: there are not that many devices, or the processes make no equal replica groups; it
        is the same in all of them.
    """
    wanted, own, count = data * model, min(devices), len(devices)
    if wanted <= own:
        return ReplicaGroup(process, count, range(process, process + 1), process)
    needs = f"Decoding.data = {data} and Decoding.model = {model} need {wanted} devices"
    if wanted > sum(devices):
        all_of_them = f", all {count} processes {sum(devices)} together" if count > 1 else ""
        raise LmsiError(
            f"{needs}, this process has {devices[process]}{all_of_them}; lower one of them"
        )
    if max(devices) != own:
        raise LmsiError(
            f"{needs}, of several processes, which have {own} to {max(devices)} each; start them "
            f"with equally many, or choose a mesh of at most {own}"
        )
    size, rest = divmod(wanted, own)
    if rest:
        raise LmsiError(
            f"{needs}, no multiple of the {own} that a process has; use {own * size} or "
            f"{own * (size + 1)}"
        )
    if count % size:
        fitting = [n for n in range(1, count + 1) if count % n == 0]
        raise LmsiError(
            f"{needs}, those of {size} processes, and {count} processes are no multiple of {size}; "
            f"start {count - count % size} or {count + size - count % size}, or choose a mesh of "
            f"{' or '.join(str(own * n) for n in fitting)} devices"
        )
    index = process // size
    return ReplicaGroup(index, count // size, range(index * size, (index + 1) * size), process)


def local_replica_group(data: int, model: int) -> ReplicaGroup:
    """Returns this process' replica group in `jax.distributed`; raises as `replica_group_of`."""
    held = Counter(device.process_index for device in jax.devices())
    devices = [held[process] for process in range(jax.process_count())]
    return replica_group_of(data, model, devices, jax.process_index())


def replica_group_devices(replica_group: ReplicaGroup) -> tuple[jax.Device, ...]:
    """Returns the devices of a replica group, in the order of its processes."""
    own = [device for device in jax.devices() if device.process_index in replica_group.members]
    return tuple(sorted(own, key=lambda device: (device.process_index, device.id)))


SLOTS = PartitionSpec("data")
REPLICATED = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class DecodeMesh:
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
        if mesh is None or NamedSharding(mesh, REPLICATED).is_fully_addressable:
            return None
        return mesh


def make_decode_mesh(data: int, model: int, fsdp: bool) -> DecodeMesh:
    """Lays out as a mesh the devices of this process, or of its replica group where it needs more.

    Raises:
      LmsiError: see `teams.replica_group_of`.
    """
    if data * model == 1:
        return DecodeMesh()
    devices = offered_devices()
    if devices is None:
        devices = replica_group_devices(local_replica_group(data, model))
    else:
        replica_group_of(data, model, [len(devices)], 0)  # as if one process had them
    return DecodeMesh(make_mesh(devices, data, model), fsdp)


def param_shardings(config: ModelConfig, decode_mesh: DecodeMesh) -> Any:
    """Returns the parameter tree with shardings in place of arrays; None on one device."""
    return (
        None
        if decode_mesh.mesh is None
        else _on_mesh(decode_mesh.mesh, _param_specs(config, decode_mesh))
    )


def _param_specs(config: ModelConfig, decode_mesh: DecodeMesh) -> Any:
    assert decode_mesh.mesh is not None
    shape = decode_mesh.mesh.shape
    return weight_specs(config, shape["model"], shape["data"], fsdp=decode_mesh.fsdp)


def _tree(config: ModelConfig, decode_mesh: DecodeMesh) -> Any:
    """`PartitionSpec`s of the decoding weights."""
    return split_weights(config, _param_specs(config, decode_mesh))


def _on_mesh(mesh: Mesh, specs: Any) -> Any:
    return jax.tree.map(
        functools.partial(NamedSharding, mesh),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def decoding_weights(
    config: ModelConfig, params: Params, dtype: Any, decode_mesh: DecodeMesh = DecodeMesh()
) -> Params:
    """Returns the parameters as the loop reads them: cast, laid out for products, and placed.

    What lies on the mesh in its type, as `param_shardings` says, is taken as it is.
    """
    if decode_mesh.mesh is None:
        return jax.jit(functools.partial(_joined, config, dtype))(params)
    where = _on_mesh(decode_mesh.mesh, _tree(config, decode_mesh))
    return jax.tree.map(
        functools.partial(_device_put, dtype=dtype), split_weights(config, params), where
    )


def _joined(config: ModelConfig, dtype: Any, params: Params) -> Params:
    narrow = jax.tree.map(lambda a: a.astype(dtype), params)
    return transpose_weights(config, fuse_projections(config, narrow))


def _device_put(leaf: jax.Array, where: NamedSharding, dtype: Any) -> jax.Array:
    if getattr(leaf, "sharding", None) == where:
        return leaf.astype(dtype)
    if where.is_fully_addressable:
        return jax.device_put(leaf.astype(dtype), where)
    whole = np.asarray(leaf.astype(dtype))  # each process has all of it
    return jax.make_array_from_callback(whole.shape, where, lambda index: whole[index])


def decoding_shapes(
    config: ModelConfig, params: Params, dtype: Any, decode_mesh: DecodeMesh = DecodeMesh()
) -> Params:
    """Returns `decoding_weights` with shapes in place of arrays, those of a mesh with shardings."""
    if decode_mesh.mesh is None:
        return jax.eval_shape(functools.partial(_joined, config, dtype), params)
    return jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, jnp.dtype(dtype), sharding=where),
        split_weights(config, params),
        _on_mesh(decode_mesh.mesh, _tree(config, decode_mesh)),
    )


def manual_specs(config: ModelConfig, decode_mesh: DecodeMesh) -> Any:
    """The weights' specs along the manual axis alone: P("data") where `fsdp` spreads them."""

    def only_data(spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(axis if axis == "data" else None for axis in spec))

    return jax.tree.map(
        only_data, _tree(config, decode_mesh), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )


def all_gather(config: ModelConfig, decode_mesh: DecodeMesh, weights: Params) -> Params:
    """Inside `over_data`: the weights with what lies on other device groups gathered."""
    if not decode_mesh.fsdp or decode_mesh.mesh is None:
        return weights

    def gather(spec: PartitionSpec, weight: jax.Array) -> jax.Array:
        axes = [at for at, axis in enumerate(spec) if axis == "data"]
        return jax.lax.all_gather(weight, "data", axis=axes[0], tiled=True) if axes else weight

    return jax.tree.map(
        gather,
        manual_specs(config, decode_mesh),
        weights,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def map_over_data(
    decode_mesh: DecodeMesh, function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Runs a function once per device group, on that group's slots."""
    if decode_mesh.mesh is None:
        return function
    return jax.shard_map(
        function,
        mesh=decode_mesh.mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=frozenset({"data"}),
        check_vma=False,
    )


def slots_sharding(decode_mesh: DecodeMesh, kv_heads: int = 1) -> NamedSharding | None:
    """Where an array of slots, questions or pages goes, with its kv heads, where it has such an
    axis, over "model" if they divide; None: the default device."""
    if decode_mesh.mesh is None:
        return None
    data, model = decode_mesh.mesh.shape["data"], decode_mesh.mesh.shape["model"]
    split = model > 1 and kv_heads > 1 and kv_heads % model == 0
    # An axis of one device is left out, as XLA does when it hands arrays back.
    axes = ["data" if data > 1 else None, "model" if split else None]
    while axes and axes[-1] is None:
        axes.pop()
    return NamedSharding(decode_mesh.mesh, PartitionSpec(*axes))


def constrain_caches(decode_mesh: DecodeMesh, caches: Any) -> Any:
    """Keeps caches, kv heads on axis 1, where they were made: else each chunk compiles anew."""
    if decode_mesh.mesh is None:
        return caches

    def held(a: jax.Array) -> jax.Array:
        place = slots_sharding(decode_mesh, a.shape[1] if a.ndim > 1 else 1)
        return jax.lax.with_sharding_constraint(a, place)

    return jax.tree.map(held, caches)


def replicate(decode_mesh: DecodeMesh, tree: Any) -> Any:
    """Within a compiled function: every device gets the whole of what the host is to read."""
    if decode_mesh.mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(decode_mesh.mesh, REPLICATED))


_REPLICATED = PartitionSpec()


def mesh_of(training: Training) -> Mesh | None:
    """Returns the devices of a run as a mesh; None for one device.

    A mesh that this process' devices suffice for is made of them, a larger one of all processes'.

    Raises:
      LmsiError: there are not that many devices, or a process would have no part in the mesh.
    """
    return _mesh(training.data, training.model, local_devices())


@functools.cache
def _mesh(data: int, model: int, devices: tuple[jax.Device, ...]) -> Mesh | None:
    wanted = data * model
    if wanted == 1:
        return None
    if wanted > len(devices):
        devices = tuple(jax.devices())
        if wanted != len(devices):
            raise LmsiError(
                f"Training.data = {data} and Training.model = {model} need {wanted} devices; this "
                f"process has {jax.local_device_count()}, all processes {len(devices)} together. "
                "Use at most the first number, or exactly the second"
            )
    return make_mesh(devices, data, model)


def is_multiprocess(training: Training) -> bool:
    """Whether the mesh is made of several processes' devices: then all of them train together."""
    mesh = mesh_of(training)
    return mesh is not None and not NamedSharding(mesh, _REPLICATED).is_fully_addressable


def num_peak_devices(training: Training) -> int:
    """The mesh's rate over one device's; a process' virtual CPU devices count as one."""
    mesh = mesh_of(training)
    if mesh is None:
        return 1
    if jax.default_backend() == "cpu":
        return len({device.process_index for device in mesh.devices.flat})
    return mesh.size


def mesh_context(training: Training) -> contextlib.AbstractContextManager[Any]:
    """Around what is traced for the mesh; does nothing for one device."""
    mesh = mesh_of(training)
    if mesh is None:
        return contextlib.nullcontext()
    return use_abstract_mesh(mesh.abstract_mesh)


def replicate_over_mesh(training: Training, tree: Any) -> Any:
    """Within a compiled function: every device gets the whole of a tree's arrays."""
    mesh = mesh_of(training)
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, _REPLICATED))


def training_param_shardings(config: ModelConfig, training: Training) -> Any:
    """Returns the parameter tree with shardings in place of arrays; None on one device."""
    mesh = mesh_of(training)
    return None if mesh is None else is_traced_on_mesh(mesh, param_specs(config, training))


def param_specs(config: ModelConfig, training: Training) -> Any:
    """Returns the parameter tree with `PartitionSpec`s in place of arrays."""
    return weight_specs(config, training.model, training.data, fsdp=training.fsdp)


def shard_params(config: ModelConfig, training: Training, params: Any) -> Any:
    """Places a model's parameters on the run's mesh, whichever model it is.

    What lies there already is not copied, and on one device nothing is: it is not to be donated.
    """
    where = training_param_shardings(config, training)

    def put(leaf: Any, sharding: NamedSharding) -> Any:
        return leaf if getattr(leaf, "sharding", None) == sharding else _put(leaf, sharding)

    return params if where is None else jax.tree.map(put, params, where)


def cast_params(training: Training, params: Any) -> Any:
    """Rounds parameters to the type of the computation."""
    return jax.tree.map(lambda leaf: leaf.astype(training.compute_dtype), params)


def opt_state_specs(specs: Any, params: Any, state: Any) -> Any:
    """Returns a tree like `state` with `PartitionSpec`s: each array's is that of its parameter.

    Args:
      specs: like `params`, with `PartitionSpec`s.
      params: arrays or their shapes.
      state: an Optax state over them. An array belongs to the parameter whose path its own ends
        with; Adafactor's factored moments (Shazeer and Stern 2018) lack one of its axes; what
        belongs to none, or has another shape, is everywhere.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    leaves = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    owners = {path: (leaf.shape, spec) for (path, leaf), spec in zip(flat, leaves, strict=True)}

    def follow(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        """The spec of a state's array, from the parameter that its path ends with."""
        for start in range(len(path)):
            if path[start:] in owners:
                shape, spec = owners[path[start:]]
                return _reduced(path[:start], leaf.shape, shape, spec)
        return _REPLICATED

    return jax.tree_util.tree_map_with_path(follow, state)


def _reduced(
    path: tuple[Any, ...], own: tuple[int, ...], shape: tuple[int, ...], spec: PartitionSpec
) -> PartitionSpec:
    """The spec of a state's array of shape `own`, for a parameter of shape `shape`."""
    if own == shape:
        return spec
    by_size = np.argsort(shape)  # as Optax: rows lack the largest axis, columns the second largest
    lacks = {"v_row": by_size[-1:], "v_col": by_size[-2:-1]}
    for entry in path:
        name = getattr(entry, "name", getattr(entry, "key", None))
        if name in lacks and own == tuple(np.delete(shape, lacks[name])):
            kept = [axis for at, axis in enumerate(spec) if at not in lacks[name]]
            return PartitionSpec(*kept)
    return _REPLICATED


def is_traced_on_mesh(mesh: Mesh, specs: Any) -> Any:
    """Turns a tree of `PartitionSpec`s into one of shardings, as XLA would name them itself.

    What comes out of a step is then equal to what went in, and the step is compiled once.
    """

    def sharding(spec: PartitionSpec) -> NamedSharding:
        axes = [axis if axis is not None and mesh.shape[axis] > 1 else None for axis in spec]
        while axes and axes[-1] is None:
            axes.pop()
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(sharding, specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def device_put_tree(tree: Any, shardings: Any) -> Any:
    """Copies a tree of arrays to where `shardings` say.

    What lies there is copied where it lies; of all else every process holds the whole.
    """
    return jax.tree.map(_put, tree, shardings)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    # A step donates what it is given: never the caller's own.
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return jnp.copy(leaf)
    if sharding.is_fully_addressable:
        return jax.device_put(jnp.array(leaf), sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def shard_batch(training: Training, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Places a step's batch: rows over "data", prefixes everywhere.

    All processes read the same stream, and each hands over the rows of its own devices.

    Raises:
      LmsiError: the rows do not divide.
    """
    mesh = mesh_of(training)
    if mesh is None:
        return dict(batch)
    rows = PartitionSpec(None, "data")
    specs = {name: _REPLICATED if name.startswith("prefix") else rows for name in batch}
    return device_put_tree(batch, is_traced_on_mesh(mesh, specs))


def fetch_tree(tree: Any) -> Any:
    """Copies a tree's arrays to this process' memory, gathering what other processes hold.

    All processes call it together, where a mesh spans them.
    """
    return jax.tree.map(lambda leaf: np.asarray(_all_gather(leaf)), tree)


def _all_gather(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    assert isinstance(leaf.sharding, NamedSharding)
    return _replicator(leaf.sharding.mesh)(leaf).addressable_data(0)


@functools.cache
def _replicator(mesh: Any) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda leaf: leaf, out_shardings=NamedSharding(mesh, _REPLICATED))
