"""Every procedural family: its reasoning is right, its labels agree with the question's text."""

import collections
import hashlib
import itertools
import operator
import re

import pytest

from lmsi_jax import answers
from lmsi_jax.prompts import SEPARATOR
from lmsi_jax.tasks import registry
from lmsi_jax.tasks.task import Family

FAMILIES = [name for name in registry.NAMES if isinstance(registry.get(name), Family)]
SUMS = ("purchases", "travel")
_EQUATION = re.compile(r"(-?\d+(?: [-+*] \d+)+) = (-?\d+)")
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}

each_family = pytest.mark.parametrize("name", FAMILIES)
each_level = pytest.mark.parametrize("level", ["easy", "hard"])


def _rows(name, level, count=120, split="pretrain", seed=5):
    return list(itertools.islice(registry.get(name).worked(split, level, seed), count))


def _value(expression):
    first, *rest = expression.split()
    value = int(first)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        value = _OPERATORS[sign](value, int(number))
    return value


def _numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def _equations(row):
    return [(_value(left), int(right)) for left, right in _EQUATION.findall(row.reasoning)]


@each_level
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gsm_symbolic"])
def test_every_equation_of_the_reasoning_is_right(name, level):
    for row in _rows(name, level):
        found = _equations(row)
        assert row.reasoning.count("=") == len(found), row.reasoning
        assert all(left == right for left, right in found), row.reasoning
        assert found or name == "syllogism"


@each_level
@each_family
def test_answers_have_a_key_and_texts_fit_into_a_prompt(name, level):
    task = registry.get(name)
    for row in _rows(name, level):
        assert answers.key(row.answer, task.kind) is not None
        solution = f"{row.reasoning} The answer is {row.answer}."
        assert answers.path_key(solution, task.kind) == answers.key(row.answer, task.kind)
        assert SEPARATOR not in row.question and "\n" not in row.reasoning
        assert row.question.startswith("Premise: " if task.kind == "nli" else "Q: ")
        assert row.reasoning == row.reasoning.strip() != ""


@each_level
@pytest.mark.parametrize("name", ["purchases", "travel", "legs", "chain_sum"])
def test_number_reasoning_ends_with_the_answer(name, level):
    for row in _rows(name, level):
        assert _equations(row)[-1][1] == int(row.answer)


@each_level
@pytest.mark.parametrize("name", SUMS)
def test_the_answer_is_the_sum_of_the_questions_numbers(name, level):
    for row in _rows(name, level):
        assert sum(_numbers(row.question)) == int(row.answer)


@each_level
def test_choices_agree_with_the_totals_of_their_question(level):
    for row in _rows("choices", level):
        pattern = (
            r"Q: (\w+) has (.*)\. (\w+) has (\d+) \w+\. Who .*\? \(a\) (\w+) \(b\) (\w+) \(c\) b"
        )
        left, mine, right, number, a, b = re.match(pattern, row.question).groups()
        assert (a, b) == (left, right) and left != right
        total = sum(_numbers(mine))
        letter = "c" if total == int(number) else "a" if total > int(number) else "b"
        assert row.answer == f"({letter})"
        relation = {"a": "more", "b": "less", "c": "the same"}[letter]
        assert row.reasoning.endswith(f" = {total}. {total} against {number} is {relation}.")


@each_level
def test_compare_agrees_with_the_totals_of_its_question(level):
    for row in _rows("compare", level):
        pattern = r"Q: Yes or no: (\w+) has (.*)\. (\w+) has (.*)\. Does (\w+) have more .* (\w+)\?"
        left, mine, right, theirs, asked, other = re.match(pattern, row.question).groups()
        total, (number,) = sum(_numbers(mine)), _numbers(theirs)
        assert (asked, other) == (left, right) and left != right and total != number
        assert row.answer == ("yes" if total > number else "no")
        relation = "more" if total > number else "less"
        assert row.reasoning.endswith(f" = {total}. {total} against {number} is {relation}.")


@each_level
def test_claims_agree_with_the_premise(level):
    for row in _rows("claims", level):
        premise, hypothesis = row.question.split("\n")[:2]
        total, limit = sum(_numbers(premise)), _numbers(hypothesis)[0]
        unknown = "it is not possible to tell" if "some" in premise else "no"
        assert row.answer == ("yes" if total > limit else unknown)
        relation = "more" if total > limit else "less"
        assert f" = {total}. {total} against {limit} is {relation}." in row.reasoning


@each_level
def test_legs_agree_with_reasoning_gyms_own_table(level):
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    for row in _rows("legs", level):
        listed = row.question.rpartition("if you have ")[2].rstrip("?").split(", ")
        counts = [(int(n), name) for n, name in (item.split(" ", 1) for item in listed)]
        legs = [n * ANIMALS.get(name, ANIMALS.get(name[:-1])) for n, name in counts]
        assert sum(legs) == int(row.answer)


@each_level
def test_chains_agree_with_their_expression(level):
    for row in _rows("chain_sum", level):
        expression = row.question.partition(": ")[2].partition("problem: ")[2].rstrip("= ")
        assert _value(expression) == int(row.answer)


