"""What the host tells the device before a chunk: the scheduler's state as arrays. NumPy only.

One device group's arrays; those of several groups are joined along their first axis.
"""

from collections.abc import Sequence

import numpy as np

from lmsi_jax.decoding.scheduler import Plan, Running

Arrays = dict[str, np.ndarray]


def rows_of(
    plan: Plan,
    active: Sequence[Running],
    targets: Sequence[tuple[int, int]],
    width: int,
    prompts: Sequence[Sequence[int]],
    words: np.ndarray,
    before: int,
) -> Arrays:
    """Returns the arrays of `loop.Rows`, with `words` and `index` for its noise.

    Args:
      plan: the run's sizes.
      active: the paths, one for each of the first rows.
      targets: page and offset for each of them.
      width: rows.
      prompts: tokens of each question's prompt.
      words: [questions, 2], see `keys.uid_words`.
      before: cached positions of the task prompt.
    """
    names = ("token", "length", "before", "place", "index", "offset")
    arrays: Arrays = {name: np.zeros(width, np.int32) for name in names}
    arrays["page"] = np.full(width, -1, np.int32)
    arrays["words"] = np.zeros((width, 2), np.uint32)
    places = min(plan.places, width)
    arrays["seated"] = np.zeros((plan.slots, places), np.int32)
    taken = [0] * plan.slots
    for row, (path, (page, offset)) in enumerate(zip(active, targets, strict=True)):
        prompt = prompts[path.question]
        arrays["token"][row] = path.tokens[-1] if path.tokens else prompt[-1]
        arrays["length"][row] = len(path.tokens)
        arrays["before"][row] = before + len(prompt) - 1
        arrays["index"][row] = path.index
        arrays["words"][row] = words[path.question]
        arrays["page"][row], arrays["offset"][row] = page, offset
        arrays["place"][row] = path.slot * places + taken[path.slot]
        arrays["seated"][path.slot, taken[path.slot]] = row
        taken[path.slot] += 1
    return arrays


def table_of(plan: Plan, active: Sequence[Running], pages: int, width: int, depth: int) -> Arrays:
    """Returns the arrays of `pages.Table`.

    Args:
      plan: the run's sizes; a segment has as many pages as there are rows.
      active: the paths, one for each of the first rows.
      pages: how many pages there are, free or not.
      width: rows.
      depth: most pages of a path.
    """
    row, stored, first = (np.zeros(pages, np.int32) for _ in range(3))
    of_row, count = np.zeros((width, depth), np.int32), np.zeros(width, np.int32)
    for at, path in enumerate(active):
        length = len(path.tokens)
        own = path.pages[: -(-length // plan.page)]  # without one that is still empty
        count[at] = len(own)
        if own:
            of_row[at, : len(own)] = own
            begins = np.arange(len(own)) * plan.page
            row[own], first[own] = at, begins
            stored[own] = np.minimum(plan.page, length - begins)
    segments = (-1, plan.rows)
    return {
        "row": row.reshape(segments),
        "stored": stored.reshape(segments),
        "first": first.reshape(segments),
        "used": np.asarray(stored.reshape(segments).any(1)),
        "of_row": of_row,
        "count": count,
    }


def padded(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads rows: tokens [B, length] and lengths [B]."""
    batch = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        batch[i, : len(row)] = row
    return batch, np.array([len(row) for row in rows], np.int32)


def joined(groups: Sequence[Arrays]) -> Arrays:
    """Joins the arrays of several device groups along their first axis."""
    if len(groups) == 1:
        return groups[0]
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}
