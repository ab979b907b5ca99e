"""The jitted loop: a chunk of steps for W rows, each a path of a resident question.

Three levels of keys and values are attended and joined into one exact softmax: the task prompt
(one sequence for all rows), the row's question (one sequence for all its rows), and the path: its
pages (`pages`), and what this chunk adds. Between two chunks the host may put another path into any
row; inside a chunk nothing is decided, so shapes are static and nothing waits for the host.

A path's first input is its question's last token, so prompts and continuations go through the same
code. Position i of a path is its i-th input; it draws token i.

Path keys: a path's noise is a pure function of (seed, round, question uid, k, position).

Nothing else enters: not the batch, the row, the order of the questions, the number of processes or
a restart. Contract: `fold_in` of the round, of the two 32-bit halves of the uid's SHA-256 prefix,
of k, and last of the position; then one uniform number per position.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.config.architecture import ModelConfig
from lmsi_jax.config.sampling import Filters
from lmsi_jax.models.attention import Cache, Part, merge, over_cache, prefill
from lmsi_jax.models.params import Params
from lmsi_jax.models.rotary import angles_of
from lmsi_jax.models.sharding import (
    REPLICATED,
    SLOTS,
    DecodeMesh,
    all_gather,
    constrain_caches,
    manual_specs,
    map_over_data,
    replicate,
)
from lmsi_jax.models.transformer import Attend, hidden_states, logits
from lmsi_jax.rollout.kv_pages import (
    PageTable,
    Pool,
    copy_pages,
    over_entries,
    over_pages,
    write_entries,
)
from lmsi_jax.rollout.sampler import sample_token


def uid_words(uid: str) -> tuple[int, int]:
    """Returns the first 64 bits of the uid's SHA-256 as two unsigned 32-bit integers."""
    digest = hashlib.sha256(uid.encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def sample_keys(
    seed: int, round_index: int, uids: Sequence[str], indices: Sequence[int]
) -> jax.Array:
    """Returns one key per row, [W], for the path `indices[r]` of question `uids[r]`."""
    words = np.array([uid_words(uid) for uid in uids], np.uint32).reshape(-1, 2)
    return keys_of_words(seed, round_index, words, np.asarray(indices, np.uint32))


def keys_of_words(seed: int, round_index: int, words: np.ndarray, indices: np.ndarray) -> jax.Array:
    """`path_keys` where the uids' words [W, 2] are at hand."""
    return _fold(seed, round_index, jnp.asarray(words, jnp.uint32), jnp.asarray(indices))


@jax.jit
def _fold(seed: int, round_index: int, words: jax.Array, indices: jax.Array) -> jax.Array:
    base = jax.random.fold_in(jax.random.key(seed), round_index)

    def one(word: jax.Array, index: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(base, word[0]), word[1])
        return jax.random.fold_in(key, index)

    return jax.vmap(one)(words, indices)


def uniforms(keys: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns uniform numbers in [0, 1): keys [W], positions [W, n] -> [W, n]."""

    def one(key: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, position))

    return jax.vmap(jax.vmap(one, (None, 0)))(keys, positions)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotArrays:
    """What the host says of W rows before a chunk; S prompt slots of C places each.

    Attributes:
      token: [W] the next input.
      length: [W] tokens that the path has drawn.
      before: [W] positions before the path: the task prompt's and the question's cached ones.
      noise: [W] path keys.
      slot_in_group: [W] the row's place among all S * C: its queries meet its question's cache
        there.
      group_slots: [S, C] the row at each place (any row where none sits).
      page: [W] the page that takes this chunk's entries; -1 where they are not needed again.
      offset: [W] at which entry of that page.
    """

    token: jax.Array
    length: jax.Array
    before: jax.Array
    noise: jax.Array
    slot_in_group: jax.Array
    group_slots: jax.Array
    page: jax.Array
    offset: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill_prompt(
    config: ModelConfig,
    decode_mesh: DecodeMesh,
    weights: Params,
    tokens: jax.Array,
    length: jax.Array,
) -> Cache:
    """Caches a task prompt: tokens [1, L], length [1]."""

    def local(weights: Params, tokens: jax.Array, length: jax.Array) -> Cache:
        return prefill(config, all_gather(config, decode_mesh, weights), tokens, length, None)

    specs = (_weights(config, decode_mesh), REPLICATED, REPLICATED)
    cache = map_over_data(decode_mesh, local, specs, REPLICATED)(weights, tokens, length)
    return dataclasses.replace(cache, lengths=replicate(decode_mesh, cache.lengths))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill_questions(
    config: ModelConfig,
    decode_mesh: DecodeMesh,
    weights: Params,
    questions: Cache,
    shared: Cache | None,
    tokens: jax.Array,
    lengths: jax.Array,
    slots: jax.Array,
) -> Cache:
    """Caches B questions behind the task prompt, in the given slots of S.

    Args:
      config: the model's shape.
      decode_mesh: the mesh; with D device groups every array but the prompt has D times as many
        rows, and slots count within a group.
      weights: from `decoding_weights`.
      questions: S sequences of at most L positions; donated.
      shared: the task prompt, or None.
      tokens: [B, L], padded on the right.
      lengths: [B] real tokens.
      slots: [B]; S or above: the question is not kept.
    """

    def local(
        weights: Params,
        questions: Cache,
        shared: Cache | None,
        tokens: jax.Array,
        lengths: jax.Array,
        slots: jax.Array,
    ) -> Cache:
        """`prefill_questions` of one device group."""
        new = prefill(config, all_gather(config, decode_mesh, weights), tokens, lengths, shared)
        return jax.tree.map(
            lambda old, fresh: old.at[slots].set(fresh.astype(old.dtype), mode="drop"),
            questions,
            new,
        )

    specs = (_weights(config, decode_mesh), SLOTS, REPLICATED, SLOTS, SLOTS, SLOTS)
    seated = map_over_data(decode_mesh, local, specs, SLOTS)(
        weights, questions, shared, tokens, lengths, slots
    )
    return constrain_caches(decode_mesh, seated)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=7)
def decode_chunk(
    config: ModelConfig,
    decode_mesh: DecodeMesh,
    filters: Filters,
    steps: int,
    weights: Params,
    shared: Cache | None,
    questions: Cache,
    pool: Pool,
    table: PageTable,
    rows: SlotArrays,
    temperature: jax.Array | float,
) -> tuple[jax.Array, jax.Array, Pool]:
    """Draws `steps` further tokens for every row.

    Args:
      config: the model's shape.
      decode_mesh: the mesh; with D device groups every array but the prompt has D times as many
        rows, and rows, places and pages count within a group.
      filters: greedy, top-k, top-p, min-p.
      steps: tokens per chunk.
      weights: from `decoding_weights`.
      shared: the task prompt, one sequence, or None.
      questions: S sequences.
      pool: the paths' pages; donated.
      table: who owns which page.
      rows: the rows' state.
      temperature: of the softmax; unused when greedy.

    Returns:
      tokens [W, steps], their log-probabilities at temperature 1 [W, steps], both whole on every
      device, and the pool with the chunk's keys and values in it.
    """
    local = functools.partial(_chunk, config, decode_mesh, filters, steps)
    specs = (_weights(config, decode_mesh), REPLICATED, SLOTS, SLOTS, SLOTS, SLOTS, REPLICATED)
    tokens, logprobs, pool = map_over_data(decode_mesh, local, specs, SLOTS)(
        weights, shared, questions, pool, table, rows, temperature
    )
    return *replicate(decode_mesh, (tokens, logprobs)), constrain_caches(decode_mesh, pool)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def move_pages(
    decode_mesh: DecodeMesh,
    source: list[jax.Array],
    target: list[jax.Array],
    begin: jax.Array,
    end: jax.Array,
    count: jax.Array,
) -> list[jax.Array]:
    """`pages.moved` in every device group: counts [D], page numbers [D * P] within a group."""
    copied = map_over_data(decode_mesh, copy_pages, (SLOTS,) * 5, SLOTS)(
        source, target, begin, end, count
    )
    return constrain_caches(decode_mesh, copied)


def _weights(config: ModelConfig, decode_mesh: DecodeMesh) -> Any:
    return None if decode_mesh.mesh is None else manual_specs(config, decode_mesh)


def _chunk(
    config: ModelConfig,
    decode_mesh: DecodeMesh,
    filters: Filters,
    steps: int,
    weights: Params,
    shared: Cache | None,
    questions: Cache,
    pool: Pool,
    table: PageTable,
    rows: SlotArrays,
    temperature: jax.Array | float,
) -> tuple[jax.Array, jax.Array, Pool]:
    """`decode_chunk` of one device group."""
    count = rows.token.shape[0]
    shape = (count, config.num_kv_heads, steps, config.head_dim)
    kind = pool.keys[0][0].dtype
    noise = uniforms(rows.noise, rows.length[:, None] + jnp.arange(steps))
    # Taken before the loop: inside, XLA would take the cosines anew for every head and layer.
    angles = angles_of(config, (rows.before + rows.length + jnp.arange(steps)[:, None]))
    fresh = [jnp.zeros(shape, kind) for _ in range(config.num_layers)]
    blank = jnp.zeros((count, steps))

    def body(step: jax.Array, state: tuple) -> tuple:
        """Reads each row's token, writes its key and value, draws the next token."""
        token, keys, values, tokens, logprobs = state
        keys, values = list(keys), list(values)
        attend = _attention(config, shared, questions, pool, table, rows, keys, values, step)
        now = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, step, 0, False), angles)
        gathered = all_gather(config, decode_mesh, weights)
        states = hidden_states(config, gathered, token, now, attend)
        uniform = jax.lax.dynamic_index_in_dim(noise, step, 1, keepdims=False)
        token, logprob = sample_token(
            logits(config, gathered, states), uniform, temperature, filters
        )
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, token, step, 1)
        logprobs = jax.lax.dynamic_update_index_in_dim(logprobs, logprob, step, 1)
        return token, keys, values, tokens, logprobs

    start = (rows.token, fresh, list(fresh), blank.astype(jnp.int32), blank)
    _, keys, values, tokens, logprobs = jax.lax.fori_loop(0, steps, body, start)
    return tokens, logprobs, write_entries(pool, keys, values, rows.page, rows.offset)


