"""Counting legs (number): the questions are reasoning-gym's leg_counting, the reasoning is ours.

Q: ... how many legs are there in total if you have 12 deers, 3 ducks?
A: 12 deers: 12 * 4 = 48. 3 ducks: 3 * 2 = 6. 48 + 6 = 54. The answer is 54.
"""

import random

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.arithmetic import sum_steps
from lmsi_jax.tasks.family import Family
from lmsi_jax.tasks.task import Level


def _product(rng: random.Random, count: int, legs: int) -> str:
    if count > 10 and rng.random() < 0.4:
        tens, units = 10 * legs, (count - 10) * legs
        parts = f"10 * {legs} = {tens}, {count - 10} * {legs} = {units}"
        return f"{parts}, {tens} + {units} = {count * legs}"
    if rng.random() < 0.3:
        return f"{legs} * {count} = {count * legs}"
    return f"{count} * {legs} = {count * legs}"


def generate(rng: random.Random, level: Level) -> Exemplar:
    """Draws 2 (easy) or 3 to 4 (hard) kinds of animals, up to 15 of each."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS, LegCountingConfig, LegCountingDataset

    low, high = (3, 4) if level == "hard" else (2, 2)
    config = LegCountingConfig(min_animals=low, max_animals=high, seed=rng.randrange(2**31), size=1)
    row = LegCountingDataset(config)[0]
    animals = list(row["metadata"]["animals"].items())
    rng.shuffle(animals)
    steps = [f"{count} {name}s: {_product(rng, count, ANIMALS[name])}." for name, count in animals]
    total = sum_steps(rng, [count * ANIMALS[name] for name, count in animals])
    return Exemplar(
        question="Q: " + row["question"].strip().replace("\n\n", "\n"),
        reasoning=" ".join([*steps, total]).strip(),
        answer=row["answer"],
    )


TASK = Family(name="legs", kind="number", domain="in", generate=generate)
