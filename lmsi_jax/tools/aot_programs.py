"""A run's programs, traced for devices that need not be here: shapes in, nothing computed.

The functions that are traced are those of a run, `training.step.train_step` and
`rollout.decode_step.decode_chunk`; their arguments have the shapes and places that a run gives them
(tests/tools/test_programs.py holds the engine's own arguments against these).

Compiles a traced program for its devices and reads off what it costs a chip.

Cloud TPU's chips and slices, by their published figures.
"""

import dataclasses
import importlib.util
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from lmsi_jax.config import Decoding, ModelConfig, Sampling, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.attention import Cache
from lmsi_jax.models.sharding import (
    DeviceMesh,
    decoding_shapes,
    make_decode_mesh,
    make_training_mesh,
    named_shardings,
    slots_sharding,
    use_devices,
)
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.rollout.chunks import NoiseSource, join_groups, page_table, slot_arrays
from lmsi_jax.rollout.decode_step import ChunkInputs, Program, PromptCaches, decode_chunk
from lmsi_jax.rollout.kv_pages import Pool
from lmsi_jax.rollout.scheduler import plan, prompt_bucket, question_bucket
from lmsi_jax.tools import aot_costs
from lmsi_jax.training.packing import batch_shape
from lmsi_jax.training.trainer import shardings, state_shapes, train_step

