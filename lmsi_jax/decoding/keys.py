"""Path keys: a path's noise is a pure function of (seed, round, question uid, k, position).

Nothing else enters: not the batch, the lane, the order of the questions, the number of processes or
a restart. Contract: `fold_in` of the round, of the two 32-bit halves of the uid's SHA-256 prefix,
of k, and last of the position; then one uniform number per position.
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


def path_keys(
    seed: int, round_index: int, uids: Sequence[str], indices: Sequence[int]
) -> jax.Array:
    """Returns one key per lane, [R], for the path `indices[r]` of question `uids[r]`."""
    words = np.array([uid_words(uid) for uid in uids], np.uint32).reshape(-1, 2)
    return _fold(seed, round_index, jnp.asarray(words), jnp.asarray(indices, jnp.uint32))


@jax.jit
def _fold(seed: int, round_index: int, words: jax.Array, indices: jax.Array) -> jax.Array:
    base = jax.random.fold_in(jax.random.key(seed), round_index)

    def one(word: jax.Array, index: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(base, word[0]), word[1])
        return jax.random.fold_in(key, index)

    return jax.vmap(one)(words, indices)


def uniforms(keys: jax.Array, position: jax.Array) -> jax.Array:
    """Returns each lane's uniform number in [0, 1) for a position; keys [R] -> [R]."""
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, position)))(keys)
