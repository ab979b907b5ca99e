"""Cloud TPU's chips and slices, by their published figures."""

import dataclasses
import importlib.util
import math
import re
from typing import Any

import jax
from jax.experimental import topologies

from lmsi_jax.errors import LmsiError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip's figures.

    Attributes:
      memory: bytes of HBM that XLA gives a program, somewhat less or more than the round figure.
      flops: peak bfloat16 FLOP/s.
      bandwidth: of the HBM, bytes a second.
      links: bytes a second that the chip can take in from its neighbours, over all links together:
        half of the bidirectional figure.
      clock: Hz, for XLA's estimates in cycles: v4's as in Jouppi et al. 2023, table 4; of the
        others the peak over what their matrix units multiply in a cycle.
      per_host: chips of one machine of a slice with several.
      source: where the figures stand.
    """

    memory: int
    flops: float
    bandwidth: float
    links: float
    clock: float
    per_host: int
    source: str


_DOCS = "https://cloud.google.com/tpu/docs/"
CHIPS = {
    "v4": Chip(
        memory=int(30.75 * 2**30), flops=275e12, bandwidth=1200e9, links=300e9, clock=1.05e9,
        per_host=4, source=_DOCS + "v4",
    ),
    "v5e": Chip(
        memory=int(15.75 * 2**30), flops=197e12, bandwidth=819e9, links=200e9, clock=1.5e9,
        per_host=4, source=_DOCS + "v5e",
    ),
    "v5p": Chip(
        memory=int(95.74 * 2**30), flops=459e12, bandwidth=2765e9, links=600e9, clock=1.75e9,
        per_host=4, source=_DOCS + "v5p",
    ),
    "v6e": Chip(
        memory=int(31.25 * 2**30), flops=918e12, bandwidth=1638e9, links=400e9, clock=1.75e9,
        per_host=4, source=_DOCS + "v6e",
    ),
}  # fmt: skip


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology such as "v5p:8x8x8".

    Raises:
      LmsiError: it is not written like that, or the chip is not in `CHIPS`.
    """
    return CHIPS[_parsed(topology)[0]]


def chips_in(topology: str) -> int:
    """Returns how many chips a topology has; raises as `chip_of`."""
    return math.prod(_parsed(topology)[1])


def slice_of(topology: str, chips: int) -> str:
    """Returns a slice of `chips` chips of a topology's kind, as square as powers of two allow.

    Raises:
      LmsiError: the topology is smaller, or there is no such slice.
    """
    kind, shape = _parsed(topology)
    if chips > math.prod(shape):
        raise LmsiError(f"a mesh of {chips} chips does not fit on {topology}; take a larger one")
    if chips == math.prod(shape):
        return topology
    if chips & (chips - 1):
        raise LmsiError(
            f"there is no slice of {chips} chips within {topology}: make data * model a power of "
            "two, or name a topology of as many chips"
        )
    sizes = [1] * len(shape)
    for doubling in range(chips.bit_length() - 1):
        sizes[doubling % len(sizes)] *= 2
    sizes = sorted(sizes, key=lambda size: (size == 1, size))  # as slices are named: 2x2x4, 2x2x1
    return f"{kind}:{'x'.join(map(str, sizes))}"


def _parsed(topology: str) -> tuple[str, tuple[int, ...]]:
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", topology)
    if found is None or found[1] not in CHIPS:
        raise LmsiError(
            f"--topology={topology}: write KIND:SHAPE with KIND one of {', '.join(CHIPS)}, such as "
            "v5e:4x4 (two axes) or v5p:4x4x8 (three)"
        )
    return found[1], tuple(int(size) for size in found[2].split("x"))


def devices_of(topology: str) -> list[jax.Device]:
    """Returns stand-ins for a topology's chips, to compile for.

    Raises:
      LmsiError: libtpu is not installed, or there is no such topology.
    """
    kind, shape = _parsed(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise LmsiError(
            "compiling for TPUs needs their compiler, libtpu: pip install -e '.[tpu]' in the "
            "checkout (no TPU is needed)"
        )
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if math.prod(shape) < CHIPS[kind].per_host:
        options["chips_per_host_bounds"] = [*shape, 1, 1][:3]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except (RuntimeError, ValueError) as error:
        raise LmsiError(f"--topology={topology}: {str(error).strip().splitlines()[0]}") from None
    return list(found.devices)