def _holds(statement, world):
    """Whether a categorical statement holds where `world` is a set of frozensets of properties."""
    quantifier, rest = statement.split(" ", 1)
    subject, _, predicate = rest.partition(" are ")
    negated = predicate.startswith("not ")
    predicate = predicate.removeprefix("not ")
    subjects = [thing for thing in world if subject in thing]
    if quantifier == "Some":
        return any((predicate in thing) != negated for thing in subjects)
    return all((predicate in thing) == (quantifier == "All") for thing in subjects)


def _follows(premises, conclusion):
    """Brute force over all worlds of three properties, each had by something (Aristotle)."""
    words = sorted({w for s in premises for w in re.split(r" are (?:not )?", s.split(" ", 1)[1])})
    things = [frozenset(c) for n in range(1, 4) for c in itertools.combinations(words, n)]
    worlds = (w for n in range(1, 8) for w in itertools.combinations(things, n))
    return all(
        _holds(conclusion, world)
        for world in worlds
        if all(any(word in thing for thing in world) for word in words)
        and all(_holds(premise, world) for premise in premises)
    )


@each_level
def test_syllogisms_agree_with_a_search_for_counterexamples(level):
    for row in _rows("syllogism", level, count=150):
        _, first, second, _, conclusion, _ = row.question.split("\n")
        premises, conclusion = [first[3:], second[3:]], conclusion.rstrip("?")
        label = row.answer == "yes"
        assert row.reasoning.endswith("does not follow.") != label
        assert label == _follows(premises, conclusion), row.question


@each_family
def test_no_split_shares_a_question_with_another_whatever_the_seed(name):
    task = registry.get(name)
    texts = {
        split: {
            row.question
            for level, seed in itertools.product(("easy", "hard"), (0, 1))
            for row in itertools.islice(task.worked(split, level, seed), 60)
        }
        for split in ("test", "train", "pretrain")
    }
    assert not texts["test"] & texts["train"]
    assert not texts["pretrain"] & (texts["test"] | texts["train"])
    assert {row.question for row in task.exemplars()}.isdisjoint(texts["test"] | texts["train"])


@each_level
@each_family
def test_questions_are_a_function_of_the_seed_and_unlabelled_outside_the_test_split(name, level):
    task = registry.get(name)
    train = task.questions("train", level, 25, 3)
    assert train == task.questions("train", level, 25, 3)
    assert train != task.questions("train", level, 25, 4)
    assert all(q.gold is None and q.task == name and q.kind == task.kind for q in train)
    assert all(q.gold for q in task.questions("test", level, 25, 3))


# What a guesser gets by always giving the most frequent answer.
_RATES = {
    ("choices", "easy"): {"(a)": 1 / 3, "(b)": 1 / 3, "(c)": 1 / 3},
    ("choices", "hard"): {"(a)": 1 / 3, "(b)": 1 / 3, "(c)": 1 / 3},
    ("compare", "easy"): {"yes": 1 / 2, "no": 1 / 2},
    ("compare", "hard"): {"yes": 1 / 2, "no": 1 / 2},
    ("claims", "easy"): {"yes": 1 / 2, "no": 1 / 4, "it is not possible to tell": 1 / 4},
    ("claims", "hard"): {"yes": 1 / 2, "no": 1 / 4, "it is not possible to tell": 1 / 4},
    ("syllogism", "easy"): {"yes": 0.7, "no": 0.3},
    ("syllogism", "hard"): {"yes": 0.5, "no": 0.5},
}


@pytest.mark.parametrize(("name", "level"), _RATES)
def test_guessing_gets_no_more_than_intended(name, level):
    rows = _rows(name, level, count=800, split="test")
    shares = {k: n / 800 for k, n in collections.Counter(row.answer for row in rows).items()}
    assert shares == pytest.approx(_RATES[name, level], abs=0.06)


@each_level
@pytest.mark.parametrize("name", [n for n in FAMILIES if registry.get(n).kind == "number"])
def test_no_number_is_the_answer_often(name, level):
    counts = collections.Counter(row.answer for row in _rows(name, level, 400, split="test"))
    assert counts.most_common(1)[0][1] / 400 < 0.05


def test_the_kinds_and_domains_are_those_of_the_packaged_runs():
    tasks = [registry.get(name) for name in FAMILIES]
    assert {t.kind for t in tasks if t.domain == "in"} == {"number", "choice", "yes_no", "nli"}
    assert {t.name for t in tasks if t.domain == "out"} == {
        *("travel", "chain_sum", "syllogism", "gsm_symbolic")
    }
    assert registry.get("gsm_symbolic").shots == len(registry.get("gsm_symbolic").exemplars()) == 1


def test_our_own_generators_keep_their_bytes():
    """The embedded base model was trained on these; another stream needs another base model."""
    digest = hashlib.sha256()
    for name in ("purchases", "choices", "compare", "claims", "travel"):
        for level in ("easy", "hard"):
            for row in _rows(name, level, 20, seed=0):
                digest.update(f"{row.question}\n{row.reasoning}\n{row.answer}\n".encode())
    assert digest.hexdigest()[:16] == "98589d52bac229cf"
