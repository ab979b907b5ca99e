"""Grade-school word problems (number, out of domain): reasoning-gym's gsm_symbolic.

Questions and worked reasoning are reasoning-gym's; only their layout is changed (one line). One
exemplar makes a few-shot prompt, because they are long.
"""

import random
import re

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.family import Family
from lmsi_jax.tasks.task import Level


def _one_line(reasoning: str) -> str:
    """Drops the "#### 12" line and the bullets, joins the rest into one line of sentences."""
    plain = (
        reasoning.replace("×", "*")
        .replace("•", " ")
        .replace("–", "-")
        .replace("Let's solve this step by step:", "")
    )
    lines = [line.strip() for line in plain.splitlines()]
    kept = [line for line in lines if line and not line.startswith("####")]
    return re.sub(r" +", " ", " ".join(line if line[-1] in ".:!?" else line + "." for line in kept))


def generate(rng: random.Random, level: Level) -> Exemplar:
    """Draws one of reasoning-gym's templates; both levels are the library's difficulty 1."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import (
        GSMSymbolicDataset,
        GSMSymbolicDatasetConfig,
    )

    row = GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=rng.randrange(2**31), size=1))[0]
    return Exemplar(
        question="Q: " + " ".join(row["question"].split()),
        reasoning=_one_line(row["metadata"]["answer_cot"]),
        answer=row["answer"],
    )


TASK = Family(name="gsm_symbolic", kind="number", domain="out", generate=generate, shots=1)
