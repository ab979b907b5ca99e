"""What a person sets of question and prompt generation."""

import dataclasses
from typing import Literal

from lmsi_jax.errors import LmsiError


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
        if self.use not in ("beside", "instead"):
            raise LmsiError(f"Generation.use = {self.use!r}; use 'beside' or 'instead'")
        if not 0 <= self.min_confidence <= 1:
            raise LmsiError(
                f"Generation.min_confidence = {self.min_confidence}; use a share, 0 to 1"
            )
        least = {"questions": 0, "shown": 1, "continuations": 1, "tries": 1, "shots": 1}
        for name, minimum in {**least, "prompts": 0, "max_new_tokens": 1}.items():
            if getattr(self, name) < minimum:
                raise LmsiError(f"Generation.{name} = {getattr(self, name)}; at least {minimum}")
        if self.temperature <= 0:
            raise LmsiError(
                f"Generation.temperature = {self.temperature}; above 0, so that questions differ"
            )
        if self.prompts == 1:
            raise LmsiError(
                "Generation.prompts = 1: a question is never asked with a prompt that shows it, so "
                "2 or more are needed; or 0 for the task's own exemplars"
            )
