"""TPU slices and their machines, by the names of GKE, XPK and Cloud TPU.

Which slices there are: `lmsi_jax.tools.aot_costs.slice_shapes`. Machines, their vCPUs and memory:
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus and each kind's page there.
"""

import dataclasses
import math
import re

from lmsi_jax.errors import LmsiError
from lmsi_jax.tools.aot_costs import offered_shapes, slice_shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """A kind of machines with TPUs.

    Attributes:
      name: Compute Engine's machine type.
      cpus: number of its vCPUs.
      memory: its main memory in GB.
    """

    name: str
    cpus: int
    memory: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of TPUs.

    Attributes:
      kind: a key of `aot_costs.CHIPS`.
      dimensions: number of dimensions of a topology.
      type_prefix: XPK's and Cloud TPU's name of a slice, before its size.
      machines: the machines by their number of chips.
      cores: TensorCores of a chip, if the size counts them.
    """

    kind: str
    dimensions: int
    type_prefix: str
    machines: dict[int, Machine]
    cores: int = 1


FAMILIES = {
    "tpu-v4-podslice": Family(
        kind="v4",
        dimensions=3,
        type_prefix="v4",
        cores=2,
        machines={4: Machine(name="ct4p-hightpu-4t", cpus=240, memory=407)},
    ),
    "tpu-v5-lite-podslice": Family(
        kind="v5e",
        dimensions=2,
        type_prefix="v5litepod",
        machines={
            1: Machine(name="ct5lp-hightpu-1t", cpus=24, memory=48),
            4: Machine(name="ct5lp-hightpu-4t", cpus=112, memory=192),
            8: Machine(name="ct5lp-hightpu-8t", cpus=224, memory=384),
        },
    ),
    "tpu-v5p-slice": Family(
        kind="v5p",
        dimensions=3,
        type_prefix="v5p",
        cores=2,
        machines={4: Machine(name="ct5p-hightpu-4t", cpus=208, memory=448)},
    ),
    "tpu-v6e-slice": Family(
        kind="v6e",
        dimensions=2,
        type_prefix="v6e",
        machines={
            1: Machine(name="ct6e-standard-1t", cpus=44, memory=176),
            4: Machine(name="ct6e-standard-4t", cpus=180, memory=720),
            8: Machine(name="ct6e-standard-8t", cpus=180, memory=1440),
        },
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """A TPU slice.

    Attributes:
      accelerator: a key of `FAMILIES`.
      topology: chips in each dimension, for example 4x4.
      chips_per_host: chips of each machine.

    Raises:
      LmsiError: Google offers no such slice, or not with such machines.
    """

    accelerator: str
    topology: str
    chips_per_host: int = 4

    def __post_init__(self) -> None:
        family = FAMILIES[self.accelerator]
        shape = "AxBxC"[: 2 * family.dimensions - 1]
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", self.topology, re.ASCII) or (
            len(self.topology.split("x")) != family.dimensions
        ):
            raise LmsiError(
                f"--topology={self.topology}: write chips as {shape} for {self.accelerator}"
            )
        if self.topology not in slice_shapes(family.kind):
            raise LmsiError(
                f"--topology={self.topology}: there is no such slice; {self.accelerator} has "
                f"{offered_shapes(family.kind)}"
            )
        # Only machines of 4 chips are joined to slices of several.
        usual = 4 if self.chips > 4 else self.chips
        if self.chips_per_host not in {usual, self.chips} & family.machines.keys():
            raise LmsiError(
                f"--chips_per_host={self.chips_per_host}: the machines of {self.topology} have "
                f"{' or '.join(map(str, sorted({usual, self.chips} & family.machines.keys())))}"
            )

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def hosts(self) -> int:
        """Number of machines."""
        return self.chips // self.chips_per_host

    @property
    def machine(self) -> Machine:
        """The kind of its machines."""
        return FAMILIES[self.accelerator].machines[self.chips_per_host]

    @property
    def xpk_type(self) -> str:
        """XPK's --tpu-type."""
        family = FAMILIES[self.accelerator]
        return f"{family.type_prefix}-{self.chips * family.cores}"


def check_accelerator_type(accelerator_type: str) -> None:
    """Checks that Cloud TPU has slices of a type's size; an unknown kind is not checked.

    Args:
      accelerator_type: the type, as v5litepod-16.

    Raises:
      LmsiError: names the sizes that there are.
    """
    prefix, _, size = accelerator_type.rpartition("-")
    for family in FAMILIES.values():
        if family.type_prefix != prefix:
            continue
        chips = {
            math.prod(map(int, shape.split("x"))) * family.cores
            for shape in slice_shapes(family.kind)
        }
        if int(size) not in chips:
            small = ", ".join(f"{prefix}-{number}" for number in sorted(chips)[:8])
            rest = f", ... {prefix}-{max(chips)}" if len(chips) > 8 else ""
            raise LmsiError(
                f"--accelerator_type={accelerator_type}: there is no such slice, but "
                f"{small}{rest} (of v4 and v5p the number is of cores, two a chip)"
            )
