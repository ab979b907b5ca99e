"""The path level of the cache: pages in a pool, attended all at once.

A path's keys and values lie in pages of n positions, anywhere in the pool; a page belongs to one
path. A step attends every page of the pool with the query of the row that owns it (one batched
matmul over whole buffers: nothing is gathered or copied), and then joins each row's pages by
log-sum-exp, in the order of their positions. So a path's numbers do not depend on where its pages
lie, and reading costs what is stored, not what the longest path would store.

The pool is cut into segments; a segment without pages in use is skipped, and more segments are
added when paths need them.

Shapes: W rows, H heads, G kv heads, per = H / G, K head dim; Q segments of P pages of n positions;
J pages at most for one path.
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
    """Who owns which page during one chunk; page p of segment s has number s * P + p.

    Attributes:
      row: [Q, P] the row that owns each page (any row for a free page).
      stored: [Q, P] positions stored in each page; 0 for a free page.
      first: [Q, P] the path position of each page's first entry.
      used: [Q] whether any page of the segment is owned.
      of_row: [W, J] the numbers of each row's pages, in the order of their positions.
      count: [W] how many pages each row has.
    """

    row: jax.Array
    stored: jax.Array
    first: jax.Array
    used: jax.Array
    of_row: jax.Array
    count: jax.Array


def empty_segments(layers: int, count: int, zeros: Callable[[], jax.Array]) -> Pool:
    """Returns a pool of `count` segments; `zeros` makes an empty one, [P, G, n, K]."""
    return Pool(*([[zeros() for _ in range(count)] for _ in range(layers)] for _ in range(2)))


def with_more(pool: Pool, more: Pool) -> Pool:
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
    """Copies pages of one segment into another, in place where the target is donated.

    Args:
      source: arrays of all layers, keys and values, each [P, G, n, K].
      target: the same of another segment.
      begin: [P] which page of the source each of the first `count` copies reads.
      end: [P] which page of the target it writes.
      count: [1] how many there are.
    """

    def move(i: jax.Array, arrays: list[jax.Array]) -> list[jax.Array]:
        """The i-th copy, in all arrays."""
        pages = [jax.lax.dynamic_index_in_dim(a, begin[i]) for a in source]
        return [
            jax.lax.dynamic_update_index_in_dim(a, page, end[i], 0)
            for a, page in zip(arrays, pages, strict=True)
        ]

    return jax.lax.fori_loop(0, count[0], move, target)


def over_entries(
    queries: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array, softcap: float
) -> Part:
    """The unmerged attention of one query per sequence over a few entries of its own.

    Args:
      queries: [B, G, per, K].
      keys: [B, G, n, K].
      values: likewise.
      seen: [B, 1, n, 1] or what broadcasts to it: which entries count.
      softcap: see `products.soft_cap`.

    Returns:
      maximum [B, G, per], sum of exponentials [B, G, per], weighted values [B, G, per, K].
    """
    scores = soft_cap(wide_matmul(keys, queries.swapaxes(-1, -2)), softcap)  # [B, G, n, per]
    scores = jnp.where(seen, scores, MASKED)
    top = scores.max(2)
    weights = jnp.exp(scores - top[:, :, None])
    mixed = wide_matmul(weights.swapaxes(-1, -2).astype(values.dtype), values)
    return top, _sum_in_order(weights, 2), mixed


def _sum_in_order(a: jax.Array, axis: int) -> jax.Array:
    """The sum along an axis, in a fixed order: XLA's own depends on the sizes of the other axes."""
    a = jnp.moveaxis(a, axis, 0)
    while a.shape[0] > _TERMS:  # sums of every n-th, so that the program stays short
        padded = jnp.pad(a, [(0, -a.shape[0] % _TERMS), *[(0, 0)] * (a.ndim - 1)])
        a = functools.reduce(jnp.add, padded.reshape(_TERMS, -1, *a.shape[1:]))
    return functools.reduce(jnp.add, a)


