"""Who has more (yes/no).

Q: Yes or no: Ann has 34 pens and 27 cups. Ben has 41 hats and 22 keys. Does Ann have more things
than Ben?
A: Ann: 34 + 27 = 61. Ben: 22 + 41 = 63. 61 against 63 is less. The answer is no.
"""

import random

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.arithmetic import NAMES, THINGS, join, pick, sum_steps
from lmsi_jax.tasks.family import Family, Level


def _near(rng: random.Random, total: int, count: int) -> list[int]:
    """Draws `count` numbers whose sum is near, but not equal to, `total`."""
    while True:
        terms = [rng.randint(11, 99) for _ in range(count - 1)]
        last = total - sum(terms) + rng.choice([-9, -7, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 7, 9])
        if 11 <= last <= 99:
            return [*terms, last]


def generate(rng: random.Random, level: Level) -> Exemplar:
    """Draws two totals of 2 (easy) or 3 to 4 (hard) numbers each that differ by 1 to 9."""
    count = rng.randint(3, 4) if level == "hard" else 2
    mine = [rng.randint(11, 99) for _ in range(count)]
    sides = [mine, _near(rng, sum(mine), count)]
    rng.shuffle(sides)
    names, things = pick(rng, NAMES, 2), pick(rng, THINGS, 2 * count)
    listed = [
        join([f"{n} {thing}" for n, thing in zip(side, things[i * count :], strict=False)])
        for i, side in enumerate(sides)
    ]
    left, right = map(sum, sides)
    steps = [f"{name}: {sum_steps(rng, side)}" for name, side in zip(names, sides, strict=True)]
    rng.shuffle(steps)
    relation = "more" if left > right else "less"
    return Exemplar(
        question=f"Q: Yes or no: {names[0]} has {listed[0]}. {names[1]} has {listed[1]}. "
        f"Does {names[0]} have more things than {names[1]}?",
        reasoning=f"{' '.join(steps)} {left} against {right} is {relation}.",
        answer="yes" if left > right else "no",
    )


TASK = Family(name="compare", kind="yes_no", domain="in", generate=generate)
