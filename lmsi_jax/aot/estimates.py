"""The least time a program takes on its chips, by their published rates, and questions an hour."""

import dataclasses

from lmsi_jax.aot.compiling import Compiled
from lmsi_jax.aot.programs import Lengths
from lmsi_jax.aot.topologies import Chip
from lmsi_jax.decoding.layout import Decoding, plan, question_bucket
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.training.settings import Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds at the published rates; the slowest of the three is the floor.

    Attributes:
      compute: FLOPs over the peak.
      memory: bytes that must be read or written over the HBM's bandwidth.
      links: bytes received over those of all links; a collective along one axis of the mesh may
        use only some of them.
    """

    compute: float
    memory: float
    links: float

    @property
    def floor(self) -> float:
        """Seconds where all three go on side by side."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """Which of them it is."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])


def of_chunk(program: Compiled, chip: Chip, steps: int) -> Roofline:
    """Of a decode chunk: each step reads weights and caches, all of the arguments, once."""
    return Roofline(
        compute=program.flops / chip.flops,
        memory=steps * program.arguments / chip.bandwidth,
        links=program.received / chip.links,
    )


def of_step(program: Compiled, chip: Chip, config: ModelConfig, training: Training) -> Roofline:
    """Of an optimiser step.

    Per microbatch the gathered weights are read forward, again where remat keeps no products, and
    twice backward (for states and for weights), in the type of the computation; once a step
    parameters, gradient and state are read and written in float32.
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
    """How fast questions are sampled, and under which assumptions.

    Attributes:
      questions_per_hour: of all copies together.
      copies: meshes of Decoding.data * Decoding.model chips that the topology holds.
      seconds_per_token: of one decode step.
      prefill_seconds: per question and mesh, at the peak FLOP rate.
      paths, tokens: per question, and per path: none ends early.
      occupancy: share of the lanes that decode a token that counts.
      lengths: of prompt and question.
    """

    questions_per_hour: float
    copies: int
    seconds_per_token: float
    prefill_seconds: float
    paths: int
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
    """Questions an hour where every chunk takes its roofline's floor.

    Args:
      roofline: of a chunk.
      chip: what the mesh is made of.
      chips: of the whole topology.
      config: the model.
      decoding: the layout.
      sampling: paths and tokens.
      lengths: of prompt and question.
      occupancy: of the lanes.
    """
    steps = plan(decoding, sampling).chunk
    mesh = decoding.data * decoding.model
    seconds = roofline.floor / steps
    bucket = question_bucket(lengths.question - 1)
    prefill = 2.0 * config.parameter_count * bucket / (decoding.model * chip.flops)
    prefill /= decoding.data
    rows = decoding.data * decoding.lanes * occupancy
    decode = sampling.paths * sampling.max_new_tokens * seconds / rows
    copies = max(1, chips // mesh)
    return Rate(
        questions_per_hour=copies * 3600.0 / (decode + prefill),
        copies=copies,
        seconds_per_token=seconds,
        prefill_seconds=prefill,
        paths=sampling.paths,
        tokens=sampling.max_new_tokens,
        occupancy=occupancy,
        lengths=lengths,
    )


def model_flops(config: ModelConfig, training: Training) -> float:
    """FLOPs that a full step needs, remat aside: 6 per parameter and token (see `floor`)."""
    own = training.rows * training.length + training.prefix_length
    return 6.0 * config.parameter_count * training.microbatches * own
