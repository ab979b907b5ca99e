"""The compiled part of decoding: prefill of prompts, and a chunk of steps for W slots.

Three levels of keys and values are attended and merged into one exact softmax: the task prompt (one
sequence for all slots after it, `task_prompts`), the question (one sequence for all slots that
sample it), and the sample: its pages (`kv_pages`) and the steps of this chunk. Between two chunks
the host may put another sample into any slot; inside a chunk nothing is decided, so shapes are
static and nothing waits for the host.

A question's cache is cut into parts of fixed positions, each attended by itself, and skipped while
no question reaches into it. So questions of all lengths share the prompt slots and a program, and
a question's numbers do not depend on the longest one beside it.

A sample's first input is the last token of its question, so that prompts and continuations go
through the same code. Input i of a sample draws its token i.

Shapes: W slots, S prompt slots of C sampling slots each, H query heads, G key/value heads, K head
dim, c steps in a chunk. On a mesh with D device groups each group has its own slots, prompt slots
and pages: arrays have D times as many rows, and numbers count within a group.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmsi_jax.config import ModelConfig, Truncation
from lmsi_jax.models.attention import (
    MASKED,
    Cache,
    LayerCache,
    Part,
    cache_attention,
    join,
    merge,
    prefill_after,
)
from lmsi_jax.models.params import Params
from lmsi_jax.models.sharding import (
    REPLICATED,
    SLOTS,
    DeviceMesh,
    all_gather,
    constrain_blocks,
    constrain_caches,
    manual_specs,
    map_over_data,
    replicate,
)
from lmsi_jax.models.transformer import Angles, angles_of, block, embed, logits, norm
from lmsi_jax.rollout.kv_pages import (
    PageTable,
    Pool,
    copy_pages,
    entry_attention,
    if_used,
    page_attention,
    write_entries,
)
from lmsi_jax.rollout.sampler import sample_token, uniforms
from lmsi_jax.rollout.task_prompts import (
    BlockTable,
    LayerBlocks,
    PromptBlocks,
    attend_prompts,
    layer_blocks,
    store_block,
)


@dataclasses.dataclass(frozen=True)
class Program:
    """The static part of a decode chunk: another value is another compilation.

    Attributes:
      config: the model's shape.
      mesh: the devices.
      truncation: greedy, top-k, top-p, min-p.
      steps: tokens per chunk (c).
    """

    config: ModelConfig
    mesh: DeviceMesh
    truncation: Truncation
    steps: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptCaches:
    """Keys and values of the prompts.

    Attributes:
      shared: the task prompts' blocks, or None.
      questions: S sequences, one in each prompt slot, cut at the positions of `question_blocks`:
        each part has its own `lengths`.
    """

    shared: PromptBlocks | None
    questions: list[Cache]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Question prompts to prefill.

    Attributes:
      tokens: [B, L], padded on the right.
      lengths: [B] real tokens.
      prompt_slots: [B] the slot that keeps each; S or above: it is not kept.
      prompt: [B] the number of its task prompt; -1: none.
      start: [B] positions of the task prompt.
    """

    tokens: jax.Array
    lengths: jax.Array
    prompt_slots: jax.Array
    prompt: jax.Array
    start: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotArrays:
    """The state of W slots before a chunk.

    Attributes:
      token: [W] the next input.
      length: [W] tokens that the sample has drawn.
      before: [W] positions before the sample: the cached ones of task prompt and question.
      prompt: [W] the number of the task prompt; -1: none.
      start: [W] the positions of the task prompt among `before`.
      noise: [W] sample keys.
      slot_in_group: [W] the slot's place among all S * C: its queries meet its question there.
      group_slots: [S, C] the slot at each place (any slot if there is none).
      page: [W] the page that takes this chunk's entries; -1 if they are not needed again.
      offset: [W] the position in that page of the first of them.
    """

    token: jax.Array
    length: jax.Array
    before: jax.Array
    prompt: jax.Array
    start: jax.Array
    noise: jax.Array
    slot_in_group: jax.Array
    group_slots: jax.Array
    page: jax.Array
    offset: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChunkInputs:
    """All that the host sends to the devices before a chunk.

    Attributes:
      table: the owners of the pages.
      blocks: the blocks of the task prompts in use.
      question_parts: [parts] if a question of any slot reaches into each part of its cache.
      slots: the state of the slots.
      temperature: [] of the softmax, float32; unused if greedy.
    """

    table: PageTable
    blocks: BlockTable
    question_parts: jax.Array
    slots: SlotArrays
    temperature: Any


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill_prompt(
    config: ModelConfig,
    mesh: DeviceMesh,
    weights: Params,
    blocks: PromptBlocks,
    table: BlockTable,
    batch: PromptBatch,
) -> PromptBlocks:
    """Computes one block of a task prompt, after those that `table` lists.

    Args:
      config: the model's shape.
      mesh: the devices.
      weights: from `sharding.decoding_weights`.
      blocks: the pool; donated.
      table: the blocks of this prompt that come before.
      batch: one sequence of a block's length; its "prompt slot" is the block.

    Returns:
      `blocks` with the new one.
    """

    def prefill_group(
        weights: Params, blocks: PromptBlocks, table: BlockTable, batch: PromptBatch
    ) -> PromptBlocks:
        gathered = all_gather(config, mesh, weights)
        new = _prefill(config, gathered, blocks, table, batch)
        return store_block(blocks, new, batch.prompt_slots)

    specs = (_weight_specs(config, mesh), REPLICATED, REPLICATED, REPLICATED)
    stored = map_over_data(mesh, prefill_group, specs, REPLICATED)(weights, blocks, table, batch)
    return constrain_blocks(mesh, stored)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill_questions(
    config: ModelConfig,
    mesh: DeviceMesh,
    weights: Params,
    questions: list[Cache],
    shared: PromptBlocks | None,
    table: BlockTable,
    batch: PromptBatch,
) -> list[Cache]:
    """Stores the caches of B questions, which follow their task prompts, in their prompt slots.

    Args:
      config: the model's shape.
      mesh: the devices.
      weights: from `sharding.decoding_weights`.
      questions: the parts of S sequences' caches; donated.
      shared: the task prompts, or None.
      table: the blocks of the task prompts in use.
      batch: the questions.

    Returns:
      `questions` with the new ones.
    """

    def prefill_group(
        weights: Params,
        questions: list[Cache],
        shared: PromptBlocks | None,
        table: BlockTable,
        batch: PromptBatch,
    ) -> list[Cache]:
        gathered = all_gather(config, mesh, weights)
        whole = _prefill(config, gathered, shared, table, batch)
        stored, begin = [], 0
        for part in questions:
            size = part.keys[0].shape[2]
            new = Cache(
                [a[:, :, begin : begin + size] for a in whole.keys],
                [a[:, :, begin : begin + size] for a in whole.values],
                jnp.clip(batch.lengths - begin, 0, size),
            )
            stored.append(_store(part, new, batch.prompt_slots))
            begin += size
        return stored

    specs = (_weight_specs(config, mesh), SLOTS, REPLICATED, REPLICATED, SLOTS)
    stored = map_over_data(mesh, prefill_group, specs, SLOTS)(
        weights, questions, shared, table, batch
    )
    return constrain_caches(mesh, stored)


