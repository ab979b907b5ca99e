"""Does the hypothesis follow (entailment with three answers)?

Premise: Ann has 34 pens, 27 cups and some hats.
Based on this premise, can we conclude the hypothesis "Ann has more than 65 things." is true?
OPTIONS
- yes
- no
- it is not possible to tell
A: 34 + 27 = 61. 61 against 65 is less. There are also some hats. The answer is it is not possible
to tell.

With "some" things left uncounted a total above the limit still proves the hypothesis, and one below
it proves nothing; without them it refutes it.
"""

import random

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.arithmetic import MARGINS, NAMES, THINGS, join, pick, sum_steps
from lmsi_jax.tasks.family import Family
from lmsi_jax.tasks.task import Level

_QUESTION = (
    "Premise: {name} has {items}.\n"
    'Based on this premise, can we conclude the hypothesis "{name} has more than {limit} things." '
    "is true?\n"
    "OPTIONS\n- yes\n- no\n- it is not possible to tell"
)


def generate(rng: random.Random, level: Level) -> Exemplar:
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


TASK = Family(name="claims", kind="nli", domain="in", generate=generate)
