"""The runs of a study: folders, bindings, order and time, and the outcomes of finished ones."""

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
    """An ordinary run: one variant with one seed.

    Attributes:
      variant: the variant.
      seed: the seed; None for a run that serves all seeds.
      folder: its output_dir.
      bindings: gin's, of the variant, the seed and the folder.
    """

    variant: Variant
    seed: int | None
    folder: str
    bindings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name in the progress lines."""
        return self.variant.title + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def mark(self) -> pathlib.Path:
        """The file that a finished run has."""
        return pathlib.Path(self.folder) / _MARK

    @property
    def finished(self) -> bool:
        """True if the run is finished. It is executed again all the same, which finds changes."""
        return self.mark.exists()

    def finish(self, seconds: float) -> None:
        """Records that the run is finished, and how long its last execution took."""
        if not self.finished:
            write_json(self.mark, {"seconds": round(seconds, 1)})


def units(study: Study) -> list[Unit]:
    """Returns the runs in order: those that serve all seeds, then seed by seed."""
    once = [_unit(study, variant, None) for variant in study.variants if not variant.each_seed]
    return once + [
        _unit(study, variant, seed)
        for seed in study.seeds
        for variant in study.variants
        if variant.each_seed
    ]


def unit_of(study: Study, variant: Variant, seed: int) -> Unit:
    """Returns the run of a variant that serves a seed."""
    return _unit(study, variant, seed if variant.each_seed else None)


def _unit(study: Study, variant: Variant, seed: int | None) -> Unit:
    folder = f"{study.folder}/{variant.name}/{_folder_name(seed)}"
    bindings = [
        text.replace("{study}", study.folder).replace("{seed}", str(seed))
        for text in variant.bindings
    ]
    if seed is not None:
        bindings += [f"Run.seed = {seed}", f"Questions.seed = {seed}"]
    bindings += [f"Run.output_dir = {folder!r}"]
    return Unit(variant=variant, seed=seed, folder=folder, bindings=tuple(bindings))


def _folder_name(seed: int | None) -> str:
    return "once" if seed is None else f"seed{seed}"


def reusable_runs(study: Study, unit: Unit) -> tuple[str, ...]:
    """Returns the folders of the runs of the same seed, of all studies, to share stages with."""
    folders = pathlib.Path(study.output_dir).glob(f"*/*/{_folder_name(unit.seed)}")
    return tuple(sorted(str(path) for path in folders if path != pathlib.Path(unit.folder)))


def expected_seconds(study: Study, remaining: Sequence[Unit]) -> float:
    """Returns the seconds that runs take on two idle cores without the stages of other studies."""
    started = {unit.seed for unit in units(study) if unit.finished}
    fresh = {unit.seed for unit in remaining if unit.seed is not None} - started
    return sum(unit.variant.seconds for unit in remaining) + study.seconds * len(fresh)


def spent_seconds(unit: Unit) -> float:
    """Returns the seconds that a finished run took; 0.0 for an unfinished one."""
    return float(read_json(unit.mark)["seconds"]) if unit.finished else 0.0


Outcomes = dict[str, list[int]]
"""By task: 1 or 0 for each question, in question order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The evaluations of a run.

    Attributes:
      trained: the tasks that it trains on.
      parameters: number of parameters of its model.
      scores: the rows of scores.json by round; 0 is the base.
    """

    trained: tuple[str, ...]
    parameters: int
    scores: dict[int, list[dict[str, Any]]]

    @property
    def last(self) -> int:
        """The last evaluated round; stop rules may end a run before the last planned one."""
        return max(self.scores)

    @property
    def prompt_styles(self) -> tuple[str, ...]:
        """The prompt styles that were measured in every round."""
        by_round = [{row["prompt_style"]: None for row in rows} for rows in self.scores.values()]
        return tuple(name for name in by_round[0] if all(name in names for names in by_round))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the base was measured on."""
        return tuple(dict.fromkeys(row["task"] for row in self.scores[0]))

    def outcomes(self, number: int, prompt_style: str, group: str) -> Outcomes:
        """Returns a round's outcomes on the trained tasks ("in"), the others ("out"), or one task.

        For a round that stop rules left out: those of the model that the run ended with.
        """
        return {
            row["task"]: row["correct"]
            for row in self.rows(number, prompt_style)
            if group in (row["task"], "in" if row["task"] in self.trained else "out")
        }

    def rows(self, number: int, prompt_style: str) -> list[dict[str, Any]]:
        """Returns a round's scores in a prompt style."""
        scores = self.scores[min(number, self.last)]
        return [row for row in scores if row["prompt_style"] == prompt_style]


def read(folder: str) -> Evaluated:
    """Reads the evaluations of a finished run.

    Raises:
      LmsiError: a file is missing or damaged.
    """
    root = pathlib.Path(folder)
    questions = read_json(root / "questions" / "stage.json")["config"]["Questions"]
    model = ModelConfig.from_json(read_json(root / "manifest.json")["model"])
    paths = {
        int(path.parent.parent.name.removeprefix("round_")): path
        for path in root.glob("round_*/eval/scores.json")
    }
    return Evaluated(
        trained=tuple(questions["train"]),
        parameters=model.parameter_count,
        scores={number: read_json(paths[number]) for number in sorted(paths)},
    )


def macro(tasks: Mapping[str, Sequence[float]]) -> float:
    """Returns the mean over tasks of their means, each task counting alike."""
    return math.fsum(math.fsum(values) / len(values) for values in tasks.values()) / len(tasks)
