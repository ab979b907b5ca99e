"""Compiles programs for Cloud TPU chips and counts their FLOPs, memory and collectives.

`read_program` parses the text of a compiled XLA program
(https://openxla.org/xla/operation_semantics). XLA's own cost analysis counts the body of a loop
once. Here each computation counts as often as it runs: the body of a loop for every known
iteration, and each branch of a conditional once, as if all were taken.

`CHIPS` has the published figures of Cloud TPU's chips and `slice_shapes` the slices that Google
offers; `compile_program` compiles a traced program for them, which need not exist here. JAX is
imported by what compiles, so that launchers can look up the tables without it.
"""

import collections
import dataclasses
import importlib.util
import itertools
import math
import re
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime.progress import doing

if TYPE_CHECKING:
    import jax

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_OPERANDS = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: the name of its result.
      result: the text of its shape.
      operation: for example "fusion"; asynchronous ones end in "-start" and "-done".
      operands: names of instructions.
      attributes: the text after the operands.
      literal: the text between the parentheses.
    """

    name: str
    result: str
    operation: str
    operands: tuple[str, ...]
    attributes: str
    literal: str


def parse_hlo(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """Returns the name of the entry and the instructions of every computation."""
    entry = ""
    computations: dict[str, list[Instruction]] = {}
    body: list[Instruction] = []
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            body = computations[head[2]] = []
            entry = head[2] if head[1] else entry
            continue
        match = _INSTRUCTION.match(line)
        if match:
            body.append(_parse_instruction(match[1], match[2]))
    return entry, computations


def _parse_instruction(name: str, text: str) -> Instruction:
    """Parses `SHAPE OPERATION(OPERANDS), ATTRIBUTES`; the shape of a tuple has parentheses."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    operation, _, rest = text[end:].strip().partition("(")
    close = _closing("(" + rest, 0) - 1
    return Instruction(
        name=name,
        result=text[:end],
        operation=operation,
        operands=tuple(_OPERANDS.findall(rest[:close])),
        attributes=rest[close + 1 :],
        literal=rest[:close],
    )


def _closing(text: str, start: int) -> int:
    """Returns the index of the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    return len(text)


def arrays(shape: str) -> list[str]:
    """Returns the arrays that a shape's text names, without layouts."""
    return [f"{kind}[{axes}]" for kind, axes in _ARRAY.findall(shape) if kind in _BYTES]


def array_sizes(shape: str) -> tuple[int, ...]:
    """Returns the axes of the first array that a shape's text names."""
    return sizes(_ARRAY.findall(shape)[0][1])


def sizes(text: str) -> tuple[int, ...]:
    """Parses numbers separated by commas."""
    return tuple(int(size) for size in text.split(",") if size)


def array_bytes(shape: str) -> int:
    """Returns the bytes of all arrays in the text of a shape, without tiling and padding."""
    return sum(
        _BYTES[kind] * math.prod(sizes(axes))
        for kind, axes in _ARRAY.findall(shape)
        if kind in _BYTES
    )


def group_size(attributes: str) -> int:
    """Returns the chips in a collective's group.

    Groups are written as {{0,1},{2,3}}, [2,4]<=[8] or mesh['x'=2,'y'=4] {'y'}.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(sizes(listed[1]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if iota:
        return int(iota[2])
    mesh = re.search(r"replica_groups=\w*\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if mesh:
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(axes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return 1


_KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
)
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """The collectives of one kind, for one chip.

    Attributes:
      count: number of executions.
      bytes: bytes that the chip receives over the interconnect, by the ring algorithms: of a group
        of n, (n - 1) / n of an all-gather's result, of a reduce-scatter's operand and of an
        all-to-all, twice that of an all-reduce, and all of a permutation's.
    """

    count: int = 0
    bytes: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The costs of a program for one chip.

    Attributes:
      collectives: by kind; an all-reduce of which XLA keeps only a part is "reduce-scatter".
      largest: (kind, shape, times, bytes) of the collectives with the most bytes.
      flops: FLOPs of the matrix products, without padding.
      cycles: sum of XLA's estimates, which it has for some operations.
      unknown_loops: loops with an unknown number of iterations; they count once.
    """

    collectives: dict[str, Traffic]
    largest: tuple[tuple[str, str, int, float], ...]
    flops: float
    cycles: float
    unknown_loops: int


def read_program(text: str, most: int = 12) -> Program:
    """Returns the costs of a compiled module (`compiled.as_text()`) for one chip.

    Args:
      text: the text of the module.
      most: number of the largest collectives to list.
    """
    entry, computations = parse_hlo(text)
    times, unknown = _times(entry, computations)
    flops = cycles = 0.0
    # XLA for TPU cuts a collective into pieces between which it computes, each with a copy of the
    # whole under the same channel: one of them counts.
    by_channel: dict[str, tuple[int, str, str, float]] = {}
    for name, body in computations.items():
        if not times[name]:
            continue
        results = {one.name: one.result for one in body}
        for one in body:
            estimate = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
            cycles += times[name] * int(estimate[1]) if estimate else 0
            flops += times[name] * _flops(one, results)
            traffic = _traffic(name, one, results)
            if traffic is not None:
                channel = re.search(r"channel_id=(\d+)", one.attributes)
                key = channel[1] if channel else one.name
                each = (times[name], traffic[0], " ".join(arrays(one.result)), traffic[1])
                by_channel[key] = max(by_channel.get(key, each), each)
    return Program(
        collectives=_by_kind(by_channel.values()),
        largest=_largest(by_channel.values(), most),
        flops=flops,
        cycles=cycles,
        unknown_loops=unknown,
    )


_Collectives = Iterable[tuple[int, str, str, float]]  # times, kind, shape, bytes


def _by_kind(collectives: _Collectives) -> dict[str, Traffic]:
    kinds: dict[str, Traffic] = {}
    for times, kind, _, size in collectives:
        old = kinds.get(kind, Traffic())
        kinds[kind] = Traffic(count=old.count + times, bytes=old.bytes + times * size)
    return dict(sorted(kinds.items()))


def _largest(collectives: _Collectives, most: int) -> tuple[tuple[str, str, int, float], ...]:
    sums: dict[tuple[str, str], tuple[int, float]] = {}
    for times, kind, shape, size in collectives:
        count, total = sums.get((kind, shape), (0, 0.0))
        sums[kind, shape] = count + times, total + times * size
    order = sorted(sums, key=lambda key: (-sums[key][1], key))
    return tuple((*key, *sums[key]) for key in order[:most])


def _times(entry: str, computations: dict[str, list[Instruction]]) -> tuple[dict[str, int], int]:
    """Returns the runs of each computation and the number of loops with unknown iterations."""
    times: collections.Counter[str] = collections.Counter()
    unknown = 0

    def visit(name: str, factor: int) -> None:
        """Counts `factor` further runs of a computation and of those that it calls."""
        nonlocal unknown
        times[name] += factor
        for one in computations.get(name, ()):
            trips = 1
            if one.operation == "while":
                known = _trips(one, computations)
                trips = known or 1
                unknown += known is None
            for called in _called(one):
                visit(called, factor * trips)

    visit(entry, 1)
    return times, unknown


def _trips(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """Returns the iterations of a loop, from XLA's note or its condition `counter < constant`.

    Counters begin at 0, as those of `jax.lax.scan` and `fori_loop(0, n)` do.
    """
    known = _TRIPS.search(loop.attributes)
    if known:
        return int(known[1])
    condition = _named("condition", loop, computations)
    tests = [one for one in condition.values() if one.operation == "compare"]
    if len(tests) != 1 or "direction=LT" not in tests[0].attributes:
        return None
    counter, limit = (condition.get(name) for name in tests[0].operands)
    if counter is None or limit is None or limit.operation != "constant":
        return None
    place = re.search(r"index=(\d+)", counter.attributes)
    increment = _increment(_named("body", loop, computations), int(place[1])) if place else 1
    return -(-int(limit.literal) // increment)


def _named(
    role: str, loop: Instruction, computations: dict[str, list[Instruction]]
) -> dict[str, Instruction]:
    """Returns the instructions of a loop's "condition" or "body" by name."""
    name = re.search(rf"{role}=%?([\w.\-]+)", loop.attributes)
    return {one.name: one for one in computations.get(name[1] if name else "", ())}


def _increment(body: dict[str, Instruction], place: int) -> int:
    """Returns the increment of the counter, at index `place` of a loop's state, per iteration.

    XLA unrolls the loops that it splits a product into, so that one iteration does the work of two.
    Returns 1 if the body adds no constants to the counter.
    """
    *_, end = body.values()
    one, increment = body.get(end.operands[place]), 0
    while one is not None and one.operation == "add":
        terms = [body[name] for name in one.operands]
        constants = [int(term.literal) for term in terms if term.operation == "constant"]
        if len(constants) != 1:
            return 1
        increment += constants[0]
        (one,) = (term for term in terms if term.operation != "constant")
    return increment or 1


def _called(one: Instruction) -> Iterator[str]:
    """Yields the computations that an instruction calls, except scalar ones of reductions."""
    if one.operation == "conditional":
        for several, single in _BRANCHES.findall(one.attributes):
            yield from (name.strip().lstrip("%") for name in (several or single).split(","))
    elif one.operation in ("fusion", "while", "call", "async-start"):
        yield from _CALLED.findall(one.attributes)


def _traffic(inside: str, one: Instruction, results: dict[str, str]) -> tuple[str, float] | None:
    """Returns the kind and bytes of a collective in the computation `inside`, or None."""
    kind = one.operation.removesuffix("-start")
    if kind not in _KINDS:
        return None
    operand = float(sum(array_bytes(results.get(name, "")) for name in one.operands))
    if kind == "collective-permute":
        return kind, operand
    if kind == "all-reduce" and inside.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    size = group_size(one.attributes)
    whole = operand * size if kind == "all-gather" else operand
    return kind, whole * (size - 1) / size * (2 if kind == "all-reduce" else 1)


def _flops(one: Instruction, results: dict[str, str]) -> float:
    """Returns the FLOPs of a matrix product, twice its multiplications."""
    if one.operation not in ("dot", "convolution"):
        return 0.0
    left, right = (array_sizes(results[name]) for name in one.operands[:2])
    out = array_sizes(one.result)
    if one.operation == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        inner = math.prod(left[axis] for axis in sizes(axes[1])) if axes else 1
        return 2.0 * math.prod(out) * inner
    return _convolution_flops(one.attributes, left, right, out)


def _convolution_flops(
    attributes: str, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]
) -> float:
    """Returns the FLOPs of a convolution, XLA's form of products on TPU.

    A batch axis is then a window that overlaps one position.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels is not None, "a convolution names its axes"
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    total = 2.0 * out[labels[3].index("b")] * out[labels[3].index("f")]
    total *= right[labels[2].index("i")]
    for axis in (letter for letter in labels[1] if letter.isdigit()):
        total *= _pairs(fields, int(axis), left[labels[1].index(axis)], out[labels[3].index(axis)])
    return total


def _pairs(fields: dict[str, str], axis: int, size: int, out: int) -> int:
    """Counts pairs of an output and a kernel position that read a real input position."""

    def field(name: str, default: int) -> int:
        return int(fields[name].split("x")[axis]) if name in fields else default

    width, stride, dilation = field("size", 1), field("stride", 1), field("rhs_dilate", 1)
    base = field("lhs_dilate", 1)
    low = int(fields["pad"].split("x")[axis].split("_")[0]) if "pad" in fields else 0
    return sum(
        0 <= at <= (size - 1) * base and at % base == 0
        for place in range(out)
        for tap in range(width)
        for at in [place * stride + tap * dilation - low]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """The figures of a chip.

    Attributes:
      memory: bytes of HBM available to a program, near the published figure.
      flops: peak bfloat16 FLOP/s.
      bandwidth: bytes per second of the HBM.
      links: bytes per second that the chip receives from its neighbours over all links, half of the
        bidirectional figure.
      clock: Hz, for XLA's estimates in cycles: of v4 from Jouppi et al. 2023, table 4; of the
        others the peak over the FLOPs of their matrix units per cycle.
      per_host: chips of each machine in a slice of several machines.
      most: chips of the largest slice.
      source: the page with the figures.
    """

    memory: int
    flops: float
    bandwidth: float
    links: float
    clock: float
    per_host: int
    most: int
    source: str


_DOCS = "https://cloud.google.com/tpu/docs/"
CHIPS = {
    "v4": Chip(
        memory=int(30.75 * 2**30), flops=275e12, bandwidth=1200e9, links=300e9, clock=1.05e9,
        per_host=4, most=4096, source=_DOCS + "v4",
    ),
    "v5e": Chip(
        memory=int(15.75 * 2**30), flops=197e12, bandwidth=819e9, links=200e9, clock=1.5e9,
        per_host=4, most=256, source=_DOCS + "v5e",
    ),
    "v5p": Chip(
        memory=int(95.74 * 2**30), flops=459e12, bandwidth=2765e9, links=600e9, clock=1.75e9,
        per_host=4, most=6144, source=_DOCS + "v5p",
    ),
    "v6e": Chip(
        memory=int(31.25 * 2**30), flops=918e12, bandwidth=1638e9, links=400e9, clock=1.75e9,
        per_host=4, most=256, source=_DOCS + "v6e",
    ),
}  # fmt: skip


_PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_BELOW_A_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


def slice_shapes(kind: str) -> tuple[str, ...]:
    """Returns the shapes of the slices that Google offers of a kind of chips, the smallest first.

    Of v5e and v6e they are listed on the kind's page (`Chip.source`). Those of v4 and v5p are parts
    of a cube of 4x4x4 chips or boxes of whole cubes, AxBxC with A <= B <= C, up to `Chip.most`
    chips (https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus).

    Args:
      kind: a key of `CHIPS`.
    """
    if kind in ("v5e", "v6e"):
        return _PLANES
    cubes = CHIPS[kind].most // 64
    boxes = [
        (a, b, c)
        for a, b in itertools.combinations_with_replacement(range(1, cubes + 1), 2)
        for c in range(b, cubes // (a * b) + 1)
    ]
    boxes.sort(key=lambda box: (math.prod(box), box[2]))
    return (*_BELOW_A_CUBE, *("x".join(str(4 * side) for side in box) for box in boxes))


def offered_shapes(kind: str) -> str:
    """Returns a kind's `slice_shapes` in words; the boxes of whole cubes by their rule."""
    shapes = slice_shapes(kind)
    if len(shapes) == len(_PLANES):
        return ", ".join(shapes)
    return (
        f"{', '.join(_BELOW_A_CUBE)}, 4x4x4, 4x4x8, ..., all AxBxC of multiples of 4 with "
        f"A <= B <= C and at most {CHIPS[kind].most:,} chips"
    )


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology such as "v5p:8x8x8".

    Raises:
      LmsiError: the topology is malformed, or Google offers no such slice.
    """
    kind, shape = _parse_topology(topology)
    if "x".join(map(str, shape)) not in slice_shapes(kind):
        raise LmsiError(
            f"--topology={topology}: there is no such slice; {kind} has {offered_shapes(kind)}"
        )
    return CHIPS[kind]


def chips_in(topology: str) -> int:
    """Returns the number of chips of a topology.

    Raises:
      LmsiError: it is malformed, or its chip is not in `CHIPS`.
    """
    return math.prod(_parse_topology(topology)[1])


def slice_of(topology: str, chips: int) -> str:
    """Returns a slice of `chips` chips of a topology's kind, as square as powers of two allow.

    Raises:
      LmsiError: the topology is smaller, or there is no such slice.
    """
    kind, shape = _parse_topology(topology)
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


def _parse_topology(topology: str) -> tuple[str, tuple[int, ...]]:
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", topology)
    if match is None or match[1] not in CHIPS:
        raise LmsiError(
            f"--topology={topology}: write KIND:SHAPE with KIND one of {', '.join(CHIPS)}, such as "
            "v5e:4x4 (two axes) or v5p:4x4x8 (three)"
        )
    return match[1], tuple(int(size) for size in match[2].split("x"))


def devices_of(topology: str) -> "list[jax.Device]":
    """Returns placeholders for the chips of a topology, as compilation targets.

    Raises:
      LmsiError: libtpu is not installed, or there is no such topology.
    """
    kind, shape = _parse_topology(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise LmsiError(
            "compiling for TPUs needs their compiler, libtpu: pip install "
            "'lmsi_jax[tpu]' (no TPU is needed)"
        )
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if math.prod(shape) < CHIPS[kind].per_host:
        options["chips_per_host_bounds"] = [*shape, 1, 1][:3]
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except (RuntimeError, ValueError) as error:
        raise LmsiError(f"--topology={topology}: {str(error).strip().splitlines()[0]}") from None
    return list(description.devices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """The cost of one execution of a program for each of its chips.

    Attributes:
      chips: number of chips that run it together.
      fits: True if it fits into memory.
      refusal: XLA's message if it does not; all further fields are then 0 or empty.
      arguments, outputs, temporaries, code: bytes; `aliased` bytes of the outputs reuse the memory
        of donated arguments.
      flops: FLOPs of matrix products as compiled, including recomputation by remat.
      compiler_seconds: XLA's estimated cycles over the chip's clock; it has none of collectives.
      optimal_seconds: the estimate of XLA's cost analysis, which counts the body of a loop once;
        None if it has none (negative).
      collectives: by kind, see `Traffic`.
      largest: see `Program`.
      unknown_loops: see `Program`.
      compile_seconds: time of compilation without tracing.
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
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    largest: tuple[Any, ...] = ()
    unknown_loops: int = 0
    compile_seconds: float = 0.0

    @property
    def peak(self) -> int:
        """Peak bytes during execution."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    @property
    def received(self) -> float:
        """Bytes received over the interconnect."""
        return sum(traffic.bytes for traffic in self.collectives.values())


def compile_program(lowered: "jax.stages.Lowered", chips: int, chip: Chip) -> Compiled:
    """Compiles a traced program; one that does not fit into memory is a result too.

    Args:
      lowered: the traced program.
      chips: number of devices that it was traced for.
      chip: the kind of these devices.
    """
    import jax

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
    with doing("reading the compiled program"):
        costs = read_program(program.as_text() or "")
    return Compiled(
        chips=chips,
        fits=True,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=costs.flops,
        compiler_seconds=costs.cycles / chip.clock,
        optimal_seconds=optimal if optimal > 0 else None,
        collectives=costs.collectives,
        largest=costs.largest,
        unknown_loops=costs.unknown_loops,
        compile_seconds=seconds,
    )


def _refusal(text: str) -> str:
    """Extracts XLA's sentence "Used 20.1G of 15.75G hbm. Exceeded hbm capacity by 4.3G."."""
    match = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ hbm\.[^\n]*", text)
    return match[0].strip() if match else text.strip().splitlines()[0]
