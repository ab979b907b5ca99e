"""Accuracy before and after, of each variant, on the same questions, over seeds.

A row is a variant, a round, a prompting, and the trained tasks, the others, or one task. Shares of
several are means over tasks, each counting alike. Questions are paired within a seed; intervals are
those of `evaluation.statistics.over_seeds`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from lmsi_jax.evaluation.statistics import macro_variance, over_seeds
from lmsi_jax.studies.outcomes import Evaluated, Outcomes, macro, read
from lmsi_jax.studies.settings import Study, Variant
from lmsi_jax.studies.units import unit_of

_DOMAINS = ("in", "out")
Row = dict[str, Any]


def rows(study: Study, seeds: Sequence[int]) -> list[Row]:
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
    for prompting in runs[0].promptings:
        for domain in (*_DOMAINS, *(runs[0].tasks if study.by_task else ())):
            if not runs[0].outcomes(0, prompting, domain):
                continue
            for number in range(1, last + 1) if study.measure == "rounds" else [last]:
                yield {
                    "variant": variant.name,
                    "label": variant.title,
                    "parameters": runs[0].parameters,
                    "round": number,
                    "stopped": sum(run.last < number for run in runs),
                    "prompting": prompting,
                    "domain": domain,
                    "paper": paper.get(prompting, "") if domain == "in" else "",
                    **_compared(study, runs, reference, (number, prompting, domain)),
                }


def _compared(
    study: Study,
    runs: list[Evaluated],
    reference: list[Evaluated] | None,
    what: tuple[int, str, str],
) -> Row:
    number, prompting, domain = what
    before = [run.outcomes(0, prompting, domain) for run in runs]
    after = [run.outcomes(number, prompting, domain) for run in runs]
    row: Row = {
        "before": _share(before),
        "after": _share(after),
        "change": change(before, after),
        "against": None,
    }
    if reference is not None and prompting in reference[0].promptings:
        theirs = number if study.against == "after" else 0
        compared = [run.outcomes(theirs, prompting, domain) for run in reference]
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
