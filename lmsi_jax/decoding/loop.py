"""The jitted loop: a chunk of steps for R lanes that share a task prompt and their question.

Every lane's first input is its question's last token, so prompts and continuations go through the
same code and no lane needs its own copy of a prompt's scores.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lmsi_jax.decoding import keys as path_keys
from lmsi_jax.decoding.prefix import Cache, merge, over_cache, prefill
from lmsi_jax.decoding.sampling import Filters, draw
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import Params, hidden_states, logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lanes:
    """What R lanes carry from step to step; N is the most new tokens.

    Attributes:
      step: how many tokens have been drawn.
      token: [R] the next input.
      noise: [R] path keys.
      tokens: [R, N] drawn so far.
      logprobs: [R, N] their log-probabilities at temperature 1.
      done: [R] lanes that need no more tokens.
      lengths: [R] how many tokens each lane drew until it was done, the stop's own included.
      path: cache of the lanes' own tokens (its lengths are unused: all lanes are at `step`).
    """

    step: jax.Array
    token: jax.Array
    noise: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    done: jax.Array
    lengths: jax.Array
    path: Cache


prefill_jit = jax.jit(prefill, static_argnums=0)


def start(
    config: ModelConfig, last: jax.Array, noise: jax.Array, done: jax.Array, size: int
) -> Lanes:
    """Makes fresh lanes: last [R] is each question's last token, size the most new tokens."""
    lanes = last.shape[0]
    shape = (lanes * config.num_kv_heads, config.head_dim, size)
    layers = range(config.num_layers)
    path = Cache(
        [jnp.zeros(shape) for _ in layers],
        [jnp.zeros((shape[0], size, config.head_dim)) for _ in layers],
        jnp.zeros((lanes,), jnp.int32),
    )
    blank = jnp.zeros((lanes, size), jnp.int32)
    none = jnp.zeros((lanes,), jnp.int32)
    return Lanes(jnp.int32(0), last, noise, blank, jnp.zeros((lanes, size)), done, none, path)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=6)
def decode_chunk(
    config: ModelConfig,
    filters: Filters,
    steps: int,
    fused: Params,
    shared: Cache | None,
    questions: Cache,
    lanes: Lanes,
    stops: jax.Array,
    temperature: jax.Array | float,
) -> Lanes:
    """Draws up to `steps` further tokens for every lane; stops when all lanes are done.

    Args:
      config: the model's shape.
      filters: greedy, top-k, top-p.
      steps: tokens per chunk.
      fused: `decoder.fuse` of the parameters.
      shared: the task prompt, one sequence, or None.
      questions: S sequences; lane r belongs to question r // (R / S).
      lanes: the lanes' state; donated.
      stops: [n, w] token sequences that end a path, padded on the left with -1.
      temperature: of the softmax; unused when greedy.
    """
    end = jnp.minimum(lanes.step + steps, lanes.tokens.shape[1])

    def more(state: Lanes) -> jax.Array:
        return (state.step < end) & ~state.done.all()

    def body(state: Lanes) -> Lanes:
        return _step(config, filters, fused, shared, questions, state, stops, temperature)

    return jax.lax.while_loop(more, body, lanes)


def _step(
    config: ModelConfig,
    filters: Filters,
    fused: Params,
    shared: Cache | None,
    questions: Cache,
    state: Lanes,
    stops: jax.Array,
    temperature: jax.Array | float,
) -> Lanes:
    """One token for every lane."""
    rows, size = state.tokens.shape
    slots = questions.lengths.shape[0]
    groups = config.num_kv_heads
    step, path = state.step, state.path
    before = questions.lengths if shared is None else questions.lengths + shared.lengths[0]
    positions = jnp.repeat(before, rows // slots) + step
    keys, values = list(path.keys), list(path.values)
    so_far = jnp.broadcast_to(step + 1, (rows,))

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Adds this step to the path caches; [rows, heads, width] over path, question, prompt."""
        flat = (rows * groups, config.head_dim)
        keys[layer] = jax.lax.dynamic_update_index_in_dim(keys[layer], k.reshape(flat), step, 2)
        values[layer] = jax.lax.dynamic_update_index_in_dim(values[layer], v.reshape(flat), step, 1)
        by_slot = q.reshape(slots, rows // slots, *q.shape[1:])
        own = over_cache(q[:, None], Cache(keys, values, so_far), layer, groups)
        parts = [tuple(a[:, 0] for a in own)]
        parts.append(_flat(over_cache(by_slot, questions, layer, groups), rows))
        if shared is not None:
            parts.append(_flat(over_cache(q[None], shared, layer, groups), rows))
        return merge(parts)

    states = hidden_states(config, fused, state.token, positions, attend)
    noise = path_keys.uniforms(state.noise, step)
    token, logprob = draw(logits(config, fused, states), noise, temperature, filters)
    tokens = jax.lax.dynamic_update_index_in_dim(state.tokens, token, step, 1)
    logprobs = jax.lax.dynamic_update_index_in_dim(state.logprobs, logprob, step, 1)
    return dataclasses.replace(
        state,
        step=step + 1,
        token=token,
        tokens=tokens,
        logprobs=logprobs,
        done=state.done | _stopped(tokens, step, stops),
        lengths=jnp.where(state.done, state.lengths, step + 1),
        path=Cache(keys, values, path.lengths),
    )


def _flat(parts: tuple[jax.Array, ...], rows: int) -> tuple[jax.Array, ...]:
    """Joins the two leading axes."""
    return tuple(a.reshape(rows, *a.shape[2:]) for a in parts)


def _stopped(tokens: jax.Array, step: jax.Array, stops: jax.Array) -> jax.Array:
    """[R]: whether the tokens up to `step` end with one of the stop sequences."""
    count, width = stops.shape
    padded = jnp.pad(tokens, ((0, 0), (width - 1, 0)), constant_values=-2)
    tail = jax.lax.dynamic_slice_in_dim(padded, step, width, axis=1)
    return ((tail[:, None] == stops) | (stops == -1)).all(-1).any(-1)
