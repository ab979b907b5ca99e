"""Ends of samples equal those of a search in the whole text after every token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.rollout.stops import Ending, Stops, end_at_stop, first_stop


class Letters:
    """A tokenizer with one token per character, and two tokens that hold several."""

    texts = ("", *"0123456789.,\nQ:ab ", "\n\n", "5\nQ:")
    vocab_size = len(texts)
    eos_id = 0
    end_ids = frozenset({0})

    def encode(self, text):
        return [self.texts.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids)


LETTERS = Letters()
STOPS = ("\n\n", "\nQ:", ".")


def _ending(tokens, stops, limit, chunk):
    """Feeds tokens in chunks, as the engine does."""
    finder = Stops(LETTERS, stops)
    for begin in range(0, len(tokens), chunk):
        end = min(begin + chunk, len(tokens))
        if found := finder.ending(tokens[:end], end - begin, limit):
            return found
    return None


def _by_hand(tokens, stops, limit):
    """Searches again after every token."""
    for used in range(1, len(tokens) + 1):
        ended = tokens[used - 1] == LETTERS.eos_id
        text = LETTERS.decode(tokens[:used])
        at = first_stop(text, stops, closed=ended or used >= limit)
        if at is not None:
            shortest = next(
                n
                for n in range(1, used + 1)
                if n == used or first_stop(LETTERS.decode(tokens[:n]), stops, False) is not None
            )
            end = "next_question" if text[at:].startswith("\nQ:") else "stop"
            return Ending(text[:at], shortest - (ended and shortest == used), end)
        if ended or used >= limit:
            return Ending(text, used, "end_token" if ended else "limit")
    return None


@given(
    st.lists(st.integers(0, LETTERS.vocab_size - 1), min_size=1, max_size=30),
    st.integers(1, 30),
    st.integers(1, 9),
)
def test_the_end_is_that_of_a_search_after_every_token(tokens, limit, chunk):
    expected = _by_hand(tokens, STOPS, limit)
    found = _ending(tokens, STOPS, limit, chunk)
    if expected is None:
        assert found is None
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("3.5 pens. More", "3.5 pens"),
        ("It is 3. 5 more", "It is 3"),
        ("1,200.75", None),
        ("a.5", "a"),
        ("7.", "7"),
    ],
)
def test_a_full_stop_inside_a_number_is_none(text, ends):
    at = first_stop(text, (".",))
    assert (None if at is None else text[:at]) == ends


def test_a_full_stop_after_a_digit_waits_for_the_next_character():
    tokens = LETTERS.encode("a3.")
    finder = Stops(LETTERS, (".",))
    assert finder.ending(tokens, 3, 99) is None
    assert finder.ending(LETTERS.encode("a3.5"), 1, 99) is None
    assert finder.ending(LETTERS.encode("a3.b"), 1, 99) == Ending("a3", 4, "stop")
    assert finder.ending(tokens, 3, 3) == Ending("a3", 3, "stop")


def test_a_stop_may_begin_inside_a_token_and_in_an_earlier_chunk():
    inside = [LETTERS.texts.index("a"), LETTERS.texts.index("5\nQ:")]
    assert _ending(inside, STOPS, 99, 1) == Ending("a5", 2, "next_question")
    assert _ending(LETTERS.encode("ab\nQ:"), STOPS, 99, 2) == Ending("ab", 5, "next_question")


def test_the_limit_cuts_and_the_end_token_finishes():
    tokens = LETTERS.encode("abab")
    assert _ending(tokens, STOPS, 3, 2) == Ending("aba", 3, "limit")
    assert _ending([*tokens, 0], STOPS, 99, 8) == Ending("abab", 5, "end_token")
    assert _ending([*tokens, 0], (), 4, 8) == Ending("abab", 4, "limit")


class Stripping(Letters):
    """A tokenizer that drops a leading space, as SentencePiece's dummy prefix makes it do."""

    def decode(self, ids):
        return super().decode(ids).removeprefix(" ")


def test_a_stop_that_ends_in_a_space_is_found_if_texts_lose_their_first_one():
    tokenizer = Stripping()
    finder = Stops(tokenizer, ("a: ",))
    tokens = tokenizer.encode("ba: b")
    assert finder.ending(tokens[:3], 3, 99) is None
    assert finder.ending(tokens, 2, 99) == Ending("b", 4, "stop")


@pytest.mark.parametrize(
    ("stops", "end"),
    [
        *[
            ((stop,), "next_question")
            for stop in ("\nQ:", "\nPremise:", "Passage:", "\n\nQuestion")
        ],
        *[((stop,), "next_question") for stop in ("\n### Instruction:", "Human:", "\n**Problem 2")],
        *[
            ((stop,), "end_token")
            for stop in ("</s>", "<|im_end|>", "<|eot_id|>", "\n<end_of_turn>")
        ],
        *[((stop,), "stop") for stop in ("\n\n", "\nA:", ".", "Question", "Questions:", "<x>")],
        (("\n\n", "\n\nQ:"), "next_question"),
        (("\n", "</s>"), "stop"),
    ],
)
def test_a_stop_that_begins_a_question_or_ends_a_turn_ends_the_solution(stops, end):
    assert end_at_stop(f"{stops[-1] if end != 'stop' else stops[0]} more", stops) == end


def test_a_blank_line_does_not_say_what_follows_it():
    tokens = [*LETTERS.encode("a"), LETTERS.texts.index("\n\n"), *LETTERS.encode("Q:")]
    for stops, end in (
        (("\n\n",), "stop"),
        (("\n\n", "\n\nQ:"), "stop"),
        (("\n\nQ:",), "next_question"),
    ):
        assert {_ending(tokens, stops, 30, chunk).end for chunk in (1, 2, 4)} == {end}
