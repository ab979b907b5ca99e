"""Keys and values of samples: pages in a pool, attended all at once.

A sample's keys and values are in pages of n positions, anywhere in the pool; a page belongs to one
sample. A step attends every page of the pool with the query of the slot that owns it (one batched
matmul over whole buffers: nothing is gathered or copied), then joins each slot's pages by
log-sum-exp in the order of their positions. So a sample's numbers do not depend on where its pages
are, and reading costs what is stored, not what the longest sample would store.

The pool is cut into segments: a segment without pages in use is skipped, and segments are added
when samples need them.

Example: n = 4 positions in a page, one segment of P = 4 pages, W = 2 slots. The sample in slot 0
has stored 6 positions in pages 2 and 0, the one in slot 1 has stored 2 positions in page 3.

    pool.keys[layer][0]                      PageTable
      page 0: slot 0, positions 4 5 . .        owner   [[0, 0, 0, 1]]    page 1 is free: any slot
      page 1: free                             stored  [[2, 0, 4, 2]]    positions in each page
      page 2: slot 0, positions 0 1 2 3        first   [[4, 0, 0, 0]]    position of its first one
      page 3: slot 1, positions 0 1 . .        used    [True]
                                               of_slot [[2, 0], [3, 0]]  in the order of positions
                                               count   [2, 1]            how many of them are real

    attend:  page p with the query of slot owner[p]         -> 4 parts; that of page 1 is masked
    join:    slot 0 merges the parts of pages 2 and 0, slot 1 takes that of page 3
    write:   a chunk of 2 steps stores slot 0's entries in page 0 and slot 1's in page 3, both at
             offset 2; then both pages are full, and the scheduler gives each slot a new one

Shapes: W slots, H query heads, G key/value heads, per = H / G, K head dim; Q segments of P pages of
n positions; J pages at most for one sample; c steps in a chunk.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lmsi_jax.models.attention import MASKED, Part
from lmsi_jax.models.params import soft_cap, wide_matmul

_TERMS = 32  # additions written out one by one


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pool:
    """Pages of all layers.

    Attributes:
      keys: [layer][segment] of [P, G, n, K].
      values: the same.
    """

    keys: list[list[jax.Array]]
    values: list[list[jax.Array]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PageTable:
    """Owners of the pages during one chunk; page p of segment s has number s * P + p.

    Attributes:
      owner: [Q, P] the slot that owns each page (any slot for a free page).
      stored: [Q, P] positions stored in each page; 0 for a free page.
      first: [Q, P] the sample position of each page's first entry.
      used: [Q] whether any page of the segment is owned.
      of_slot: [W, J] the numbers of each slot's pages, in the order of their positions.
      count: [W] how many pages each slot has.
    """

    owner: jax.Array
    stored: jax.Array
    first: jax.Array
    used: jax.Array
    of_slot: jax.Array
    count: jax.Array


def empty_segments(layers: int, count: int, zeros: Callable[[], jax.Array]) -> Pool:
    """Returns a pool of `count` segments; `zeros` makes an empty one, [P, G, n, K]."""
    return Pool(*([[zeros() for _ in range(count)] for _ in range(layers)] for _ in range(2)))


def concatenate_pools(pool: Pool, more: Pool) -> Pool:
    """Returns a pool with the segments of both."""
    keys = [a + b for a, b in zip(pool.keys, more.keys, strict=True)]
    values = [a + b for a, b in zip(pool.values, more.values, strict=True)]
    return Pool(keys, values)


def copy_pages(
    source: list[jax.Array],
    target: list[jax.Array],
    begin: jax.Array,
    end: jax.Array,
    count: jax.Array,
) -> list[jax.Array]:
    """Copies pages of one segment into another, in place if the target is donated.

    Args:
      source: arrays of all layers, keys and values, each [P, G, n, K].
      target: the same of another segment.
      begin: [P] the page of the source that each of the first `count` copies reads.
      end: [P] the page of the target that it writes.
      count: [1] number of copies.
    """

    def copy_page(i: jax.Array, arrays: list[jax.Array]) -> list[jax.Array]:
        pages = [jax.lax.dynamic_index_in_dim(a, begin[i]) for a in source]
        return [
            jax.lax.dynamic_update_index_in_dim(a, page, end[i], 0)
            for a, page in zip(arrays, pages, strict=True)
        ]

    return jax.lax.fori_loop(0, count[0], copy_page, target)


def entry_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array, softcap: float
) -> Part:
    """Attends a few entries of each sequence with its one query.

    Args:
      queries: [B, G, per, K].
      keys: [B, G, n, K].
      values: likewise.
      visible: [B, 1, n, 1], or what broadcasts to it: the entries that count.
      softcap: `ModelConfig.attention_softcap`.

    Returns:
      top and total [B, G, per], values [B, G, per, K].
    """
    logits = soft_cap(wide_matmul(keys, queries.swapaxes(-1, -2)), softcap)  # [B, G, n, per]
    logits = jnp.where(visible, logits, MASKED)
    top = logits.max(2)
    weights = jnp.exp(logits - top[:, :, None])
    weighted = wide_matmul(weights.swapaxes(-1, -2).astype(values.dtype), values)
    return Part(top, _sum_in_order(weights, 2), weighted)


def _sum_in_order(a: jax.Array, axis: int) -> jax.Array:
    """Sums along an axis in a fixed order: XLA's own depends on the sizes of the other axes.

    Zeros at the end do not change the result.
    """
    a = jnp.moveaxis(a, axis, 0)
    while a.shape[0] > _TERMS:  # sums of every so many terms, so that the program stays short
        padded = jnp.pad(a, [(0, -a.shape[0] % _TERMS), *[(0, 0)] * (a.ndim - 1)])
        groups = padded.reshape(-1, _TERMS, *a.shape[1:])
        a = functools.reduce(jnp.add, [groups[:, i] for i in range(_TERMS)])
    return functools.reduce(jnp.add, a)


def page_attention(
    q: jax.Array,
    pool: Pool,
    layer: int,
    table: PageTable,
    position: jax.Array,
    window: int = 0,
    softcap: float = 0.0,
) -> Part:
    """Attends each slot's own pages.

    Args:
      q: [W, H, K], scaled.
      pool: the pages.
      layer: which layer's.
      table: their owners.
      position: [W] the sample position of each slot's query.
      window: a query sees this many positions including its own; 0 for all.
      softcap: `ModelConfig.attention_softcap`.

    Returns:
      top and total [W, H], values [W, H, K]; a slot without pages has top `MASKED` and zeros.
    """
    size, groups, entries, width = pool.keys[layer][0].shape
    heads = q.shape[1]
    shape = (size, groups, heads // groups)

    def attend(
        keys: jax.Array, values: jax.Array, owner: jax.Array, stored: jax.Array, first: jax.Array
    ) -> Part:
        """Attends one segment's pages, each with its owner's query."""
        entry = jnp.arange(entries)
        visible = entry < stored[:, None]
        if window:
            visible &= first[:, None] + entry > position[owner][:, None] - window
        queries = q.at[owner].get(mode="promise_in_bounds").reshape(*shape, width)
        return entry_attention(queries, keys, values, visible[:, None, :, None], softcap)

    nothing = Part(jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, width)))
    parts = [
        if_used(
            attend,
            nothing,
            *(table.used[s], pool.keys[layer][s], pool.values[layer][s]),
            *(table.owner[s], table.stored[s], table.first[s]),
        )
        for s in range(len(pool.keys[layer]))
    ]
    top, total, values = (jnp.concatenate(leaves) for leaves in zip(*parts, strict=True))
    pages = Part(top.reshape(-1, heads), total.reshape(-1, heads), values.reshape(-1, heads, width))
    return _join_pages(table, pages)


def if_used(
    attend: Callable[..., Part], nothing: Part, used: jax.Array, *segment: jax.Array
) -> Part:
    """Returns `attend(*segment)`, or `nothing` for a segment in which nothing is visible.

    A GPU attends it in any case, with the same result: its branches would wait for the host.
    """
    return jax.lax.platform_dependent(
        used,
        *segment,
        cuda=lambda used, *segment: attend(*segment),
        default=lambda used, *segment: jax.lax.cond(used, attend, lambda *_: nothing, *segment),
    )


def _join_pages(table: PageTable, pages: Part) -> Part:
    """Joins the parts of each slot's pages: [Q * P, H, ...] -> [W, H, ...]."""
    real = jnp.arange(table.of_slot.shape[1]) < table.count[:, None]  # [W, J]

    def of_slot(a: jax.Array) -> jax.Array:
        return a.at[table.of_slot].get(mode="promise_in_bounds")

    tops = jnp.where(real[..., None], of_slot(pages.top), MASKED)
    top = tops.max(1)
    scales = jnp.where(real[..., None], jnp.exp(tops - top[:, None]), 0.0)
    total = _sum_in_order(of_slot(pages.total) * scales, 1)
    return Part(top, total, _sum_in_order(of_slot(pages.values) * scales[..., None], 1))