def _prefill(
    config: ModelConfig,
    weights: Params,
    shared: PromptBlocks | None,
    table: BlockTable,
    batch: PromptBatch,
) -> Cache:
    before = layer_blocks(shared, table, batch.prompt)
    return prefill_after(
        config, weights, batch.tokens, batch.lengths, batch.start, before, attend_prompts
    )


def _store(caches: Any, new: Any, rows: jax.Array) -> Any:
    """Writes new sequences, which may be shorter, over rows of caches; rows beyond are dropped."""

    def store(old: jax.Array, fresh: jax.Array) -> jax.Array:
        if old.ndim == 1:
            return old.at[rows].set(fresh, mode="drop")
        places = fresh.shape[2]
        if not places:
            return old
        return old.at[rows, :, :places].set(fresh.astype(old.dtype), mode="drop")

    return jax.tree.map(store, caches, new)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def decode_chunk(
    program: Program, weights: Params, prompts: PromptCaches, pool: Pool, inputs: ChunkInputs
) -> tuple[jax.Array, jax.Array, Pool]:
    """Draws `program.steps` further tokens for every slot.

    Args:
      program: what is compiled.
      weights: from `sharding.decoding_weights`.
      prompts: caches of task prompts and questions.
      pool: the samples' pages; donated.
      inputs: the state of slots and pages.

    Returns:
      tokens [W, c] and their log-probabilities at temperature 1 [W, c], both whole on every device,
      and the pool with the chunk's keys and values in it.
    """
    config, mesh = program.config, program.mesh
    specs = (
        _weight_specs(config, mesh),
        PromptCaches(shared=REPLICATED, questions=SLOTS),  # type: ignore[arg-type]
        SLOTS,
        ChunkInputs(
            table=SLOTS,  # type: ignore[arg-type]
            blocks=REPLICATED,  # type: ignore[arg-type]
            question_parts=SLOTS,  # type: ignore[arg-type]
            slots=SLOTS,  # type: ignore[arg-type]
            temperature=REPLICATED,
        ),
    )
    decode_group = functools.partial(_decode_group, program)
    tokens, logprobs, pool = map_over_data(mesh, decode_group, specs, SLOTS)(
        weights, prompts, pool, inputs
    )
    return *replicate(mesh, (tokens, logprobs)), constrain_caches(mesh, pool)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def move_pages(
    mesh: DeviceMesh,
    source: list[jax.Array],
    target: list[jax.Array],
    begin: jax.Array,
    end: jax.Array,
    count: jax.Array,
) -> list[jax.Array]:
    """Runs `copy_pages` in every device group: counts [D], pages [D * P] within a group."""
    copied = map_over_data(mesh, copy_pages, (SLOTS,) * 5, SLOTS)(source, target, begin, end, count)
    return constrain_caches(mesh, copied)


