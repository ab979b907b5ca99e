"""Overlap between training and test questions, against a slow obvious version."""

from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.tasks import contamination
from lmsi_jax.tasks.contamination import Contamination

WORDS = st.lists(st.sampled_from(["a", "b", "C"]), min_size=1, max_size=9).map(" ".join)
QUESTIONS = st.lists(WORDS, max_size=4).map(lambda rows: {str(i): r for i, r in enumerate(rows)})


@given(QUESTIONS, QUESTIONS, st.integers(0, 4))
def test_overlaps_are_those_that_comparing_every_pair_finds(questions, evaluated, words):
    found = {one.uid for one in contamination.find_contaminated(questions, evaluated, words)}

    def overlaps(a: str, b: str) -> bool:
        a, b = a.lower(), b.lower()
        starts = range(len(a.split()) - words + 1)
        runs = [" ".join(a.split()[i : i + words]) for i in starts] if words else []
        return a == b or any(f" {run} " in f" {b} " for run in runs)

    wanted = {u for u, a in questions.items() if any(overlaps(a, b) for b in evaluated.values())}
    assert found == wanted


def test_capitals_punctuation_and_spaces_do_not_count():
    found = contamination.find_contaminated(
        {"x": "How many, really?"}, {"y": "how  MANY really"}, 0
    )
    assert found == [Contamination("x", "y", "the same question")]


def test_a_run_of_equal_words_is_found_within_the_content_alone():
    a, b = "one two three\nA TEMPLATE HERE", "zero one two three\nA TEMPLATE HERE"
    assert contamination.find_contaminated({"x": a}, {"y": b}, 3) == [
        Contamination("x", "y", "3 equal words in a row")
    ]
    c, d = "one two three\nA TEMPLATE HERE", "one three two\nA TEMPLATE HERE"
    assert contamination.find_contaminated({"x": c}, {"y": d}, 3)
    assert not contamination.find_contaminated(
        {"x": c}, {"y": d}, 3, lambda text: text.splitlines()[:1]
    )
    assert not contamination.find_contaminated(
        {"x": "one two\nthree"}, {"y": "one two three four"}, 3, str.splitlines
    )


@given(QUESTIONS, st.integers(0, 4))
def test_the_distinct_ones_are_those_that_overlap_with_no_kept_one_before_them(questions, words):
    kept: dict[str, str] = {}
    for uid, text in questions.items():
        if not contamination.find_contaminated({uid: text}, kept, words):
            kept[uid] = text
    assert contamination.deduplicate(questions, words) == list(kept)
