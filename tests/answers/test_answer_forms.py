"""Forms of answers in chat models', reasoning models' and benchmark outputs, and of options."""

import pytest

from lmsi_jax import answers
from lmsi_jax.records import Question

OPTIONS = ("respiration", "photosynthesis", "9 m", "None of these")


@pytest.mark.parametrize(
    ("text", "kind", "key"),
    [
        # Chat models.
        ("To find it, add them.\n\n**Answer:** 18", "number", "18"),
        ("### Step 1\n2 + 2 = 4\n\n### Final Answer\n\n4", "number", "4"),
        ("Therefore, Janet makes **$18** every day at the market.", "number", "18"),
        ("So, Janet will make $9 * 2 = <<9*2=18>>18 every day.", "number", "18"),
        ("The correct answer is **(C) 40 km**.", "choice", "c"),
        ("Correct answer: B. 12", "choice", "b"),
        ("**Yes**, it does: hydrogen has one proton.", "yes_no", "yes"),
        ("Based on this, it cannot be said. So, no.", "yes_no", "no"),
        ("The total is 18<|im_end|>\n<|im_start|>user\nThe answer is 5.", "number", "18?"),
        # Reasoning models.
        ("<think>\nSo the answer is 5? Wait.\n</think>\n\nThe answer is **6**.", "number", "6"),
        ("Hmm, 5.\n</think>\n\n**Final Answer**\n\\boxed{6}", "number", "6"),
        (
            "<|channel|>analysis<|message|>answer is 4<|end|><|start|>assistant<|channel|>final"
            "<|message|>The answer is 5.<|return|>",
            "number",
            "5",
        ),
        ("<think>the answer is 5, I think", "number", None),
        # MATH and Minerva.
        ("The final answer is $\\boxed{\\frac{3}{4}}$. I hope it is correct.", "number", "3/4"),
        ("Final Answer: The final answer is $12$. I hope it is correct.", "number", "12"),
        ("we get\n\\[\n\\boxed{-\\dfrac{1}{2}}.\n\\]", "number", "-1/2"),
        ("Thus $\\boxed{45^\\circ}$.", "number", "45"),
        ("Thus $\\boxed{1{,}234}$.", "number", "1234"),
        ("Thus $\\boxed{50\\%}$.", "number", "50"),
        ("Thus $\\boxed{2\\sqrt{3}}$.", "number", None),
        ("Thus $\\boxed{\\text{(D)}}$", "choice", "d"),
        ("so $x = \\boxed{7}$ because $7 + 1 = 8$.", "number", "7"),
        ("Problem solved: \\boxed{3}\n\nProblem:\nWhat is 2?\n\\boxed{2}", "number", "3"),
        # Other languages.
        ("Also 3 + 4 = 7. Die Antwort lautet 3,5.", "number", "7/2"),
        ("La réponse est 1 234,5 km.", "number", "2469/2"),
        ("La respuesta es 11.", "number", "11"),
        ("Ответ — 42.", "number", "42"),
        ("所以答案是11。另外还有12。", "number", "11"),
        ("したがって答えは1,234です。", "number", "1234"),
        # What looks like an answer and is none.
        ("The answer is not listed.", "choice", None),
        ("I think it may be 7 or 8", "number", None),
        ("There are 3 cats. There are 3 cats. There are 3 cats.", "number", None),
        ("They won L + 8 games.", "number", None),
        ("No one knows why.", "yes_no", None),
    ],
)
def test_answers_in_texts_of_other_models(text, kind, key):
    expected = None if key == "18?" else key  # in mid-sentence, so no conclusion
    assert answers.path_key(text, kind) == expected


@pytest.mark.parametrize(
    "run_on", ["\n### Question 2:\nThe answer is 7.", "\nUser: is it 7?", "</s>7."]
)
def test_an_unmarked_conclusion_ends_before_the_next_question(run_on):
    text = "She sells 9 of them. So she makes $18 every day."
    found = answers.find(text + run_on, "number")
    assert found == answers.Found("$18", "18", len(text), marked=False)


def test_a_text_that_the_token_limit_cut_concludes_nothing():
    text = "She sells 9 of them. So she makes $18 every day."
    assert answers.path_key(text, "number", finished=False) is None
    assert answers.path_key("The answer is 18. " + text, "number", finished=False) == "18"
    assert answers.path_key(text + "\n\nQ: And", "number", finished=False) == "18"


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("photosynthesis", "b"),
        ("Photosynthesis.", "b"),
        ("(b) photosynthesis", "b"),
        ("(a) photosynthesis", "a"),
        ("9", "c"),
        ("nine m", "c"),
        ("none of the above", "d"),
        ("(e)", None),
        ("the sun", None),
        ("respiration and photosynthesis", None),
    ],
)
def test_an_option_may_be_named_by_its_letter_or_its_text(answer, key):
    assert answers.key(answer, "choice", OPTIONS) == key
    assert answers.path_key(f"So the answer is {answer}", "choice", OPTIONS) == key


def test_equal_options_are_told_apart_by_their_letters_alone():
    assert answers.key("red", "choice", ("red", "red", "blue")) is None
    assert answers.key("(b)", "choice", ("red", "red", "blue")) == "b"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Q: Who? (a) Ann (b) Ben (c) both the same", ("Ann", "Ben", "both the same")),
        ("Q: f(a)? Answer Choices: (a) 1 (b) f(b) (c) 3", ("1", "f(b)", "3")),
        ("x\n# Answer option: ['A)5(√3 + a)', 'B)6', 'C)None']", ("5(√3 + a)", "6", "None")),
        ("Which?\nA. red\nB. blue\nC. green\nAnswer:", ("red", "blue", "green")),
        ("Q: Which?\nA) 1\nB) 2\n", ("1", "2")),
        ("Q: How many (a) are there?", ()),
        ("Q: How many?", ()),
    ],
)
def test_options_are_read_from_the_question(text, options):
    question = Question(uid="q", task="t", text=text, kind="choice")
    assert answers.options_of(question) == options
    assert answers.options_of(Question(uid="q", task="t", text=text, kind="number")) == ()
