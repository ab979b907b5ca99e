"""What a compiled program makes one chip do: collectives, how often, and FLOPs.

XLA's own cost analysis counts a loop's body once. Here each computation counts as often as it is
run: a loop's body as often as it is known to turn, and each branch of a conditional once, as if all
were taken.

Takes the text of XLA's compiled programs apart (https://openxla.org/xla/operation_semantics).
"""

import collections
import dataclasses
import importlib.util
import math
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.experimental import topologies

from lmsi_jax.errors import LmsiError

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
      name: its own.
      result: the text of its shape.
      operation: such as "fusion"; asynchronous ones have "-start" and "-done".
      operands: names.
      attributes: the text behind the operands.
      literal: the text between the parentheses.
    """

    name: str
    result: str
    operation: str
    operands: tuple[str, ...]
    attributes: str
    literal: str


def parse_hlo(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """Returns the entry's name, and every computation's instructions."""
    entry = ""
    computations: dict[str, list[Instruction]] = {}
    body: list[Instruction] = []
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            body = computations[head[2]] = []
            entry = head[2] if head[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found:
            body.append(_instruction(found[1], found[2]))
    return entry, computations


def _instruction(name: str, text: str) -> Instruction:
    """Takes `SHAPE OPERATION(OPERANDS), ATTRIBUTES` apart; a tuple's shape is in parentheses."""
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
    """The place of the parenthesis that closes the one at `start`."""
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
    """Reads numbers with commas between them."""
    return tuple(int(size) for size in text.split(",") if size)


def array_bytes(shape: str) -> int:
    """Returns the bytes of all arrays that a shape's text names, tiling and padding not counted."""
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
      count: how many are run.
      bytes: what the chip takes in over the interconnect, by the ring algorithms: of a group of n,
        (n - 1) / n of an all-gather's result, of a reduce-scatter's operand and of an all-to-all,
        twice that of an all-reduce, and all of a permutation's.
    """

    count: int = 0
    bytes: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What one chip runs.

    Attributes:
      collectives: by kind; reductions that XLA writes as an all-reduce and keeps a share of are
        "reduce-scatter".
      largest: (kind, shape, times, bytes) of the collectives with the most bytes.
      flops: of the matrix products alone, padding excluded.
      cycles: XLA's estimates added up, of the operations that it gives one for.
      unknown_loops: loops whose turns are not known; they count once.
    """

    collectives: dict[str, Traffic]
    largest: tuple[tuple[str, str, int, float], ...]
    flops: float
    cycles: float
    unknown_loops: int


def read_program(text: str, most: int = 12) -> Program:
    """Returns what a compiled module (`compiled.as_text()`) makes one chip do.

    Args:
      text: the module.
      most: how many of the largest collectives to name.
    """
    entry, computations = parse_hlo(text)
    times, unknown = _times(entry, computations)
    flops = cycles = 0.0
    # XLA for TPU cuts a collective into pieces between which it computes, each with a copy of the
    # whole under the same channel: one of them counts.
    found: dict[str, tuple[int, str, str, float]] = {}
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
                found[key] = max(found.get(key, each), each)
    return Program(
        collectives=_by_kind(found.values()),
        largest=_largest(found.values(), most),
        flops=flops,
        cycles=cycles,
        unknown_loops=unknown,
    )


_Found = Iterable[tuple[int, str, str, float]]  # times, kind, shape, bytes


def _by_kind(found: _Found) -> dict[str, Traffic]:
    kinds: dict[str, Traffic] = {}
    for times, kind, _, size in found:
        old = kinds.get(kind, Traffic())
        kinds[kind] = Traffic(count=old.count + times, bytes=old.bytes + times * size)
    return dict(sorted(kinds.items()))


def _largest(found: _Found, most: int) -> tuple[tuple[str, str, int, float], ...]:
    sums: dict[tuple[str, str], tuple[int, float]] = {}
    for times, kind, shape, size in found:
        count, total = sums.get((kind, shape), (0, 0.0))
        sums[kind, shape] = count + times, total + times * size
    order = sorted(sums, key=lambda key: (-sums[key][1], key))
    return tuple((*key, *sums[key]) for key in order[:most])


def _times(entry: str, computations: dict[str, list[Instruction]]) -> tuple[dict[str, int], int]:
    """How often each computation is run, and of how many loops that is not known."""
    times: collections.Counter[str] = collections.Counter()
    unknown = 0

    def visit(name: str, factor: int) -> None:
        """Counts a computation that is run `factor` times more, and those that it runs."""
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
    """How often a loop turns: as XLA notes, or as its condition `counter < constant` says.

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
    rise = _rise(_named("body", loop, computations), int(place[1])) if place else 1
    return -(-int(limit.literal) // rise)


def _named(
    role: str, loop: Instruction, computations: dict[str, list[Instruction]]
) -> dict[str, Instruction]:
    """A loop's "condition" or "body", by the names of its instructions."""
    name = re.search(rf"{role}=%?([\w.\-]+)", loop.attributes)
    return {one.name: one for one in computations.get(name[1] if name else "", ())}


def _rise(body: dict[str, Instruction], place: int) -> int:
    """By how much a turn raises the counter, number `place` of a loop's state.

    XLA unrolls the loops that it cuts a product into, and then takes two turns in one. 1 where the
    body adds no constants to it.
    """
    *_, end = body.values()
    one, rise = body.get(end.operands[place]), 0
    while one is not None and one.operation == "add":
        terms = [body[name] for name in one.operands]
        constants = [int(term.literal) for term in terms if term.operation == "constant"]
        if len(constants) != 1:
            return 1
        rise += constants[0]
        (one,) = (term for term in terms if term.operation != "constant")
    return rise or 1


def _called(one: Instruction) -> Iterator[str]:
    """The computations that an instruction runs; not the scalar ones of reductions."""
    if one.operation == "conditional":
        for several, single in _BRANCHES.findall(one.attributes):
            yield from (name.strip().lstrip("%") for name in (several or single).split(","))
    elif one.operation in ("fusion", "while", "call", "async-start"):
        yield from _CALLED.findall(one.attributes)


def _traffic(inside: str, one: Instruction, results: dict[str, str]) -> tuple[str, float] | None:
    """A collective's kind and bytes; `inside` is the computation that it stands in."""
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
    """Of a matrix product: twice its multiplications."""
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
    """XLA for TPU writes products so; a batch axis is then a window that meets one place."""
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
    """Pairs of a place of the output and one of the kernel that meet a real place of the input."""

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
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
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


def compile_program(lowered: jax.stages.Lowered, chips: int, chip: Chip) -> Compiled:
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
    found = read_program(program.as_text() or "")
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
