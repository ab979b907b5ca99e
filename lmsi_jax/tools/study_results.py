"""Accuracy before and after, of each variant, on the same questions, over seeds.

A row is a variant, a round, a prompt style, and the trained tasks, the others, or one task. Shares
of several are means over tasks, each counting alike. Questions are paired within a seed; intervals
are those of `evaluation.statistics.over_seeds`.

The share of right rows by their distribution shift weight (IWSI, figure 5).

Rows are the paths that agree with the vote. Train questions carry no answer; answers are looked up
for this count alone.

The vote's accuracy by the number of paths, before and after, at each variant's temperature.

All paths are sampled once; fewer are subsets of them (`evaluation.curves`, unbiased). Means over
the trained tasks. A seed's variance is read off the curves' bootstraps over questions.
"""

import collections
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from lmsi_jax.config.run import Run
from lmsi_jax.config.study_plan import Study, Variant
from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.statistics import Z_95, macro_variance, over_seeds
from lmsi_jax.pipeline.context import Context
from lmsi_jax.pipeline.questions import train_answers
from lmsi_jax.pipeline.score import read_scored_rows
from lmsi_jax.pipeline.vote import read_voted
from lmsi_jax.selection.importance import DistributionShift, shift
from lmsi_jax.tools.study_units import Evaluated, Outcomes, macro, read, unit_of

_DOMAINS = ("in", "out")
Row = dict[str, Any]


def accuracy_rows(study: Study, seeds: Sequence[int]) -> list[Row]:
    """Returns the study's rows over the seeds whose runs are all finished.

    Args:
      study: its measure is "accuracy", "rounds" (a row for each round) or "sizes".
      seeds: of its seeds.
    """
    shown = [variant for variant in study.variants if variant.shown]
    runs = {
        variant.name: [read(unit_of(study, variant, seed).folder) for seed in seeds]
        for variant in study.variants
        if variant.shown or variant.name == study.reference
    }
    reference = runs.get(study.reference)
    found = []
    for variant in shown:
        theirs = None if variant.name == study.reference else reference
        found += list(_variant(study, variant, runs[variant.name], theirs))
    return found


def _variant(
    study: Study, variant: Variant, runs: list[Evaluated], reference: list[Evaluated] | None
) -> Iterator[Row]:
    last = max(run.last for run in runs)
    paper = dict(variant.paper)
    for prompt_style in runs[0].prompt_styles:
        for domain in (*_DOMAINS, *(runs[0].tasks if study.by_task else ())):
            if not runs[0].outcomes(0, prompt_style, domain):
                continue
            for number in range(1, last + 1) if study.measure == "rounds" else [last]:
                yield {
                    "variant": variant.name,
                    "label": variant.title,
                    "parameters": runs[0].parameters,
                    "round": number,
                    "stopped": sum(run.last < number for run in runs),
                    "prompt_style": prompt_style,
                    "domain": domain,
                    "paper": paper.get(prompt_style, "") if domain == "in" else "",
                    **_compared(study, runs, reference, (number, prompt_style, domain)),
                }


def _compared(
    study: Study,
    runs: list[Evaluated],
    reference: list[Evaluated] | None,
    what: tuple[int, str, str],
) -> Row:
    number, prompt_style, domain = what
    before = [run.outcomes(0, prompt_style, domain) for run in runs]
    after = [run.outcomes(number, prompt_style, domain) for run in runs]
    row: Row = {
        "before": _share(before),
        "after": _share(after),
        "change": change(before, after),
        "against": None,
    }
    if reference is not None and prompt_style in reference[0].prompt_styles:
        theirs = number if study.against == "after" else 0
        compared = [run.outcomes(theirs, prompt_style, domain) for run in reference]
        row["against"] = change(compared, after)
    return row


def change(before: Sequence[Outcomes], after: Sequence[Outcomes]) -> Row | None:
    """Returns the mean change over seeds, its 95 % interval, and each seed's; None without pairs.

    Args:
      before, after: of each seed, on the same questions.
    """
    paired = []
    for old, new in zip(before, after, strict=True):
        tasks = [task for task in new if task in old]
        if not tasks or any(len(old[task]) != len(new[task]) for task in tasks):
            return None
        paired.append(
            {task: [b - a for a, b in zip(old[task], new[task], strict=True)] for task in tasks}
        )
    values = [macro(one) for one in paired]
    found = over_seeds(values, [macro_variance([*one.values()]) for one in paired])
    return {**found._asdict(), "seeds": values}


def _share(outcomes: Sequence[Outcomes]) -> list[float]:
    """Mean accuracy over seeds with its interval, within [0, 1]."""
    values = [macro(one) for one in outcomes]
    found = over_seeds(values, [macro_variance([*one.values()]) for one in outcomes])
    return [found.difference, max(0.0, found.low), min(1.0, found.high)]


EDGES = (1.0, 1.1, 1.3, 1.5, 2.0, math.inf)
"""The paper's bins: [1, 1.1), [1.1, 1.3), ..., [2, inf)."""


class Weighed(NamedTuple):
    """A row: its question, its DS weight, whether its answer is right."""

    uid: str
    weight: float
    right: bool


def shift_rows(
    study: Study, seeds: Sequence[int], load: Callable[[Sequence[str]], Run]
) -> list[dict[str, Any]]:
    """Returns a row for each task and bin, of the first variant that is shown."""
    variant = next(variant for variant in study.variants if variant.shown)
    runs = [weighted_rows(load(unit_of(study, variant, seed).bindings)) for seed in seeds]
    return [
        {"task": task, "bin": bin_name(low, high), **_bin([run[task] for run in runs], low, high)}
        for task in runs[0]
        for low, high in itertools.pairwise(EDGES)
    ]


def weighted_rows(run: Run) -> dict[str, list[Weighed]]:
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
            Weighed(rows[i].sample.uid, shift(w), rows[i].key in answers[rows[i].sample.uid])
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


_VOTE = "self_consistency"


def path_rows(study: Study, seeds: Sequence[int]) -> list[dict[str, Any]]:
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
                    "accuracy": _share_paths([[points[k] for points in own] for own in curves]),
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


def _share_paths(seeds: Sequence[Sequence[dict[str, float]]]) -> list[float]:
    """Mean over seeds and tasks, with its interval."""
    values = [math.fsum(point["majority"] for point in own) / len(own) for own in seeds]
    found = over_seeds(values, [math.fsum(map(_variance, own)) / len(own) ** 2 for own in seeds])
    return [found.difference, max(0.0, found.low), min(1.0, found.high)]


def _variance(point: dict[str, float]) -> float:
    """Of one task's share, from the width of its bootstrap."""
    return ((point["majority_high"] - point["majority_low"]) / (2 * Z_95)) ** 2
