"""Where training keeps its arrays: one device, or a mesh ("data", "model") of this process or all.

Rows of every microbatch lie over "data", weights where `models.partitioning` says, and each array
of the optimiser's state where its parameter lies. XLA splits the products and adds what the devices
found (GSPMD); the numbers are those of one device, up to the order of sums.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.mesh import local_devices, make_mesh
from lmsi_jax.models.partitioning import weight_specs
from lmsi_jax.training.settings import Training

_EVERYWHERE = PartitionSpec()


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


def spans(training: Training) -> bool:
    """Whether the mesh is made of several processes' devices: then all of them train together."""
    mesh = mesh_of(training)
    return mesh is not None and not NamedSharding(mesh, _EVERYWHERE).is_fully_addressable


def machines(training: Training) -> int:
    """The mesh's rate over one device's; a process' virtual CPU devices count as one."""
    mesh = mesh_of(training)
    if mesh is None:
        return 1
    if jax.default_backend() == "cpu":
        return len({device.process_index for device in mesh.devices.flat})
    return mesh.size


def within(training: Training) -> contextlib.AbstractContextManager[Any]:
    """Around what is traced for the mesh; does nothing for one device."""
    mesh = mesh_of(training)
    if mesh is None:
        return contextlib.nullcontext()
    return use_abstract_mesh(mesh.abstract_mesh)


def everywhere(training: Training, tree: Any) -> Any:
    """Within a compiled function: every device gets the whole of a tree's arrays."""
    mesh = mesh_of(training)
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, _EVERYWHERE))


def weights_on_mesh(config: ModelConfig, training: Training) -> Any:
    """Returns the parameter tree with shardings in place of arrays; None on one device."""
    mesh = mesh_of(training)
    return None if mesh is None else on_mesh(mesh, param_specs(config, training))


def param_specs(config: ModelConfig, training: Training) -> Any:
    """Returns the parameter tree with `PartitionSpec`s in place of arrays."""
    return weight_specs(config, training.model, training.data, fsdp=training.fsdp)


def spread(config: ModelConfig, training: Training, params: Any) -> Any:
    """Places a model's parameters on the run's mesh, whichever model it is.

    What lies there already is not copied, and on one device nothing is: it is not to be donated.
    """
    where = weights_on_mesh(config, training)

    def put(leaf: Any, sharding: NamedSharding) -> Any:
        return leaf if getattr(leaf, "sharding", None) == sharding else _put(leaf, sharding)

    return params if where is None else jax.tree.map(put, params, where)


def narrow(training: Training, params: Any) -> Any:
    """Rounds parameters to the type of the computation."""
    return jax.tree.map(lambda leaf: leaf.astype(training.compute_dtype), params)


def following(specs: Any, params: Any, state: Any) -> Any:
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
        return _EVERYWHERE

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
    return _EVERYWHERE


def on_mesh(mesh: Mesh, specs: Any) -> Any:
    """Turns a tree of `PartitionSpec`s into one of shardings, as XLA would name them itself.

    What comes out of a step is then equal to what went in, and the step is compiled once.
    """

    def sharding(spec: PartitionSpec) -> NamedSharding:
        axes = [axis if axis is not None and mesh.shape[axis] > 1 else None for axis in spec]
        while axes and axes[-1] is None:
            axes.pop()
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(sharding, specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def placed(tree: Any, shardings: Any) -> Any:
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


def fed(training: Training, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Places a step's batch: rows over "data", prefixes everywhere.

    All processes read the same stream, and each hands over the rows of its own devices.

    Raises:
      LmsiError: the rows do not divide.
    """
    mesh = mesh_of(training)
    if mesh is None:
        return dict(batch)
    rows = PartitionSpec(None, "data")
    specs = {name: _EVERYWHERE if name.startswith("prefix") else rows for name in batch}
    return placed(batch, on_mesh(mesh, specs))


def whole(tree: Any) -> Any:
    """Copies a tree's arrays to this process' memory, gathering what other processes hold.

    All processes call it together, where a mesh spans them.
    """
    return jax.tree.map(lambda leaf: np.asarray(_gathered(leaf)), tree)


def _gathered(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    assert isinstance(leaf.sharding, NamedSharding)
    return _everywhere(leaf.sharding.mesh)(leaf).addressable_data(0)


@functools.cache
def _everywhere(mesh: Any) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda leaf: leaf, out_shardings=NamedSharding(mesh, _EVERYWHERE))
