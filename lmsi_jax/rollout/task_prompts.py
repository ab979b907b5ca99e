"""Keys and values of task prompts: blocks of one size, shared by the prompts in use.

Requests of several tasks and prompt styles are decoded together, each sample after the prompt of
its own request. A prompt takes as many blocks of `PLACES` positions as it needs, anywhere in the
pool; a step goes through the blocks in use and attends each with every query, and a query keeps the
result if the block is of its own prompt. So a sample's numbers depend neither on the size of the
pool nor on the prompts beside its own, and a pool of another size is all that another set of
prompts could compile anew.

A prompt stays until its blocks are needed for another one, and is not computed again meanwhile.

Shapes: N blocks of n positions, W queries, H query heads, G key/value heads, K head dim.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.models.attention import (
    MASKED,
    Cache,
    Part,
    group_bias,
    group_heads,
    join,
    ungroup_heads,
)
from lmsi_jax.models.params import soft_cap, wide_matmul
from lmsi_jax.records import Text

PLACES = 128
"""Positions in a block (n)."""
_TOGETHER = 4  # prompts as long as the longest that fit together: further ones wait for room


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptBlocks:
    """Blocks of all layers.

    Attributes:
      keys: per layer [N, G, n, K].
      values: per layer [N, G, K, n].
    """

    keys: list[jax.Array]
    values: list[jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockTable:
    """Blocks in use, those of a prompt in the order of their positions.

    Attributes:
      block: [N] their numbers in the pool; only the first `count` entries are real.
      prompt: [N] the number of the prompt of each.
      first: [N] the position of its first entry.
      stored: [N] positions stored in it; 0 if the entry is not real.
      count: [] blocks in use.
    """

    block: jax.Array
    prompt: jax.Array
    first: jax.Array
    stored: jax.Array
    count: jax.Array


class LayerBlocks(NamedTuple):
    """One layer's blocks, their table, and the number of each sequence's prompt.

    Attributes:
      keys: [N, G, n, K].
      values: [N, G, K, n].
      table: the blocks in use.
      prompt: [B] of the sequences that attend; -1: none.
    """

    keys: jax.Array
    values: jax.Array
    table: BlockTable
    prompt: jax.Array


def layer_blocks(
    blocks: PromptBlocks | None, table: BlockTable, prompt: jax.Array
) -> list[LayerBlocks] | None:
    """Returns all layers' blocks; None if there are none."""
    if blocks is None:
        return None
    pairs = zip(blocks.keys, blocks.values, strict=True)
    return [LayerBlocks(keys, values, table, prompt) for keys, values in pairs]


