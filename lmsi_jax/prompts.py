"""Prompts: exemplars and a question become the text that the model continues.

The layout of a document is fixed: items are separated by one blank line, and an item is

    <question, with its own "Q: " or "Premise: " prefix>
    A: [<reasoning> ]The answer is <answer>.

A prompt comes in two parts, `prefix` (the exemplars, shared by all questions of a task) and
`inputs` (this question, up to and with "A:"). Targets begin with a space, so `prefix + inputs +
target` is the text of a document. The four formats are those of LMSI, section 3.2 and figure 1.

That is the layout for base models, `PlainPrompts`. Instruct models are asked in their chat template
instead, `interop.chat_prompts`; both are a `PromptWriter`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol, get_args

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Exemplar, Format, Question, Text

STEP_BY_STEP = "Let's think step by step."
SEPARATOR = "\n\n"
# What ends a sample: the end of its item, or a new question if a model forgets the blank line.
STOP_STRINGS: tuple[str, ...] = (SEPARATOR, "\nQ:", "\nPremise:")
# What ends a question that a model writes: the same, or its answer.
QUESTION_STOPS: tuple[str, ...] = (*STOP_STRINGS, "\nA:")

PromptStyle = Literal["standard", "cot", "zero_shot_cot", "zero_shot_direct"]
PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)
PROMPT_STYLE_OF_FORMAT: dict[Format, PromptStyle] = {
    "few_shot_cot": "cot",
    "few_shot_direct": "standard",
    "zero_shot_cot": "zero_shot_cot",
    "zero_shot_direct": "zero_shot_direct",
}


def is_direct(prompt_style: str) -> bool:
    """Returns True if a style asks for the answer at once, without reasoning."""
    return prompt_style in ("standard", "zero_shot_direct")


def answer_sentence(answer: str) -> str:
    """Returns the sentence that ends every solution."""
    return f"The answer is {answer}."


def solution(reasoning: str, answer: str) -> str:
    """Returns a whole solution: the reasoning, if any, and the answer sentence."""
    return " ".join(part for part in (reasoning.strip(), answer_sentence(answer)) if part)


def few_shot_prefix(exemplars: Sequence[Exemplar], reasoning: bool) -> str:
    """Returns the exemplars as solved items, each followed by the separating blank line.

    Args:
      exemplars: worked questions, in the order in which the model shall read them.
      reasoning: whether their reasoning is shown (CoT) or the answer sentence alone (standard).
    """
    return "".join(
        f"{question_prompt(exemplar.question)} "
        f"{solution(exemplar.reasoning if reasoning else '', exemplar.answer)}{SEPARATOR}"
        for exemplar in exemplars
    )


def question_prompt(question_text: str, zero_shot_cot: bool = False) -> str:
    """Returns the question and "A:", on request with the trigger of Kojima et al. 2022."""
    trigger = f" {STEP_BY_STEP}" if zero_shot_cot else ""
    return f"{question_text.rstrip()}\nA:{trigger}"


def question_list(texts: Sequence[str], opening: str = "") -> str:
    """Returns questions without answers, each followed by the separating blank line.

    A model continues with a new question (question generation, LMSI, section 3.3); `opening` are
    its first characters, "" if the model writes these too.
    """
    return "".join(f"{text.rstrip()}{SEPARATOR}" for text in texts) + opening


def build_prompt(
    question: Question, exemplars: Sequence[Exemplar], prompt_style: PromptStyle
) -> tuple[str, str]:
    """Returns (prefix, inputs) for one question; the prefix is "" for zero-shot prompting.

    Raises:
      LmsiError: an unknown prompt style, or few-shot prompting without exemplars.
    """
    if prompt_style not in PROMPT_STYLES:
        raise LmsiError(
            f"unknown prompt style {prompt_style!r}; choose one of {', '.join(PROMPT_STYLES)}"
        )
    if question.rules is not None and question.rules.prompt is not None:
        return _custom_prompt(question, exemplars, prompt_style)
    if prompt_style in ("zero_shot_cot", "zero_shot_direct"):
        return "", question_prompt(question.text, zero_shot_cot=prompt_style == "zero_shot_cot")
    if not exemplars:
        raise LmsiError(
            f"{prompt_style!r} prompting needs exemplars and the task has none;"
            " give it some, or use zero_shot_cot or zero_shot_direct"
        )
    return few_shot_prefix(exemplars, reasoning=prompt_style == "cot"), question_prompt(
        question.text
    )


def _custom_prompt(
    question: Question, exemplars: Sequence[Exemplar], prompt_style: PromptStyle
) -> tuple[str, str]:
    """Returns what a user's function makes of a question; a single text has no shared prefix."""
    assert question.rules is not None and question.rules.prompt is not None
    name = dict(question.rules.names).get("prompt", "the task")
    try:
        result = question.rules.prompt(question, exemplars, prompt_style)
    except Exception as error:
        raise LmsiError(
            f"the prompt of {name} fails for question {question.uid!r} in the style "
            f"{prompt_style!r}: {type(error).__name__}: {error}"
        ) from error
    parts = ("", result) if isinstance(result, str) else result
    whole = isinstance(parts, tuple) and len(parts) == 2
    if not (whole and all(isinstance(part, str) for part in parts) and parts[1].strip()):
        raise LmsiError(
            f"the prompt of {name} returns {result!r:.60} for question {question.uid!r}; return a "
            "text, or two texts (the part that all questions share, the rest)"
        )
    return parts


