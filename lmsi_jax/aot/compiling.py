"""Compiles a traced program for its devices and reads off what it costs a chip."""

import dataclasses
import re
import time
from typing import Any

import jax

from lmsi_jax.aot import costs
from lmsi_jax.aot.topologies import Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a program costs each chip that runs it once.

    Attributes:
      chips: that run it together.
      fits: whether XLA found room for it.
      refusal: what XLA says where it did not; all that follows is then 0 or empty.
      arguments, outputs, temporaries, code: bytes; `aliased` of the outputs lie in the arguments'
        place (donated).
      flops: of matrix products, as compiled: what remat computes again counts again.
      compiler_seconds: XLA's estimate: the cycles of the operations that it gives an estimate for,
        over the chip's clock; collectives have none.
      optimal_seconds: of XLA's cost analysis, which counts a loop's body once; None where it has
        none (negative).
      collectives: by kind, see `costs.Traffic`.
      largest: see `costs.Program`.
      unknown_loops: see `costs.Program`.
      compile_seconds: tracing not included.
    """

    chips: int
    fits: bool
    refusal: str = ""
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    code: int = 0
    flops: float = 0.0
    compiler_seconds: float = 0.0
    optimal_seconds: float | None = None
    collectives: dict[str, costs.Traffic] = dataclasses.field(default_factory=dict)
    largest: tuple[Any, ...] = ()
    unknown_loops: int = 0
    compile_seconds: float = 0.0

    @property
    def peak(self) -> int:
        """Bytes while it runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    @property
    def received(self) -> float:
        """Bytes over the interconnect."""
        return sum(traffic.bytes for traffic in self.collectives.values())


def compiled(lowered: jax.stages.Lowered, chips: int, chip: Chip) -> Compiled:
    """Compiles; what does not fit into the chips' memory is a result too.

    Args:
      lowered: the traced program.
      chips: devices that it was traced for.
      chip: what they are.
    """
    start = time.monotonic()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(
            chips=chips,
            fits=False,
            refusal=_refusal(str(error)),
            compile_seconds=round(time.monotonic() - start, 1),
        )
    seconds = round(time.monotonic() - start, 1)
    memory: Any = program.memory_analysis()
    estimate = program.cost_analysis()
    optimal = (estimate or {}).get("optimal_seconds", -1.0)
    found = costs.read(program.as_text() or "")
    return Compiled(
        chips=chips,
        fits=True,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=found.flops,
        compiler_seconds=found.cycles / chip.clock,
        optimal_seconds=optimal if optimal > 0 else None,
        collectives=found.collectives,
        largest=found.largest,
        unknown_loops=found.unknown_loops,
        compile_seconds=seconds,
    )


def _refusal(text: str) -> str:
    """XLA's own sentence, such as "Used 20.1G of 15.75G hbm. Exceeded hbm capacity by 4.3G."."""
    found = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ hbm\.[^\n]*", text)
    return found[0].strip() if found else text.strip().splitlines()[0]
