"""Programs of fewer slots: how few a run starts with, and when a chunk may use fewer than that.

A program of fewer slots is faster, but XLA may order the sums of another shape differently, and a
last bit can change a sampled token. So fewer slots are used only where they were seen to give the
same bits: before a run that never needs all of them (`rows_agree`), and when few samples are left
(`ProgramCache`). `Decoding.adaptive_batch = False` does without.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.config import ModelConfig
from lmsi_jax.models.params import Params, apply_matrix, wide_matmul
from lmsi_jax.rollout.task_prompts import PLACES, BlockTable, LayerBlocks, attend_prompts


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A decoded chunk on the host, without idle slots.

    Attributes:
      tokens: for each device group [active, c].
      logprobs: the same, at temperature 1.
      slot_steps: steps times slots that were computed, idle ones included.
    """

    tokens: Sequence[np.ndarray]
    logprobs: Sequence[np.ndarray]
    slot_steps: int


def rows_agree(config: ModelConfig, weights: Params, few: int, many: int) -> bool:
    """Returns whether the products of a decode step give a row the same bits in fewer rows.

    Every product whose rows are slots is compared on random rows: those with the matrices of the
    first layers, the vocabulary, and a block of a task prompt. All others have the slots, prompts
    or pages as batch dimensions, in which XLA's products are independent.

    Args:
      config: the model's shape.
      weights: from `sharding.decoding_weights`, of one device.
      few: slots of the smaller program.
      many: slots of the larger one.
    """
    draw = np.random.default_rng(0)

    def agrees(product: Callable[..., jax.Array], *shape: int, kind: np.dtype) -> bool:
        x = jnp.asarray(draw.standard_normal((many, *shape)), kind)
        return bool(jnp.array_equal(product(x)[:few], product(x[:few])))

    layers = [weights[f"layer_{n}"] for n in range(min(config.layer_cycle, config.num_layers))]
    matrices = {(name, a.shape): {name: a} for p in layers for name, a in p.items() if a.ndim == 2}
    table = weights["embedding" if config.tied_embeddings else "lm_head"]
    for name, shape in matrices:
        product = functools.partial(_multiply, name.removesuffix("_transposed"))
        product = functools.partial(product, matrices[name, shape])
        width = shape[1] if name.endswith("_transposed") else shape[0]
        if not agrees(product, width, kind=table.dtype):
            return False
    if not agrees(functools.partial(_score, table), config.embed_dim, kind=table.dtype):
        return False
    size = (1, config.num_kv_heads, PLACES, config.head_dim)
    keys, values = (jnp.asarray(draw.standard_normal(size), table.dtype) for _ in range(2))
    start, count = np.zeros(1, np.int32), np.int32(1)
    one = BlockTable(start, start, start, start + PLACES, count)  # type: ignore[arg-type]
    attend = functools.partial(_attend, keys, values.swapaxes(-1, -2), one)
    return agrees(attend, config.num_heads, config.head_dim, kind=table.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _multiply(name: str, p: Params, x: jax.Array) -> jax.Array:
    return apply_matrix(p, name, x)


@jax.jit
def _score(table: jax.Array, x: jax.Array) -> jax.Array:
    return wide_matmul(x, table, transposed=True)


@jax.jit
def _attend(keys: jax.Array, values: jax.Array, table: BlockTable, q: jax.Array) -> jax.Array:
    blocks = LayerBlocks(keys, values, table, jnp.zeros(q.shape[0], jnp.int32))
    part = attend_prompts(blocks, q[:, None], None, 0.0)
    return jnp.concatenate([part.total[..., None], part.values], axis=-1)


PATIENCE = 16
"""Chunks that a smaller program could have decoded before it is compiled: about what it costs."""


class ProgramCache:
    """Decodes each chunk with the fewest slots that are known to change no bit.

    A smaller program is tried once beside the one that is trusted, on a chunk with more than half
    of its slots busy, and is used from then on if tokens and log-probabilities agree bit by bit.

    Measured gain: workload B of bench/ (8 questions of 32 samples, ragged, 128 slots) takes 28,416
    slot steps in place of 43,008, and on the CPU of bench/README.md a step of 16 slots takes 19 ms,
    one of 64 takes 33 ms and one of 128 takes 55 ms. A small model, or a GPU, gains less than the
    compilations cost.

    Attributes:
      verified: programs that were tried, and whether they agreed.
    """

    def __init__(self) -> None:
        self.verified: dict[Hashable, bool] = {}
        self._missed: collections.Counter[Hashable] = collections.Counter()

    def decode(
        self,
        sizes: Sequence[int],
        busy: int,
        program: Callable[[int], Hashable],
        decode: Callable[[int], Chunk],
    ) -> Chunk:
        """Decodes one chunk.

        Args:
          sizes: numbers of slots that a chunk may have, ascending; the last is always trusted.
          busy: slots in use, of the busiest device group.
          program: returns the key of the program for that number of slots.
          decode: decodes the chunk with that number of slots; a repetition stores the same entries.
        """
        programs = {size: program(size) for size in sizes if size >= busy}
        full = sizes[-1]
        trusted = min(s for s, key in programs.items() if self.verified.get(key, s == full))
        smallest = min(s for s, key in programs.items() if self.verified.get(key, True))
        if smallest == trusted:
            return decode(trusted)
        self._missed[programs[smallest]] += 1
        patient = self._missed[programs[smallest]] <= PATIENCE
        if patient or 2 * busy <= smallest:  # so few slots would not prove much
            return decode(trusted)
        reference, trial = decode(trusted), decode(smallest)
        self.verified[programs[smallest]] = chunks_agree(reference, trial)
        return trial if self.verified[programs[smallest]] else decode(trusted)


def chunks_agree(one: Chunk, other: Chunk) -> bool:
    """Returns whether two chunks agree bit by bit."""
    pairs = zip([*one.tokens, *one.logprobs], [*other.tokens, *other.logprobs], strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)
