"""The noise of a sample is a pure function of (seed, round, uid, k, position)."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsi_jax.rollout.sampler import sample_keys, uid_words, uniforms


def _at(keys, position):
    """Returns every key's uniform number for one position."""
    return np.asarray(uniforms(keys, np.full((len(keys), 1), position)))[:, 0]


def _by_hand(seed, round_index, uid, index, position):
    key = jax.random.fold_in(jax.random.key(seed), round_index)
    for word in uid_words(uid):
        key = jax.random.fold_in(key, word)
    key = jax.random.fold_in(jax.random.fold_in(key, index), position)
    return np.asarray(jax.random.uniform(key))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=8), st.integers(0, 99)), min_size=3, max_size=3),
    st.randoms(),
)
def test_noise_does_not_depend_on_the_slot_or_its_neighbours(slots, random):
    keys = sample_keys(7, 2, [uid for uid, _ in slots], [k for _, k in slots])
    noise = _at(keys, 5)
    order = list(range(len(slots)))
    random.shuffle(order)
    moved = [slots[i] for i in order]
    again = _at(sample_keys(7, 2, [u for u, _ in moved], [k for _, k in moved]), 5)
    np.testing.assert_array_equal(noise[order], again)
    np.testing.assert_array_equal(noise, [_by_hand(7, 2, uid, k, 5) for uid, k in slots])


def test_every_part_of_the_key_changes_the_noise():
    base = {"seed": 1, "round_index": 1, "uid": "a", "index": 0, "position": 0}
    values = {float(_by_hand(**base))}
    for change in ({"seed": 2}, {"round_index": 2}, {"uid": "b"}, {"index": 1}, {"position": 1}):
        values.add(float(_by_hand(**base | change)))
    assert len(values) == 6


def test_each_row_has_its_own_positions():
    keys = sample_keys(1, 1, ["a", "b"], [0, 3])
    noise = np.asarray(uniforms(keys, np.array([[0, 1, 2], [5, 6, 7]])))
    assert noise[0].tolist() == [_by_hand(1, 1, "a", 0, p) for p in (0, 1, 2)]
    assert noise[1].tolist() == [_by_hand(1, 1, "b", 3, p) for p in (5, 6, 7)]


def test_noise_is_uniform():
    keys = sample_keys(0, 0, ["q"] * 4000, list(range(4000)))
    noise = _at(keys, 0)
    counts, _ = np.histogram(noise, bins=10, range=(0, 1))
    assert counts.sum() == 4000
    assert abs(counts - 400).max() < 5 * 400**0.5
