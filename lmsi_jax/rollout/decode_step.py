"""The compiled part of decoding: prefill of prompts, and a chunk of steps for W slots.

Three levels of keys and values are attended and merged into one exact softmax: the task prompt (one
sequence for all slots), the question (one sequence for all slots that sample it), and the sample:
its pages (`kv_pages`) and the steps of this chunk. Between two chunks the host may put another
sample into any slot; inside a chunk nothing is decided, so shapes are static and nothing waits for
the host.

A sample's first input is the last token of its question, so that prompts and continuations go
through the same code. Input i of a sample draws its token i.

Shapes: W slots, S prompt slots of C sampling slots each, H query heads, G key/value heads, K head
dim, c steps in a chunk. On a mesh with D device groups each group has its own slots, prompt slots
and pages: arrays have D times as many rows, and numbers count within a group.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from lmsi_jax.config import ModelConfig, Truncation
from lmsi_jax.models.attention import Cache, Part, cache_attention, merge, prefill
from lmsi_jax.models.params import Params
from lmsi_jax.models.sharding import (
    REPLICATED,
    SLOTS,
    DeviceMesh,
    all_gather,
    constrain_caches,
    manual_specs,
    map_over_data,
    replicate,
)
from lmsi_jax.models.transformer import angles_of, hidden_states, logits
from lmsi_jax.rollout.kv_pages import (
    PageTable,
    Pool,
    copy_pages,
    entry_attention,
    page_attention,
    write_entries,
)
from lmsi_jax.rollout.sampler import sample_token, uniforms


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
      shared: the task prompt, one sequence, or None.
      questions: S sequences, one in each prompt slot.
    """

    shared: Cache | None
    questions: Cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Question prompts to prefill.

    Attributes:
      tokens: [B, L], padded on the right.
      lengths: [B] real tokens.
      prompt_slots: [B] the slot that keeps each; S or above: it is not kept.
    """

    tokens: jax.Array
    lengths: jax.Array
    prompt_slots: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotArrays:
    """The state of W slots before a chunk.

    Attributes:
      token: [W] the next input.
      length: [W] tokens that the sample has drawn.
      before: [W] positions before the sample: the cached ones of task prompt and question.
      noise: [W] sample keys.
      slot_in_group: [W] the slot's place among all S * C: its queries meet its question there.
      group_slots: [S, C] the slot at each place (any slot if there is none).
      page: [W] the page that takes this chunk's entries; -1 if they are not needed again.
      offset: [W] the position in that page of the first of them.
    """

    token: jax.Array
    length: jax.Array
    before: jax.Array
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
      slots: the state of the slots.
      temperature: [] of the softmax, float32; unused if greedy.
    """

    table: PageTable
    slots: SlotArrays
    temperature: Any


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill_prompt(
    config: ModelConfig, mesh: DeviceMesh, weights: Params, tokens: jax.Array, length: jax.Array
) -> Cache:
    """Computes the cache of a task prompt: tokens [1, L], length [1]."""

    def prefill_group(weights: Params, tokens: jax.Array, length: jax.Array) -> Cache:
        return prefill(config, all_gather(config, mesh, weights), tokens, length, None)

    specs = (_weight_specs(config, mesh), REPLICATED, REPLICATED)
    cache = map_over_data(mesh, prefill_group, specs, REPLICATED)(weights, tokens, length)
    return dataclasses.replace(cache, lengths=replicate(mesh, cache.lengths))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill_questions(
    config: ModelConfig,
    mesh: DeviceMesh,
    weights: Params,
    questions: Cache,
    shared: Cache | None,
    batch: PromptBatch,
) -> Cache:
    """Stores the caches of B questions, which follow the task prompt, in their prompt slots.

    Args:
      config: the model's shape.
      mesh: the devices.
      weights: from `sharding.decoding_weights`.
      questions: S sequences of at most L positions; donated.
      shared: the task prompt, or None.
      batch: the questions.

    Returns:
      `questions` with the new ones.
    """

    def prefill_group(
        weights: Params, questions: Cache, shared: Cache | None, batch: PromptBatch
    ) -> Cache:
        gathered = all_gather(config, mesh, weights)
        new = prefill(config, gathered, batch.tokens, batch.lengths, shared)
        return jax.tree.map(
            lambda old, fresh: old.at[batch.prompt_slots].set(fresh.astype(old.dtype), mode="drop"),
            questions,
            new,
        )

    specs = (_weight_specs(config, mesh), SLOTS, REPLICATED, SLOTS)
    stored = map_over_data(mesh, prefill_group, specs, SLOTS)(weights, questions, shared, batch)
    return constrain_caches(mesh, stored)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def decode_chunk(
    program: Program, weights: Params, prompts: PromptCaches, pool: Pool, inputs: ChunkInputs
) -> tuple[jax.Array, jax.Array, Pool]:
    """Draws `program.steps` further tokens for every slot.

    Args:
      program: what is compiled.
      weights: from `sharding.decoding_weights`.
      prompts: caches of task prompt and questions.
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
        ChunkInputs(table=SLOTS, slots=SLOTS, temperature=REPLICATED),  # type: ignore[arg-type]
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


def _weight_specs(config: ModelConfig, mesh: DeviceMesh) -> Any:
    return None if mesh.mesh is None else manual_specs(config, mesh)


def _decode_group(
    program: Program, weights: Params, prompts: PromptCaches, pool: Pool, inputs: ChunkInputs
) -> tuple[jax.Array, jax.Array, Pool]:
    """Decodes a chunk in one device group, see `decode_chunk`."""
    config, steps, slots = program.config, program.steps, inputs.slots
    count = slots.token.shape[0]
    softcap = config.attention_softcap
    noise = uniforms(slots.noise, slots.length[:, None] + jnp.arange(steps))
    # Taken before the loop: inside, XLA would take the cosines anew for every head and layer.
    angles = angles_of(config, (slots.before + slots.length + jnp.arange(steps)[:, None]))
    shape = (count, config.num_kv_heads, steps, config.head_dim)
    empty = [jnp.zeros(shape, pool.keys[0][0].dtype) for _ in range(config.num_layers)]
    zeros = jnp.zeros((count, steps))

    def decode_step(step: jax.Array, state: tuple) -> tuple:
        """Reads each slot's token, stores its key and value, draws the next token."""
        token, keys, values, tokens, logprobs = state
        keys, values = list(keys), list(values)  # of this chunk; `attend` replaces a layer's
        length = slots.length + step
        position = slots.before + length

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            """Stores k and v [W, G, K]; attends q [W, H, K] to everything up to them."""
            window = config.window(layer)
            first_visible = position - window + 1 if window else None
            for entries, entry in ((keys, k), (values, v)):
                entries[layer] = jax.lax.dynamic_update_index_in_dim(
                    entries[layer], entry.astype(entries[layer].dtype), step, 2
                )
            parts = [
                page_attention(q, pool, layer, inputs.table, length, window, softcap),
                _chunk_attention(q, keys[layer], values[layer], step, window, softcap),
                _question_attention(q, prompts, layer, slots, first_visible, softcap),
            ]
            if prompts.shared is not None:
                first = None if first_visible is None else first_visible[None]
                part = cache_attention(q[None], prompts.shared.layer(layer), first, softcap)
                parts.append(Part(*(a.reshape(count, *a.shape[2:]) for a in part)))
            return merge(parts)

        now = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, step, 0, False), angles)
        gathered = all_gather(config, program.mesh, weights)
        states = hidden_states(config, gathered, token, now, attend)
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
    prompts: PromptCaches,
    layer: int,
    slots: SlotArrays,
    first_visible: jax.Array | None,
    softcap: float,
) -> Part:
    """Attends q [W, H, K] to each slot's question, whose cache is read once for all its slots."""

    def by_question(a: jax.Array) -> jax.Array:
        return a.at[slots.group_slots].get(mode="promise_in_bounds")

    if first_visible is not None:
        start = 0 if prompts.shared is None else prompts.shared.lengths[0]
        first_visible = by_question(first_visible - start)
    part = cache_attention(by_question(q), prompts.questions.layer(layer), first_visible, softcap)
    return Part(
        *(
            a.reshape(-1, *a.shape[2:]).at[slots.slot_in_group].get(mode="promise_in_bounds")
            for a in part
        )
    )
