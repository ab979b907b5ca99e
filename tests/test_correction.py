"""A corrector's questions: which candidates, in which order, and what is to be written."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.correction import (
    Target,
    candidates,
    corrections,
    question_text,
    shorten,
)
from lmsi_jax.records import Question, Sample

QUESTION = Question(uid="q", task="t", text="Q: How many?\n(a) 3 (b) 4", kind="number")


def _sample(index, text, uid="q"):
    return Sample(uid=uid, sample_index=index, text=text, tokens=3, logprob=-1.0, end="stop")


def _samples(count, uid="q"):
    return [_sample(index, f"Way {index}. The answer is {index}.", uid) for index in range(count)]


def test_groups_are_disjoint_and_each_has_the_greedy_sample():
    greedy, samples = _sample(0, "Greedy. The answer is 7."), _samples(13)
    groups = [candidates(greedy, samples, 4, group) for group in range(3)]
    assert all(len(group) == 5 and group.count(greedy) == 1 for group in groups)
    shown = [one.sample_index for group in groups for one in group if one is not greedy]
    assert len(shown) == len(set(shown)) == 12
    with pytest.raises(ValueError, match="13 samples"):
        candidates(greedy, samples, 4, 3)


def test_the_order_does_not_depend_on_that_of_the_samples_and_the_greedy_one_is_anywhere():
    places = collections.Counter()
    for number in range(200):
        samples = _samples(4, uid=f"q{number}")
        greedy = _sample(0, "Greedy.", uid=f"q{number}")
        shown = candidates(greedy, samples, 4)
        assert shown == candidates(greedy, samples[::-1], 4)
        places[shown.index(greedy)] += 1
    # Each of five places has 40 of 200 expected, with a standard deviation of 5.7.
    assert set(places) == set(range(5)) and max(places.values()) < 65 and min(places.values()) > 18


def test_the_text_has_the_question_and_the_candidates_each_in_a_line():
    drawn = [_sample(0, " 3 + 1 = 4.\n\nThe answer is 4."), _sample(1, "So (a).")]
    both = question_text(QUESTION, drawn)
    assert both == (
        "Q: How many?\n(a) 3 (b) 4\nCandidates:\n1. 3 + 1 = 4. The answer is 4.\n2. So (a)."
    )
    assert question_text(QUESTION, drawn, "question") == QUESTION.text
    alone = question_text(QUESTION, drawn, "candidates")
    assert "How many" not in alone and alone.splitlines()[2:] == both.splitlines()[3:]


@given(st.lists(st.text("abc", min_size=1), max_size=30), st.integers(1, 12))
def test_a_long_candidate_loses_its_middle(words, longest):
    short = shorten("\n ".join(words), longest).split()
    if len(words) <= longest:
        assert short == words
    else:
        at = (longest + 1) // 2
        assert len(short) == longest + 1 and short[at] == "..."
        assert short[:at] == words[:at]
        assert short[at + 1 :] == words[len(words) - (longest - at) :]


def _targets(samples, indices):
    return [Target(i, samples[i].text, str(i)) for i in indices]


def test_what_is_learnt_is_no_candidate_if_there_is_another():
    samples, greedy = _samples(8), _sample(0, "Greedy. The answer is 1.")
    rows = corrections(QUESTION, greedy, samples, _targets(samples, range(8)), count=4, rows=9)
    assert len(rows) == 2
    assert all(row.solution not in row.text for row in rows)
    # One target alone is learnt, whatever is shown.
    rows = corrections(QUESTION, greedy, samples, _targets(samples, [3]), count=4, rows=9)
    assert [row.solution for row in rows] == [samples[3].text] * 2
    assert sorted(row.solution in row.text for row in rows) == [False, True]


def test_without_targets_or_samples_there_are_no_rows():
    samples, greedy = _samples(3), _sample(0, "Greedy.")
    assert corrections(QUESTION, greedy, samples, [], count=2, rows=1) == []
    targets = _targets(samples, [0])
    assert corrections(QUESTION, greedy, samples, targets, count=4, rows=1) == []


def test_a_given_solution_is_learnt_even_if_a_sample_says_the_same():
    samples, greedy = _samples(4), _sample(0, "Greedy.")
    given_solution = Target(None, samples[0].text, "0")
    (row,) = corrections(QUESTION, greedy, samples, [given_solution], count=4, rows=1)
    assert row.solution == samples[0].text and row.answer == "0"
