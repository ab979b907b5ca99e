"""The vote's accuracy by the number of paths, before and after, at each variant's temperature.

All paths are sampled once; fewer are subsets of them (`evaluation.curves`, unbiased). Means over
the trained tasks. A seed's variance is read off the curves' bootstraps over questions.
"""

import math
from collections.abc import Sequence
from typing import Any

from lmsi_jax.evaluation.statistics import Z_95, over_seeds
from lmsi_jax.studies.outcomes import Evaluated, read
from lmsi_jax.studies.settings import Study
from lmsi_jax.studies.units import unit_of

_VOTE = "self_consistency"


def rows(study: Study, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Returns a row for each variant, number of paths, and the model before or after."""
    found = []
    for variant in study.variants:
        if not variant.shown:
            continue
        runs = [read(unit_of(study, variant, seed).folder) for seed in seeds]
        for number in (0, max(run.last for run in runs)):
            curves = [_curves(run, number) for run in runs]
            found += [
                {
                    "variant": variant.name,
                    "label": variant.title,
                    "round": number,
                    "paths": k,
                    "accuracy": _share([[points[k] for points in own] for own in curves]),
                    "paper": dict(variant.paper).get(_VOTE, ""),
                }
                for k in sorted(curves[0][0])
            ]
    return found


def _curves(run: Evaluated, number: int) -> list[dict[int, dict[str, float]]]:
    """The points of each trained task's curve, by their number of paths."""
    return [
        {point["k"]: point for point in row["curve"]}
        for row in run.rows(number, _VOTE)
        if row["task"] in run.trained
    ]


def _share(seeds: Sequence[Sequence[dict[str, float]]]) -> list[float]:
    """Mean over seeds and tasks, with its interval."""
    values = [math.fsum(point["majority"] for point in own) / len(own) for own in seeds]
    found = over_seeds(values, [math.fsum(map(_variance, own)) / len(own) ** 2 for own in seeds])
    return [found.difference, max(0.0, found.low), min(1.0, found.high)]


def _variance(point: dict[str, float]) -> float:
    """Of one task's share, from the width of its bootstrap."""
    return ((point["majority_high"] - point["majority_low"]) / (2 * Z_95)) ** 2
