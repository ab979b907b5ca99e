"""Ends of samples equal those of a search in the whole text after every token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.rollout.stops import Ending, Stops, first_stop


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
            return Ending(text[:at], shortest - (ended and shortest == used), True)
        if ended or used >= limit:
            return Ending(text, used, ended)
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
    assert finder.ending(LETTERS.encode("a3.b"), 1, 99) == Ending("a3", 4, True)
    assert finder.ending(tokens, 3, 3) == Ending("a3", 3, True)


def test_a_stop_may_begin_inside_a_token_and_in_an_earlier_chunk():
    inside = [LETTERS.texts.index("a"), LETTERS.texts.index("5\nQ:")]
    assert _ending(inside, STOPS, 99, 1) == Ending("a5", 2, True)
    assert _ending(LETTERS.encode("ab\nQ:"), STOPS, 99, 2) == Ending("ab", 5, True)


def test_the_limit_cuts_and_the_end_token_finishes():
    tokens = LETTERS.encode("abab")
    assert _ending(tokens, STOPS, 3, 2) == Ending("aba", 3, False)
    assert _ending([*tokens, 0], STOPS, 99, 8) == Ending("abab", 5, True)
    assert _ending([*tokens, 0], (), 4, 8) == Ending("abab", 4, False)


class Stripping(Letters):
    """A tokenizer that drops a leading space, as SentencePiece's dummy prefix makes it do."""

    def decode(self, ids):
        return super().decode(ids).removeprefix(" ")


def test_a_stop_that_ends_in_a_space_is_found_if_texts_lose_their_first_one():
    tokenizer = Stripping()
    finder = Stops(tokenizer, ("a: ",))
    tokens = tokenizer.encode("ba: b")
    assert finder.ending(tokens[:3], 3, 99) is None
    assert finder.ending(tokens, 2, 99) == Ending("b", 4, True)
