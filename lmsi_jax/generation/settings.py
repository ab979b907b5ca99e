"""What a person sets of question and prompt generation."""

import dataclasses
from typing import Literal

from lmsi_jax.errors import LmsiError, check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What the model makes itself before each round's sampling (LMSI, section 3.3).

    Attributes:
      questions: most new questions of each train task; 0 for none.
      use: whether they are sampled "beside" the real ones or "instead" of them.
      min_confidence: new questions with a less sure vote give no examples.
      shown: real questions that a prompt for new ones shows.
      opening: whether such a prompt ends in the word that begins a question ("Q:", "Premise:"), for
        models that would rather answer than go on with a list (the paper: no).
      continuations: new questions that are sampled behind each such prompt.
      tries: sampled questions for each one that is wanted: most repeat others or are malformed.
      temperature: theirs.
      max_new_tokens: a new question is cut, and dropped, after this many tokens.
      prompts: few-shot prompts of each task, made of the model's own zero-shot answers, over which
        a question's paths are spread; 2 or more (the paper: 20), or 0 for the task's exemplars.
      shots: exemplars in each of them.
    """

    questions: int = 0
    use: Literal["beside", "instead"] = "beside"
    min_confidence: float = 0.5
    shown: int = 5
    opening: bool = False
    continuations: int = 8
    tries: float = 3.0
    temperature: float = 0.7
    max_new_tokens: int = 128
    prompts: int = 0
    shots: int = 4

    def __post_init__(self) -> None:
        from_one = ("shown", "continuations", "tries", "shots", "max_new_tokens")
        ranges = {
            "questions": (self.questions >= 0, "0 (none) or more"),
            "use": (self.use in ("beside", "instead"), "'beside' or 'instead'"),
            "min_confidence": (0 <= self.min_confidence <= 1, "a share, 0 to 1"),
            **{name: (getattr(self, name) >= 1, "1 or more") for name in from_one},
            "temperature": (self.temperature > 0, "a number above 0, so that questions differ"),
            "prompts": (self.prompts >= 0, "2 or more, or 0 for the task's own exemplars"),
        }
        check_ranges(self, ranges)
        if self.prompts == 1:
            raise LmsiError(
                "Generation.prompts = 1: a question is never asked with a prompt that shows it, so "
                "2 or more are needed; or 0 for the task's own exemplars"
            )
