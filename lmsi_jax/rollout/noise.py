"""Noise of samples: a pure function of (seed, round, question uid, sample index, position).

Nothing else enters: not the batch, the slot, the order of the questions, the number of processes or
a restart. Contract: `fold_in` of the round, of the two 32-bit halves of the uid's SHA-256 prefix,
of the sample index, and last of the position; then one uniform number per position.
"""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def uid_words(uid: str) -> tuple[int, int]:
    """Returns the first 64 bits of the uid's SHA-256 as two unsigned 32-bit integers."""
    digest = hashlib.sha256(uid.encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def sample_keys(
    seed: int, round_index: int, uids: Sequence[str], indices: Sequence[int]
) -> jax.Array:
    """Returns the keys [W] of samples `indices[w]` of questions `uids[w]`."""
    words = np.array([uid_words(uid) for uid in uids], np.uint32).reshape(-1, 2)
    return keys_of_words(seed, round_index, words, np.asarray(indices, np.uint32))


def keys_of_words(seed: int, round_index: int, words: np.ndarray, indices: np.ndarray) -> jax.Array:
    """Returns the keys [W] of samples `indices` [W], given `uid_words` [W, 2]."""
    return _fold(seed, round_index, jnp.asarray(words, jnp.uint32), jnp.asarray(indices))


@jax.jit
def _fold(seed: int, round_index: int, words: jax.Array, indices: jax.Array) -> jax.Array:
    base = jax.random.fold_in(jax.random.key(seed), round_index)

    def one(word: jax.Array, index: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(base, word[0]), word[1])
        return jax.random.fold_in(key, index)

    return jax.vmap(one)(words, indices)


def uniforms(keys: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns uniform numbers in [0, 1) [W, n] for keys [W] and token positions [W, n]."""

    def one(key: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, position))

    return jax.vmap(jax.vmap(one, (None, 0)))(keys, positions)
