"""The model as its own judge: a prompt that asks for 0 to 10, and what its answer says."""

import re

from lmsi_jax.prompts import SEPARATOR, question_prompt

_ASK = (
    "Q: How good is the solution above? Give it 0 if it is wrong and 10 if it is right in every "
    "step."
)
_RATING = re.compile(r"[^\d\n-]{0,30}(\d{1,3}(?:\.\d+)?)(?![\d,])")
_MOST = 10.0


def rating_prompt(question: str, solution: str) -> str:
    """Returns a document that goes on with a rating of the solution."""
    return f"{question_prompt(question)} {solution}{SEPARATOR}{question_prompt(_ASK)} The rating is"


def read_rating(text: str) -> float | None:
    """Returns the rating that a continuation begins with; None where it gives none of 0 to 10."""
    found = _RATING.match(text)
    rating = float(found[1]) if found else -1.0
    return rating if 0 <= rating <= _MOST else None