def _attention(
    config: ModelConfig,
    shared: Cache | None,
    questions: Cache,
    pool: Pool,
    table: PageTable,
    rows: SlotArrays,
    keys: list[jax.Array],
    values: list[jax.Array],
    step: jax.Array,
) -> Attend:
    """Returns the `attend` callback of one step; it adds the step to `keys` and `values`."""
    groups, softcap = config.num_kv_heads, config.attention_softcap
    count = rows.token.shape[0]
    own = rows.length + step
    position = rows.before + own
    prompt = 0 if shared is None else shared.lengths[0]

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """[W, heads, width] over the prompt, the question, the pages and this chunk."""
        window = config.window(layer)
        since = position - window + 1
        for kept, new in ((keys, k), (values, v)):
            kept[layer] = jax.lax.dynamic_update_index_in_dim(
                kept[layer], new.astype(kept[layer].dtype), step, 2
            )
        parts = [
            over_pages(q, pool, layer, table, own, window, softcap),
            _over_chunk(q, keys[layer], values[layer], step, window, softcap),
        ]
        # Each question's rows side by side, so that its cache is read once for all of them.
        seated = q.at[rows.group_slots].get(mode="promise_in_bounds")
        first = (
            (since - prompt).at[rows.group_slots].get(mode="promise_in_bounds") if window else None
        )
        asked = over_cache(seated, questions, layer, groups, first, softcap)
        parts.append(
            tuple(
                a.reshape(-1, *a.shape[2:]).at[rows.slot_in_group].get(mode="promise_in_bounds")
                for a in asked
            )
        )
        if shared is not None:
            first = since[None] if window else None
            prompted = over_cache(q[None], shared, layer, groups, first, softcap)
            parts.append(tuple(a.reshape(count, *a.shape[2:]) for a in prompted))
        return merge(parts)

    return attend


def _over_chunk(
    q: jax.Array, keys: jax.Array, values: jax.Array, step: jax.Array, window: int, softcap: float
) -> Part:
    """The part of q [W, H, K] over the entries up to `step` of this chunk, [W, G, c, K]."""
    count, heads, width = q.shape
    groups, size = keys.shape[1:3]
    queries = q.reshape(count, groups, heads // groups, width)
    entry = jnp.arange(size)
    seen = entry <= step
    if window:
        seen &= entry > step - window
    part = over_entries(queries, keys, values, seen[:, None], softcap)
    return tuple(a.reshape(count, heads, *a.shape[3:]) for a in part)
