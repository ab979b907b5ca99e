"""A study's runs: in which folders, with which bindings, in which order, and for how long.

What a finished run was right about, read from its folder alone.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmsi_jax.config.architecture import ModelConfig
from lmsi_jax.config.study_plan import Study, Variant
from lmsi_jax.runtime.files import read_json, write_json

_MARK = "unit.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """One variant with one seed: an ordinary run.

    Attributes:
      variant: what is run.
      seed: with which; None for a run that serves all seeds.
      folder: its output_dir.
      bindings: gin's, those of the variant, the seed and the folder.
    """

    variant: Variant
    seed: int | None
    folder: str
    bindings: tuple[str, ...]

    @property
    def name(self) -> str:
        """As the progress calls it."""
        return self.variant.title + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def mark(self) -> pathlib.Path:
        """Stands there once the run is finished."""
        return pathlib.Path(self.folder) / _MARK

    @property
    def finished(self) -> bool:
        """Whether the run is finished. It is run again all the same, which finds changes."""
        return self.mark.exists()

    def finish(self, seconds: float) -> None:
        """Notes that the run is finished, and how long its last go took."""
        if not self.finished:
            write_json(self.mark, {"seconds": round(seconds, 1)})


def units(study: Study) -> list[Unit]:
    """Returns what serves all seeds, then one seed after the other, so that each gives a table."""
    once = [_unit(study, variant, None) for variant in study.variants if not variant.each_seed]
    return once + [
        _unit(study, variant, seed)
        for seed in study.seeds
        for variant in study.variants
        if variant.each_seed
    ]


def unit_of(study: Study, variant: Variant, seed: int) -> Unit:
    """Returns a variant's run that serves a seed."""
    return _unit(study, variant, seed if variant.each_seed else None)


def _unit(study: Study, variant: Variant, seed: int | None) -> Unit:
    folder = f"{study.folder}/{variant.name}/{_place(seed)}"
    own = [
        text.replace("{study}", study.folder).replace("{seed}", str(seed))
        for text in variant.bindings
    ]
    if seed is not None:
        own += [f"Run.seed = {seed}", f"Questions.seed = {seed}"]
    own += [f"Run.output_dir = {folder!r}"]
    return Unit(variant=variant, seed=seed, folder=folder, bindings=tuple(own))


def _place(seed: int | None) -> str:
    return "once" if seed is None else f"seed{seed}"


def reusable_runs(study: Study, unit: Unit) -> tuple[str, ...]:
    """Returns the runs of all studies that a run may share stages with: those of its seed."""
    found = pathlib.Path(study.output_dir).glob(f"*/*/{_place(unit.seed)}")
    return tuple(sorted(str(path) for path in found if path != pathlib.Path(unit.folder)))


def expected_seconds(study: Study, left: Sequence[Unit]) -> float:
    """Returns the seconds that runs take on two idle cores, shared with no other study."""
    begun = {unit.seed for unit in units(study) if unit.finished}
    fresh = {unit.seed for unit in left if unit.seed is not None} - begun
    return sum(unit.variant.seconds for unit in left) + study.seconds * len(fresh)


def spent_seconds(unit: Unit) -> float:
    """Returns the seconds that a finished run took; 0.0 where it is not finished."""
    return float(read_json(unit.mark)["seconds"]) if unit.finished else 0.0


Outcomes = dict[str, list[int]]
"""By task: 1 or 0 for each question, in question order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A run's evaluations.

    Attributes:
      trained: the tasks that it trains on.
      parameters: of its model.
      scores: by round (0 is the base) the rows of its scores.json.
    """

    trained: tuple[str, ...]
    parameters: int
    scores: dict[int, list[dict[str, Any]]]

    @property
    def last(self) -> int:
        """The last round that was evaluated; stop rules may end a run before the last planned."""
        return max(self.scores)

    @property
    def prompt_styles(self) -> tuple[str, ...]:
        """What was measured before and after."""
        rows = [{row["prompt_style"]: None for row in own} for own in self.scores.values()]
        return tuple(name for name in rows[0] if all(name in own for own in rows))

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks that the base was measured on."""
        return tuple(dict.fromkeys(row["task"] for row in self.scores[0]))

    def outcomes(self, number: int, prompt_style: str, group: str) -> Outcomes:
        """Returns a round's outcomes on the trained tasks ("in"), the others ("out"), or one task.

        Of a round that stop rules left out: those of the model that the run ended with.
        """
        return {
            row["task"]: row["correct"]
            for row in self.rows(number, prompt_style)
            if group in (row["task"], "in" if row["task"] in self.trained else "out")
        }

    def rows(self, number: int, prompt_style: str) -> list[dict[str, Any]]:
        """Returns a round's scores under a prompt style."""
        scores = self.scores[min(number, self.last)]
        return [row for row in scores if row["prompt_style"] == prompt_style]


def read(folder: str) -> Evaluated:
    """Reads a finished run.

    Raises:
      LmsiError: a file is missing or damaged.
    """
    place = pathlib.Path(folder)
    questions = read_json(place / "questions" / "stage.json")["config"]["Questions"]
    model = ModelConfig.from_json(read_json(place / "manifest.json")["model"])
    found = place.glob("round_*/eval/scores.json")
    scores = {int(path.parent.parent.name.removeprefix("round_")): path for path in found}
    return Evaluated(
        trained=tuple(questions["train"]),
        parameters=model.parameter_count,
        scores={number: read_json(scores[number]) for number in sorted(scores)},
    )


def macro(tasks: Mapping[str, Sequence[float]]) -> float:
    """Returns the mean over tasks of their means, each task counting alike."""
    return math.fsum(math.fsum(own) / len(own) for own in tasks.values()) / len(tasks)
