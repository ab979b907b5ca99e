"""Distances along a road (number, out of domain): the same skill in other words.

Q: From Oslo to Rome it is 34 miles, from Rome to Lima 27 miles. How many miles is the whole way?
A: 34 + 27 = 61. The answer is 61.
"""

import random

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.arithmetic import pick, sum_steps
from lmsi_jax.tasks.family import Family
from lmsi_jax.tasks.task import Level

_TOWNS = ("Oslo", "Rome", "Lima", "Bern", "Cork", "Kiel", "Lyon", "Nara", "Pune", "Riga", "Tula")


def generate(rng: random.Random, level: Level) -> Exemplar:
    """Draws a way of 2 to 3 (easy) or 4 to 5 (hard) legs of two-digit length."""
    count = rng.randint(4, 5) if level == "hard" else rng.randint(2, 3)
    terms, towns = [rng.randint(11, 99) for _ in range(count)], pick(rng, _TOWNS, count + 1)
    legs = [f"from {a} to {b} {n} miles" for a, b, n in zip(towns, towns[1:], terms, strict=False)]
    question = f"Q: It is {', '.join(legs)}. How many miles is it from {towns[0]} to {towns[-1]}?"
    return Exemplar(question=question, reasoning=sum_steps(rng, terms), answer=str(sum(terms)))


TASK = Family(name="travel", kind="number", domain="out", generate=generate)