def available_style(prompt_style: PromptStyle, exemplars: Sequence[Exemplar]) -> PromptStyle:
    """Returns a style, or its zero-shot counterpart for a task without exemplars."""
    if exemplars:
        return prompt_style
    zero_shot: dict[PromptStyle, PromptStyle] = {
        "cot": "zero_shot_cot",
        "standard": "zero_shot_direct",
    }
    return zero_shot.get(prompt_style, prompt_style)


def available_formats(
    formats: Sequence[Format], exemplars: Sequence[Exemplar]
) -> tuple[Format, ...]:
    """Returns formats, or their zero-shot counterparts for a task without exemplars."""
    if exemplars:
        return tuple(formats)
    zero_shot: dict[Format, Format] = {
        "few_shot_cot": "zero_shot_cot",
        "few_shot_direct": "zero_shot_direct",
    }
    return tuple(dict.fromkeys(zero_shot.get(name, name) for name in formats))


# "The answer is ..." and its stop; a standard prompt asks for nothing else.
_DIRECT_TOKENS = 32


def new_tokens(prompt_style: str, limit: int) -> int:
    """Returns how many tokens a greedy sample gets; `limit`: `Sampling.max_new_tokens`."""
    return min(limit, _DIRECT_TOKENS) if is_direct(prompt_style) else limit


class PromptWriter(Protocol):
    """A way of asking a model: in documents, or in its chat template."""

    def prompt(
        self, question: Question, exemplars: Sequence[Exemplar], prompt_style: PromptStyle
    ) -> tuple[Text, Text]:
        """Returns (prefix, inputs) for one question; the prefix is "" for zero-shot prompting.

        Raises:
          LmsiError: an unknown prompt style, or few-shot prompting without exemplars.
        """

    def no_question(self) -> Text:
        """Returns the prompt that asks nothing; a loss after it is that of an answer alone."""

    def target(self, solution: str, ended: bool = True) -> Text:
        """Returns a solution as a model writes it after a prompt.

        Args:
          solution: its text.
          ended: with the token that ends it, if the writer has one.
        """

    def judgement(self, question: str, solution: str, ask: str, opening: str) -> Text:
        """Returns the prompt that asks a model for its opinion of a solution.

        Args:
          question: the question that was solved.
          solution: the solution.
          ask: what is asked of it, with its own "Q: ".
          opening: how the reply begins.
        """

    def more_questions(self, texts: Sequence[str], opening: str) -> Text:
        """Returns the prompt that a model answers with one more question of a kind.

        Args:
          texts: questions of that kind.
          opening: how the new one begins; "" if the model writes that too.
        """

    def request(self, text: str) -> Text:
        """Returns the prompt of a request in words of its own, such as a scorer's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainPrompts:
    """Asks in documents, as base models continue them; a `PromptWriter`.

    Attributes:
      end: the control token that ends a target; "" ends it with a blank line, as the document's
        items end.
    """

    end: str = ""

    def prompt(
        self, question: Question, exemplars: Sequence[Exemplar], prompt_style: PromptStyle
    ) -> tuple[Text, Text]:
        """Returns (prefix, inputs), see `build_prompt`."""
        return build_prompt(question, exemplars, prompt_style)

    def no_question(self) -> Text:
        """Returns the word before every answer."""
        return "A:"

    def target(self, solution: str, ended: bool = True) -> Text:
        """Returns the solution after a space, with `end` if it has one."""
        return (f" {solution}", self.end, "") if ended and self.end else f" {solution}"

    def judgement(self, question: str, solution: str, ask: str, opening: str) -> Text:
        """Returns two items, the second about the first."""
        return f"{question_prompt(question)} {solution}{SEPARATOR}{question_prompt(ask)} {opening}"

    def more_questions(self, texts: Sequence[str], opening: str) -> Text:
        """Returns a list of questions, see `question_list`."""
        return question_list(texts, opening)

    def request(self, text: str) -> Text:
        """Returns the text, which an answer follows after "A:"."""
        return question_prompt(text)


PLAIN = PlainPrompts()
