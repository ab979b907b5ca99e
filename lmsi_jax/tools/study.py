"""Runs a study: its variants for each seed, with estimates of the time left, then its table.

    OUTPUT_DIR/STUDY/VARIANT/seedN/    an ordinary run, with unit.json once it is finished
                     study.json        the table, written after each seed over the finished seeds
                     study.html        the same as a page, with the plot

A run may reuse stages of other runs of the same seed, of other studies too (`Run.reuse`), so that
the base's samples and evaluation are made once. After an interruption the same command continues.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from lmsi_jax.config import Run, Study
from lmsi_jax.errors import LmsiError
from lmsi_jax.report.formats import count_of, duration
from lmsi_jax.runtime.files import read_json, write_bytes, write_json
from lmsi_jax.tools import study_results
from lmsi_jax.tools.study_page import markdown, render
from lmsi_jax.tools.study_results import Unit

RESULT, PAGE = "study.json", "study.html"
_TO_MIX = ("generate", "prompts", "sample", "vote", "filter_scores", "mix")
_STAGES = {
    "run": (*_TO_MIX, "teacher_scores", "train", "eval"),
    "mix": _TO_MIX,
    "pretrain": ("pretrain",),
    "distill": ("mix", "teacher_scores", "train", "eval", "distill"),
}
_REUSED = 0.1
"""A run that took less than this share of its expected time reused most of another one."""

Load = Callable[[Sequence[str]], Run]
"""Builds the study's run with further bindings."""
Execute = Callable[[Run, tuple[str, ...]], None]
"""Executes stages of a run."""


def run_study(study: Study, load: Load, execute: Execute, say: Callable[[str], None]) -> None:
    """Executes the runs of a study, and writes its table after each seed.

    Args:
      study: the study.
      load: builds a run.
      execute: executes it; finished stages are checked and not repeated.
      say: prints a line.
    """
    remaining = [unit for unit in study_results.units(study) if not unit.finished]
    say(plan(study))
    actual, expected = 0.0, 0.0  # seconds of the runs so far
    for unit in study_results.units(study):
        run = dataclasses.replace(
            load(unit.bindings), reuse=study_results.reusable_runs(study, unit)
        )
        usual, start = study_results.expected_seconds(study, [unit]), time.monotonic()
        execute(run, _STAGES[unit.variant.command])
        seconds = time.monotonic() - start
        unit.finish(seconds)
        if unit not in remaining:
            continue
        remaining.remove(unit)
        if seconds > _REUSED * usual:  # a reused run tells nothing about this machine's pace
            actual, expected = actual + seconds, expected + usual
        pace = actual / expected if expected else 0.0
        say(f"{study.name}: {unit.name}: {duration(seconds)}; {_remaining(study, remaining, pace)}")
        if not any(other.seed == unit.seed for other in remaining):
            write_result(study, load)
    write_result(study, load)
    say(f"\n{markdown(read_result(study))}\npage: {study.folder}/{PAGE}")


def plan(study: Study) -> str:
    """Returns the runs of a study in words, with the time that they are expected to take."""
    units = study_results.units(study)
    remaining = [unit for unit in units if not unit.finished]
    count = len(units) - len(remaining)
    finished = f", {count} of them finished" if count else ""
    seconds = study_results.expected_seconds(study, remaining)
    estimate = f"about {duration(seconds)} on two idle cores" if seconds else "time not known yet"
    if not remaining:
        estimate = "they are only checked, which takes seconds"
    return (
        f"{study.name}: {study.question}\n{count_of(len(units), 'run')} "
        f"({count_of(len(study.variants), 'variant')}, {count_of(len(study.seeds), 'seed')})"
        f"{finished}: {estimate}"
    )


def _remaining(study: Study, units: Sequence[Unit], pace: float) -> str:
    """The number of remaining runs, and their time at this machine's pace if it is known."""
    seconds = pace * study_results.expected_seconds(study, units)
    time_left = f", about {duration(seconds)}" if seconds else ""
    return f"{len(units) or 'none'} left{time_left}"


def finished_seeds(study: Study) -> list[int]:
    """Returns the seeds for which the runs of all variants are finished."""
    return [
        seed
        for seed in study.seeds
        if all(study_results.unit_of(study, variant, seed).finished for variant in study.variants)
    ]


def write_result(study: Study, load: Load) -> None:
    """Writes study.json and study.html over the finished seeds; nothing if there are none."""
    seeds = finished_seeds(study)
    if not seeds:
        return
    titles = {variant.name: variant.title for variant in study.variants}
    counted = [
        unit for unit in study_results.units(study) if unit.seed is None or unit.seed in seeds
    ]
    result = {
        "name": study.name,
        "question": study.question,
        "source": study.source,
        "measure": study.measure,
        "reference": titles.get(study.reference, ""),
        "against": study.against,
        "seeds": seeds,
        "planned": list(study.seeds),
        "minutes": round(sum(map(study_results.spent_seconds, counted)) / 60, 1),
        "rows": study_results.rows(study, seeds, load),
    }
    write_json(f"{study.folder}/{RESULT}", result)
    write_bytes(f"{study.folder}/{PAGE}", render(result).encode())


def read_result(study: Study) -> dict[str, Any]:
    """Returns a study's result.

    Raises:
      LmsiError: no seed is finished yet.
    """
    try:
        return read_json(f"{study.folder}/{RESULT}")
    except LmsiError:
        raise LmsiError(
            f"{study.folder} has no {RESULT}: no seed is finished yet; run `lmsi study "
            f"{study.name}` without --table and --into"
        ) from None
