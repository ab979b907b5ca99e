"""Families whose questions reasoning-gym generates, all out of domain.

chain_sum: additions and subtractions from left to right; hasty samples take three numbers at once.

    Q: State the final answer to the following arithmetic problem: 43 + 22 - 12 =
    A: 43 + 22 = 65. 65 - 12 = 53. The answer is 53.

syllogism: yes or no; the reasoning restates the two premises. reasoning-gym 0.1.25 accepts the
fallacy of the undistributed middle ("All A are B. Some B are C." so "Some A are C."), so questions
whose label contradicts a check over all models are left out.

    Q: Consider these statements: ... Does it logically follow that: Some doctors are parents?
    A: Some parents are lawyers. All lawyers are doctors. That some doctors are parents follows.
    The answer is yes.

gsm_symbolic: grade-school word problems; questions and reasoning are reasoning-gym's, on one line.
They are long, so that one exemplar makes a few-shot prompt.
"""

import itertools
import random
import re
from collections.abc import Callable, Sequence

from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.task import Family, Level
from lmsi_jax.tasks.word_sums import draw_hasty


def _steps(rng: random.Random, terms: list[int]) -> str:
    """Writes out the chain from left to right, one number at a time or, if hasty, three."""
    stride = 3 if draw_hasty(rng, len(terms)) else 1
    steps, total = [], terms[0]
    for i in range(1, len(terms), stride):
        chunk = terms[i : i + stride]
        parts = " ".join(f"{'-' if term < 0 else '+'} {abs(term)}" for term in chunk)
        steps.append(f"{total} {parts} = {total + sum(chunk)}.")
        total += sum(chunk)
    return " ".join(steps)


def draw_chain_sum(rng: random.Random, level: Level) -> Exemplar:
    """Draws a chain of 2 to 3 (easy) or 4 to 5 (hard) two-digit numbers."""
    from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset

    low, high = (4, 5) if level == "hard" else (2, 3)
    config = ChainSumConfig(
        min_terms=low, max_terms=high, min_digits=2, max_digits=2, seed=rng.randrange(2**31), size=1
    )
    row = ChainSumDataset(config)[0]
    tokens = row["metadata"]["expression"].split()
    terms = [int(tokens[0])] + [
        int(n) if sign == "+" else -int(n)
        for sign, n in zip(tokens[1::2], tokens[2::2], strict=True)
    ]
    if rng.random() < 0.5:  # any order that starts with a positive number gives the same result
        first = rng.choice([i for i, n in enumerate(terms) if n > 0])
        rest = terms[:first] + terms[first + 1 :]
        rng.shuffle(rest)
        terms = [terms[first], *rest]
    question = "Q: " + row["question"].strip()
    return Exemplar(question=question, reasoning=_steps(rng, terms), answer=row["answer"])


CHAIN_SUM = Family(name="chain_sum", kind="number", domain="out", generate=draw_chain_sum)


Statement = tuple[str, bool, str, str]
"""Quantifier ("All", "No", "Some"), negated ("are not") or not, subject, predicate."""


def _parse(text: str) -> Statement:
    quantifier, rest = text.split(" ", 1)
    negated = " are not " in rest
    subject, predicate = rest.split(" are not " if negated else " are ")
    return quantifier, negated, subject, predicate


def _holds(statement: Statement, things: Sequence[frozenset[str]]) -> bool:
    """Evaluates a statement in a world of things, each the set of terms that apply to it."""
    quantifier, negated, subject, predicate = statement
    truths = [(predicate in thing) != negated for thing in things if subject in thing]
    test: Callable[..., bool] = {"All": all, "No": lambda f: not any(f), "Some": any}[quantifier]
    return test(truths)


def follows(premises: Sequence[str], conclusion: str) -> bool:
    """Checks the conclusion in every world in which the premises hold and no term is empty."""
    *givens, claim = [_parse(text) for text in (*premises, conclusion)]
    terms = sorted({term for statement in (*givens, claim) for term in statement[2:]})
    subsets = itertools.product((False, True), repeat=len(terms))
    kinds = [
        frozenset(t for t, applies in zip(terms, row, strict=True) if applies) for row in subsets
    ]
    for mask in itertools.product((False, True), repeat=len(kinds)):
        world = [kind for kind, present in zip(kinds, mask, strict=True) if present]
        if set().union(*world) != set(terms):
            continue
        if all(_holds(statement, world) for statement in givens) and not _holds(claim, world):
            return False
    return True


def draw_syllogism(rng: random.Random, level: Level) -> Exemplar:
    """Draws a syllogism; hard ones have more invalid conclusions."""
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


SYLLOGISM = Family(name="syllogism", kind="yes_no", domain="out", generate=draw_syllogism)


def _one_line(reasoning: str) -> str:
    """Drops the "#### 12" line and the bullets, joins the rest into one line of sentences."""
    plain = (
        reasoning.replace("×", "*")
        .replace("•", " ")
        .replace("–", "-")
        .replace("Let's solve this step by step:", "")
    )
    lines = [line.strip() for line in plain.splitlines()]
    kept = [line for line in lines if line and not line.startswith("####")]
    return re.sub(r" +", " ", " ".join(line if line[-1] in ".:!?" else line + "." for line in kept))


def draw_gsm_symbolic(rng: random.Random, level: Level) -> Exemplar:
    """Draws one of reasoning-gym's templates; both levels are the library's difficulty 1."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import (
        GSMSymbolicDataset,
        GSMSymbolicDatasetConfig,
    )

    row = GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=rng.randrange(2**31), size=1))[0]
    return Exemplar(
        question="Q: " + " ".join(row["question"].split()),
        reasoning=_one_line(row["metadata"]["answer_cot"]),
        answer=row["answer"],
    )


GSM_SYMBOLIC = Family(
    name="gsm_symbolic", kind="number", domain="out", generate=draw_gsm_symbolic, shots=1
)

TASKS = (CHAIN_SUM, SYLLOGISM, GSM_SYMBOLIC)
