"""What the processes that train together settle between two steps.

SIGTERM reaches them at different moments, or one of them alone, and yet all must save the same step
and leave behind it. And all must have read the same rows, or they would train on a mixture that
nobody asked for. So each says with every step whether it has to leave, and what it has read; the
answer is a reduction over the mesh that runs behind the step and is looked at one step later: no
step waits for it.
"""

import functools
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmsi_jax.errors import LmsiError
from lmsi_jax.training.packing import Batch

_MEETINGS = itertools.count()  # all processes train the same runs in the same order
_LATEST = 1_800_000  # milliseconds


class Agreement:
    """The processes of a mesh, or this process alone.

    Args:
      mesh: what spans the processes; None where this process trains alone.
      requested: whether this process is asked to leave.
    """

    def __init__(self, mesh: Mesh | None, requested: Callable[[], bool]):
        self._mesh, self._requested = mesh, requested
        self._asked: Any = None
        self._leave = False

    def leave(self, step: int, batch: Batch) -> bool:
        """Whether all leave behind this step; to be called once a step, after it was begun.

        Args:
          step: its number.
          batch: what this process has read for it.

        Raises:
          LmsiError: the processes have not read the same rows for the step before.
        """
        if self._mesh is None:
            return self._requested()
        self.settle()
        decided = self._leave
        own = (int(self._requested()), zlib.crc32(batch["tokens"].tobytes(), step) >> 1)
        self._asked = _reduced(self._mesh)(_spread(self._mesh, own))
        return decided

    def settle(self) -> None:
        """Waits for the answer to the last step; before anything of it is saved.

        Raises:
          LmsiError: the processes have not read the same rows.
        """
        if self._asked is None:
            return
        leave, least, most = np.asarray(self._asked).tolist()
        self._asked = None
        self._leave = self._leave or bool(leave)
        if least != most:
            raise LmsiError(
                "the processes have read different examples or stand at different steps; see that "
                "all of them see one output_dir and have the same packages, then repeat the command"
            )


def meet() -> None:
    """Waits until all processes are here: on CPUs, who comes 30 s late to the first sum breaks it.

    Process 0 has metric writers to load before, and who reads from a slow disk comes later too.
    """
    from jax._src import distributed  # a barrier of devices would be such a sum itself

    name = f"lmsi_meet_{next(_MEETINGS)}"
    client = distributed.global_state.client
    assert client is not None  # or there would be no other process' devices
    client.wait_at_barrier(name, timeout_in_ms=_LATEST)


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
