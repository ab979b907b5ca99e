"""Totals with answer choices (choice).

Q: A box holds 34 pens, 27 cups and 18 hats. How many things are in the box: 69 (a), 79 (b), 81 (c)
or 89 (d)?
A: 34 + 27 = 61. 61 + 18 = 79. 79 (b). The answer is (b).

The letter stands behind its number: a small model looks a number up by what follows it.
"""

import random

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.arithmetic import THINGS, join, pick, sum_steps
from lmsi_jax.tasks.family import Family, Level

_OFFSETS = (-20, -12, -10, -8, -2, -1, 1, 2, 8, 10, 12, 20)


def generate(rng: random.Random, level: Level) -> Exemplar:
    """Draws a sum of 2 to 3 (easy) or 4 to 6 (hard) two-digit numbers and three near misses."""
    count = rng.randint(4, 6) if level == "hard" else rng.randint(2, 3)
    terms = [rng.randint(11, 99) for _ in range(count)]
    options = [sum(terms), *(sum(terms) + d for d in rng.sample(_OFFSETS, 3))]
    rng.shuffle(options)
    things = pick(rng, THINGS, count)
    items = join([f"{n} {thing}" for n, thing in zip(terms, things, strict=True)])
    letters = [f"({letter})" for letter in "abcd"]
    *first, last = [f"{n} {letter}" for n, letter in zip(options, letters, strict=True)]
    right = letters[options.index(sum(terms))]
    return Exemplar(
        question=f"Q: A box holds {items}. How many things are in the box: "
        f"{', '.join(first)} or {last}?",
        reasoning=f"{sum_steps(rng, terms)} {sum(terms)} {right}.",
        answer=right,
    )


TASK = Family(name="choices", kind="choice", domain="in", generate=generate)
