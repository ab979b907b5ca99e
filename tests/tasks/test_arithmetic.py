"""Worked sums: every written step is right, whatever the route, and the routes differ."""

import operator
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.tasks.word_sums import THINGS, draw_hasty, join, pick, sum_steps

_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_STEP = re.compile(r"-?\d+(?: [-+*] \d+)+ = -?\d+\.")


def _check(step: str) -> int:
    """Evaluates "a + b - c = d." from left to right, independently, and returns d."""
    left, right = step.rstrip(".").split(" = ")
    first, *rest = left.split()
    value = int(first)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        value = _OPERATORS[sign](value, int(number))
    assert value == int(right), step
    return value


def _steps(text: str) -> list[str]:
    found = _STEP.findall(text)
    assert " ".join(found) == text, text
    return found


@given(
    terms=st.lists(st.integers(1, 999), min_size=2, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_every_step_is_right_and_the_last_one_is_the_total(terms, seed):
    results = [_check(step) for step in _steps(sum_steps(random.Random(seed), terms))]
    assert results[-1] == sum(terms)


def test_the_routes_of_one_sum_differ():
    terms = [34, 27, 18, 45]
    routes = {sum_steps(random.Random(seed), terms) for seed in range(400)}
    assert len(routes) > 60
    text = "\n".join(routes)
    assert re.search(r"^\d+ \+ \d+ = \d+\. \d+ \+ \d+ = \d+\. \d+ \+ \d+ = \d+\.$", text, re.M)
    assert re.search(r"^\d0 \+ \d0 \+ \d0 \+ \d0 = 100\. ", text, re.M), "by tens and units"
    assert re.search(r"^34 \+ 27 = 61\. 18 \+ 45 = 63\. ", text, re.M), "in pairs"
    assert any(len(route.split(". ")) > 3 for route in routes), "with a number split on the way"
    assert len({route.split(" ")[0] for route in routes}) >= 4, "in several orders"


def test_long_sums_are_mostly_hasty_and_short_ones_are_not():
    rng = random.Random(0)
    hasty = {
        count: sum(draw_hasty(rng, count) for _ in range(2000)) / 2000 for count in (2, 3, 4, 6)
    }
    assert hasty[2] == 0
    assert 0.25 < hasty[3] < 0.35
    assert all(0.5 < hasty[count] < 0.6 for count in (4, 6))
    routes = [sum_steps(random.Random(seed), [34, 27, 18, 45, 12, 51]) for seed in range(400)]
    steps = [route.count(" = ") for route in routes if re.match(r"\d[1-9] \+ \d\d \+ ", route)]
    assert set(steps) == {2}, "three at a time onto the total: two steps for six numbers"
    assert 0.45 < len(steps) / 400 < 0.65


def test_terms_are_left_as_they_are_and_the_seed_decides():
    terms = [50, 60, 70]
    assert sum_steps(random.Random(1), terms) == sum_steps(random.Random(1), terms)
    assert terms == [50, 60, 70]
    assert sum_steps(random.Random(1), [7]) == ""


@pytest.mark.parametrize(
    ("parts", "text"),
    [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_lists_are_written_as_in_a_sentence(parts, text):
    assert join(parts) == text


def test_picked_words_are_distinct():
    assert len(set(pick(random.Random(0), THINGS, len(THINGS)))) == len(THINGS)
