"""What the processes of one mesh settle between two steps, of training or of decoding.

SIGTERM reaches them at different moments, or one of them alone, and yet all must leave behind the
same step: in training all save it, and in decoding nobody may wait for tokens of one that is gone.
And all must be at the same: have read the same rows, or drawn the same tokens. So each says with
every step whether it has to leave, and what it has at hand; the answer is a reduction over the mesh
that runs behind the step and is looked at one step later: no step waits for it.
"""

import collections
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmsi_jax.errors import LmsiError

# By processes: those of a mesh do the same in the same order.
_MEETINGS: collections.Counter[tuple[int, ...]] = collections.Counter()
_LATEST = 1_800_000  # milliseconds


class Agreement:
    """The processes of a mesh, or this process alone.

    Args:
      mesh: what spans the processes; None where this process is alone.
      requested: whether this process is asked to leave.
      have: what the processes have done where they disagree, for the message.
    """

    def __init__(self, mesh: Mesh | None, requested: Callable[[], bool], have: str):
        self._mesh, self._requested, self._have = mesh, requested, have
        self._asked: Any = None
        self._leave = False

    def leave(self, step: int, at_hand: bytes) -> bool:
        """Whether all leave behind this step; to be called once a step, after it was begun.

        Args:
          step: its number.
          at_hand: what this process has at hand for it, the same in all of them.

        Raises:
          LmsiError: the processes had different things at hand for the step before.
        """
        if self._mesh is None:
            return self._requested()
        self.settle()
        decided = self._leave
        own = (int(self._requested()), zlib.crc32(at_hand, step) >> 1)
        self._asked = _reduced(self._mesh)(_spread(self._mesh, own))
        return decided

    def settle(self) -> None:
        """Waits for the answer to the last step; before anything of it is saved.

        Raises:
          LmsiError: the processes had different things at hand.
        """
        if self._asked is None:
            return
        leave, least, most = np.asarray(self._asked).tolist()
        self._asked = None
        self._leave = self._leave or bool(leave)
        if least != most:
            raise LmsiError(
                f"the processes have {self._have} or stand at different steps; see that all of "
                "them see one output_dir and have the same packages, then repeat the command"
            )


def meet(mesh: Mesh) -> None:
    """Waits until all processes of a mesh are here, and lets them add up for the first time.

    On CPUs, who comes 30 s late to the first sum of some devices breaks it: process 0 may have more
    to load, one reads from a slower disk, another compiles for longer. So the first sums of all
    devices, and of those along each axis, are here.
    """
    from jax._src import distributed  # a barrier of devices would be such a sum itself

    members = processes_of(mesh)
    _MEETINGS[members] += 1
    name = f"lmsi_meet_{members[0]}_{members[-1]}_{_MEETINGS[members]}"
    client = distributed.global_state.client
    assert client is not None  # or there would be no other process' devices
    client.wait_at_barrier(name, timeout_in_ms=_LATEST, process_ids=members)
    jax.block_until_ready(_first_sums(mesh)(_spread(mesh, (0, 0))))


def processes_of(mesh: Mesh) -> tuple[int, ...]:
    """The processes that have a mesh's devices."""
    return tuple(sorted({device.process_index for device in mesh.devices.flat}))


@functools.cache
def _first_sums(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Adds along all axes at once, and along each."""
    names = mesh.axis_names

    def added(told: jax.Array) -> jax.Array:
        """A device's own row, with all sums that it has a part in."""
        return sum((jax.lax.psum(told, name) for name in names), start=jax.lax.psum(told, names))

    rows = PartitionSpec(names)
    return jax.jit(jax.shard_map(added, mesh=mesh, in_specs=rows, out_specs=rows))


@functools.cache
def _reduced(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """[devices, 2] -> (the largest first number, the smallest and the largest second one)."""
    return jax.jit(
        lambda told: jnp.stack([told[:, 0].max(), told[:, 1].min(), told[:, 1].max()]),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def _spread(mesh: Mesh, own: tuple[int, int]) -> jax.Array:
    """One row for each device, [devices, 2] int32; this process fills those of its own."""
    row = np.array([own], np.int32)
    by_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((mesh.size, 2), by_device, lambda _: row)
