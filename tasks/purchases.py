"""Sums in words (number).

Q: Ann buys 34 pens, 27 cups and 18 hats. How many things does Ann buy?
A: 27 + 34 = 61. 61 + 18 = 79. The answer is 79.
"""

import random

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.arithmetic import NAMES, THINGS, join, pick, sum_steps
from lmsi_jax.tasks.family import Family
from lmsi_jax.tasks.task import Level

_TEMPLATES = (
    "Q: {name} buys {list}. How many things does {name} buy?",
    "Q: {name} has {list}. How many things does {name} have in all?",
    "Q: There are {list} on a table. How many things are on the table?",
)


def generate(rng: random.Random, level: Level) -> Exemplar:
    """Draws a sum of 2 to 3 (easy) or 4 to 6 (hard) two-digit numbers."""
    count = rng.randint(4, 6) if level == "hard" else rng.randint(2, 3)
    terms = [rng.randint(11, 99) for _ in range(count)]
    things = pick(rng, THINGS, count)
    items = join([f"{n} {thing}" for n, thing in zip(terms, things, strict=True)])
    question = rng.choice(_TEMPLATES).format(name=rng.choice(NAMES), list=items)
    return Exemplar(question=question, reasoning=sum_steps(rng, terms), answer=str(sum(terms)))


TASK = Family(name="purchases", kind="number", domain="in", generate=generate)
