"""Defines the decode benchmarks: the model's shape, the workloads, and their roofline."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

# Of a weight, and of a number in the caches.
_BYTES = {"float32": (4, 4), "bfloat16": (2, 2), "int8": (1, 2)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The shape of a decoder; by default 37.7 million parameters, float32.

    Attributes:
      layers: number of blocks, each with attention and a gated MLP.
      width: of the residual stream.
      heads: query heads.
      kv_heads: key/value heads.
      head_dim: width of one head.
      mlp: width of the gated MLP.
      vocabulary: number of token ids; embeddings and output are tied.
      block: "parallel" as in PaLM, in our own model; "sequential" as in Llama. Peers always have
        the latter.
      dtype: of weights and caches in decoding and of products in training, unless a system's flag
        says otherwise.
    """

    layers: int = 8
    width: int = 512
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 64
    mlp: int = 2048
    vocabulary: int = 8192
    block: Literal["parallel", "sequential"] = "parallel"
    dtype: str = "float32"

    @property
    def block_parameters(self) -> int:
        """Weights of all blocks, norms aside."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.mlp)

    @property
    def parameters(self) -> int:
        """All weights, norms aside: the blocks and the tied embeddings."""
        return self.block_parameters + self.vocabulary * self.width

    def cache_bytes(self, dtype: str) -> int:
        """Returns the bytes of keys and values that one position leaves."""
        return 2 * self.layers * self.kv_heads * self.head_dim * _BYTES[dtype][1]

    def weight_bytes(self, dtype: str) -> int:
        """Returns the bytes of all weights."""
        return self.parameters * _BYTES[dtype][0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Questions that share a prompt, several samples each.

    Attributes:
      name: how commands call it.
      shared: tokens of the prompt that all questions share.
      question: further tokens of each question.
      samples: samples per question.
      max_new: most tokens a sample may have.
      lengths: how many tokens each sample has, question by question. They are the useful tokens:
        what a system computes for a sample beyond them is not counted.
      temperature: of the softmax; sampling is from the full distribution; 0 is greedy.
      model: what decodes.
    """

    name: str
    shared: int
    question: int
    samples: int
    max_new: int
    lengths: tuple[int, ...]
    temperature: float = 0.7
    model: Model = Model()

    @property
    def questions(self) -> int:
        """Number of questions."""
        return len(self.lengths) // self.samples

    @property
    def prompt(self) -> int:
        """Tokens before the first sampled one."""
        return self.shared + self.question

    @property
    def useful_tokens(self) -> int:
        """Sampled tokens that count."""
        return sum(self.lengths)

    @property
    def even(self) -> bool:
        """True if every sample has exactly `max_new` tokens."""
        return set(self.lengths) == {self.max_new}

    def of_question(self, index: int) -> tuple[int, ...]:
        """Returns the lengths of a question's samples."""
        return self.lengths[index * self.samples : (index + 1) * self.samples]


def _lengths_b() -> tuple[int, ...]:
    file = pathlib.Path(__file__).parent / "lengths_b.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["lengths"]
    return tuple(length for row in rows for length in row)


def _drawn_lengths(questions: int, samples: int) -> tuple[int, ...]:
    """Draws lengths like those of B: lognormal, median 90, sigma 0.5, at most 256."""
    drawn = np.random.default_rng(0).lognormal(np.log(90), 0.5, questions * samples)
    return tuple(int(length) for length in drawn.clip(1, 256))


MODEL = Model()
# The shape of Llama 3.2 1B; for accelerators.
LLAMA_1B = Model(
    layers=16, width=2048, heads=32, kv_heads=8, head_dim=64, mlp=8192, vocabulary=128_256,
    dtype="bfloat16",
)  # fmt: skip
# The shapes of published models that people run on CPUs (their config.json files).
SMOLLM2_135M = Model(
    layers=30, width=576, heads=9, kv_heads=3, head_dim=64, mlp=1536, vocabulary=49_152,
    block="sequential",
)  # fmt: skip
QWEN25_05B = Model(
    layers=24, width=896, heads=14, kv_heads=2, head_dim=64, mlp=4864, vocabulary=151_936,
    block="sequential",
)  # fmt: skip
GEMMA3_270M = Model(
    layers=18, width=640, heads=4, kv_heads=1, head_dim=256, mlp=2048, vocabulary=262_144,
    block="sequential",
)  # fmt: skip
SHAPES = {"D": SMOLLM2_135M, "E": QWEN25_05B, "F": GEMMA3_270M}
_A = Workload(name="A", shared=640, question=128, samples=32, max_new=64, lengths=(64,) * (4 * 32))
_B = Workload(name="B", shared=1024, question=96, samples=32, max_new=256, lengths=_lengths_b())
_C = Workload(
    name="C", shared=1024, question=96, samples=32, max_new=256, lengths=_drawn_lengths(64, 32),
    model=LLAMA_1B,
)  # fmt: skip
# Not measurements: seconds instead of minutes, to see that a system runs.
_SMOKE = Workload(name="smoke", shared=48, question=16, samples=4, max_new=16, lengths=(16,) * 8)
_RAGGED = dataclasses.replace(_SMOKE, name="smoke_ragged", lengths=(3, 16, 1, 7, 9, 2, 12, 5))


