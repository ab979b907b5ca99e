"""Runs a study, says how long it takes, and writes what it found.

    OUTPUT_DIR/STUDY/VARIANT/seedN/    a run like any other, with unit.json once it is finished
                     study.json        the table, after each seed over the seeds that are finished
                     study.html        the same as a page, with the plot

Every run may take stages over from the runs of the same seed, of other studies too (`Run.reuse`):
so the base's paths and evaluation are made once. Killed anywhere, the same command goes on.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from lmsi_jax.config.run import Run
from lmsi_jax.config.study_plan import Study
from lmsi_jax.errors import LmsiError
from lmsi_jax.report.html import count_of, duration
from lmsi_jax.runtime.files import read_json, write_bytes, write_json
from lmsi_jax.tools import study_results, study_units
from lmsi_jax.tools.study_page import markdown, render
from lmsi_jax.tools.study_units import Unit

RESULT, PAGE = "study.json", "study.html"
_TO_MIX = ("generate", "prompts", "sample", "vote", "path_scores", "mix")
_STAGES = {
    "run": (*_TO_MIX, "score", "train", "eval"),
    "mix": _TO_MIX,
    "pretrain": ("pretrain",),
    "distill": ("mix", "score", "train", "eval", "distill"),
}

_COPIED = 0.1
"""A run of less than this share of its expected time was mostly taken over from another one."""

Load = Callable[[Sequence[str]], Run]
"""Builds the study's run with further bindings."""
Execute = Callable[[Run, tuple[str, ...]], None]
"""Runs stages of a run."""


def run_study(study: Study, load: Load, execute: Execute, say: Callable[[str], None]) -> None:
    """Runs what is left of a study, and writes its table after each seed.

    Args:
      study: what to run.
      load: builds a run.
      execute: carries it out; what is finished is looked over and not done again.
      say: prints a line.
    """
    left = [unit for unit in study_units.units(study) if not unit.finished]
    say(plan(study))
    took = [0.0, 0.0]  # seconds, of these runs and as expected
    for unit in study_units.units(study):
        run = dataclasses.replace(load(unit.bindings), reuse=study_units.reusable_runs(study, unit))
        own, begun = study_units.expected_seconds(study, [unit]), time.monotonic()
        execute(run, _STAGES[unit.variant.command])
        seconds = time.monotonic() - begun
        unit.finish(seconds)
        if unit in left:
            left.remove(unit)
            if seconds > _COPIED * own:  # what is taken over says nothing of this machine's pace
                took = [took[0] + seconds, took[1] + own]
            say(f"{study.name}: {unit.name}: {duration(seconds)}; {_remaining(study, left, took)}")
            if not [one for one in left if one.seed == unit.seed]:
                write_result(study, load)
    write_result(study, load)
    say(f"\n{markdown(read_result(study))}\npage: {study.folder}/{PAGE}")


def plan(study: Study) -> str:
    """Returns what there is to do, and the time that it is expected to take."""
    every = study_units.units(study)
    left = [unit for unit in every if not unit.finished]
    done = f", {len(every) - len(left)} of them finished" if len(left) < len(every) else ""
    seconds = study_units.expected_seconds(study, left)
    time_left = f"about {duration(seconds)} on two idle cores" if seconds else "time not known yet"
    if not left:
        time_left = "all are looked over in seconds"
    seeds = count_of(len(study.seeds), "seed")
    return (
        f"{study.name}: {study.question}\n{count_of(len(every), 'run')} "
        f"({count_of(len(study.variants), 'variant')}, {seeds}){done}: {time_left}"
    )


def _remaining(study: Study, left: Sequence[Unit], took: Sequence[float]) -> str:
    """Runs left, and their time at this machine's pace."""
    seconds = study_units.expected_seconds(study, left)
    told = f"{len(left)} left" if left else "none left"
    if left and seconds and took[1]:
        told += f", about {duration(seconds * took[0] / took[1])}"
    return told


def finished_seeds(study: Study) -> list[int]:
    """Returns the seeds of which every variant's run is finished."""
    return [
        seed
        for seed in study.seeds
        if all(study_units.unit_of(study, variant, seed).finished for variant in study.variants)
    ]


def write_result(study: Study, load: Load) -> None:
    """Writes study.json and study.html over the seeds that are finished; nothing where none is."""
    seeds = finished_seeds(study)
    if not seeds:
        return
    result = {
        "name": study.name,
        "question": study.question,
        "source": study.source,
        "measure": study.measure,
        "reference": _title(study),
        "against": study.against,
        "seeds": seeds,
        "planned": list(study.seeds),
        "minutes": _minutes(study, seeds),
        "rows": _rows(study, seeds, load),
    }
    write_json(f"{study.folder}/{RESULT}", result)
    write_bytes(f"{study.folder}/{PAGE}", render(result).encode())


def _rows(study: Study, seeds: Sequence[int], load: Load) -> list[dict[str, Any]]:
    if study.measure == "paths":
        return study_results.path_rows(study, seeds)
    if study.measure == "shift":
        return study_results.shift_rows(study, seeds, load)
    return study_results.accuracy_rows(study, seeds)


def _title(study: Study) -> str:
    titles = {variant.name: variant.title for variant in study.variants}
    return titles.get(study.reference, "")


def _minutes(study: Study, seeds: Sequence[int]) -> float:
    """Of all runs that the table is of."""
    counted = [unit for unit in study_units.units(study) if unit.seed is None or unit.seed in seeds]
    return round(sum(map(study_units.spent_seconds, counted)) / 60, 1)


def read_result(study: Study) -> dict[str, Any]:
    """Returns a study's result.

    Raises:
      LmsiError: no seed of it is finished yet.
    """
    try:
        return read_json(f"{study.folder}/{RESULT}")
    except LmsiError:
        raise LmsiError(
            f"{study.folder} has no {RESULT}: no seed is finished yet; run `lmsi study "
            f"{study.name}` without --table and --into"
        ) from None
