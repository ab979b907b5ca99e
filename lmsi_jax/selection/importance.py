"""IWSI's distribution shift weight, to filter and to weigh by (Jiang et al. 2024, section 3).

    w'_i = mean over v in D_v of L(x_v) / L(x_i)        how much likelier than the base model thinks
    w_i  = w'_i if w'_i >= 1, else 1 / w'_i             1 and more; 1: no shift

L is the base model's mean loss over the solution's tokens, so w'_i estimates the importance of
row i. D_v, the validation set, are given solutions; or, without any label, the rows of the surest
votes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from lmsi_jax.errors import LmsiError
from lmsi_jax.selection.filters import check_share, keep_lowest, kept_count
from lmsi_jax.selection.rows import HUMAN_LOSSES, LOSS, Facts, Row, Verdict, rows_with_scores

Validation = Literal["human", "confident"]
_MISSING = "not scored: longer than the batch shape"


def importance(validation: Sequence[float], loss: float) -> float:
    """Returns w' of a row; infinite where the row has no loss and the validation set has some.

    Args:
      validation: losses of D_v, in nats, at least one.
      loss: the row's.

    Raises:
      ValueError: a negative loss, or no validation set.
    """
    if not validation or min(loss, *validation) < 0:
        raise ValueError("importance weights want losses of 0 and more, and a validation set")
    mean = math.fsum(validation) / len(validation)
    if loss == 0:
        return math.inf if mean > 0 else 1.0
    return mean / loss


def shift(weight: float) -> float:
    """Returns the DS weight of w': the same for w' and 1 / w', without any cap."""
    if weight >= 1:
        return weight
    return 1 / weight if weight > 0 else math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Validated:
    """What both of IWSI's variants share.

    Attributes:
      validation: D_v: "human", the `Mixing.human_examples` given solutions of the task;
        "confident", the rows of its surest votes, which needs no label.
      surest: "confident" only: share of the questions that is D_v.
    """

    validation: Validation = "human"
    surest: float = 0.05

    def __post_init__(self) -> None:
        if self.validation not in ("human", "confident"):
            name = f"{type(self).__name__}.validation"
            raise LmsiError(f"{name} = {self.validation!r}; use 'human' or 'confident'")
        check_share(f"{type(self).__name__}.surest", self.surest)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the scores that it reads."""
        own = {HUMAN_LOSSES} if self.validation == "human" else set()
        return frozenset({LOSS} | own)

    def importances(self, rows: Sequence[Row], facts: Facts) -> dict[int, float]:
        """Returns w' of the rows that have a loss, by place.

        Raises:
          LmsiError: no given solution has a loss.
        """
        known = rows_with_scores(rows, LOSS)
        if not known:
            return {}
        validation = self._losses([rows[i] for i in known], facts)
        return {i: importance(validation, rows[i].scores[LOSS]) for i in known}

    def _losses(self, rows: Sequence[Row], facts: Facts) -> Sequence[float]:
        if self.validation == "confident":
            return confident_losses(rows, self.surest)
        if not facts.human_losses:
            raise LmsiError(
                f"{type(self).__name__}.validation = 'human', but no given solution fits "
                "Training.sequence_length and Training.max_prefix_length; raise these, or use "
                "'confident'"
            )
        return facts.human_losses


def confident_losses(rows: Sequence[Row], surest: float) -> list[float]:
    """Returns the losses of the rows of the surest questions, at least one question's.

    A row counts once: the losses' order, and so their sum, does not depend on that of the rows.

    Args:
      rows: all of them with a loss.
      surest: share of the questions.
    """
    confidence = {row.question.uid: row.vote.confidence for row in rows}
    order = sorted(confidence, key=lambda uid: (-confidence[uid], uid))
    chosen = set(order[: kept_count(len(order), surest)])
    return [row.scores[LOSS] for row in rows if row.question.uid in chosen]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionShift(_Validated):
    """IWSI: keeps the rows with the lowest DS weight.

    Attributes:
      share: of the rows that is kept, k.
    """

    share: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("DistributionShift.share", self.share)

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        values = {i: shift(weight) for i, weight in self.importances(rows, facts).items()}
        return keep_lowest(rows, values, self.share, "the distribution shift is large", _MISSING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceWeights(_Validated):
    """IWSI-w: keeps all rows, each with min(w', C) as a factor of its loss weight.

    Attributes:
      cap: C.
    """

    cap: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cap < math.inf:
            raise LmsiError(f"ImportanceWeights.cap = {self.cap}; use a number above 0")

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        weights = self.importances(rows, facts)
        return [
            Verdict(min(weights[i], self.cap), "weighs nothing")
            if i in weights
            else Verdict(0.0, _MISSING)
            for i in range(len(rows))
        ]