GROUPS = 4  # of metrics: the formats that a round's examples have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """What a configuration does not say of its questions, in tokens.

    Attributes:
      prompt: the task prompt; LMSI's have eight exemplars or fewer.
      question: a question's own.
    """

    prompt: int = 1024
    question: int = 128


def train_program(
    config: ModelConfig, training: Training, devices: Sequence[jax.Device]
) -> jax.stages.Lowered:
    """Traces an optimiser step on the first data * model of these devices.

    Raises:
      LmsiError: there are not that many.
    """
    with use_devices(devices):
        mesh = make_training_mesh(training).mesh
        params = parameter_shapes(config)
        trees = (params, state_shapes(training, params))
        where = shardings(config, training, params)
        if mesh is None or where is None:
            here = SingleDeviceSharding(devices[0])
            where = jax.tree.map(lambda _: here, trees)
        arguments = jax.tree.map(_placed, trees, where)
        batch = _batch(training, devices, mesh)
        return train_step.lower(config, training, GROUPS, *arguments, batch)


def _placed(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _batch(training: Training, devices: Sequence[jax.Device], mesh: Any) -> dict[str, Any]:
    """The shapes of `packing.Batch`, placed as by `sharding.shard_batch`."""
    shape = batch_shape(training)
    size = (shape.microbatches, shape.rows, shape.length)
    rows = ("tokens", "segments", "positions", "groups")
    sizes: dict[str, tuple[tuple[int, ...], Any]] = dict.fromkeys(rows, (size, jnp.int32))
    sizes["weights"] = (size, jnp.float32)
    sizes["prefix"] = ((shape.microbatches, shape.prefix_length), jnp.int32)
    sizes["prefix_length"] = ((shape.microbatches,), jnp.int32)
    found = {}
    for name, (own, kind) in sizes.items():
        spec = PartitionSpec() if name.startswith("prefix") else PartitionSpec(None, "data")
        where = SingleDeviceSharding(devices[0]) if mesh is None else named_shardings(mesh, spec)
        found[name] = jax.ShapeDtypeStruct(own, kind, sharding=where)
    return found


def sample_program(
    config: ModelConfig,
    decoding: Decoding,
    sampling: Sampling,
    lengths: Lengths,
    devices: Sequence[jax.Device],
) -> jax.stages.Lowered:
    """Traces a decode chunk of all slots, with pages for paths of full length.

    Raises:
      LmsiError: the layout wants more devices.
    """
    with use_devices(devices):
        decode_mesh = make_decode_mesh(decoding)
        arguments = decode_arguments(config, decoding, sampling, lengths, decode_mesh)
        if decode_mesh.mesh is None:
            here = SingleDeviceSharding(devices[0])
            arguments = jax.tree.map(lambda a: _placed(a, here), arguments)
        chunk = plan(decoding, sampling).chunk
        program = Program(config, decode_mesh, sampling.filters, chunk)
        return decode_chunk.lower(program, *arguments)


def decode_arguments(
    config: ModelConfig,
    decoding: Decoding,
    sampling: Sampling,
    lengths: Lengths,
    decode_mesh: DeviceMesh,
) -> tuple[Any, PromptCaches, Pool, ChunkInputs]:
    """Returns the arguments of `decode_chunk` from `weights` on, as shapes with shardings.

    Args:
      config: the model's shape.
      decoding: the layout.
      sampling: how paths are drawn.
      lengths: of prompt and questions.
      decode_mesh: the mesh.
    """
    sizes = plan(decoding, sampling)
    heads, width = config.num_kv_heads, config.head_dim
    groups, kind = decode_mesh.data, jnp.dtype(decoding.dtype)
    by_head = slots_sharding(decode_mesh, heads)

    def cached(sequences: int, places: int) -> Any:
        return jax.ShapeDtypeStruct(
            (groups * sequences, heads, places, width), kind, sharding=by_head
        )

    def cache(sequences: int, places: int) -> Cache:
        """Keys and values of all layers, and how many places of each sequence are filled."""
        layers = [cached(sequences, places) for _ in range(config.num_layers)]
        counts: Any = jax.ShapeDtypeStruct(
            (groups * sequences,), jnp.int32, sharding=slots_sharding(decode_mesh)
        )
        return Cache(layers, list(layers), counts)

    depth = -(-sampling.max_new_tokens // sizes.page)
    segments = [[cached(sizes.slots, sizes.page)] * depth for _ in range(config.num_layers)]
    weights = decoding_shapes(config, parameter_shapes(config), kind, decode_mesh)
    prompts = PromptCaches(
        shared=_prompt(config, lengths, kind, decode_mesh),
        questions=cache(sizes.prompt_slots, question_bucket(lengths.question - 1)),
    )
    pool = Pool(segments, [list(one) for one in segments])
    return weights, prompts, pool, _idle_inputs(decoding, sampling, depth, groups)


def _prompt(
    config: ModelConfig, lengths: Lengths, kind: Any, decode_mesh: DeviceMesh
) -> Cache | None:
    """The task prompt's cache, on all devices; its heads over "model" where they divide."""
    if not lengths.prompt:
        return None
    own = (1, config.num_kv_heads, prompt_bucket(lengths.prompt), config.head_dim)
    layer: Any
    count: Any
    if decode_mesh.mesh is None:
        layer, count = jax.ShapeDtypeStruct(own, kind), jax.ShapeDtypeStruct((1,), jnp.int32)
    else:
        split = config.num_kv_heads % decode_mesh.model == 0
        spec = PartitionSpec(None, "model" if split else None)
        layer = jax.ShapeDtypeStruct(own, kind, sharding=NamedSharding(decode_mesh.mesh, spec))
        everywhere = NamedSharding(decode_mesh.mesh, PartitionSpec())
        count = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=everywhere)
    return Cache([layer] * config.num_layers, [layer] * config.num_layers, count)


def _idle_inputs(decoding: Decoding, sampling: Sampling, depth: int, groups: int) -> ChunkInputs:
    """Returns the shapes of what the host sends before a chunk."""
    sizes = plan(decoding, sampling)
    table = page_table(sizes, [], depth * sizes.slots, sizes.slots, depth)
    slots = slot_arrays(sizes, [], [], sizes.slots, [], 0)
    tables, states = jax.eval_shape(
        lambda: join_groups([slots] * groups, [table] * groups, NoiseSource(0, 0))
    )
    temperature = jax.ShapeDtypeStruct((), jnp.float32)
    return ChunkInputs(table=tables, slots=states, temperature=temperature)


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
    collectives: dict[str, aot_costs.Traffic] = dataclasses.field(default_factory=dict)
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
    found = aot_costs.read(program.as_text() or "")
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
