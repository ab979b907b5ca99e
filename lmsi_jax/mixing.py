"""Votes and paths become training examples in four formats (LMSI, section 3.2).

| format           | input                                   | target             |
|------------------|-----------------------------------------|--------------------|
| few_shot_cot     | exemplars with reasoning, question      | the kept path      |
| few_shot_direct  | exemplars without reasoning, question   | the answer sentence|
| zero_shot_cot    | question, "Let's think step by step."   | the kept path      |
| zero_shot_direct | question                                | the answer sentence|

The paper writes every kept path in all four formats. Equal rows are merged here into one with a
weight, which gives the same loss at less work; `merge_equal=False` writes the literal copies.
"""

import collections
from collections.abc import Sequence
from typing import Literal

from lmsi_jax import answers, prompts
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import FORMATS, Example, Exemplar, Format, Path, Question, Source, Vote

Normalise = Literal["question", "path"]
Rows = list[tuple[str, float]]
"""(target, weight) of each row of one format."""


def examples(
    question: Question,
    paths: Sequence[Path],
    vote: Vote,
    exemplars: Sequence[Exemplar],
    *,
    formats: Sequence[Format] = FORMATS,
    merge_equal: bool = True,
    cap: int | None = None,
    min_confidence: float = 0.0,
    normalise: Normalise = "question",
) -> list[Example]:
    """Writes a question's kept paths as weak training examples.

    Args:
      question: what was asked.
      paths: its paths, in any order.
      vote: the vote over these paths.
      exemplars: the task's few-shot exemplars.
      formats: which formats to write, in this order.
      merge_equal: equal rows become one row that weighs as much as they do together.
      cap: keep the first `cap` distinct paths by index (None: all).
      min_confidence: below this confidence the question gives no examples.
      normalise: "path" gives each kept path weight 1 in each format, as the paper does; "question"
        scales each question's rows of a format to the sum 1.

    Returns:
      The examples by format, then by path index; none when no path was kept.

    Raises:
      LmsiError: a switch with a value that does not exist.
      ValueError: the vote or a kept path is missing or of another question.
    """
    check_switches(formats, cap, normalise)
    if vote.uid != question.uid:
        raise ValueError(f"the vote on {vote.uid!r} is not on question {question.uid!r}")
    if vote.winner is None or vote.confidence < min_confidence:
        return []
    kept, surfaces = _solutions(question, paths, vote)
    if cap is not None:
        first = set(list(dict.fromkeys(kept))[:cap])
        kept = [text for text in kept if text in first]
    unit = 1 / len(kept) if normalise == "question" else 1.0
    direct = [prompts.answer_sentence(_most_frequent(surfaces))] * len(kept)
    return [
        _example(question, exemplars, name, "weak", target, weight)
        for name in formats
        for target, weight in _rows(direct if _is_direct(name) else kept, unit, merge_equal)
    ]


def check_switches(formats: Sequence[Format], cap: int | None, normalise: str) -> None:
    """Raises LmsiError for a switch of `examples` with a value that does not exist."""
    for name in formats:
        if name not in FORMATS:
            raise LmsiError(f"unknown format {name!r}; the formats are {', '.join(FORMATS)}")
    if cap is not None and cap < 1:
        raise LmsiError(f"Mixing.cap = {cap}; use 1 or more, or None for no cap")
    if normalise not in ("question", "path"):
        raise LmsiError(f"Mixing.normalise = {normalise!r}; use 'question' or 'path'")


def strong_examples(
    question: Question,
    worked: Exemplar,
    exemplars: Sequence[Exemplar],
    formats: Sequence[Format] = FORMATS,
) -> list[Example]:
    """Writes one human (or otherwise trusted) solution as strong examples of weight 1, by format.

    Args:
      question: what is asked; its text is used, not that of `worked`.
      worked: reasoning and answer to learn.
      exemplars: the task's few-shot exemplars.
      formats: which formats to write, in this order.

    Raises:
      LmsiError: an unknown format.
    """
    check_switches(formats, None, "path")
    return [
        _example(
            question,
            exemplars,
            name,
            "strong",
            prompts.solution("" if _is_direct(name) else worked.reasoning, worked.answer),
            1.0,
        )
        for name in formats
    ]


def _solutions(
    question: Question, paths: Sequence[Path], vote: Vote
) -> tuple[list[str], list[str]]:
    """The kept paths, cut after the answer sentence, and their answers as written; by index."""
    by_index = {path.index: path for path in paths if path.uid == question.uid}
    texts, surfaces = [], []
    for index in sorted(vote.kept):
        path = by_index.get(index)
        found = answers.find(path.text, question.kind) if path else None
        if path is None or found is None or found.key != vote.winner:
            raise ValueError(f"path {index} of question {question.uid!r} is not the one that voted")
        texts.append(path.text[: found.end].strip())
        surfaces.append(found.answer)
    return texts, surfaces


def _most_frequent(surfaces: Sequence[str]) -> str:
    """The most frequent way to write the answer; of equals the alphabetically first."""
    counts = collections.Counter(surfaces)
    return min(counts, key=lambda surface: (-counts[surface], surface))


def _rows(targets: Sequence[str], unit: float, merge_equal: bool) -> Rows:
    if not merge_equal:
        return [(target, unit) for target in targets]
    # A Counter keeps the order of first appearance, which is the order of the indices.
    return [(target, count * unit) for target, count in collections.Counter(targets).items()]


def _is_direct(name: Format) -> bool:
    return name in ("few_shot_direct", "zero_shot_direct")


def _example(
    question: Question,
    exemplars: Sequence[Exemplar],
    name: Format,
    source: Source,
    target: str,
    weight: float,
) -> Example:
    prompting = prompts.PROMPTING_OF_FORMAT[name]
    prefix, inputs = prompts.build_prompt(question, exemplars, prompting)
    return Example(
        uid=question.uid,
        task=question.task,
        format=name,
        source=source,
        prefix=prefix,
        inputs=inputs,
        targets=f" {target}",
        weight=weight,
    )
