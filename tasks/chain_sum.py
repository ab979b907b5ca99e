"""Chains of additions and subtractions (number, out of domain): reasoning-gym's chain_sum.

Q: State the final answer to the following arithmetic problem: 43 + 22 - 12 =
A: 43 + 22 = 65. 65 - 12 = 53. The answer is 53.
"""

import random

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.arithmetic import in_a_hurry
from lmsi_jax.tasks.family import Family
from lmsi_jax.tasks.task import Level


def _steps(rng: random.Random, terms: list[int]) -> str:
    """Writes out the chain from left to right, one number at a time or, in a hurry, three."""
    stride = 3 if in_a_hurry(rng, len(terms)) else 1
    steps, total = [], terms[0]
    for i in range(1, len(terms), stride):
        chunk = terms[i : i + stride]
        parts = " ".join(f"{'-' if term < 0 else '+'} {abs(term)}" for term in chunk)
        steps.append(f"{total} {parts} = {total + sum(chunk)}.")
        total += sum(chunk)
    return " ".join(steps)


def generate(rng: random.Random, level: Level) -> Exemplar:
    """Draws a chain of 2 to 3 (easy) or 4 to 5 (hard) two-digit numbers."""
    from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset

    low, high = (4, 5) if level == "hard" else (2, 3)
    config = ChainSumConfig(
        min_terms=low, max_terms=high, min_digits=2, max_digits=2, seed=rng.randrange(2**31), size=1
    )
    row = ChainSumDataset(config)[0]
    tokens = row["metadata"]["expression"].split()
    terms = [int(tokens[0])] + [
        int(n) if sign == "+" else -int(n)
        for sign, n in zip(tokens[1::2], tokens[2::2], strict=True)
    ]
    if rng.random() < 0.5:  # any order that starts with a positive number gives the same result
        first = rng.choice([i for i, n in enumerate(terms) if n > 0])
        rest = terms[:first] + terms[first + 1 :]
        rng.shuffle(rest)
        terms = [terms[first], *rest]
    question = "Q: " + row["question"].strip()
    return Exemplar(question=question, reasoning=_steps(rng, terms), answer=row["answer"])


TASK = Family(name="chain_sum", kind="number", domain="out", generate=generate)
