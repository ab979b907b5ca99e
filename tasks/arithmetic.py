"""Worked sums: several routes to one total, so that sampled paths can differ and still agree.

A vote is better than one path only when paths err differently. The same sum is therefore written in
a random order, added up one by one, in pairs, or by tens and units, and a number is sometimes split
on the way. As people do, most writers are in a hurry and add several numbers in one step, which a
small model gets wrong more often than one number at a time: it can improve by taking care.
"""

import random
from collections.abc import Sequence

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Kim", "Leo")
THINGS = (
    "pens", "cups", "hats", "keys", "books", "coins", "balls", "cards", "shells", "plums",
    "stamps", "bells", "boxes", "lamps", "rings", "stones",
)  # fmt: skip
# How far apart two compared numbers are: near enough that a wrong sum often flips the answer.
MARGINS = (1, 2, 3, 4, 6, 9, 12)


def pick(rng: random.Random, words: Sequence[str], count: int) -> list[str]:
    """Draws `count` distinct words."""
    return rng.sample(list(words), count)


def join(parts: Sequence[str]) -> str:
    """Writes a list as in a sentence: "3 pens, 4 cups and 5 hats"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def in_a_hurry(rng: random.Random, count: int) -> bool:
    """Whether a sum of `count` numbers is written in a hurry: mostly when it is a long one."""
    return count > 2 and rng.random() < (0.55 if count > 3 else 0.3)


def _add(rng: random.Random, a: int, b: int) -> list[str]:
    """One addition, or the same by the tens and then the units of the second number."""
    tens, units = b - b % 10, b % 10
    if tens and units and rng.random() < 0.25:
        return [f"{a} + {tens} = {a + tens}.", f"{a + tens} + {units} = {a + b}."]
    return [f"{a} + {b} = {a + b}."]


def _one_by_one(rng: random.Random, terms: list[int]) -> list[str]:
    steps, total = [], terms[0]
    for term in terms[1:]:
        steps += _add(rng, total, term)
        total += term
    return steps


def _in_pairs(rng: random.Random, terms: list[int]) -> list[str]:
    steps, sums = [], []
    for a, b in zip(terms[::2], terms[1::2], strict=False):
        steps += [f"{a} + {b} = {a + b}."]
        sums.append(a + b)
    return steps + _one_by_one(rng, sums + terms[len(sums) * 2 :])


def _tens_and_units(rng: random.Random, terms: list[int]) -> list[str]:
    tens, units = [t - t % 10 for t in terms], [t % 10 for t in terms]
    steps = [f"{' + '.join(map(str, part))} = {sum(part)}." for part in (tens, units)]
    return [*steps, f"{sum(tens)} + {sum(units)} = {sum(terms)}."]


def _hastily(terms: list[int]) -> list[str]:
    """Three numbers at a time onto the running total."""
    steps, total = [], terms[0]
    for i in range(1, len(terms), 3):
        parts = [total, *terms[i : i + 3]]
        total = sum(parts)
        steps.append(f"{' + '.join(map(str, parts))} = {total}.")
    return steps


def sum_steps(rng: random.Random, terms: Sequence[int]) -> str:
    """Writes out the sum of `terms` by a random route; "" for a single term."""
    order = list(terms)
    rng.shuffle(order)
    if in_a_hurry(rng, len(order)):
        return " ".join(_hastily(order))
    routes = [_one_by_one] * 3
    if len(order) > 2:
        routes += [_in_pairs]
    if len(order) > 1 and max(order) < 100:
        routes += [_tens_and_units]
    return " ".join(rng.choice(routes)(rng, order))
