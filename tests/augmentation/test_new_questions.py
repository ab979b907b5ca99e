"""Question generation: what is shown, what is read, and what counts as a question of the task."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax import augmentation
from lmsi_jax.augmentation import Shape, choose_shown, first_item, parse
from lmsi_jax.prompts import QUESTION_STOPS, question_list
from lmsi_jax.tasks import registry

REAL = [
    "Q: Ann buys 34 pens and 27 cups. How many things does Ann buy?",
    "Q: There are 12 hats and 31 bags on a table. How many things are on the table?",
]
LIKE = "Q: Ben has 18 pens and 22 cups. How many things does Ben have in all?"
# Letters and the beginnings of every stop, so that half a stop stands beside a whole one.
TEXT = st.lists(st.sampled_from(["a", "?", " ", "\n", "A:", "Q:", "Premise:", "A", "Q"])).map(
    "".join
)


def test_a_list_is_questions_a_blank_line_apart_and_ends_with_one():
    assert question_list(["Q: One?", "Premise: Two.\nOPTIONS\n- yes\n"]) == (
        "Q: One?\n\nPremise: Two.\nOPTIONS\n- yes\n\n"
    )


@given(st.sets(st.text(min_size=1), min_size=1, max_size=9), st.integers(1, 12), st.randoms())
def test_what_is_shown_is_a_function_of_its_place_and_of_the_set_of_questions(texts, count, random):
    texts = sorted(texts)
    shuffled = list(texts)
    random.shuffle(shuffled)
    found = choose_shown(texts, count, (1, 2, "t", 3))
    assert found == choose_shown(shuffled, count, (1, 2, "t", 3))
    assert len(found) == len(set(found)) == min(count, len(texts)) and set(found) <= set(texts)


def test_each_part_of_the_place_changes_what_is_shown():
    texts = [str(n) for n in range(50)]
    places = [(0, 1, "t", 0), (1, 1, "t", 0), (0, 2, "t", 0), (0, 1, "u", 0), (0, 1, "t", 1)]
    assert len({tuple(choose_shown(texts, 4, place)) for place in places}) == len(places)


@given(TEXT, st.booleans())
def test_the_first_item_ends_where_a_search_character_by_character_finds_an_end(text, finished):
    written = text.lstrip()
    wanted, ended = "", False
    for at in range(len(written)):
        if any(written[at : at + len(stop)] == stop for stop in QUESTION_STOPS):
            ended = True
            break
        wanted += written[at]
    expected = (wanted.rstrip() or None) if ended or finished else None
    assert first_item(text, finished) == expected


@given(st.lists(TEXT, max_size=3), st.sampled_from(QUESTION_STOPS))
def test_what_follows_the_first_item_never_matters(rest, stop):
    text = f"{LIKE}{stop}{''.join(rest)}"
    assert parse(text, False, Shape.of(REAL)) == parse(text, True, Shape.of(REAL)) == LIKE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Ben has 18 pens and 22 cups. How many things does Ben have in all?",  # no opening
        LIKE.replace("Q:", "Premise:"),
        LIKE.rstrip("?"),  # another end than all real ones
        LIKE.replace(". ", ".\n"),  # another number of lines
        f"{LIKE[:-1]} (a) 1 (b) 2?",  # options that no real one has
        "Q: How many things?",  # too short
        f"{LIKE[:-1]}{' and how many' * 9}?",  # too long
        "A: 18 + 22 = 40. The answer is 40.",
    ],
)
def test_what_has_not_the_shape_of_the_real_ones_is_malformed(text):
    assert parse(text, True, Shape.of(REAL)) is None


def test_a_cut_question_is_malformed_even_where_it_looks_whole():
    assert parse(LIKE, False, Shape.of(REAL)) is None
    assert parse(LIKE, True, Shape.of(REAL)) == LIKE


@pytest.mark.parametrize("name", ["purchases", "legs", "choices", "compare", "claims"])
def test_a_family_s_other_questions_have_the_shape_of_some_of_them(name):
    stream = registry.get(name).stream("train", "hard", 0)
    some, others = ([q.text for q in itertools.islice(stream, 100)] for _ in range(2))
    shape = Shape.of(some)
    assert all(parse(f" {text}\n\nQ: Next", False, shape) == text for text in others)
    assert not any(shape.fits(text[: len(text) // 3]) for text in others)


def test_an_opening_in_the_prompt_belongs_to_the_question():
    assert augmentation.opening([*REAL, "Premise: Ann has a hat."]) == "Q:"
    assert question_list(["Q: One?"], "Q:") == "Q: One?\n\nQ:"
    for text in (LIKE[2:], LIKE[3:]):  # with its space or without it
        assert parse(f"{text}\n\nQ: More?", True, Shape.of(REAL), "Q:") == LIKE
        assert parse(text, True, Shape.of(REAL)) is None


def test_uids_follow_from_task_and_text_alone():
    one = augmentation.question("t", "number", LIKE)
    assert one == augmentation.question("t", "number", LIKE) and one.gold is None
    assert one.uid == "t-generated-" + one.uid[-12:]
    others = [
        augmentation.question("u", "number", LIKE),
        augmentation.question("t", "number", REAL[0]),
    ]
    assert len({one.uid, *(other.uid for other in others)}) == 3
