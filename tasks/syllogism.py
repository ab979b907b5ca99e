"""Syllogisms (yes/no, out of domain): reasoning-gym's, with the two statements restated.

Q: Consider these statements: ... Does it logically follow that: Some doctors are parents?
A: Some parents are lawyers. All lawyers are doctors. That some doctors are parents follows. The
answer is yes.
"""

import random

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.family import Family, Level


def generate(rng: random.Random, level: Level) -> Exemplar:
    """Draws a syllogism; the levels differ in how often the conclusion is invalid."""
    from reasoning_gym.logic.syllogisms import SyllogismConfig, SyllogismDataset

    config = SyllogismConfig(
        invalid_ratio=0.5 if level == "hard" else 0.3, seed=rng.randrange(2**31), size=1
    )
    row = SyllogismDataset(config)[0]
    premises = [row["metadata"]["premise1"], row["metadata"]["premise2"]]
    rng.shuffle(premises)
    verdict = "follows" if row["answer"] == "Yes" else "does not follow"
    conclusion = row["metadata"]["conclusion"]
    claim = conclusion[0].lower() + conclusion[1:]
    return Exemplar(
        question="Q: " + row["question"].strip().replace("\n\n", "\n"),
        reasoning=f"{premises[0]}. {premises[1]}. That {claim} {verdict}.",
        answer=row["answer"].lower(),
    )


TASK = Family(name="syllogism", kind="yes_no", domain="out", generate=generate)
