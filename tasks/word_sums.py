"""Families of sums in words with several routes to one total: samples can differ and still agree.

Voting beats a single sample only if samples err differently. Each sum is written in a random
order and added up one by one, in pairs, or by tens and units; sometimes a number is split on the
way. Most written solutions are hasty: they add several numbers in one step, which a small model
gets wrong more often than one number at a time, so it can improve by taking care.

purchases, a number:

    Q: Ann buys 34 pens, 27 cups and 18 hats. How many things does Ann buy?
    A: 27 + 34 = 61. 61 + 18 = 79. The answer is 79.

legs, a number; the questions are reasoning-gym's leg_counting, the reasoning is ours:

    Q: ... how many legs are there in total if you have 12 deers, 3 ducks?
    A: 12 deers: 12 * 4 = 48. 3 ducks: 3 * 2 = 6. 48 + 6 = 54. The answer is 54.

choices, one of three options:

    Q: Ann has 34 pens, 27 cups and 18 hats. Ben has 85 balls. Who has more things? (a) Ann (b) Ben
    (c) both the same
    A: 34 + 27 = 61. 61 + 18 = 79. 79 against 85 is less. The answer is (b).

compare, yes or no:

    Q: Yes or no: Ann has 34 pens and 27 cups. Ben has 63 hats. Does Ann have more things than Ben?
    A: 34 + 27 = 61. 61 against 63 is less. The answer is no.

claims, inference with three answers. With "some" things left uncounted a total above the limit
still proves the hypothesis, and one below it proves nothing; without them it refutes it.

    Premise: Ann has 34 pens, 27 cups and some hats.
    Based on this premise, can we conclude the hypothesis "Ann has more than 65 things." is true?
    OPTIONS: ...
    A: 34 + 27 = 61. 61 against 65 is less. There are also some hats. The answer is it is not
    possible to tell.

travel, a number, out of domain: the same skill in other words.

    Q: From Oslo to Rome it is 34 miles, from Rome to Lima 27. How many miles is the whole way?
    A: 34 + 27 = 61. The answer is 61.
"""

import random
from collections.abc import Sequence

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.task import Family, Level

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


def draw_hasty(rng: random.Random, count: int) -> bool:
    """Draws if a sum of `count` numbers is written hastily, which long ones mostly are."""
    return count > 2 and rng.random() < (0.55 if count > 3 else 0.3)


def _add(rng: random.Random, a: int, b: int) -> list[str]:
    """Writes an addition, sometimes by the tens and then the units of the second number."""
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
    """Adds three numbers at a time to the running total."""
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
    if draw_hasty(rng, len(order)):
        return " ".join(_hastily(order))
    routes = [_one_by_one] * 3
    if len(order) > 2:
        routes += [_in_pairs]
    if len(order) > 1 and max(order) < 100:
        routes += [_tens_and_units]
    return " ".join(rng.choice(routes)(rng, order))


_TEMPLATES = (
    "Q: {name} buys {list}. How many things does {name} buy?",
    "Q: {name} has {list}. How many things does {name} have in all?",
    "Q: There are {list} on a table. How many things are on the table?",
)


def draw_purchases(rng: random.Random, level: Level) -> Exemplar:
    """Draws a sum of 2 to 3 (easy) or 4 to 6 (hard) two-digit numbers."""
    count = rng.randint(4, 6) if level == "hard" else rng.randint(2, 3)
    terms = [rng.randint(11, 99) for _ in range(count)]
    things = pick(rng, THINGS, count)
    items = join([f"{n} {thing}" for n, thing in zip(terms, things, strict=True)])
    question = rng.choice(_TEMPLATES).format(name=rng.choice(NAMES), list=items)
    return Exemplar(question=question, reasoning=sum_steps(rng, terms), answer=str(sum(terms)))


PURCHASES = Family(name="purchases", kind="number", domain="in", generate=draw_purchases)


def _product(rng: random.Random, count: int, legs: int) -> str:
    if count > 10 and rng.random() < 0.4:
        tens, units = 10 * legs, (count - 10) * legs
        parts = f"10 * {legs} = {tens}, {count - 10} * {legs} = {units}"
        return f"{parts}, {tens} + {units} = {count * legs}"
    if rng.random() < 0.3:
        return f"{legs} * {count} = {count * legs}"
    return f"{count} * {legs} = {count * legs}"


def draw_legs(rng: random.Random, level: Level) -> Exemplar:
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


LEGS = Family(name="legs", kind="number", domain="in", generate=draw_legs)


_RELATIONS = (("more", 1), ("less", -1), ("the same", 0))


def draw_choices(rng: random.Random, level: Level) -> Exemplar:
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


CHOICES = Family(name="choices", kind="choice", domain="in", generate=draw_choices)


_QUESTION = (
    "Premise: {name} has {items}.\n"
    'Based on this premise, can we conclude the hypothesis "{name} has more than {limit} things." '
    "is true?\n"
    "OPTIONS\n- yes\n- no\n- it is not possible to tell"
)


def draw_claims(rng: random.Random, level: Level) -> Exemplar:
    """Draws 2 (easy) or 4 to 5 (hard) numbers, a limit near their total, perhaps "some" more."""
    count = rng.randint(4, 5) if level == "hard" else 2
    terms, things = [rng.randint(11, 99) for _ in range(count)], pick(rng, THINGS, count + 1)
    more, open_ended = rng.random() < 0.5, rng.random() < 0.5
    limit = sum(terms) + rng.choice(MARGINS) * (-1 if more else 1)
    items = [f"{n} {thing}" for n, thing in zip(terms, things, strict=False)]
    if open_ended:
        items.insert(rng.randint(0, count), f"some {things[-1]}")
    steps = [
        sum_steps(rng, terms),
        f"{sum(terms)} against {limit} is {'more' if more else 'less'}.",
    ]
    if open_ended:
        steps.append(f"There are also some {things[-1]}.")
    answer = "yes" if more else ("it is not possible to tell" if open_ended else "no")
    question = _QUESTION.format(name=rng.choice(NAMES), items=join(items), limit=limit)
    return Exemplar(question=question, reasoning=" ".join(steps), answer=answer)


CLAIMS = Family(name="claims", kind="nli", domain="in", generate=draw_claims)


def draw_compare(rng: random.Random, level: Level) -> Exemplar:
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


COMPARE = Family(name="compare", kind="yes_no", domain="in", generate=draw_compare)


_TOWNS = ("Oslo", "Rome", "Lima", "Bern", "Cork", "Kiel", "Lyon", "Nara", "Pune", "Riga", "Tula")


def draw_travel(rng: random.Random, level: Level) -> Exemplar:
    """Draws a route of 2 to 3 (easy) or 4 to 5 (hard) legs of two-digit length."""
    count = rng.randint(4, 5) if level == "hard" else rng.randint(2, 3)
    terms, towns = [rng.randint(11, 99) for _ in range(count)], pick(rng, _TOWNS, count + 1)
    legs = [f"from {a} to {b} {n} miles" for a, b, n in zip(towns, towns[1:], terms, strict=False)]
    question = f"Q: It is {', '.join(legs)}. How many miles is it from {towns[0]} to {towns[-1]}?"
    return Exemplar(question=question, reasoning=sum_steps(rng, terms), answer=str(sum(terms)))


TRAVEL = Family(name="travel", kind="number", domain="out", generate=draw_travel)

TASKS = (PURCHASES, LEGS, CHOICES, COMPARE, CLAIMS, TRAVEL)
