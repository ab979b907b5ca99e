"""Who has more (yes/no).

Q: Yes or no: Ann has 34 pens and 27 cups. Ben has 63 hats. Does Ann have more things than Ben?
A: 34 + 27 = 61. 61 against 63 is less. The answer is no.
"""

import random

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.arithmetic import MARGINS, NAMES, THINGS, join, pick, sum_steps
from lmsi_jax.tasks.family import Family
from lmsi_jax.tasks.task import Level


def generate(rng: random.Random, level: Level) -> Exemplar:
    """Draws a sum of 2 (easy) or 4 to 5 (hard) two-digit numbers and a number near it."""
    count = rng.randint(4, 5) if level == "hard" else 2
    terms, things = [rng.randint(11, 99) for _ in range(count)], pick(rng, THINGS, count + 1)
    more = rng.random() < 0.5
    other = sum(terms) + rng.choice(MARGINS) * (-1 if more else 1)
    items = join([f"{n} {thing}" for n, thing in zip(terms, things, strict=False)])
    names = pick(rng, NAMES, 2)
    relation = "more" if more else "less"
    return Exemplar(
        question=f"Q: Yes or no: {names[0]} has {items}. {names[1]} has {other} {things[-1]}. "
        f"Does {names[0]} have more things than {names[1]}?",
        reasoning=f"{sum_steps(rng, terms)} {sum(terms)} against {other} is {relation}.",
        answer="yes" if more else "no",
    )


TASK = Family(name="compare", kind="yes_no", domain="in", generate=generate)
