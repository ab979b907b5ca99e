"""DROP's F1: values of the published scorer, bounds, and where an evaluation shows it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.evaluation.accuracy import best_drop_f1, drop_f1, score
from lmsi_jax.records import Question, Sample

# predicted spans, gold spans, F1: computed with the scorer published beside DROP
PUBLISHED = [
    (["The Green Bay Packers"], ["green bay packers"], 1.0),
    (["Packers"], ["Green Bay Packers"], 0.5),
    (["Foxes"], ["Green Bay Packers"], 0.0),
    (["41-yard"], ["41 yards"], 0.5),
    (["41 yards"], ["43 yards"], 0.0),
    (["yards"], ["43 yards"], 0.0),
    (["1,200"], ["1200.0"], 1.0),
    (["twelve"], ["12"], 0.0),
    (["U.S. Army"], ["us army"], 1.0),
    (["3 May 1712"], ["May 3, 1712"], 1.0),
    (["Ann"], ["Ann", "Ben"], 0.5),
    (["Ann", "Ben"], ["Ann"], 0.5),
    (["Ben", "Ann"], ["Ann", "Ben"], 1.0),
    (["Ann Lee", "Ben Roe"], ["Ann Roe", "Ben Lee"], 0.5),
    (["Ann", "Ann", "Ann"], ["Ann"], 0.33),
    (["Lake Erie", "Ohio river"], ["Erie", "the Ohio", "Maumee"], 0.44),
    (["the"], ["a"], 1.0),
    ([""], ["Ann"], 0.0),
]


@pytest.mark.parametrize(("predicted", "gold", "f1"), PUBLISHED)
def test_it_is_the_published_scorers(predicted, gold, f1):
    assert drop_f1(predicted, gold) == f1


spans = st.lists(st.sampled_from(["the cat", "a cat sat", "12 cats", "12", "dog", ""]), min_size=1)


@given(spans.filter(lambda rows: len(rows) < 4), spans.filter(lambda rows: len(rows) < 4))
def test_no_pairing_of_spans_gives_more(predicted, gold):
    longest = max(len(predicted), len(gold))
    padded = [*predicted, *[None] * (longest - len(predicted))]
    best = max(
        sum(
            drop_f1([one], [right])
            for one, right in zip(order, gold, strict=False)
            if one is not None
        )
        for order in itertools.permutations(padded)
    )
    assert drop_f1(predicted, gold) == pytest.approx(best / longest, abs=0.011)
    assert drop_f1(gold, gold) == 1.0


def test_a_list_in_one_text_meets_an_annotator_with_several_spans():
    assert best_drop_f1("Ben, Ann, and Cleo", ["Ann\nBen\nCleo"]) == 1.0
    assert best_drop_f1("Ben and Ann", ["Ann", "Ann\nBen"]) == 1.0
    assert best_drop_f1("Johnson and Johnson", ["Johnson and Johnson"]) == 1.0
    assert best_drop_f1(None, ["Ann"]) == 0.0


def test_an_evaluation_has_the_f1_of_the_winning_answer():
    question = Question(
        uid="q",
        task="drop_football",
        text="Passage: x\nQ: Who won?",
        kind="span",
        gold="the Green Foxes",
        spans=("the Green Foxes",),
    )

    def samples(*texts):
        return {
            "q": [
                Sample(uid="q", sample_index=i, text=text, tokens=4, logprob=-1.0, end="end_token")
                for i, text in enumerate(texts)
            ]
        }

    drawn = samples("The answer is Foxes.", "The answer is the Foxes.", "The answer is Ben.")
    scores = score([question], drawn, "self_consistency", 0.7)
    assert (scores.correct, scores.f1) == ((0,), (0.67,))
    assert score([question], samples("No idea"), "cot", 0.0).f1 == (0.0,)
    other = Question(uid="q", task="legs", text="Q: ?", kind="number", gold="2")
    assert score([other], samples("The answer is 2."), "cot", 0.0).f1 == ()