def program_count() -> int:
    """Returns how many programs of this module the process has compiled, or read from a cache."""
    programs: tuple[Any, ...] = (prefill_prompt, prefill_questions, decode_chunk, move_pages)
    return sum(program._cache_size() for program in programs)


def _weight_specs(config: ModelConfig, mesh: DeviceMesh) -> Any:
    return None if mesh.mesh is None else manual_specs(config, mesh)


def _decode_group(
    program: Program, weights: Params, prompts: PromptCaches, pool: Pool, inputs: ChunkInputs
) -> tuple[jax.Array, jax.Array, Pool]:
    """Decodes a chunk in one device group, see `decode_chunk`."""
    config, steps, slots = program.config, program.steps, inputs.slots
    count = slots.token.shape[0]
    noise = uniforms(slots.noise, slots.length[:, None] + jnp.arange(steps))
    # Taken before the loop: inside, XLA would take the cosines anew for every head and layer.
    angles = angles_of(config, (slots.before + slots.length + jnp.arange(steps)[:, None]))
    shape = (count, config.num_kv_heads, steps, config.head_dim)
    empty = [jnp.zeros(shape, pool.keys[0][0].dtype) for _ in range(config.num_layers)]
    zeros = jnp.zeros((count, steps))
    shared = layer_blocks(prompts.shared, inputs.blocks, slots.prompt)

    def decode_step(step: jax.Array, state: tuple) -> tuple:
        """Reads each slot's token, stores its key and value, draws the next token."""
        token, keys, values, tokens, logprobs = state
        keys, values = list(keys), list(values)  # of this chunk
        now = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, step, 0, False), angles)
        gathered = all_gather(config, program.mesh, weights)
        x = embed(config, gathered, token)
        for layer in range(config.num_layers):
            caches = _LayerCaches(
                pages=Pool([pool.keys[layer]], [pool.values[layer]]),
                questions=[part.layer(layer) for part in prompts.questions],
                shared=None if shared is None else shared[layer],
            )
            x, keys[layer], values[layer] = _decode_layer(
                *(config, layer % config.layer_cycle, gathered[f"layer_{layer}"], x, now),
                *(step, keys[layer], values[layer], caches, inputs),
            )
        states = norm(config, gathered["final_norm"], x)
        uniform = jax.lax.dynamic_index_in_dim(noise, step, 1, keepdims=False)
        token, logprob = sample_token(
            logits(config, gathered, states), uniform, inputs.temperature, program.truncation
        )
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, token, step, 1)
        logprobs = jax.lax.dynamic_update_index_in_dim(logprobs, logprob, step, 1)
        return token, keys, values, tokens, logprobs

    start = (slots.token, empty, list(empty), zeros.astype(jnp.int32), zeros)
    _, keys, values, tokens, logprobs = jax.lax.fori_loop(0, steps, decode_step, start)
    return tokens, logprobs, write_entries(pool, keys, values, slots.page, slots.offset)


