"""The contamination probe's texts: what a model is shown, and what it wrote of the rest."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.config import Evaluation
from lmsi_jax.errors import LmsiError
from lmsi_jax.tasks.contamination import completion_overlap, split_question

TEXT = "Ann buys  3 pens,\nand 2 cups. How many things does she have?"


@pytest.mark.parametrize(
    "share, shown",
    [
        (0.6, "Ann buys  3 pens,\nand 2 cups. How"),  # 8 of 13 words
        (0.01, "Ann"),
        (0.999, "Ann buys  3 pens,\nand 2 cups. How many things does she"),
    ],
)
def test_a_question_is_cut_between_words_and_keeps_its_spacing(share, shown):
    first, rest = split_question(TEXT, share)
    assert first == shown
    assert (first + " " + rest).split() == TEXT.split() and rest


def test_a_single_word_cannot_be_completed():
    assert split_question("Why?", 0.6) is None and split_question("", 0.6) is None


def _brute(first, second):
    """The longest common subsequence by trying all of the first one's."""
    for size in range(min(len(first), len(second)), 0, -1):
        for chosen in itertools.combinations(first, size):
            rest = iter(second)
            if all(word in rest for word in chosen):
                return size
    return 0


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=7), st.lists(st.sampled_from("abcd")))
def test_rouge_is_the_f1_of_the_longest_common_subsequence(rest, written):
    found = completion_overlap(" ".join(rest), " ".join(written))
    cut = written[: len(rest)]
    common = _brute(rest, cut)
    precision, recall = common / max(1, len(cut)), common / len(rest)
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    assert found.rouge == pytest.approx(f1)
    assert found.exact == (cut == rest)


def test_case_punctuation_and_what_follows_do_not_matter():
    found = completion_overlap("many things does she have?", " Many things, does she have\nA: 5.")
    assert found == (True, 1.0)
    assert completion_overlap("many things", "").rouge == 0.0
    assert completion_overlap("?", " anything") == (True, 1.0)


def test_long_texts_are_compared_in_time():
    draw = random.Random(0)
    words = [str(draw.randrange(50)) for _ in range(600)]
    assert completion_overlap(" ".join(words), " ".join(words)).rouge == 1.0


@pytest.mark.parametrize("shares", [(), (0.0,), (1.0,), (0.6, 0.6)])
def test_shares_that_cannot_be_are_refused(shares):
    with pytest.raises(LmsiError, match="Evaluation.probe_shares = .*; use different shares"):
        Evaluation(probe_shares=shares)
