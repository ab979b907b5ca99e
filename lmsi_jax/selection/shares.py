"""Keeping a share of the rows, exactly: 80 % of 10 rows are 8, of 1 row 1, of none none."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from lmsi_jax.errors import LmsiError
from lmsi_jax.selection.rows import KEPT, Row, Verdict


def kept_of(count: int, share: float) -> int:
    """Returns how many of `count` rows a share keeps, rounded up: in [0, count] for every count.

    The share is the decimal that was written: 0.1 of 10 is 1, though the float is a little more.
    """
    return min(count, math.ceil(Fraction(repr(share)) * count))


def check_share(name: str, share: float) -> None:
    """Raises LmsiError where a share is none."""
    if not 0 < share <= 1:
        raise LmsiError(f"{name} = {share}; use a share above 0, up to 1")


def keep_lowest(
    rows: Sequence[Row], values: Mapping[int, float], share: float, reason: str, missing: str
) -> list[Verdict]:
    """Keeps a share of the rows, those with the lowest values.

    Args:
      rows: a task's rows.
      values: of some rows, by their place; the others are dropped, and count for the share.
      share: of all rows, in (0, 1].
      reason: why a row with too high a value is dropped.
      missing: why one without is.
    """
    order = sorted(values, key=lambda i: (values[i], rows[i].name))
    chosen = set(order[: kept_of(len(rows), share)])
    return [
        KEPT if i in chosen else Verdict(0.0, reason if i in values else missing)
        for i in range(len(rows))
    ]