class _LayerCaches(NamedTuple):
    """Caches that one layer attends besides the chunk's own entries."""

    pages: Pool
    questions: list[LayerCache]
    shared: LayerBlocks | None


# Compiled on its own in name only: layers of one kind are traced once, and XLA inlines the calls.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode_layer(
    config: ModelConfig,
    place: int,
    p: Params,
    x: jax.Array,
    angles: tuple[Angles, ...],
    step: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    caches: _LayerCaches,
    inputs: ChunkInputs,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs the layer at a place of the cycle for one token of each slot.

    Args:
      config: the model's shape.
      place: the layer's place in `ModelConfig.layer_cycle`.
      p: its weights.
      x: [W, D].
      angles: of the slots' positions.
      step: [] which of the chunk's steps this is.
      keys: [W, G, c, K] this chunk's entries.
      values: the same.
      caches: the layer's caches.
      inputs: the state of slots and pages.

    Returns:
      The layer's output, and keys and values with those of this step.
    """
    slots, softcap, window = inputs.slots, config.attention_softcap, config.window(place)
    length = slots.length + step

    def add(entries: jax.Array, entry: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(entries, entry.astype(entries.dtype), step, 2)

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Stores k and v [W, G, K]; attends q [W, H, K] to everything up to them."""
        nonlocal keys, values
        keys, values = add(keys, k), add(values, v)
        first_visible = slots.before + length - window + 1 if window else None
        parts = [
            page_attention(q, caches.pages, 0, inputs.table, length, window, softcap),
            _chunk_attention(q, keys, values, step, window, softcap),
            _question_attention(q, caches.questions, inputs, first_visible, softcap),
        ]
        if caches.shared is not None:
            first = None if first_visible is None else first_visible[:, None]
            part = attend_prompts(caches.shared, q[:, None], first, softcap)
            parts.append(Part(*(a[:, 0] for a in part)))
        return merge(parts)

    x = block(config, p, place, x, angles, attend)
    return x, keys, values


def _chunk_attention(
    q: jax.Array, keys: jax.Array, values: jax.Array, step: jax.Array, window: int, softcap: float
) -> Part:
    """Attends q [W, H, K] to the entries up to `step` of this chunk, [W, G, c, K]."""
    count, heads, width = q.shape
    groups, size = keys.shape[1:3]
    queries = q.reshape(count, groups, heads // groups, width)
    entry = jnp.arange(size)
    visible = entry <= step
    if window:
        visible &= entry > step - window
    part = entry_attention(queries, keys, values, visible[:, None], softcap)
    return Part(*(a.reshape(count, heads, *a.shape[3:]) for a in part))


def _question_attention(
    q: jax.Array,
    questions: list[LayerCache],
    inputs: ChunkInputs,
    first_visible: jax.Array | None,
    softcap: float,
) -> Part:
    """Attends q [W, H, K] to each slot's question, whose cache is read once for all its slots."""
    slots = inputs.slots

    def by_question(a: jax.Array) -> jax.Array:
        return a.at[slots.group_slots].get(mode="promise_in_bounds")

    def attend(keys: jax.Array, values: jax.Array, lengths: jax.Array, *rest: jax.Array) -> Part:
        first = rest[1] if len(rest) > 1 else None
        return cache_attention(rest[0], LayerCache(keys, values, lengths), first, softcap)

    queries = by_question(q)
    first = [] if first_visible is None else [by_question(first_visible - slots.start)]
    whole, begin = None, 0
    for number, part in enumerate(questions):
        arguments = (part.keys, part.values, part.lengths, queries, *(a - begin for a in first))
        if whole is None:  # every question has a first part
            whole = attend(*arguments)
        else:
            nothing = Part(
                jnp.full_like(whole.top, MASKED), *(jnp.zeros_like(a) for a in whole[1:])
            )
            used = inputs.question_parts[number]
            whole = join(whole, if_used(attend, nothing, used, *arguments))
        begin += part.keys.shape[2]
    assert whole is not None
    return Part(
        *(
            a.reshape(-1, *a.shape[2:]).at[slots.slot_in_group].get(mode="promise_in_bounds")
            for a in whole
        )
    )
