"""Votes and samples become training examples in four formats (LMSI, section 3.2).

| format           | input                                   | target             |
|------------------|-----------------------------------------|--------------------|
| few_shot_cot     | exemplars with reasoning, question      | the kept sample    |
| few_shot_direct  | exemplars without reasoning, question   | the answer sentence|
| zero_shot_cot    | question, "Let's think step by step."   | the kept sample    |
| zero_shot_direct | question                                | the answer sentence|

The paper writes every kept sample in all four formats. Equal rows are merged here into one with a
weight, which gives the same loss at less work; `merge_equal=False` writes the literal copies.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Literal

from lmsi_jax import prompts
from lmsi_jax.prompts import PLAIN, PromptWriter
from lmsi_jax.records import FORMATS, Example, Exemplar, Format, Question, Source, Text
from lmsi_jax.selection.rows import Keep, Row

Normalise = Literal["question", "sample"]
Prompt = tuple[Text, Text]
"""(prefix, inputs) as `PromptWriter.prompt` returns them."""
Learnt = tuple[Prompt, str]
"""(prompt, target) of a row."""


def examples(
    question: Question,
    rows: Sequence[tuple[Row, float]],
    exemplars: Sequence[Exemplar],
    *,
    own: Mapping[int, Sequence[Exemplar]] | None = None,
    formats: Sequence[Format] = FORMATS,
    keep: Keep = "majority",
    merge_equal: bool = True,
    normalise: Normalise = "question",
    writer: PromptWriter = PLAIN,
) -> list[Example]:
    """Writes a question's voted samples as self-generated training examples.

    Args:
      question: what was asked; each row has it as its sample was asked (`Voting.rotate_options`).
      rows: its samples that are learnt, by index, and factors of their weights, after `normalise`:
        what the filters of `lmsi_jax.selection` keep of `voted_rows`.
      exemplars: the task's few-shot exemplars.
      own: the exemplars, by sample index, of samples that were drawn with others; they are shown
        in the sample's prompt.
      formats: which formats to write, in this order; without exemplars the zero-shot ones.
      keep: with "majority" the direct formats have the winner's most frequent form; otherwise each
        sample has its own answer, and those without one have no direct row.
      merge_equal: equal rows become one row that weighs as much as they do together.
      normalise: "sample" gives each sample weight 1 in each format, as the paper does; "question"
        scales each question's rows of a format to the sum 1.
      writer: how a question is asked and a solution written.

    Returns:
      The examples by format, then by sample index; none without rows. Rows with a factor below 0
      are written in the formats that show their reasoning alone: a punished direct answer would
      punish the words of the answer sentence.
    """
    if not rows:
        return []
    answers = [row.answer for row, _ in rows]
    if keep == "majority":  # the most frequent form; of equals the alphabetically first
        forms = collections.Counter((row.question.text, row.answer) for row, _ in rows)
        best: dict[str, str | None] = {}
        for (text, answer), _ in sorted(forms.items(), key=lambda one: (-one[1], one[0][1] or "")):
            best.setdefault(text, answer)
        answers = [best[row.question.text] for row, _ in rows]
    shown = [(own or {}).get(row.sample.sample_index, exemplars) for row, _ in rows]
    unit = 1 / len(rows) if normalise == "question" else 1.0
    examples: list[Example] = []
    for name in prompts.available_formats(formats, shown[0]):
        prompt_style = prompts.PROMPT_STYLE_OF_FORMAT[name]
        learnt: list[Learnt] = []
        factors = []
        asked = [row.question for row, _ in rows]
        written = _prompts(asked, shown, prompt_style, writer)
        for prompt, answer, (row, factor) in zip(written, answers, rows, strict=True):
            if not prompts.is_direct(prompt_style):
                learnt.append((prompt, row.solution))
            elif answer is not None and factor > 0:
                learnt.append((prompt, prompts.answer_sentence(answer)))
            else:
                continue
            factors.append(factor)
        examples += [
            _example(question, prompt, name, "self_generated", writer.target(target), weight * unit)
            for (prompt, target), weight in _weighed(learnt, factors, merge_equal)
        ]
    return examples


def human_solution_examples(
    question: Question,
    worked: Exemplar,
    exemplars: Sequence[Exemplar],
    formats: Sequence[Format] = FORMATS,
    writer: PromptWriter = PLAIN,
) -> list[Example]:
    """Writes one human (or otherwise trusted) solution as human examples of weight 1, by format.

    Args:
      question: what is asked; its text is used, not that of `worked`.
      worked: reasoning and answer to learn.
      exemplars: the task's few-shot exemplars.
      formats: which formats to write, in this order.
      writer: how a question is asked and a solution written.
    """
    examples: list[Example] = []
    for name in prompts.available_formats(formats, exemplars):
        prompt_style = prompts.PROMPT_STYLE_OF_FORMAT[name]
        reasoning = "" if prompts.is_direct(prompt_style) else worked.reasoning
        prompt = writer.prompt(question, exemplars, prompt_style)
        target = writer.target(prompts.solution(reasoning, worked.answer))
        examples.append(_example(question, prompt, name, "human", target, 1.0))
    return examples


def _weighed(
    learnt: Sequence[Learnt], factors: Sequence[float], merge_equal: bool
) -> list[tuple[Learnt, float]]:
    """Returns rows of one format with their weights; equal rows as one if they are merged."""
    if not merge_equal:
        return list(zip(learnt, factors, strict=True))
    # A dictionary keeps the order of first appearance, which is the order of the indices.
    merged: dict[Learnt, float] = {}
    for row, factor in zip(learnt, factors, strict=True):
        merged[row] = merged.get(row, 0.0) + factor
    return [(row, weight) for row, weight in merged.items() if weight]


def _prompts(
    asked: Sequence[Question],
    shown: Sequence[Sequence[Exemplar]],
    prompt_style: prompts.PromptStyle,
    writer: PromptWriter,
) -> list[Prompt]:
    """Returns the prompt of each question after its exemplars; one that repeats is written once."""
    written: dict[tuple[str, int], Prompt] = {}
    for question, exemplars in zip(asked, shown, strict=True):
        key = question.text, id(exemplars)
        if key not in written:
            written[key] = writer.prompt(question, exemplars, prompt_style)
    return [written[q.text, id(exemplars)] for q, exemplars in zip(asked, shown, strict=True)]


def _example(
    question: Question,
    prompt: Prompt,
    name: Format,
    source: Source,
    target: Text,
    weight: float,
) -> Example:
    prefix, inputs = prompt
    return Example(
        uid=question.uid,
        task=question.task,
        format=name,
        source=source,
        prefix=prefix,
        inputs=inputs,
        targets=target,
        weight=weight,
    )
