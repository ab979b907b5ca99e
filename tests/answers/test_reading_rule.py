"""Properties of the rule that chooses among a text's candidates, and of keys."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax import answers
from lmsi_jax.answers import canonical, reader
from lmsi_jax.records import KINDS

VALUES = {
    "number": ["18", "-3", "$1,234.50", "7/2", "twenty-five", "5 hundred", "12 km"],
    "choice": ["(B)", "C", "option (D)"],
    "yes_no": ["yes", "No", "most likely no"],
    "nli": ["entailment", "it is not possible to tell", "no"],
    "span": ["Chicago Bears", "Malcolm X", "5 May 1999", "red, green and blue"],
    "date": ["July 28, 2001", "07/28/2001", "2001-07-28"],
    "list": ["3, 5 and 7", "red; blue"],
}
FINAL = [
    "The answer is {}.",
    "**Final Answer:** {}",
    "<answer>{}</answer>",
    "So, the final answer is: **{}**.",
    '```json\n{{"reasoning": "none", "answer": "{}"}}\n```',
]
LABELS = ["**Answer:** {}", "Answer: {}", "### Answer\n{}", "Therefore, \\boxed{{{}}}", "A: {}"]
BEHIND = [
    "\n\nThe answer is reasonable.",
    "\n\nQ: What is 1 + 1?\nA: The answer is 2.",
    "\n\nLet me double check. The answer is 77 (A), no, 1 May 2000.",
    "\n\n#### 77",
    "\n\nAnother way gives \\boxed{77}.",
    "\n<|im_end|>The answer is 77.",
    "\n\n<think>Wait, the answer is 77",
    "\n### Question 2\nThe answer is 77.",
]
BEFORE = [
    "",
    "Let me check if the answer is 77.\n\n",
    "The answer is reasonable.\n",
    "This answer is based on the facts.\n\n",
    "<think>The answer is 77.</think>\n",
    "<Reasoning>#### 77</Reasoning>",
    "Step 1 answer: 77\n",
    "Consider each option: one by one.\n\n",
]


@pytest.mark.parametrize("kind", KINDS)
def test_text_behind_a_final_answer_changes_nothing(kind):
    for value, form, behind in itertools.product(VALUES[kind], FINAL, BEHIND):
        text = "We reason.\n\n" + form.format(value)
        assert answers.find(text + behind, kind) == answers.find(text, kind), text + behind


@pytest.mark.parametrize("kind", KINDS)
def test_remarks_thoughts_and_steps_before_an_answer_change_nothing(kind):
    for value, form, before in itertools.product(VALUES[kind], FINAL + LABELS, BEFORE):
        if not (form == "A: {}" and before):
            key = answers.key(value, kind)
            assert answers.path_key(before + form.format(value), kind) == key, (before, form, value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_final_answer_beats_labels_and_boxes_before_it(kind):
    for value, form, weak in itertools.product(VALUES[kind], FINAL, LABELS[:-1]):
        others = [other for other in VALUES[kind] if answers.key(other, kind) is not None]
        text = weak.format(others[0]) + "\n\n" + form.format(value)
        assert answers.path_key(text, kind) == answers.key(value, kind), text


def _notations(value: Fraction):
    sign, size = ("-" if value < 0 else ""), abs(value)
    yield f"{value}"
    if size.denominator == 1:
        yield from (
            f"{sign}{size.numerator:,}",
            f"{sign}{size}.0",
            f"{sign}${size}",
            f"{sign}{size}%",
        )
        yield from (f"{sign}{size} kg", f"${value}$", f"{value} of them", f"{sign}0{size}")
        yield f"{sign}{size}".replace("-", "−")
    else:
        top, bottom = size.numerator, size.denominator
        yield f"{sign}\\frac{{{top}}}{{{bottom}}}"
        yield f"{sign}{top}⁄{bottom}"
        if top > bottom:
            yield f"{sign}{top // bottom} {top % bottom}/{bottom}"


WRAPPERS = [
    *("{}", "{}.", "**{}**", "x = {}", "about {}", "\\boxed{{{}}}", "`{}`", "({})", '"{}"', "{}!"),
    *("{}, in total", "{} — done", "{} because 2 * 3 = 6", "{}, which is right", "{} (a sum)"),
    *("it is {}", "equal to {}", "the total is {}", "{}; check: 1 + 1 = 2"),
]


@given(st.fractions(min_value=-9999, max_value=9999, max_denominator=12))
def test_all_renderings_of_a_number_have_one_key(value):
    keys = {
        (notation, wrapper): answers.path_key(f"The answer is {wrapper.format(notation)}", "number")
        for notation in _notations(value)
        for wrapper in WRAPPERS
    }
    assert keys == dict.fromkeys(keys, str(value))


_PIECES = [
    "answer is ",
    "The answer is ",
    "\n",
    "\n\n",
    "Q:",
    " ",
    "9",
    "18",
    "1,800",
    ".",
    "(a)",
    ",",
]
_PIECES += [
    "=",
    "yes",
    "no ",
    "<think>",
    "</think>",
    "\\boxed{",
    "}",
    "#### ",
    "answer: ",
    "$",
    "-",
]
_PIECES += ["İ", "May ", "one ", "and ", "or ", "if ", "Final answer: ", '{"answer": "', '"}', "**"]
_PIECES += [
    "option ",
    "½",
    "twenty-five",
    "not ",
    "cannot be determined",
    "of ",
    "—",
    "July 28, 2001",
]
_PIECES += [
    "07/28/2001",
    "; ",
    "- ",
    "Step 1 ",
    "C",
    "\\frac{3}{4}",
    "x = 5 ",
    "kg ",
    "²",
    "（Ｃ）",
    "[",
    "|",
]
_PIECES += ["no information", "determine", "{", "“", "<|eot_id|>", "# Question", "\\", ":"]
texts = st.lists(st.sampled_from(_PIECES), max_size=14).map("".join)
options = st.sampled_from([(), ("red", "9", "gold and iron"), ("a", "E. coli", "12 m")])


@given(texts, st.sampled_from(KINDS), options)
def test_no_text_raises_in_any_reader(text, kind, options):
    parts = [canonical._KEYS[kind](text), canonical.may_answer(text, kind, options)]
    candidates = []
    unguarded = reader._Reader(reader.marks.first_solution(text), kind, options, candidates)
    unguarded.choose(finished=True)
    unguarded.read_all()
    assert parts and all(len(row.text) <= answers.MAX_ANSWER for row in candidates)


@given(texts, st.sampled_from(KINDS), options)
def test_a_key_is_its_own_key(text, kind, options):
    key = answers.key(text, kind, options)
    assert key is None or answers.key(key, kind, options) == key


USUAL = ["The answer is {}.", "\nSo the answer is {}. \n", '{{"reasoning": "", "answer": "{}"}}']
USUAL += ['```json\n{{\n  "answer": "{}"\n}}\n```\n', "<think>x</think>\n\nThe answer is {}."]


def _by_the_rule(text, kind, options):
    """The choice of the rule, and the candidates that it read."""
    candidates = []
    return reader._Reader(reader.marks.first_solution(text), kind, options, candidates).choose(
        finished=True
    ), tuple(candidates)


@pytest.mark.parametrize("form", USUAL)
@pytest.mark.parametrize("value", ["18", "-$1,234.50", "5%", "(b)", "yes", "No"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "list"])
def test_a_usual_end_is_read_without_the_rule_as_the_rule_reads_it(form, value, kind):
    text = "We reason. " + form.format(value)
    at_once = reader._usual_answer(reader.marks.first_solution(text), kind, ())
    assert (at_once is None) == (answers.key(value, kind) is None)
    assert at_once is None or _by_the_rule(text, kind, ()) == (at_once, (at_once,))


usual = st.tuples(st.sampled_from(USUAL), st.sampled_from(_PIECES)).map(lambda t: t[0].format(t[1]))


@given(st.lists(texts | usual, max_size=3).map(". ".join), st.sampled_from(KINDS), options)
def test_whatever_is_before_a_usual_end_the_rule_agrees(text, kind, options):
    reading = answers.read(text, kind, options)
    assert (reading.chosen, reading.candidates) == _by_the_rule(text, kind, options)


@given(texts.map(str.strip), st.sampled_from(KINDS), options)
def test_the_key_of_taught_words_is_that_of_their_sentence(words, kind, options):
    sentence = f" The answer is {words}."
    if words:
        assert reader._key_of_sentence(words, kind, options) == answers.path_key(
            sentence, kind, options
        )


def test_a_defect_of_a_reader_costs_one_text(monkeypatch, caplog):
    def broken(*_):
        raise IndexError("a defect")

    monkeypatch.setattr(reader.marks, "first_solution", broken)
    assert answers.path_key("It is 18 in all.", "number") is None
    assert "could not be read" in caplog.text and "It is 18 in all." in caplog.text
    assert answers.read("It is 18 in all.", "number").chosen is None
    with pytest.raises(ValueError, match="unknown answer kind 'time'"):
        answers.path_key("It is 18 in all.", "time")


def test_an_explanation_lists_the_candidates_and_the_choice():
    text = "This answer is reasonable.\nStep 1: \\boxed{3}\n\nAnswer: 8 onions and 8 pans\n#### 7"
    head, *rows = answers.explain(text, "number")
    assert head == ("mark", "strength", "place", "answer", "key", "verdict")
    assert [(row[0], row[1], row[3], row[4], row[5]) for row in rows] == [
        ("answer is", "sentence", "reasonable", "-", "remark"),
        ("\\boxed", "box", "{3}", "3", "value"),
        ("answer:", "label", "8 onions and 8 pans", "-", "attempt"),
        ("####", "final", "7", "7", "chosen"),
    ]
    assert [text[int(row[2]) :][:6] for row in rows] == ["answer", "\\boxed", "Answer", "#### 7"]


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("So\n\\[\n\\boxed{18}\n\\]\nThat is all.", "\\boxed{18}\n\\]"),
        ('{"answer": "18"}\nDone.', '"18"}'),
        ("<answer>18</answer> Done.", "</answer>"),
        ("The answer is **18**. Done.", "**18**."),
    ],
)
def test_the_kept_text_closes_its_typesetting(text, end):
    assert text[: answers.read(text, "number").end].endswith(end)


@pytest.mark.parametrize(
    ("text", "kind", "surface"),
    [
        ("Thus $x = \\boxed{18}$, since x < 20.", "number", "18"),
        ("The answer is 18** dollars.", "number", "18 dollars"),
        ("The answer is $18.50 a day.", "number", "$18.50 a day"),
        ("Die Antwort ist 3,5.", "number", "3.5"),
        ('{"answer": 18}', "number", "18"),
        ("$-\\boxed{5}$", "number", "-5"),
        ("Thus $\\boxed{\\frac{2}{3}}$", "number", "2/3"),
        ("Thus $\\boxed{\\text{(B)}}$.", "choice", "(B)"),
        ("\\boxed{3}: it cannot be determined", "nli", "it is not possible to tell"),
        ("The answer is **Tom Brady**.", "span", "Tom Brady"),
        ("The answer is 8 onions and 8 pans.", "number", None),
    ],
)
def test_the_surface_is_what_may_be_taught(text, kind, surface):
    assert answers.read(text, kind).surface == surface
