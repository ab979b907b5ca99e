"""A run's programs, traced and compiled for TPUs that are not here, and what they cost.

Tracing needs shapes alone; nothing is computed. The traced functions are those of a run,
`training.trainer.train_step` and `rollout.decode_step.decode_chunk`, with arguments of the same
shapes and shardings (tests/tools/test_programs.py compares them with the engine's own). `check`
compiles them, prints the figures of `lmsi aot` and returns them for its JSON: memory and what would
lower it, the least time at the chips' published rates, and questions an hour.
"""

import dataclasses
import importlib.metadata
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, SingleDeviceSharding

from lmsi_jax.config import Decoding, ModelConfig, Run, Sampling, Training
from lmsi_jax.models.attention import Cache
from lmsi_jax.models.sharding import (
    DeviceMesh,
    blocks_sharding,
    decoding_shapes,
    make_decode_mesh,
    make_training_mesh,
    named_shardings,
    slots_sharding,
    use_devices,
)
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.rollout.decode_step import ChunkInputs, Program, PromptCaches, decode_chunk
from lmsi_jax.rollout.device_caches import NoiseSource, join_groups, page_table, slot_arrays
from lmsi_jax.rollout.kv_pages import Pool
from lmsi_jax.rollout.scheduler import plan, question_bucket, question_parts
from lmsi_jax.rollout.task_prompts import PLACES, PromptBlocks, Residency
from lmsi_jax.runtime.progress import doing
from lmsi_jax.tools.aot_costs import (
    Chip,
    Compiled,
    chip_of,
    chips_in,
    compile_program,
    devices_of,
    slice_of,
)
from lmsi_jax.training.packing import batch_shape
from lmsi_jax.training.trainer import shardings, state_shapes, train_step

GROUPS = 4  # groups of metrics: the formats of a round's examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Assumed lengths in tokens, which a configuration does not determine.

    Attributes:
      prompt: the task prompt; those of LMSI have at most eight exemplars.
      question: a question.
    """

    prompt: int = 1024
    question: int = 128


def train_program(
    config: ModelConfig, training: Training, devices: Sequence[jax.Device]
) -> jax.stages.Lowered:
    """Traces an optimiser step on the first data * model of these devices.

    Raises:
      LmsiError: there are fewer.
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
    """Returns the shapes of `packing.Batch`, placed as by `sharding.shard_batch`."""
    shape = batch_shape(training)
    rows_size = (shape.microbatches, shape.rows, shape.length)
    rows = ("tokens", "segments", "positions", "groups")
    sizes: dict[str, tuple[tuple[int, ...], Any]] = dict.fromkeys(rows, (rows_size, jnp.int32))
    sizes["weights"] = (rows_size, jnp.float32)
    sizes["prefix"] = ((shape.microbatches, shape.prefix_length), jnp.int32)
    sizes["prefix_length"] = ((shape.microbatches,), jnp.int32)
    batch = {}
    for name, (size, kind) in sizes.items():
        spec = PartitionSpec() if name.startswith("prefix") else PartitionSpec(None, "data")
        where = SingleDeviceSharding(devices[0]) if mesh is None else named_shardings(mesh, spec)
        batch[name] = jax.ShapeDtypeStruct(size, kind, sharding=where)
    return batch


