"""Filters by one score of a row: the model's own rating, any ranker's, or its difficulty ratio."""

import dataclasses
from collections.abc import Sequence

from lmsi_jax.selection.rows import (
    ALONE_LOSS,
    QUESTION_LOSS,
    RANK,
    RATING,
    Facts,
    Row,
    Verdict,
    scored,
)
from lmsi_jax.selection.shares import check_share, keep_lowest
from lmsi_jax.voting import check_ranker


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfRating:
    """Keeps the rows that the model itself rates highest (Self-filter in IWSI, table 1).

    Attributes:
      share: of the rows that is kept, k.
    """

    share: float = 0.8
    needs = frozenset({RATING})

    def __post_init__(self) -> None:
        check_share("SelfRating.share", self.share)

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        values = {i: -rows[i].scores[RATING] for i in scored(rows, RATING)}
        return keep_lowest(rows, values, self.share, "the rating is low", "no rating was given")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked:
    """Keeps the rows that a ranker likes best: a reward model (RM-filter in IWSI), or any function.

    Attributes:
      ranker: "module:function"; the function takes a `Question` and a `Path` and returns a number,
        the higher the better.
      share: of the rows that is kept, k.
    """

    ranker: str
    share: float = 0.8

    def __post_init__(self) -> None:
        check_share("Ranked.share", self.share)
        check_ranker("Ranked.ranker", self.ranker)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the scores that it reads."""
        return frozenset({RANK + self.ranker})

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        (name,) = self.needs
        values = {i: -rows[i].scores[name] for i in scored(rows, name)}
        return keep_lowest(rows, values, self.share, "the ranker likes others better", "not ranked")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionFollowing:
    """Keeps the rows whose question helps least, but does help (IFD, Li et al. 2023, section 2).

    IFD = L(solution given the question) / L(solution alone). Above 1 the question makes the
    solution less likely: the two do not belong together, and the row is dropped.

    Attributes:
      share: of the rows that is kept, those with the highest ratio of at most 1.
    """

    share: float = 0.8
    needs = frozenset({QUESTION_LOSS, ALONE_LOSS})

    def __post_init__(self) -> None:
        check_share("InstructionFollowing.share", self.share)

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        ratios = {i: following(rows[i]) for i in scored(rows, *self.needs)}
        values = {i: -ratio for i, ratio in ratios.items() if ratio <= 1}
        found = keep_lowest(rows, values, self.share, "the question says it all", "")
        why = {True: "the question does not help", False: "not scored: longer than the batch shape"}
        return [
            one if i in values else Verdict(0.0, why[i in ratios]) for i, one in enumerate(found)
        ]


def following(row: Row) -> float:
    """Returns a row's IFD; without a loss alone infinity, or 1 where neither has any."""
    given, alone = row.scores[QUESTION_LOSS], row.scores[ALONE_LOSS]
    if alone == 0:
        return 1.0 if given == 0 else float("inf")
    return given / alone
