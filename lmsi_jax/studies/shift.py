"""The share of right rows by their distribution shift weight (IWSI, figure 5).

Rows are the paths that agree with the vote. Train questions carry no answer; answers are looked up
for this count alone.
"""

import collections
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.statistics import over_seeds
from lmsi_jax.run import Run
from lmsi_jax.selection.importance import DistributionShift, shift
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.labels import train_answers
from lmsi_jax.stages.path_scores import read_scored_rows
from lmsi_jax.stages.vote import read_voted
from lmsi_jax.studies.settings import Study
from lmsi_jax.studies.units import unit_of

EDGES = (1.0, 1.1, 1.3, 1.5, 2.0, math.inf)
"""The paper's bins: [1, 1.1), [1.1, 1.3), ..., [2, inf)."""


class Weighed(NamedTuple):
    """A row: its question, its DS weight, whether its answer is right."""

    uid: str
    weight: float
    right: bool


def rows(
    study: Study, seeds: Sequence[int], load: Callable[[Sequence[str]], Run]
) -> list[dict[str, Any]]:
    """Returns a row for each task and bin, of the first variant that is shown."""
    variant = next(variant for variant in study.variants if variant.shown)
    runs = [weighed(load(unit_of(study, variant, seed).bindings)) for seed in seeds]
    return [
        {"task": task, "bin": bin_name(low, high), **_bin([run[task] for run in runs], low, high)}
        for task in runs[0]
        for low, high in itertools.pairwise(EDGES)
    ]


def weighed(run: Run) -> dict[str, list[Weighed]]:
    """Returns the first round's voted rows with their DS weights, by task.

    Raises:
      LmsiError: the run weighs no shift, or a task has no answers to compare with.
    """
    measures = [one for one in run.mixing.selection if isinstance(one, DistributionShift)]
    if not measures:
        raise LmsiError("this study wants @DistributionShift() in Mixing.selection")
    context, found = Context(run, frozenset()), {}
    for task, voted in read_voted(context, 1).items():
        rows, facts = read_scored_rows(context, 1, task, voted)
        answers = train_answers(context, task)
        if missing := len({question.uid for question, _, _ in voted} - answers.keys()):
            raise LmsiError(
                f"the answers of {missing} questions of {task!r} are not known, so nothing says "
                "which rows are right; leave the task out of Questions.train"
            )
        weights = measures[0].importances(rows, facts)
        found[task] = [
            Weighed(rows[i].path.uid, shift(w), rows[i].key in answers[rows[i].path.uid])
            for i, w in weights.items()
        ]
    return found


def bin_name(low: float, high: float) -> str:
    """As the paper writes it."""
    end = "\N{INFINITY}" if math.isinf(high) else f"{high:g}"
    return f"[{low:g}, {end})"


def _bin(runs: Sequence[Sequence[Weighed]], low: float, high: float) -> dict[str, Any]:
    """Rows of a bin and their share of right ones: mean over the seeds that have some."""
    inside = [
        [row for row in own if low <= row.weight < high or row.weight == high == math.inf]
        for own in runs
    ]
    some = [own for own in inside if own]
    share = None
    if some:
        values = [sum(row.right for row in own) / len(own) for own in some]
        found = over_seeds(values, [clustered_variance(own) for own in some])
        share = [found.difference, max(0.0, found.low), min(1.0, found.high)]
    return {"rows": sum(map(len, inside)), "right": share}


def clustered_variance(rows: Sequence[Weighed]) -> float:
    """Returns the variance of the share of right rows, whose questions are drawn, not they.

    The ratio estimator's (Cochran 1977, section 6.3): rows of one question are right or wrong
    together.
    """
    share = sum(row.right for row in rows) / len(rows)
    excess: dict[str, float] = collections.defaultdict(float)
    for row in rows:
        excess[row.uid] += row.right - share
    n = len(excess)
    total = math.fsum(value * value for value in excess.values())
    return total * n / max(n - 1, 1) / len(rows) ** 2
