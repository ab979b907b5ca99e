"""Who has more, with answer choices (choice).

Q: Ann has 34 pens, 27 cups and 18 hats. Ben has 85 balls. Who has more things? (a) Ann (b) Ben (c)
both the same
A: 34 + 27 = 61. 61 + 18 = 79. 79 against 85 is less. The answer is (b).
"""

import random

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.arithmetic import MARGINS, NAMES, THINGS, join, pick, sum_steps
from lmsi_jax.tasks.family import Family
from lmsi_jax.tasks.task import Level

_RELATIONS = (("more", 1), ("less", -1), ("the same", 0))


def generate(rng: random.Random, level: Level) -> Exemplar:
    """Draws a sum of 2 to 3 (easy) or 4 to 5 (hard) two-digit numbers and a number near it."""
    count = rng.randint(4, 5) if level == "hard" else rng.randint(2, 3)
    terms, things = [rng.randint(11, 99) for _ in range(count)], pick(rng, THINGS, count + 1)
    right = rng.randrange(3)
    relation, sign = _RELATIONS[right]
    other = sum(terms) - sign * rng.choice(MARGINS)
    items = join([f"{n} {thing}" for n, thing in zip(terms, things, strict=False)])
    names = pick(rng, NAMES, 2)
    return Exemplar(
        question=f"Q: {names[0]} has {items}. {names[1]} has {other} {things[-1]}. "
        f"Who has more things? (a) {names[0]} (b) {names[1]} (c) both the same",
        reasoning=f"{sum_steps(rng, terms)} {sum(terms)} against {other} is {relation}.",
        answer=f"({'abc'[right]})",
    )


TASK = Family(name="choices", kind="choice", domain="in", generate=generate)
