"""What a finished run was right about, read from its folder alone."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmsi_jax.files import read_json
from lmsi_jax.models.config import ModelConfig

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
    def promptings(self) -> tuple[str, ...]:
        """What was measured before and after."""
        rows = [{row["prompting"]: None for row in own} for own in self.scores.values()]
        return tuple(name for name in rows[0] if all(name in own for own in rows))

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks that the base was measured on."""
        return tuple(dict.fromkeys(row["task"] for row in self.scores[0]))

    def outcomes(self, number: int, prompting: str, group: str) -> Outcomes:
        """Returns a round's outcomes on the trained tasks ("in"), the others ("out"), or one task.

        Of a round that stop rules left out: those of the model that the run ended with.
        """
        return {
            row["task"]: row["correct"]
            for row in self.rows(number, prompting)
            if group in (row["task"], "in" if row["task"] in self.trained else "out")
        }

    def rows(self, number: int, prompting: str) -> list[dict[str, Any]]:
        """Returns a round's scores under a prompting."""
        scores = self.scores[min(number, self.last)]
        return [row for row in scores if row["prompting"] == prompting]


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