def over_pages(
    q: jax.Array,
    pool: Pool,
    layer: int,
    table: PageTable,
    position: jax.Array,
    window: int = 0,
    softcap: float = 0.0,
) -> Part:
    """The unmerged attention of each row over its own pages.

    Args:
      q: [W, H, K].
      pool: the pages.
      layer: which layer's.
      table: who owns them.
      position: [W] the path position of each row's query.
      window: a query sees this many positions with its own; 0 for all.
      softcap: see `products.soft_cap`.

    Returns:
      maximum [W, H], sum of exponentials [W, H], weighted values [W, H, K]; a row without pages
      has maximum `MASKED` and zeros.
    """
    size, groups, entries, width = pool.keys[layer][0].shape
    heads = q.shape[1]
    shape = (size, groups, heads // groups)

    def attended(
        keys: jax.Array, values: jax.Array, row: jax.Array, stored: jax.Array, first: jax.Array
    ) -> Part:
        """One segment's pages, each with its owner's query."""
        entry = jnp.arange(entries)
        seen = entry < stored[:, None]
        if window:
            seen &= first[:, None] + entry > position[row][:, None] - window
        queries = q.at[row].get(mode="promise_in_bounds").reshape(*shape, width)
        return over_entries(queries, keys, values, seen[:, None, :, None], softcap)

    parts = [
        _where_used(
            attended,
            (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, width))),
            *(table.used[s], pool.keys[layer][s], pool.values[layer][s]),
            *(table.row[s], table.stored[s], table.first[s]),
        )
        for s in range(len(pool.keys[layer]))
    ]
    top, total, mixed = (jnp.concatenate(leaves) for leaves in zip(*parts, strict=True))
    return _by_row(
        table, top.reshape(-1, heads), total.reshape(-1, heads), mixed.reshape(-1, heads, width)
    )


def _where_used(
    attended: Callable[..., Part], nothing: Part, used: jax.Array, *given: jax.Array
) -> Part:
    """`attended(*given)` of a segment; `nothing` where none of its pages is used.

    A GPU attends it in any case, which gives the same: its branches wait for the host.
    """
    return jax.lax.platform_dependent(
        used,
        *given,
        cuda=lambda used, *given: attended(*given),
        default=lambda used, *given: jax.lax.cond(used, attended, lambda *_: nothing, *given),
    )


def _by_row(table: PageTable, top: jax.Array, total: jax.Array, mixed: jax.Array) -> Part:
    """Joins the parts of each row's pages [Q * P, H, ...] -> [W, H, ...]."""
    owned = jnp.arange(table.of_row.shape[1]) < table.count[:, None]  # [W, J]

    def of_row(a: jax.Array) -> jax.Array:
        return a.at[table.of_row].get(mode="promise_in_bounds")

    tops = jnp.where(owned[..., None], of_row(top), MASKED)
    highest = tops.max(1)
    scales = jnp.where(owned[..., None], jnp.exp(tops - highest[:, None]), 0.0)
    total = _sum_in_order(of_row(total) * scales, 1)
    return highest, total, _sum_in_order(of_row(mixed) * scales[..., None], 1)


def write_entries(
    pool: Pool, keys: list[jax.Array], values: list[jax.Array], page: jax.Array, offset: jax.Array
) -> Pool:
    """Stores a chunk's entries of every row in its page, in place where the pool is donated.

    Args:
      pool: the pages.
      keys: per layer [W, G, c, K], this chunk's.
      values: the same.
      page: [W] the page number to write each row's entries to; negative: nowhere.
      offset: [W] at which entry.
    """
    size = pool.keys[0][0].shape[0]
    layers = len(keys)
    new: list[list[jax.Array]] = [[] for _ in range(2 * layers)]
    for s in range(len(pool.keys[0])):
        kept = [arrays[s] for arrays in (*pool.keys, *pool.values)]
        # A GPU waits for the host before each turn; elsewhere turns are faster than a scatter.
        done = jax.lax.platform_dependent(
            *(kept, [*keys, *values], page - s * size, offset), cuda=_at_once, default=_in_turn
        )
        for arrays, array in zip(new, done, strict=True):
            arrays.append(array)
    return Pool(new[:layers], new[layers:])


def _in_turn(
    kept: list[jax.Array], entries: list[jax.Array], page: jax.Array, offset: jax.Array
) -> list[jax.Array]:
    """`written` for the arrays of one segment; pages outside it are others'."""
    mine = (page >= 0) & (page < kept[0].shape[0])
    order = jnp.argsort(~mine, stable=True)  # the rows that write here come first

    def write(i: jax.Array, arrays: list[jax.Array]) -> list[jax.Array]:
        """The entries of the i-th row that writes here, in all layers."""
        row = order[i]
        at = (page[row], 0, offset[row], 0)
        return [
            jax.lax.dynamic_update_slice(
                a, jax.lax.dynamic_index_in_dim(e, row).astype(a.dtype), at
            )
            for a, e in zip(arrays, entries, strict=True)
        ]

    return jax.lax.fori_loop(0, mine.sum(), write, kept)


def _at_once(
    kept: list[jax.Array], entries: list[jax.Array], page: jax.Array, offset: jax.Array
) -> list[jax.Array]:
    """The same as scatters."""
    count, steps = page.shape[0], entries[0].shape[2]
    # Beyond the end it is dropped; below 0 it would count from the end.
    page = jnp.where(page < 0, kept[0].shape[0] + jnp.arange(count), page)[:, None]
    place = offset[:, None] + jnp.arange(steps)
    return [
        a.at[page, :, place].set(e.swapaxes(1, 2).astype(a.dtype), mode="drop", unique_indices=True)
        for a, e in zip(kept, entries, strict=True)
    ]
