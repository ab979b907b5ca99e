"""Filters on the vote alone: its confidence, its entropy, and how many paths a question gives."""

import dataclasses
import math
from collections.abc import Sequence

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Vote
from lmsi_jax.selection.rows import KEPT, Facts, Row, Verdict
from lmsi_jax.selection.shares import check_share, keep_lowest


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinConfidence:
    """Keeps the rows of questions whose vote is sure enough.

    Attributes:
      confidence: least share of the question's paths that agree with its vote.
    """

    confidence: float = 0.5
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise LmsiError(f"MinConfidence.confidence = {self.confidence}; use a share, 0 to 1")

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        unsure = Verdict(0.0, "the vote is not sure enough")
        return [KEPT if row.vote.confidence >= self.confidence else unsure for row in rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cap:
    """Keeps the first distinct solutions of a question, by path index, with all their copies.

    Attributes:
      paths: how many distinct ones.
    """

    paths: int = 10
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        if self.paths < 1:
            raise LmsiError(f"Cap.paths = {self.paths}; use 1 or more")

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        first: dict[str, list[str]] = {}
        for row in sorted(rows, key=lambda row: row.name):
            texts = first.setdefault(row.question.uid, [])
            if row.solution not in texts and len(texts) < self.paths:
                texts.append(row.solution)
        more = Verdict(0.0, "the question has enough paths")
        return [KEPT if row.solution in first[row.question.uid] else more for row in rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerEntropy:
    """Keeps the rows of the questions whose answers differ least (Entropy-filter in IWSI, table 1).

    u = -sum p log p / log m over the question's answers, m its number of paths.

    Attributes:
      share: of the rows that is kept, k.
    """

    share: float = 0.8
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_share("AnswerEntropy.share", self.share)

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        values = {i: relative_entropy(row.vote) for i, row in enumerate(rows)}
        return keep_lowest(rows, values, self.share, "the answers differ too much", "")


def relative_entropy(vote: Vote) -> float:
    """Returns the entropy of a question's answers over the largest possible, log m; 0 of one path.

    p are shares of the parsed answers; unparsed paths count in m.
    """
    return vote.entropy / math.log(vote.total) if vote.total > 1 else 0.0
