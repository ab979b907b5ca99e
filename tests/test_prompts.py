"""Prompts: the fixed layout of documents, written out here by hand."""

import pytest

from lmsi_jax import prompts
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import FORMATS, Exemplar, Question

EXEMPLARS = (
    Exemplar(question="Q: What is 1 + 1?", reasoning="One and one are 2.", answer="2"),
    Exemplar(question="Q: What is 2 + 2?", reasoning="Two and two are 4.", answer="4"),
)
QUESTION = Question(uid="q", task="sums", text="Q: What is 3 + 3?", kind="number")

WITH_REASONING = """Q: What is 1 + 1?
A: One and one are 2. The answer is 2.

Q: What is 2 + 2?
A: Two and two are 4. The answer is 4.

"""
WITHOUT_REASONING = """Q: What is 1 + 1?
A: The answer is 2.

Q: What is 2 + 2?
A: The answer is 4.

"""


@pytest.mark.parametrize(
    ("prompt_style", "prefix", "inputs"),
    [
        ("cot", WITH_REASONING, "Q: What is 3 + 3?\nA:"),
        ("standard", WITHOUT_REASONING, "Q: What is 3 + 3?\nA:"),
        ("zero_shot_cot", "", "Q: What is 3 + 3?\nA: Let's think step by step."),
        ("zero_shot_direct", "", "Q: What is 3 + 3?\nA:"),
    ],
)
def test_prompts_have_the_fixed_layout(prompt_style, prefix, inputs):
    assert prompts.build_prompt(QUESTION, EXEMPLARS, prompt_style) == (prefix, inputs)


def test_an_exemplar_is_laid_out_as_a_prompt_with_its_target():
    exemplar = EXEMPLARS[0]
    target = " " + prompts.solution(exemplar.reasoning, exemplar.answer)
    document = prompts.question_prompt(exemplar.question) + target + prompts.SEPARATOR
    assert document == prompts.few_shot_prefix([exemplar], reasoning=True)


def test_questions_may_span_lines_and_end_in_blanks():
    text = "Premise: It rains.\nHypothesis: It is wet.\nOPTIONS:\n- yes\n- no\n"
    assert prompts.question_prompt(text) == text[:-1] + "\nA:"


def test_every_format_has_its_own_prompting():
    assert tuple(prompts.PROMPT_STYLE_OF_FORMAT) == FORMATS
    assert sorted(prompts.PROMPT_STYLE_OF_FORMAT.values()) == sorted(prompts.PROMPT_STYLES)


def test_stop_strings_end_an_item_where_the_next_begins():
    document = WITH_REASONING + "Q: next"
    assert document.index(prompts.STOP_STRINGS[0]) == document.index("\n\nQ:")
    assert "\nQ:" in prompts.STOP_STRINGS and "\nPremise:" in prompts.STOP_STRINGS


def test_mistakes_are_named_with_their_remedy():
    with pytest.raises(LmsiError, match=r"unknown prompt style 'few'.*standard, cot"):
        prompts.build_prompt(QUESTION, EXEMPLARS, "few")
    with pytest.raises(LmsiError, match="needs exemplars"):
        prompts.build_prompt(QUESTION, (), "cot")
    assert prompts.build_prompt(QUESTION, (), "zero_shot_direct")[0] == ""


def test_a_task_without_exemplars_is_asked_zero_shot():
    styles = [prompts.available_style(style, ()) for style in prompts.PROMPT_STYLES]
    assert styles == ["zero_shot_direct", "zero_shot_cot", "zero_shot_cot", "zero_shot_direct"]
    shown = (EXEMPLARS[0],)
    assert [prompts.available_style(s, shown) for s in prompts.PROMPT_STYLES] == [
        *prompts.PROMPT_STYLES
    ]