def attend_prompts(
    blocks: LayerBlocks, q: jax.Array, first_visible: jax.Array | None, softcap: float
) -> Part:
    """Attends each sequence's own prompt.

    Args:
      blocks: one layer's.
      q: [B, n, H, K], scaled.
      first_visible: [B, n] the first position that a query sees; None: the very first.
      softcap: `ModelConfig.attention_softcap`.

    Returns:
      top and total [B, n, H], values [B, n, H, K].
    """
    batch, n, heads, width = q.shape
    groups = blocks.keys.shape[1]
    rows = group_heads(q.reshape(1, batch * n, heads, width), groups)
    prompt = _of_rows(jnp.repeat(blocks.prompt, n), heads // groups)
    first = None
    if first_visible is not None:
        first = _of_rows(first_visible.reshape(-1), heads // groups)
    part = jax.lax.platform_dependent(
        *(blocks._replace(prompt=prompt), rows, first),
        cuda=functools.partial(_attend_at_once, softcap),
        default=functools.partial(_attend_in_turn, softcap),
    )
    return Part(
        *(ungroup_heads(a, heads).reshape(batch, n, heads, *a.shape[rows.ndim - 1 :]) for a in part)
    )


def _of_rows(numbers: jax.Array, per: int) -> jax.Array:
    """Gives numbers [W] the axes of the rows of `group_heads`: [1, 1, W * per]."""
    return group_bias(numbers[None, :, None], per)[..., 0]


def _attend(
    softcap: float,
    keys: jax.Array,
    values: jax.Array,
    stored: jax.Array,
    q: jax.Array,
    first_visible: jax.Array | None,
) -> Part:
    """Attends blocks [B, G, n, K] (values [B, G, K, n]) of `stored` [B] positions.

    The values are stored so that a row of either product has the same bits whatever the number of
    rows, see `params.transpose_weights`.
    """
    entry = jnp.arange(keys.shape[2])
    outer = (-1, *[1] * (q.ndim - 1))
    visible = entry < stored.reshape(outer)
    if first_visible is not None:
        visible &= entry >= first_visible[..., None]
    logits = soft_cap(wide_matmul(q, keys, transposed=True), softcap)
    logits = jnp.where(visible, logits, MASKED)
    top = logits.max(-1)
    weights = jnp.exp(logits - top[..., None])
    values = wide_matmul(weights.astype(values.dtype), values, transposed=True)
    return Part(top, weights.sum(-1), values)


def _attend_in_turn(
    softcap: float, blocks: LayerBlocks, q: jax.Array, first_visible: jax.Array | None
) -> Part:
    """Goes through the blocks in use; queries and results as of `group_heads`."""
    table = blocks.table

    def attend_block(i: jax.Array, whole: Part) -> Part:
        block, stored = table.block[i], table.stored[i][None]
        keys, values = (
            jax.lax.dynamic_index_in_dim(a, block) for a in (blocks.keys, blocks.values)
        )
        first = None if first_visible is None else first_visible - table.first[i]
        part = _attend(softcap, keys, values, stored, q, first)
        return _where(blocks.prompt == table.prompt[i], join(whole, part), whole)

    return jax.lax.fori_loop(0, table.count, attend_block, _nothing(q))


def _attend_at_once(
    softcap: float, blocks: LayerBlocks, q: jax.Array, first_visible: jax.Array | None
) -> Part:
    """Does the same for a GPU, whose loop would wait for the host: all blocks in one product."""
    table, size = blocks.table, blocks.keys.shape[0]
    real = jnp.arange(size) < table.count
    place = jnp.zeros(size, jnp.int32)  # in the table, of each block in use
    place = place.at[jnp.where(real, table.block, size)].set(jnp.arange(size), mode="drop")
    first = None
    if first_visible is not None:
        first = first_visible - table.first[place].reshape(-1, *[1] * (first_visible.ndim - 1))
    queries = jnp.broadcast_to(q, (size, *q.shape[1:]))
    parts = _attend(softcap, blocks.keys, blocks.values, table.stored[place], queries, first)
    whole = _nothing(q)
    for i in range(size):
        own = (blocks.prompt == table.prompt[i]) & real[i]
        part = Part(*(a[table.block[i]][None] for a in parts))
        whole = _where(own, join(whole, part), whole)
    return whole


def _nothing(q: jax.Array) -> Part:
    rows = q.shape[:-1]
    return Part(jnp.full(rows, MASKED), jnp.zeros(rows), jnp.zeros(q.shape))


def _where(rows: jax.Array, one: Part, other: Part) -> Part:
    """Returns these rows of one part, and the rest of the other."""
    values = jnp.where(rows[..., None], one.values, other.values)
    return Part(
        jnp.where(rows, one.top, other.top), jnp.where(rows, one.total, other.total), values
    )


def store_block(blocks: PromptBlocks, new: Cache, number: jax.Array) -> PromptBlocks:
    """Returns the blocks with a new one, the cache of one sequence of n tokens, at a number [1]."""

    def store(old: jax.Array, fresh: jax.Array) -> jax.Array:
        return old.at[number].set(fresh.astype(old.dtype))

    return PromptBlocks(
        [store(*pair) for pair in zip(blocks.keys, new.keys, strict=True)],
        [
            store(old, fresh.swapaxes(-1, -2))
            for old, fresh in zip(blocks.values, new.values, strict=True)
        ],
    )


@dataclasses.dataclass(frozen=True)
class TaskPrompt:
    """A task prompt and its tokens."""

    text: Text
    tokens: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """Blocks that it takes."""
        return -(-len(self.tokens) // PLACES)


def pool_size(prompts: Sequence[TaskPrompt]) -> int:
    """Returns the blocks of a pool for these prompts, all at once or a few at a time."""
    sizes = [prompt.blocks for prompt in prompts]
    return min(sum(sizes), _TOGETHER * max(sizes, default=0))


@dataclasses.dataclass
class _Held:
    """A prompt in the pool.

    Attributes:
      number: enters the tables.
      prompt: the prompt.
      blocks: its blocks, in the order of their positions.
      users: questions in flight.
    """

    number: int
    prompt: TaskPrompt
    blocks: list[int]
    users: int = 0


class Residency:
    """Assigns blocks of a pool to prompts; plain Python.

    Args:
      size: number of blocks.
    """

    def __init__(self, size: int):
        self.size = size
        self._free = list(range(size))
        self._held: dict[Text, _Held] = {}  # the least recently used first
        self._count = 0

    def admit(self, prompt: TaskPrompt) -> list[int] | None:
        """Adds a user of a prompt.

        Returns:
          The blocks that must be computed, [] if the prompt is there; None if there is no room
          until users have left.
        """
        held = self._held.pop(prompt.text, None)
        if held is not None:
            self._held[prompt.text] = held
            held.users += 1
            return []
        idle = [one for one in self._held.values() if not one.users]
        if prompt.blocks > len(self._free) + sum(len(one.blocks) for one in idle):
            return None
        while prompt.blocks > len(self._free):
            least = idle.pop(0)
            self._free = sorted(self._free + least.blocks)
            del self._held[least.prompt.text]
        blocks, self._free = self._free[: prompt.blocks], self._free[prompt.blocks :]
        self._held[prompt.text] = _Held(self._count, prompt, blocks, users=1)
        self._count += 1
        return blocks

    def leave(self, prompt: TaskPrompt) -> None:
        """Removes a user of a prompt."""
        self._held[prompt.text].users -= 1

    def number(self, prompt: TaskPrompt) -> int:
        """Returns the number of a prompt that is there."""
        return self._held[prompt.text].number

    def table(self, only: TaskPrompt | None = None, count: int | None = None) -> BlockTable:
        """Returns the table of the prompts in use.

        Args:
          only: the one prompt to list.
          count: only so many blocks of it.
        """
        held = [one for one in self._held.values() if one.users]
        if only is not None:
            held = [self._held[only.text]]
        rows = [
            (
                block,
                one.number,
                place * PLACES,
                min(PLACES, len(one.prompt.tokens) - place * PLACES),
            )
            for one in sorted(held, key=lambda one: one.number)
            for place, block in enumerate(one.blocks[:count])
        ]
        columns = np.zeros((4, self.size), np.int32)
        columns[:, : len(rows)] = np.array(rows, np.int32).reshape(-1, 4).T
        block, number, first, stored = columns
        return BlockTable(block, number, first, stored, np.int32(len(rows)))  # type: ignore[arg-type]