def _of_shape(name: str, questions: int, samples: int) -> Workload:
    """Returns a workload "D-8x16": a few-shot prompt, and one greedy sample or several random."""
    return Workload(
        name=f"{name}-{questions}x{samples}",
        shared=750,
        question=100,
        samples=samples,
        max_new=256,
        lengths=_drawn_lengths(questions, samples),
        temperature=0.7 if samples > 1 else 0.0,
        model=SHAPES[name],
    )


_SHAPED = [
    _of_shape(name, questions, samples)
    for name in SHAPES
    for questions in (8, 64)
    for samples in (1, 16, 32)
]
_SMOKES = [
    dataclasses.replace(
        _RAGGED, name=f"smoke_{name}", model=dataclasses.replace(shape, layers=1, vocabulary=512)
    )
    for name, shape in SHAPES.items()
]
WORKLOADS = {
    workload.name: workload for workload in (_A, _B, _C, *_SHAPED, _SMOKE, _RAGGED, *_SMOKES)
}


def prompts(workload: Workload) -> np.ndarray:
    """Draws the token ids of each question's prompt, [questions, prompt], all at least 2.

    The first `shared` columns are the same in every row. Ids 0 and 1 are left to padding and ends.
    """
    rng, model = np.random.default_rng(0), workload.model
    shared = rng.integers(2, model.vocabulary, workload.shared)
    own = rng.integers(2, model.vocabulary, (workload.questions, workload.question))
    return np.concatenate([np.tile(shared, (len(own), 1)), own], axis=1).astype(np.int32)


def _prefill_flops(model: Model, tokens: int, before: int) -> float:
    """Returns the FLOPs of `tokens` prompt positions after `before` cached ones, no outputs."""
    contexts = tokens * before + tokens * (tokens + 1) / 2
    return (
        2 * model.block_parameters * tokens
        + 4 * model.heads * model.head_dim * model.layers * contexts
    )


def _decode_flops(model: Model, before: int, length: int) -> float:
    """Returns the FLOPs of a sample of `length` tokens."""
    return _prefill_flops(model, length, before) + 2 * model.vocabulary * model.width * length


def _memory_bytes(workload: Workload, dtype: str) -> float:
    """Returns the bytes that decoding reads if all samples have slots from the first step on."""
    model = workload.model
    steps = max(workload.lengths)
    weights = steps * model.weight_bytes(dtype)
    own = sum(length * (length + 1) / 2 for length in workload.lengths)
    longest = sum(max(workload.of_question(q)) for q in range(workload.questions))
    shared = steps * workload.shared + longest * workload.question
    return weights + (own + shared) * model.cache_bytes(dtype)


def best_roofline(
    workload: Workload, matmul_rates: Mapping[str, float], bandwidth: float
) -> dict[str, Any]:
    """Returns the roofline of the machine's fastest format, its name, and those of all formats.

    Args:
      workload: what is decoded.
      matmul_rates: operations per second by type of the factors.
      bandwidth: bytes read per second.
    """
    formats = {
        dtype: roofline(workload, rate, bandwidth, dtype) for dtype, rate in matmul_rates.items()
    }
    fastest = max(formats, key=lambda dtype: formats[dtype]["tokens_per_s"])
    return {"format": fastest, **formats[fastest], "formats": formats}


def roofline(
    workload: Workload, matmul_rate: float, bandwidth: float, dtype: str = "float32"
) -> dict[str, float]:
    """Returns the least time of a machine if every prefix is computed and kept once.

    Compute: the shared prompt is prefilled once and each question once, through the blocks alone
    (no prompt position needs an output); each sampled token costs 2 FLOPs per parameter, the output
    matrix included; attention costs 4 * heads * head_dim FLOPs per layer and position attended to,
    the token's own included.

    Memory: with all samples in slots from the first step on, each step reads the weights once, the
    shared prompt's cache once, the cache of each question with unfinished samples once, and the
    cache of each unfinished sample once, its new token included. Prefill adds none: compute bounds
    it.

    At 485 GFLOP/s and 43 GB/s this gives 4,890 tokens/s for A by compute alone and 3,794 with
    memory time added; for B 4,826 and 3,311.

    Args:
      workload: what is decoded.
      matmul_rate: FLOP/s in this type.
      bandwidth: bytes read per second.
      dtype: of the weights; caches have it too, or bfloat16 if it is "int8".

    Returns:
      seconds of compute, of memory and their sum; useful tokens/s for compute and for the sum; the
      FLOPs and bytes.
    """
    model = workload.model
    flops = _prefill_flops(model, workload.shared, 0)
    flops += workload.questions * _prefill_flops(model, workload.question, workload.shared)
    flops += sum(_decode_flops(model, workload.prompt, length) for length in workload.lengths)
    read = _memory_bytes(workload, dtype)
    compute, memory = flops / matmul_rate, read / bandwidth
    return {
        "flops": flops,
        "bytes": read,
        "compute_seconds": compute,
        "memory_seconds": memory,
        "seconds": compute + memory,
        "tokens_per_s_compute": workload.useful_tokens / compute,
        "tokens_per_s_memory": workload.useful_tokens / memory,
        "tokens_per_s": workload.useful_tokens / (compute + memory),
    }
