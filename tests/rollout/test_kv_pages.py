"""Attention over a pool of pages against a softmax over each slot's own positions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsi_jax.models.attention import MASKED, Part, merge
from lmsi_jax.rollout.device_caches import page_table
from lmsi_jax.rollout.kv_pages import (
    PageTable,
    Pool,
    _sum_in_order,
    _write_by_loop,
    _write_by_scatter,
    page_attention,
    write_entries,
)
from lmsi_jax.rollout.scheduler import Plan, Running

WIDTH, ENTRIES = 8, 4


def _layout(random, lengths, segments, size):
    """Scatters each slot's pages over the pool."""
    pages = list(range(segments * size))
    random.shuffle(pages)
    return [[pages.pop() for _ in range(-(-length // ENTRIES))] for length in lengths]


def _table(own, lengths, segments, size):
    count = segments * size
    row, stored, first = (np.zeros(count, np.int32) for _ in range(3))
    of_row = np.zeros((len(lengths), 4), np.int32)
    for at, (pages, length) in enumerate(zip(own, lengths, strict=True)):
        for j, page in enumerate(pages):
            of_row[at, j] = page
            row[page], first[page] = at, j * ENTRIES
            stored[page] = min(ENTRIES, length - j * ENTRIES)
    shape = (segments, size)
    stored = stored.reshape(shape)
    return PageTable(
        owner=jnp.asarray(row.reshape(shape)),
        stored=jnp.asarray(stored),
        first=jnp.asarray(first.reshape(shape)),
        used=jnp.asarray(stored.any(1)),
        of_slot=jnp.asarray(of_row),
        count=jnp.asarray([len(pages) for pages in own], jnp.int32),
    )


def _filled(own, lengths, groups, segments, size, keys, values):
    """Returns a pool with each slot's keys and values, and noise in all other entries."""
    noise = np.random.default_rng(1)
    shape = (segments * size, groups, ENTRIES, WIDTH)
    pools = [noise.normal(size=shape).astype(np.float32) * 9 for _ in range(2)]
    for at, (pages, length) in enumerate(zip(own, lengths, strict=True)):
        for t in range(length):
            for pool, rows in zip(pools, (keys, values), strict=True):
                pool[pages[t // ENTRIES], :, t % ENTRIES] = rows[at][t]
    parts = [pool.reshape(segments, size, *shape[1:]) for pool in pools]
    return Pool(*([[jnp.asarray(segment) for segment in part]] for part in parts))


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 16), min_size=1, max_size=5),
    st.sampled_from([(4, 4), (4, 2), (4, 1), (1, 1)]),
    st.sampled_from([0, 1, 5, 40]),
    st.sampled_from([0.0, 3.0]),
    st.randoms(),
)
def test_slots_attend_their_own_pages_wherever_they_are(lengths, heads, window, softcap, random):
    heads, groups = heads
    size, segments = 7, 3
    own = _layout(random, lengths, segments, size)
    draw = np.random.default_rng(0)
    keys = [draw.normal(size=(length, groups, WIDTH)) for length in lengths]
    values = [draw.normal(size=(length, groups, WIDTH)) for length in lengths]
    q = draw.normal(size=(len(lengths), heads, WIDTH))
    pool = _filled(own, lengths, groups, segments, size, keys, values)
    table = _table(own, lengths, segments, size)
    position = np.asarray(lengths)
    top, total, mixed = page_attention(
        jnp.asarray(q, jnp.float32), pool, 0, table, jnp.asarray(position), window, softcap
    )
    for at, length in enumerate(lengths):
        first = max(0, length - window + 1) if window else 0
        if first >= length:
            assert (np.asarray(top[at]) <= MASKED / 2).all()
            continue
        for head in range(heads):
            group = head * groups // heads
            scores = keys[at][first:, group] @ q[at, head]
            scores = softcap * np.tanh(scores / softcap) if softcap else scores
            weights = np.exp(scores - scores.max())
            expected = weights @ values[at][first:, group] / weights.sum()
            got = merge([Part(top[at, head], total[at, head], mixed[at, head])])
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_chunk_is_written_where_it_belongs_and_nowhere_else():
    shape = (3, 2, ENTRIES, WIDTH)
    old = [[jnp.full(shape, -1.0), jnp.full(shape, -2.0)] for _ in range(2)]
    fresh = np.random.default_rng(2).normal(size=(4, 2, 2, WIDTH)).astype(np.float32)
    page, offset = np.array([4, -1, 0, 5]), np.array([2, 0, 0, 2])
    rows = [jnp.asarray(fresh), jnp.asarray(fresh * 2)]
    pool = write_entries(Pool(old, old), rows, rows, jnp.asarray(page), jnp.asarray(offset))
    for layer, scale in enumerate((1, 2)):
        whole = np.concatenate([np.asarray(segment) for segment in pool.keys[layer]])
        expected = np.concatenate([np.full(shape, -1.0), np.full(shape, -2.0)])
        for row in (0, 2, 3):
            at = slice(offset[row], offset[row] + 2)
            expected[page[row], :, at] = fresh[row] * scale
        np.testing.assert_array_equal(whole, expected.astype(np.float32))
        np.testing.assert_array_equal(pool.values[layer], pool.keys[layer])


@given(st.lists(st.integers(-1, 7), min_size=1, max_size=6, unique=True), st.integers(0, 2))
@settings(max_examples=10, deadline=None)
def test_a_scatter_writes_what_the_loop_writes(page, offset):
    noise = np.random.default_rng(len(page))
    kept = [jnp.asarray(noise.normal(size=(4, 2, ENTRIES, WIDTH)), jnp.float32)]
    entries = [jnp.asarray(noise.normal(size=(len(page), 2, 2, WIDTH)), jnp.float32)]
    page = jnp.asarray(page) - 2  # pages of the segment before, of this one, of the next
    places = jnp.full(page.shape, offset)
    both = [way(kept, entries, page, places)[0] for way in (_write_by_loop, _write_by_scatter)]
    np.testing.assert_array_equal(*both)


def test_a_cpu_branches_once_for_each_segment_and_scatters_nothing():
    own = [[0, 5], [2]]
    table = _table(own, [6, 3], segments=2, size=3)
    noise = np.zeros((2, 8, 2, WIDTH), np.float32)
    pool = _filled(own, [6, 3], 2, 2, 3, noise, noise)
    entries = [jnp.ones((2, 2, 2, WIDTH))]

    def both(q, pool, table):
        part = page_attention(q, pool, 0, table, jnp.array([6, 3]))
        return part, write_entries(pool, entries, entries, jnp.array([5, 2]), jnp.array([2, 3]))

    compiled = jax.jit(both).lower(jnp.zeros((2, 4, WIDTH)), pool, table).compile().as_text()
    assert len(re.findall(r"= .* conditional\(", compiled)) == 2  # what other devices do is gone
    assert not re.search(r"= .* scatter\(", compiled)


@given(st.integers(1, 1100), st.integers(0, 2))
@settings(max_examples=10)
def test_a_sum_in_order_is_the_sum_however_many_terms(count, axis):
    shape = [2, 3]
    shape.insert(axis, count)
    a = np.random.default_rng(count).integers(-50, 50, shape).astype(np.float32)
    np.testing.assert_array_equal(_sum_in_order(jnp.asarray(a), axis), a.sum(axis))


def test_the_table_of_the_worked_example():
    """Slot 0 has stored 6 positions in pages 2 and 0, slot 1 has stored 2 in page 3."""
    plan = Plan(num_samples=1, slots=4, prompt_slots=4, slots_per_prompt=1, chunk=2, page=4)
    samples = [
        Running(question=0, index=0, prompt_slot=0, limit=99, tokens=[5] * 6, pages=[2, 0]),
        Running(question=1, index=0, prompt_slot=1, limit=99, tokens=[5] * 2, pages=[3]),
    ]
    table = {
        name: array.tolist()
        for name, array in page_table(plan, samples, pages=4, slots=2, depth=2).items()
    }
    assert table == {
        "owner": [[0, 0, 0, 1]],
        "stored": [[2, 0, 4, 2]],
        "first": [[4, 0, 0, 0]],
        "used": [True],
        "of_slot": [[2, 0], [3, 0]],
        "count": [2, 1],
    }
