"""Syllogisms (yes/no, out of domain): reasoning-gym's, with the two statements restated.

Q: Consider these statements: ... Does it logically follow that: Some doctors are parents?
A: Some parents are lawyers. All lawyers are doctors. That some doctors are parents follows. The
answer is yes.

reasoning-gym 0.1.25 lets the fallacy of the undistributed middle pass ("All A are B. Some B are C."
so "Some A are C."). Questions whose label a check over all models contradicts are left out.
"""

import itertools
import random
from collections.abc import Callable, Sequence

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.family import Family
from lmsi_jax.tasks.task import Level

Statement = tuple[str, bool, str, str]
"""Quantifier ("All", "No", "Some"), whether "are not" stands in it, subject, predicate."""


def _parsed(text: str) -> Statement:
    quantifier, rest = text.split(" ", 1)
    negated = " are not " in rest
    subject, predicate = rest.split(" are not " if negated else " are ")
    return quantifier, negated, subject, predicate


def _holds(statement: Statement, things: Sequence[frozenset[str]]) -> bool:
    """Whether a statement is true where each thing is the set of terms that describe it."""
    quantifier, negated, subject, predicate = statement
    found = [(predicate in thing) != negated for thing in things if subject in thing]
    test: Callable[..., bool] = {"All": all, "No": lambda f: not any(f), "Some": any}[quantifier]
    return test(found)


def follows(premises: Sequence[str], conclusion: str) -> bool:
    """Whether the conclusion is true in every world where the premises are and no term is empty."""
    *given, claim = [_parsed(text) for text in (*premises, conclusion)]
    terms = sorted({term for statement in (*given, claim) for term in statement[2:]})
    subsets = itertools.product((False, True), repeat=len(terms))
    kinds = [frozenset(t for t, used in zip(terms, row, strict=True) if used) for row in subsets]
    for chosen in itertools.product((False, True), repeat=len(kinds)):
        world = [kind for kind, there in zip(kinds, chosen, strict=True) if there]
        if set().union(*world) != set(terms):
            continue
        if all(_holds(statement, world) for statement in given) and not _holds(claim, world):
            return False
    return True


def generate(rng: random.Random, level: Level) -> Exemplar:
    """Draws a syllogism; the levels differ in how often the conclusion is invalid."""
    from reasoning_gym.logic.syllogisms import SyllogismConfig, SyllogismDataset

    while True:
        config = SyllogismConfig(
            invalid_ratio=0.5 if level == "hard" else 0.3, seed=rng.randrange(2**31), size=1
        )
        row = SyllogismDataset(config)[0]
        premises = [row["metadata"]["premise1"], row["metadata"]["premise2"]]
        conclusion = row["metadata"]["conclusion"]
        valid = row["answer"] == "Yes"
        if follows(premises, conclusion) == valid:
            break
    rng.shuffle(premises)
    verdict = "follows" if valid else "does not follow"
    claim = conclusion[0].lower() + conclusion[1:]
    return Exemplar(
        question="Q: " + row["question"].strip().replace("\n\n", "\n"),
        reasoning=f"{premises[0]}. {premises[1]}. That {claim} {verdict}.",
        answer=row["answer"].lower(),
    )


TASK = Family(name="syllogism", kind="yes_no", domain="out", generate=generate)
