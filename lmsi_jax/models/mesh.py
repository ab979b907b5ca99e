"""Meshes of devices with the axes "data" and "model"; the devices may be of a machine elsewhere."""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

_OFFERED: contextvars.ContextVar[tuple[jax.Device, ...] | None] = contextvars.ContextVar(
    "offered devices", default=None
)


@contextlib.contextmanager
def offered(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Within it meshes are made of these devices, as if one process had them: to compile for them
    where they are not (`lmsi_jax.aot`)."""
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
