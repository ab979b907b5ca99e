"""IWSI's distribution shift weight, to filter and to weigh by (Jiang et al. 2024, section 3).

    w'_i = mean over v in D_v of L(x_v) / L(x_i)        how much likelier than the base model thinks
    w_i  = w'_i if w'_i >= 1, else 1 / w'_i             1 and more; 1: no shift

L is the base model's mean loss over the solution's tokens, so w'_i estimates the importance of
row i. D_v, the validation set, are given solutions; or, without any label, the rows of the surest
votes.
"""

import math
from collections.abc import Sequence

from lmsi_jax.config import DistributionShift, ImportanceWeights
from lmsi_jax.config.row_filters import LOSS
from lmsi_jax.errors import LmsiError
from lmsi_jax.selection.filters import keep_lowest, kept_count
from lmsi_jax.selection.rows import Facts, Row, Verdict, judge, rows_with_scores

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


def importances(
    rule: DistributionShift | ImportanceWeights, rows: Sequence[Row], facts: Facts
) -> dict[int, float]:
    """Returns w' of the rows that have a loss, by place.

    Raises:
      LmsiError: no given solution has a loss.
    """
    known = rows_with_scores(rows, LOSS)
    if not known:
        return {}
    validation = _validation_losses(rule, [rows[i] for i in known], facts)
    return {i: importance(validation, rows[i].scores[LOSS]) for i in known}


def _validation_losses(
    rule: DistributionShift | ImportanceWeights, rows: Sequence[Row], facts: Facts
) -> Sequence[float]:
    if rule.validation == "confident":
        return confident_losses(rows, rule.surest)
    if not facts.human_losses:
        raise LmsiError(
            f"{type(rule).__name__}.validation = 'human', but no given solution fits "
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


@judge.register
def _distribution_shift(
    rule: DistributionShift, rows: Sequence[Row], facts: Facts
) -> list[Verdict]:
    values = {i: shift(weight) for i, weight in importances(rule, rows, facts).items()}
    return keep_lowest(rows, values, rule.share, "the distribution shift is large", _MISSING)


@judge.register
def _importance_weights(
    rule: ImportanceWeights, rows: Sequence[Row], facts: Facts
) -> list[Verdict]:
    weights = importances(rule, rows, facts)
    return [
        Verdict(min(weights[i], rule.cap), "weighs nothing")
        if i in weights
        else Verdict(0.0, _MISSING)
        for i in range(len(rows))
    ]
