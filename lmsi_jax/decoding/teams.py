"""Which processes hold one engine together: a team.

    Decoding.data x Decoding.model = 16, 8 processes of 4 devices:
    team 0 is processes 0 to 3, team 1 is processes 4 to 7

Every team makes shards of its own, as a single process does; its first process writes them.
Consecutive processes' chips are neighbours on a TPU slice.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import jax

from lmsi_jax.errors import LmsiError


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes that hold an engine together, as one of them sees them.

    Attributes:
      index: the team's number.
      count: how many teams the run has.
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


def team_of(data: int, model: int, devices: Sequence[int], process: int) -> Team:
    """Returns the team of a process.

    Args:
      data: `Decoding.data`.
      model: `Decoding.model`.
      devices: how many devices each process has.
      process: the number of the process.

    Raises:
      LmsiError: there are not that many devices, or the processes make no equal teams; it is the
        same in all of them.
    """
    wanted, own, count = data * model, min(devices), len(devices)
    if wanted <= own:
        return Team(process, count, range(process, process + 1), process)
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
    return Team(index, count // size, range(index * size, (index + 1) * size), process)


def team_here(data: int, model: int) -> Team:
    """Returns this process' team among those of `jax.distributed`; raises as `team_of`."""
    held = Counter(device.process_index for device in jax.devices())
    devices = [held[process] for process in range(jax.process_count())]
    return team_of(data, model, devices, jax.process_index())


def team_devices(team: Team) -> tuple[jax.Device, ...]:
    """Returns the devices of a team, in the order of its processes."""
    own = [device for device in jax.devices() if device.process_index in team.members]
    return tuple(sorted(own, key=lambda device: (device.process_index, device.id)))
