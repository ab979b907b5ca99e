"""`lmsi aot`'s figures: compiled one program after the other, printed, and kept as JSON."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from lmsi_jax.aot import estimates
from lmsi_jax.aot.advice import for_sampling, for_training
from lmsi_jax.aot.compiling import Compiled, compiled
from lmsi_jax.aot.programs import Lengths, sample_program, train_program
from lmsi_jax.aot.topologies import Chip, chip_of, chips_in, devices_of, slice_of
from lmsi_jax.decoding.layout import plan
from lmsi_jax.run import Run

_GIB = 2**30


def check(
    run: Run,
    topology: str,
    what: Sequence[str],
    lengths: Lengths,
    occupancy: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Compiles a run's programs; returns the figures as JSON's types.

    A mesh smaller than the topology is compiled for a slice of it.

    Args:
      run: the run.
      topology: such as "v5p:8x8x8".
      what: "train", "sample" or both.
      lengths: of prompts and questions.
      occupancy: share of the lanes that are busy.
      say: is given each paragraph as soon as it is known.

    Raises:
      LmsiError: no libtpu, no such topology, or a mesh that it has not enough chips for.
    """
    chip, chips = chip_of(topology), chips_in(topology)
    say(f"{run.name} on {topology}: {chips} chips of {chip.memory / _GIB:.1f} GiB")
    found: dict[str, Any] = {"run": run.name, "topology": topology, "chips": chips}
    found["chip"] = dataclasses.asdict(chip)
    found["parameters"] = run.model.parameter_count
    if "train" in what:
        size = run.training.data * run.training.model
        lowered = train_program(run.model, run.training, devices_of(slice_of(topology, size)))
        found["train"] = _training(run, chip, compiled(lowered, size, chip), say)
    if "sample" in what:
        size = run.decoding.data * run.decoding.model
        devices = devices_of(slice_of(topology, size))
        lowered = sample_program(run.model, run.decoding, run.sampling, lengths, devices)
        program = compiled(lowered, size, chip)
        found["sample"] = _sampling(run, chip, chips, program, lengths, occupancy, say)
    return found


def _training(
    run: Run, chip: Chip, program: Compiled, say: Callable[[str], None]
) -> dict[str, Any]:
    training = run.training
    mesh = f"data {training.data} x model {training.model}{', fsdp' if training.fsdp else ''}"
    batch = f"{training.microbatches} x {training.rows} rows of {training.length}"
    say(f"\ntrain, one step ({mesh}; {batch} behind {training.prefix_length}; "
        f"{training.optimizer.name}, {training.compute_dtype})")  # fmt: skip
    found = _figures(program)
    if not program.fits:
        return found | _refused(program, for_training(run.model, training), say)
    roofline = estimates.of_step(program, chip, run.model, training)
    useful = estimates.model_flops(run.model, training) / program.chips / program.flops
    tokens = training.microbatches * training.rows * training.length
    say(_memory(program, chip))
    say(_work(program, roofline))
    say(f"  useful      {100 * useful:.0f} % of the FLOPs are the model's 6 per weight and token; "
        f"at the floor {tokens / roofline.floor:,.0f} tokens/s")  # fmt: skip
    found["roofline"] = _times(roofline)
    return found | {"tokens": tokens, "useful_flops": useful}


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
    paths = f"{run.sampling.paths} paths of {run.sampling.max_new_tokens} tokens"
    say(f"\nsample, a chunk of {sizes.chunk} steps ({mesh}; {decoding.lanes} lanes each, "
        f"{paths}; {decoding.dtype})")  # fmt: skip
    found = _figures(program)
    if not program.fits:
        return found | _refused(program, for_sampling(run.model, decoding), say)
    roofline = estimates.of_chunk(program, chip, sizes.chunk)
    speed = estimates.rate(
        roofline, chip, chips, run.model, decoding, run.sampling, lengths, occupancy
    )
    say(_memory(program, chip))
    say(_work(program, roofline))
    say(f"  questions   {speed.questions_per_hour:,.0f} an hour at most, on {speed.copies} such "
        f"meshes: {speed.paths} paths x {speed.tokens} tokens, {100 * occupancy:.0f} % of the lanes "
        f"busy, prompt {lengths.prompt} and question {lengths.question} tokens")  # fmt: skip
    found["roofline"] = _times(roofline)
    return found | {"rate": dataclasses.asdict(speed)}


def _times(roofline: estimates.Roofline) -> dict[str, Any]:
    return dataclasses.asdict(roofline) | {"floor": roofline.floor, "bound": roofline.bound}


def _figures(program: Compiled) -> dict[str, Any]:
    """A program's own figures; how long it took to compile is no property of it."""
    found = dataclasses.asdict(program)
    del found["compile_seconds"]
    return found | {"peak": program.peak, "received": program.received}


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


def _work(program: Compiled, roofline: estimates.Roofline) -> str:
    lines = [f"  FLOPs       {program.flops:.3e} a chip"]
    for kind, traffic in program.collectives.items():
        lines.append(
            f"  {kind:<19} {traffic.count:>7,} times, {traffic.bytes / 1e9:9.3f} GB a chip"
        )
    if program.unknown_loops:
        lines.append(f"  ({program.unknown_loops} loops with unknown turns count once)")
    times = f"compute {roofline.compute:.4g}, HBM {roofline.memory:.4g}, links {roofline.links:.4g}"
    lines.append(f"  time        at least {roofline.floor:.4g} s ({times})")
    lines.append(
        f"  compiler    {program.compiler_seconds:.4g} s without collectives; "
        f"{program.compile_seconds:.0f} s to compile"
    )
    return "\n".join(lines)