def sample_program(
    config: ModelConfig,
    decoding: Decoding,
    sampling: Sampling,
    lengths: Lengths,
    devices: Sequence[jax.Device],
) -> jax.stages.Lowered:
    """Traces a decode chunk of all slots, with pages for samples of full length.

    Raises:
      LmsiError: the layout needs more devices.
    """
    with use_devices(devices):
        decode_mesh = make_decode_mesh(decoding)
        arguments = decode_arguments(config, decoding, sampling, lengths, decode_mesh)
        if decode_mesh.mesh is None:
            here = SingleDeviceSharding(devices[0])
            arguments = jax.tree.map(lambda a: _placed(a, here), arguments)
        chunk = plan(decoding, sampling).chunk
        program = Program(config, decode_mesh, sampling.truncation, chunk)
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
      sampling: the settings of sampling.
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

    def part(sequences: int, places: int) -> Cache:
        """Returns shapes of all layers' keys and values, and of the filled places per sequence."""
        layers = [cached(sequences, places) for _ in range(config.num_layers)]
        counts: Any = jax.ShapeDtypeStruct(
            (groups * sequences,), jnp.int32, sharding=slots_sharding(decode_mesh)
        )
        return Cache(layers, list(layers), counts)

    depth = -(-sampling.max_new_tokens // sizes.page)
    count = -(-depth // sizes.segment_depth)
    segments = [[cached(sizes.segment, sizes.page)] * count for _ in range(config.num_layers)]
    weights = decoding_shapes(config, parameter_shapes(config), kind, decode_mesh)
    prompts = PromptCaches(
        shared=_prompt(config, lengths, kind, decode_mesh),
        questions=[part(sizes.prompt_slots, size) for size in question_parts(lengths.question - 1)],
    )
    pool = Pool(segments, [list(one) for one in segments])
    return weights, prompts, pool, _idle_inputs(decoding, sampling, lengths, depth, groups)


def _prompt_blocks(lengths: Lengths) -> int:
    return -(-lengths.prompt // PLACES)


def _prompt(
    config: ModelConfig, lengths: Lengths, kind: Any, decode_mesh: DeviceMesh
) -> PromptBlocks | None:
    """Returns the shape of the task prompt's blocks, with heads split over "model" if possible."""
    if not lengths.prompt:
        return None

    def layers(*block: int) -> list[Any]:
        shape = (_prompt_blocks(lengths), config.num_kv_heads, *block)
        where = blocks_sharding(decode_mesh, config.num_kv_heads)
        return [jax.ShapeDtypeStruct(shape, kind, sharding=where)] * config.num_layers

    return PromptBlocks(layers(PLACES, config.head_dim), layers(config.head_dim, PLACES))


def _idle_inputs(
    decoding: Decoding, sampling: Sampling, lengths: Lengths, depth: int, groups: int
) -> ChunkInputs:
    """Returns the shapes of the arrays that the host sends before a chunk."""
    sizes = plan(decoding, sampling)
    pages = -(-depth // sizes.segment_depth) * sizes.segment
    table = page_table(sizes, [], pages, sizes.slots, depth)
    slots = slot_arrays(sizes, [], [], sizes.slots, [], lambda prompt: -1)
    tables, states = jax.eval_shape(
        lambda: join_groups([slots] * groups, [table] * groups, NoiseSource(0, 0))
    )
    parts = len(question_parts(lengths.question - 1))
    return ChunkInputs(
        table=tables,
        blocks=jax.eval_shape(lambda: Residency(_prompt_blocks(lengths)).table()),
        question_parts=jax.ShapeDtypeStruct((groups * parts,), bool),  # type: ignore[arg-type]
        slots=states,
        temperature=jax.ShapeDtypeStruct((), jnp.float32),
    )


def for_training(config: ModelConfig, training: Training) -> list[str]:
    """Returns the settings of a training step that would lower its memory."""
    advice = []
    if training.data > 1 and not training.fsdp:
        advice.append("Training.fsdp = True: weights and state are spread over all chips")
    if config.remat != "layer":
        advice.append(
            "ModelConfig.remat = 'layer': keeps one input a layer, computes the rest anew"
        )
    if not config.scan_layers:
        advice.append("ModelConfig.scan_layers = True: one layer's buffers, used again and again")
    if training.compute_dtype != "bfloat16":
        advice.append("Training.compute_dtype = 'bfloat16': half the bytes of states and products")
    if training.sequences_per_prefix > training.data:
        rows = max(1, training.sequences_per_prefix // training.data // 2) * training.data
        advice.append(
            f"Training.sequences_per_prefix = {rows}, more microbatches: the step's gradient is "
            "the same"
        )
    if training.optimizer.name != "adafactor":
        advice.append("Optimizer.name = 'adafactor': no second array of each weight's size")
    return [*advice, _wider("Training", config, training.model), "a larger topology"]


def for_sampling(config: ModelConfig, decoding: Decoding) -> list[str]:
    """Returns the settings of a decode chunk that would lower its memory."""
    advice = []
    if decoding.dtype != "bfloat16":
        advice.append("Decoding.dtype = 'bfloat16': half the bytes of weights and caches")
    advice.append(_wider("Decoding", config, decoding.model))
    if decoding.slots > 1:
        advice.append(f"Decoding.slots = {decoding.slots // 2}: half the samples' caches")
    if decoding.data > 1 and not decoding.fsdp:
        advice.append("Decoding.fsdp = True: weights are gathered in every step, which is slow")
    return [*advice, "a larger topology"]


def _wider(room: str, config: ModelConfig, model: int) -> str:
    """Returns the advice of the next number of parts that the heads divide into."""
    for wider in range(model + 1, config.num_heads + 1):
        if config.num_heads % wider == 0 and wider % model == 0:
            return f"{room}.model = {wider}: heads, MLP and vocabulary in {wider} parts"
    return f"no wider {room}.model than {model}: there are {config.num_heads} heads"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds at the published rates; the slowest of the three is the roofline.

    Attributes:
      compute: FLOPs over the peak rate.
      memory: bytes read or written over the bandwidth of the HBM.
      links: bytes received over the rate of all links; a collective along one axis of the mesh may
        use only some of them.
    """

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """Seconds if all three overlap perfectly."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """The name of the slowest."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])


def of_chunk(program: Compiled, chip: Chip, steps: int) -> Roofline:
    """Returns the roofline of a decode chunk: each step reads all arguments once."""
    return Roofline(
        compute=program.flops / chip.flops,
        memory=steps * program.arguments / chip.bandwidth,
        links=program.received / chip.links,
    )


def of_step(program: Compiled, chip: Chip, config: ModelConfig, training: Training) -> Roofline:
    """Returns the roofline of an optimiser step.

    Each microbatch reads the gathered weights once forward, once more if remat recomputes, and
    twice backward (for states and for weights), in the type of the computation; each step reads and
    writes parameters, gradient and state in float32.
    """
    uses = 4 if config.remat == "layer" else 3
    width = 2 if training.compute_dtype == "bfloat16" else 4
    weights = config.parameter_count / training.model * width
    return Roofline(
        compute=program.flops / chip.flops,
        memory=(training.microbatches * uses * weights + 2 * program.arguments) / chip.bandwidth,
        links=program.received / chip.links,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """A rate of sampled questions with its assumptions.

    Attributes:
      questions_per_hour: rate of all copies together.
      copies: number of meshes of Decoding.data * Decoding.model chips in the topology.
      seconds_per_token: time of a decode step.
      prefill_seconds: time per question and mesh at the peak FLOP rate.
      num_samples, tokens: samples of a question and tokens of each; none ends early.
      occupancy: share of the slots that decode a useful token.
      lengths: lengths of prompt and question.
    """

    questions_per_hour: float
    copies: int
    seconds_per_token: float
    prefill_seconds: float
    num_samples: int
    tokens: int
    occupancy: float
    lengths: Lengths


def rate(
    roofline: Roofline,
    chip: Chip,
    chips: int,
    config: ModelConfig,
    decoding: Decoding,
    sampling: Sampling,
    lengths: Lengths,
    occupancy: float,
) -> Rate:
    """Returns the questions per hour if every chunk takes the time of its roofline.

    Args:
      roofline: the roofline of a chunk.
      chip: the kind of chips.
      chips: number of chips of the topology.
      config: the model.
      decoding: the layout.
      sampling: samples and tokens.
      lengths: lengths of prompt and question.
      occupancy: share of busy slots.
    """
    steps = plan(decoding, sampling).chunk
    mesh = decoding.data * decoding.model
    seconds = roofline.seconds / steps
    bucket = question_bucket(lengths.question - 1)
    prefill = 2.0 * config.parameter_count * bucket / (decoding.model * chip.flops)
    prefill /= decoding.data
    rows = decoding.data * decoding.slots * occupancy
    decode = sampling.num_samples * sampling.max_new_tokens * seconds / rows
    copies = max(1, chips // mesh)
    return Rate(
        questions_per_hour=copies * 3600.0 / (decode + prefill),
        copies=copies,
        seconds_per_token=seconds,
        prefill_seconds=prefill,
        num_samples=sampling.num_samples,
        tokens=sampling.max_new_tokens,
        occupancy=occupancy,
        lengths=lengths,
    )


def model_flops(config: ModelConfig, training: Training) -> float:
    """Returns the FLOPs of a full step without remat: 6 per parameter and token."""
    tokens = training.sequences_per_prefix * training.sequence_length + training.max_prefix_length
    return 6.0 * config.parameter_count * training.microbatches * tokens


_GIB = 2**30


def check(
    run: Run,
    topology: str,
    what: Sequence[str],
    lengths: Lengths,
    occupancy: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Compiles the programs of a run; returns the figures as JSON values.

    A mesh smaller than the topology is compiled for a slice of it.

    Args:
      run: the run.
      topology: for example "v5p:8x8x8".
      what: "train", "sample" or both.
      lengths: lengths of prompts and questions.
      occupancy: share of busy slots.
      say: called with each paragraph as soon as it is known.

    Raises:
      LmsiError: libtpu is missing, or the topology does not exist or is smaller than a mesh.
    """
    chip, chips = chip_of(topology), chips_in(topology)
    say(f"{run.name} on {topology}: {chips} chips of {chip.memory / _GIB:.1f} GiB")
    figures: dict[str, Any] = {"run": run.name, "topology": topology, "chips": chips}
    figures["chip"] = dataclasses.asdict(chip)
    figures["parameters"] = run.model.parameter_count
    figures["versions"] = versions()
    if "train" in what:
        size = run.training.data * run.training.model
        with doing(f"tracing a training step for {size} chips"):
            lowered = train_program(run.model, run.training, devices_of(slice_of(topology, size)))
        figures["train"] = _training(run, chip, compile_program(lowered, size, chip), say)
    if "sample" in what:
        size = run.decoding.data * run.decoding.model
        with doing(f"tracing a chunk of decoding for {size} chips"):
            devices = devices_of(slice_of(topology, size))
            lowered = sample_program(run.model, run.decoding, run.sampling, lengths, devices)
        program = compile_program(lowered, size, chip)
        figures["sample"] = _sampling(run, chip, chips, program, lengths, occupancy, say)
    return figures


_COMPILERS = ("jax", "jaxlib", "libtpu")


def versions() -> dict[str, str | None]:
    """Returns what the figures depend on besides the configuration, by name.

    They are the versions of JAX, jaxlib and libtpu (those that are installed), and "commit", that
    of lmsi_jax: None if neither a checkout nor pip's note of an installation from git tells it.
    """
    installed = {entry.name: entry.version for entry in importlib.metadata.distributions()}
    known = {name: installed[name] for name in _COMPILERS if name in installed}
    return {**known, "commit": _commit()}


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        note = importlib.metadata.distribution("lmsi_jax").read_text("direct_url.json")
        commit = json.loads(note or "{}").get("vcs_info", {}).get("commit_id")
        return str(commit) if commit else None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "lmsi_jax", "tasks")
        return (git("rev-parse", "HEAD") or "unknown") + (" with changes" if changed else "")
    except FileNotFoundError:  # no git here
        return None


def refused_programs(figures: Mapping[str, Any]) -> list[str]:
    """Returns the programs of `check`'s figures that do not fit into a chip's memory."""
    memory = figures["chip"]["memory"]
    programs = {name: figures[name] for name in ("train", "sample") if name in figures}
    return [name for name, one in programs.items() if not one["fits"] or one["peak"] > memory]


def _training(
    run: Run, chip: Chip, program: Compiled, say: Callable[[str], None]
) -> dict[str, Any]:
    training = run.training
    mesh = f"data {training.data} x model {training.model}{', fsdp' if training.fsdp else ''}"
    rows = f"{training.sequences_per_prefix} rows of {training.sequence_length}"
    batch = f"{training.microbatches} x {rows}"
    say(f"\ntrain, one step ({mesh}; {batch} after {training.max_prefix_length}; "
        f"{training.optimizer.name}, {training.compute_dtype})")  # fmt: skip
    figures = _figures(program)
    if not program.fits:
        return figures | _refused(program, for_training(run.model, training), say)
    roofline = of_step(program, chip, run.model, training)
    useful = model_flops(run.model, training) / program.chips / program.flops
    tokens = training.microbatches * training.sequences_per_prefix * training.sequence_length
    say(_memory(program, chip))
    say(_work(program, roofline))
    say(f"  useful      {100 * useful:.0f} % of the FLOPs are the model's 6 per weight and token; "
        f"at the roofline {tokens / roofline.seconds:,.0f} tokens/s")  # fmt: skip
    figures["roofline"] = _times(roofline)
    return figures | {"tokens": tokens, "useful_flops": useful}


def _sampling(
    run: Run,
    chip: Chip,
    chips: int,
    program: Compiled,
    lengths: Lengths,
    occupancy: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    decoding = run.decoding
    sizes = plan(decoding, run.sampling)
    mesh = f"data {decoding.data} x model {decoding.model}{', fsdp' if decoding.fsdp else ''}"
    samples = f"{run.sampling.num_samples} samples of {run.sampling.max_new_tokens} tokens"
    say(f"\nsample, a chunk of {sizes.chunk} steps ({mesh}; {decoding.slots} slots each, "
        f"{samples}; {decoding.dtype})")  # fmt: skip
    figures = _figures(program)
    if not program.fits:
        return figures | _refused(program, for_sampling(run.model, decoding), say)
    roofline = of_chunk(program, chip, sizes.chunk)
    speed = rate(roofline, chip, chips, run.model, decoding, run.sampling, lengths, occupancy)
    say(_memory(program, chip))
    say(_work(program, roofline))
    say(f"  questions   {speed.questions_per_hour:,.0f} an hour at most, "
        f"on {speed.copies} such meshes: {speed.num_samples} samples x {speed.tokens} tokens, "
        f"{100 * occupancy:.0f} % of the slots busy, "
        f"prompt {lengths.prompt} and question {lengths.question} tokens")  # fmt: skip
    figures["roofline"] = _times(roofline)
    return figures | {"rate": dataclasses.asdict(speed)}


def _times(roofline: Roofline) -> dict[str, Any]:
    return dataclasses.asdict(roofline) | {"seconds": roofline.seconds, "bound": roofline.bound}


def _figures(program: Compiled) -> dict[str, Any]:
    """Returns the figures of a program without its compilation time, which varies."""
    figures = dataclasses.asdict(program)
    del figures["compile_seconds"]
    return figures | {"peak": program.peak, "received": program.received}


def _refused(program: Compiled, advice: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    say(f"  DOES NOT FIT: {program.refusal}")
    for line in advice:
        say(f"    try {line}")
    return {"advice": advice}


def _memory(program: Compiled, chip: Chip) -> str:
    parts = {
        "arguments": program.arguments,
        "new outputs": program.outputs - program.aliased,
        "temporaries": program.temporaries,
        "code": program.code,
    }
    listed = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in parts.items())
    share = 100 * program.peak / chip.memory
    verdict = "fits" if program.peak <= chip.memory else "DOES NOT FIT"
    sizes = f"{program.peak / _GIB:.2f} of {chip.memory / _GIB:.1f} GiB a chip"
    return f"  memory      {verdict}: {sizes} ({share:.0f} %): {listed}"


def _work(program: Compiled, roofline: Roofline) -> str:
    lines = [f"  FLOPs       {program.flops:.3e} a chip"]
    for kind, traffic in program.collectives.items():
        lines.append(
            f"  {kind:<19} {traffic.count:>7,} times, {traffic.bytes / 1e9:9.3f} GB a chip"
        )
    if program.unknown_loops:
        lines.append(f"  ({program.unknown_loops} loops with unknown turns count once)")
    times = f"compute {roofline.compute:.4g}, HBM {roofline.memory:.4g}, links {roofline.links:.4g}"
    lines.append(f"  time        at least {roofline.seconds:.4g} s ({times})")
    lines.append(
        f"  compiler    {program.compiler_seconds:.4g} s without collectives; "
        f"{program.compile_seconds:.0f} s to compile"
    )
    return "\n".join(lines)