def write_entries(
    pool: Pool, keys: list[jax.Array], values: list[jax.Array], page: jax.Array, offset: jax.Array
) -> Pool:
    """Stores a chunk's entries of every slot in its page, in place if the pool is donated.

    Args:
      pool: the pages.
      keys: per layer [W, G, c, K], this chunk's.
      values: the same.
      page: [W] the number of the page that takes each slot's entries; negative: none.
      offset: [W] the position in the page of the first of them.
    """
    size = pool.keys[0][0].shape[0]
    layers = len(keys)
    new: list[list[jax.Array]] = [[] for _ in range(2 * layers)]
    for s in range(len(pool.keys[0])):
        segment = [arrays[s] for arrays in (*pool.keys, *pool.values)]
        # A GPU waits for the host before each iteration; elsewhere a loop is faster than a scatter.
        stored = jax.lax.platform_dependent(
            *(segment, [*keys, *values], page - s * size, offset),
            cuda=_write_by_scatter,
            default=_write_by_loop,
        )
        for arrays, array in zip(new, stored, strict=True):
            arrays.append(array)
    return Pool(new[:layers], new[layers:])


def _write_by_loop(
    segment: list[jax.Array], entries: list[jax.Array], page: jax.Array, offset: jax.Array
) -> list[jax.Array]:
    """Writes entries to the arrays of one segment; `page` counts from its first page."""
    inside = (page >= 0) & (page < segment[0].shape[0])
    order = jnp.argsort(~inside, stable=True)  # the slots that write here come first

    def write_slot(i: jax.Array, arrays: list[jax.Array]) -> list[jax.Array]:
        slot = order[i]
        start = (page[slot], 0, offset[slot], 0)
        return [
            jax.lax.dynamic_update_slice(
                a, jax.lax.dynamic_index_in_dim(e, slot).astype(a.dtype), start
            )
            for a, e in zip(arrays, entries, strict=True)
        ]

    return jax.lax.fori_loop(0, inside.sum(), write_slot, segment)


def _write_by_scatter(
    segment: list[jax.Array], entries: list[jax.Array], page: jax.Array, offset: jax.Array
) -> list[jax.Array]:
    """Does the same as `_write_by_loop`."""
    count, steps = page.shape[0], entries[0].shape[2]
    # Beyond the end it is dropped; below 0 it would count from the end.
    page = jnp.where(page < 0, segment[0].shape[0] + jnp.arange(count), page)[:, None]
    positions = offset[:, None] + jnp.arange(steps)
    return [
        a.at[page, :, positions].set(
            e.swapaxes(1, 2).astype(a.dtype), mode="drop", unique_indices=True
        )
        for a, e in zip(segment, entries, strict=True)
    ]
