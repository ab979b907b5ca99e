"""Documents for training the embedded base model: questions of one family in one format.

A document has one format throughout, so the model learns to continue in the format of its context:
it reasons after chain-of-thought exemplars and after "Let's think step by step.", and gives bare
answers after direct exemplars. The model learns worked reasoning from these documents alone.
"""

import random
from collections.abc import Iterator, Mapping

from lmsi_jax.prompts import STEP_BY_STEP
from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.task import Task

FORMAT_SHARES = {"cot": 0.55, "direct": 0.25, "step_by_step": 0.20}


def answer_text(row: Exemplar, style: str) -> str:
    """Returns the text after "A:" in a document of a style, with its leading space."""
    final = f" The answer is {row.answer}."
    if style == "direct":
        return final
    trigger = f" {STEP_BY_STEP}" if style == "step_by_step" else ""
    return f"{trigger} {row.reasoning}{final}" if row.reasoning else trigger + final


def documents(
    families: Mapping[str, Task],
    shares: Mapping[str, float],
    *,
    seed: int,
    hard: float,
    most_questions: int = 5,
) -> Iterator[list[tuple[str, str]]]:
    """Yields documents as lists of (question + newline + "A:", answer) pairs.

    Args:
      families: the families by name.
      shares: the relative frequency of each family (need not sum to one).
      seed: the stream is a pure function of the arguments.
      hard: share of questions at the hard level.
      most_questions: documents have 1 to this many questions, evenly.
    """
    rng = random.Random(f"documents/{seed}")
    streams = {
        (name, level): families[name].worked("pretrain", level, seed=1 + seed)
        for name in shares
        for level in ("easy", "hard")
    }
    names, weights = list(shares), list(shares.values())
    while True:
        name = rng.choices(names, weights)[0]
        style = rng.choices(list(FORMAT_SHARES), list(FORMAT_SHARES.values()))[0]
        rows = [
            next(streams[name, "hard" if rng.random() < hard else "easy"])
            for _ in range(rng.randint(1, most_questions))
        ]
        yield [(f"{row.question}\nA:", answer_text(row, style)) for row in rows]
