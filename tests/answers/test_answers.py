"""Answers: what is read from a sample, and which answers are equal."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax import answers


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        (" 9 + 9 = 18. The answer is 18.", "number", "18"),
        (" So the answer is 21 yards.", "span", "21 yards"),
        (" THE ANSWER IS (a).", "choice", "(a)"),
        (" the answer is: **3.50**.", "number", "3.50"),
        (" The answer is 18", "number", "18"),
        (" The answer is\n18.", "number", "18"),
        (" We ask what the answer is. It is 2 + 2, so the answer is 4.", "number", "4"),
        (" The answer is 2 + 2. The answer is 4.", "number", "4"),
        (" The answer is the U.S. Army. It won.", "span", "the U.S. Army"),
        (" The answer is yes! Really.", "yes_no", "yes"),
        (" So \\boxed{\\frac{1}{2}}.", "number", "{\\frac{1}{2}}"),
        (" 2 + 2 = 4\nA: 4", "number", "4"),
        (" 2 + 2 = 4\n#### 4", "number", "4"),
        (" I do not know.", "number", None),
        ("\nQ: What is 2 + 2?\nA: The answer is 4.", "number", None),
        (" Hm. Q: What is 2 + 2? A: The answer is 4.", "number", None),
        ("", "number", None),
    ],
)
def test_extract_reads_the_first_solution(text, kind, answer):
    assert answers.extract(text, kind) == answer


@pytest.mark.parametrize(
    "run_on",
    [
        "\n\nQ: What is 1 + 1?\nA: The answer is 2.",
        "\nQ: What is 1 + 1?\nA: The answer is 2.",
        "\nPremise: It rains.\nA: The answer is no.",
        " Q: What is 1 + 1? A: The answer is 2.",
        "\nAnother way: 1 + 1 = 2. The answer is 2.",
        " Check: 7 = 7.",
        "Q: again",
        "\n\n\n#### 5",
    ],
)
@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("number", "$18.50"),
        ("choice", "(b)"),
        ("yes_no", "no"),
        ("nli", "it is not possible to tell"),
    ],
)
def test_text_after_the_answer_never_changes_it(kind, answer, run_on):
    text = f" Some steps. The answer is {answer}."
    assert answers.extract(text + run_on, kind) == answers.extract(text, kind) == answer
    assert answers.find(text + run_on, kind) == answers.find(text, kind)


def test_a_second_solution_does_not_replace_one_without_an_answer():
    text = " The answer is unclear.\n\nThe answer is yes."
    assert answers.extract(text, "yes_no") == "unclear"
    assert answers.path_key(text, "yes_no") is None


def test_find_ends_with_the_answer_sentence():
    text = " 3 * 3 = 9. The answer is 9. I am sure."
    assert text[: answers.find(text, "number").end] == " 3 * 3 = 9. The answer is 9."
    quoted = ' "The answer is 9." he said.'
    assert quoted[: answers.find(quoted, "number").end] == ' "The answer is 9."'


@pytest.mark.parametrize(
    ("same", "key"),
    [
        (
            ["18", "18.0", "18.", "$18", "18 dollars", "$18.00", "018", "+18", "18%", "9 * 2 = 18"]
            + ["x = 18", "\\boxed{18}", "$18$", "\\$18", "**18**", "18 (9 * 2 = 18)", "eighteen"]
            + ["about $18", "18th", "18cm", "18-inch", "36/2", "１８", "Bill was 18 years old"],
            "18",
        ),
        (["1,800", "1800", "1 800", "1.8 thousand", "1{,}800", "$1,800.00"], "1800"),
        (["-5", "−5", "–5", "-$5", "$-5", "minus 5", "-5.0 degrees"], "-5"),
        (["1/2", "0.5", ".5", "½", "\\frac{1}{2}", "\\frac12", "2/4 of a pie", "5e-1"], "1/2"),
        (["2 1/2", "2.5", "2½", "5/2", "2\\frac{1}{2}", "2 and 1/2", "2 1/2 hours"], "5/2"),
        (["-2 1/2", "-2.5", "-5/2"], "-5/2"),
        (["0", "-0", "0.00", "zero"], "0"),
        (["$1.5M", "1.5 million", "1,500,000"], "1500000"),
        (["twenty-one", "twenty one yards", "21"], "21"),
    ],
)
def test_equal_numbers_have_one_key(same, key):
    assert {text: answers.key(text, "number") for text in same} == dict.fromkeys(same, key)


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        ".",
        "-",
        "$",
        "many",
        "1,8",
        "1,2345",
        "1,800,00",
        "1.2.3",
        "1/0",
        "1/2/3",
        "3 + 4",
        "7 - 3",
    ]
    + ["10:30", "10-12", "3 cats and 4 dogs", "3, 4 and 5", "3 or 4", "2x", "9 * n", "10²", "5!."]
    + ["not 18", "cm2", "one of them", "one and two", "2^5", "$1, $2, $3", "18 7"],
)
def test_malformed_numbers_have_no_key(malformed):
    assert answers.key(malformed, "number") is None


@pytest.mark.parametrize("digits", [101, 299, 4301, 100_000])
def test_numbers_too_long_for_an_answer_have_no_key(digits):
    for text in ("9" * digits, "0." + "3" * digits, "1/" + "7" * digits, "9" * digits + ".0"):
        assert answers.key(text, "number") is None
        assert answers.path_key(f"The answer is {text}.", "number") is None


@given(st.fractions(), st.sampled_from(["{}", "{}.", "${}", "{} apples", "x = {}", "**{}**"]))
def test_number_key_is_the_exact_fraction(value, form):
    assert answers.key(form.format(value), "number") == str(value)


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=4
    )
)
def test_decimals_and_thousands_separators_are_exact(value):
    expected = str(Fraction(value))
    assert answers.key(f"{value:f}", "number") == expected
    assert answers.key(f"{value:,f}", "number") == expected


@pytest.mark.parametrize(
    ("same", "kind", "key"),
    [
        (
            ["(a)", "a", "A", "A.", "A)", "(A) foo", "(a), foo", "option a", "the (A)"],
            "choice",
            "a",
        ),
        (["(b), 9", "(rounded) (b) 9", "B: foo", "\\boxed{B}", "5, which is (b)"], "choice", "b"),
        (
            ["a dog", "(a) and (b)", "A or B", "none", "f(a)", "not (a)", "", "apple"],
            "choice",
            None,
        ),
        (["yes", "Yes.", "yes, it is", "TRUE", "most likely yes"], "yes_no", "yes"),
        (["no", "No, never", "false", "**No**"], "yes_no", "no"),
        (["yes or no", "yes/no", "unclear", "nothing", "", "notable"], "yes_no", None),
        (["yes", "Yes", "entailment"], "nli", "yes"),
        (["no", "contradiction"], "nli", "no"),
        (
            ["it is not possible to tell", "It's impossible to say", "unknown", "neutral"]
            + ["cannot be determined", "we can't tell"],
            "nli",
            "unknown",
        ),
        (["maybe not", "it depends", ""], "nli", "unknown?"),
        (["The Chicago Bears", '"chicago  bears"', "Chicago Bears."], "span", "chicago bears"),
        (["1,800 men", "1800 men", "1800.0 men"], "span", "1800 men"),
        (["U.S.", "US", "the U.S"], "span", "us"),
        (["-0.50", "-.5"], "span", "-0.5"),
        (["...", "", "''"], "span", None),
    ],
)
def test_equal_words_have_one_key(same, kind, key):
    if key == "unknown?":
        assert [answers.key(text, kind) for text in same] == ["unknown", None, None]
    else:
        assert {text: answers.key(text, kind) for text in same} == dict.fromkeys(same, key)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unknown answer kind 'time'; the kinds are number"):
        answers.key("1", "time")
