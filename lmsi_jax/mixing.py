"""Votes and paths become training examples in four formats (LMSI, section 3.2).

| format           | input                                   | target             |
|------------------|-----------------------------------------|--------------------|
| few_shot_cot     | exemplars with reasoning, question      | the kept path      |
| few_shot_direct  | exemplars without reasoning, question   | the answer sentence|
| zero_shot_cot    | question, "Let's think step by step."   | the kept path      |
| zero_shot_direct | question                                | the answer sentence|

The paper writes every kept path in all four formats. Equal rows are merged here into one with a
weight, which gives the same loss at less work; `merge_equal=False` writes the literal copies.

Pairs, to prefer one continuation over another, are written in the same formats.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Literal

from lmsi_jax import answers, prompts, voting
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import (
    FORMATS,
    Example,
    ExamplePair,
    Exemplar,
    Format,
    Path,
    Question,
    Source,
    Vote,
)
from lmsi_jax.selection.pairs import pair
from lmsi_jax.selection.rows import Row

Normalise = Literal["question", "path"]
Keep = Literal["majority", "parsed"]
Prompt = tuple[str, str]
"""(prefix, inputs) as `prompts.build_prompt` returns them."""
Learnt = tuple[Prompt, str]
"""(prompt, target) of a row."""


def examples(
    question: Question,
    paths: Sequence[Path],
    vote: Vote,
    exemplars: Sequence[Exemplar],
    *,
    own: Mapping[int, Sequence[Exemplar]] | None = None,
    formats: Sequence[Format] = FORMATS,
    keep: Keep = "majority",
    merge_equal: bool = True,
    cap: int | None = None,
    min_confidence: float = 0.0,
    normalise: Normalise = "question",
    weights: Mapping[int, float] | None = None,
) -> list[Example]:
    """Writes a question's kept paths as weak training examples.

    Args:
      question: what was asked.
      paths: its paths, in any order.
      vote: the vote over these paths.
      exemplars: the task's few-shot exemplars.
      own: exemplars that a path, by its index, was sampled with instead: it stands behind them.
      formats: which formats to write, in this order.
      keep: the paths that agree with the "majority"; or every "parsed" path, with its own answer in
        the direct formats: a control, which shows what the vote adds.
      merge_equal: equal rows become one row that weighs as much as they do together.
      cap: keep the first `cap` distinct paths by index (None: all).
      min_confidence: below this confidence the question gives no examples.
      normalise: "path" gives each kept path weight 1 in each format, as the paper does; "question"
        scales each question's rows of a format to the sum 1.
      weights: factors of the kept paths' weights by path index, after `normalise`; paths without
        one are left out (see `lmsi_jax.selection`). None: all have 1.

    Returns:
      The examples by format, then by path index; none when no path was kept.

    Raises:
      LmsiError: a switch with a value that does not exist.
      ValueError: the vote or a kept path is missing or of another question.
    """
    check_switches(formats, keep, cap, normalise)
    if vote.uid != question.uid:
        raise ValueError(f"the vote on {vote.uid!r} is not on question {question.uid!r}")
    if vote.winner is None or vote.confidence < min_confidence:
        return []
    agree = keep == "majority"
    kept = rows(question, paths, vote, keep)
    if weights is not None:
        kept = [row for row in kept if row.path.index in weights]
    if cap is not None:
        first = set(list(dict.fromkeys(row.solution for row in kept))[:cap])
        kept = [row for row in kept if row.solution in first]
    if not kept:
        return []
    surfaces = [row.answer for row in kept]
    answer = [_most_frequent(surfaces)] * len(kept) if agree else surfaces
    targets = {
        False: [row.solution for row in kept],
        True: [prompts.answer_sentence(surface) for surface in answer],
    }
    shown = [(own or {}).get(row.path.index, exemplars) for row in kept]
    unit = 1 / len(kept) if normalise == "question" else 1.0
    factors = [1.0 if weights is None else weights[row.path.index] for row in kept]
    return [
        _example(question, prompt, name, "weak", target, weight * unit)
        for name in formats
        for (prompt, target), weight in _weighed(
            list(zip(_prompts(question, shown, name), targets[_is_direct(name)], strict=True)),
            factors,
            merge_equal,
        )
    ]


def rows(
    question: Question, paths: Sequence[Path], vote: Vote, keep: Keep = "majority"
) -> list[Row]:
    """Returns a question's paths that training may learn, by index, for filters to judge.

    Args:
      question: what was asked.
      paths: its paths, in any order.
      vote: the vote over these paths.
      keep: see `examples`.

    Raises:
      ValueError: a kept path is missing or of another question.
    """
    if vote.winner is None:
        return []
    parsed = _parsed_by_index(question, paths)
    by_index = {path.index: path for path in paths if path.uid == question.uid}
    if keep == "majority":
        for index in vote.kept:
            if index not in parsed or parsed[index][2] != vote.winner:
                raise ValueError(
                    f"path {index} of question {question.uid!r} is not the one that voted"
                )
    right = voting.right_keys(question)
    chosen = vote.kept if keep == "majority" else parsed
    return [
        Row(
            question=question,
            vote=vote,
            path=by_index[index],
            solution=parsed[index][0],
            answer=parsed[index][1],
            key=parsed[index][2],
            right=parsed[index][2] in right if right else None,
        )
        for index in sorted(chosen)
    ]


def check_switches(formats: Sequence[Format], keep: str, cap: int | None, normalise: str) -> None:
    """Raises LmsiError for a switch of `examples` with a value that does not exist."""
    for name in formats:
        if name not in FORMATS:
            raise LmsiError(f"unknown format {name!r}; the formats are {', '.join(FORMATS)}")
    if keep not in ("majority", "parsed"):
        raise LmsiError(f"Mixing.keep = {keep!r}; use 'majority' or 'parsed'")
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
    check_switches(formats, "majority", None, "path")
    return [
        _example(
            question,
            _prompts(question, [exemplars], name)[0],
            name,
            "strong",
            prompts.solution("" if _is_direct(name) else worked.reasoning, worked.answer),
            1.0,
        )
        for name in formats
    ]


def vote_pairs(
    question: Question,
    paths: Sequence[Path],
    vote: Vote,
    exemplars: Sequence[Exemplar],
    *,
    formats: Sequence[Format] = FORMATS,
    threshold: float = 0.5,
) -> list[ExamplePair]:
    """Writes a path of the most voted answer against one of the least voted (ScPO), by format.

    Args:
      question: what was asked.
      paths: its paths, in any order.
      vote: the vote over all of them.
      exemplars: the task's few-shot exemplars.
      formats: which formats to write, in this order.
      threshold: least share of the paths that agree with the chosen one.

    Returns:
      The pairs, none where the votes give none; see `selection.pairs.pair`.
    """
    found = pair(vote, paths, threshold)
    if found is None:
        return []
    parsed = _parsed_by_index(question, paths)
    chosen, rejected = (parsed[index][:2] for index in (found.chosen, found.rejected))
    return _pairs(question, exemplars, formats, chosen, rejected, found.weight)


def given_pairs(
    question: Question,
    worked: Exemplar,
    path: Path,
    exemplars: Sequence[Exemplar],
    formats: Sequence[Format] = FORMATS,
) -> list[ExamplePair]:
    """Writes a given solution against the model's own path (SPIN), by format.

    Args:
      question: what was asked.
      worked: its given reasoning and answer.
      path: the model's.
      exemplars: the task's few-shot exemplars.
      formats: which formats to write, in this order.

    Returns:
      The pairs; none of a path that the token limit cut before its answer, and none in a direct
      format of a path without an answer.
    """
    given = (prompts.solution(worked.reasoning, worked.answer), worked.answer)
    own = _parsed_by_index(question, [path]).get(path.index)
    if own is None and not path.finished:
        return []
    text, surface = (path.text.strip(), None) if own is None else own[:2]
    return _pairs(question, exemplars, formats, given, (text, surface), 1.0)


def _pairs(
    question: Question,
    exemplars: Sequence[Exemplar],
    formats: Sequence[Format],
    chosen: tuple[str, str],
    rejected: tuple[str, str | None],
    weight: float,
) -> list[ExamplePair]:
    """Pairs of two (solution, answer) by format; equal targets have nothing to teach."""
    made = []
    for name in formats:
        targets = [_target(name, *side) for side in (chosen, rejected)]
        if None in targets or targets[0] == targets[1]:
            continue
        prefix, inputs = prompts.build_prompt(
            question, exemplars, prompts.PROMPTING_OF_FORMAT[name]
        )
        made.append(
            ExamplePair(
                uid=question.uid,
                task=question.task,
                format=name,
                prefix=prefix,
                inputs=inputs,
                chosen=f" {targets[0]}",
                rejected=f" {targets[1]}",
                weight=weight,
            )
        )
    return made


def _target(name: Format, solution: str, surface: str | None) -> str | None:
    """What is learnt of a solution in a format; None where it has no answer to give directly."""
    if not _is_direct(name):
        return solution
    return None if surface is None else prompts.answer_sentence(surface)


def _parsed_by_index(question: Question, paths: Sequence[Path]) -> dict[int, tuple[str, str, str]]:
    """(solution, answer, key) of each path of the question that has an answer."""
    own = [path for path in paths if path.uid == question.uid]
    options = answers.options_of(question)
    found = [
        (path, answers.find(path.text, question.kind, options, finished=path.finished))
        for path in own
    ]
    return {
        path.index: (_ending(path.text[: hit.end].strip(), hit), hit.answer, hit.key)
        for path, hit in found
        if hit is not None and hit.key is not None
    }


def _ending(solution: str, found: answers.Found) -> str:
    """The solution, with the answer sentence where the path has no mark of its own."""
    sentence = prompts.answer_sentence(found.answer)
    return solution if found.marked else f"{solution} {sentence}"


def _most_frequent(surfaces: Sequence[str]) -> str:
    """The most frequent way to write the answer; of equals the alphabetically first."""
    counts = collections.Counter(surfaces)
    return min(counts, key=lambda surface: (-counts[surface], surface))


def _weighed(
    learnt: Sequence[Learnt], factors: Sequence[float], merge_equal: bool
) -> list[tuple[Learnt, float]]:
    """Rows of one format with their weights; equal ones, where asked for, as one row."""
    if not merge_equal:
        return list(zip(learnt, factors, strict=True))
    # A dictionary keeps the order of first appearance, which is the order of the indices.
    merged: dict[Learnt, float] = {}
    for row, factor in zip(learnt, factors, strict=True):
        merged[row] = merged.get(row, 0.0) + factor
    return list(merged.items())


def _is_direct(name: Format) -> bool:
    return name in ("few_shot_direct", "zero_shot_direct")


def _prompts(question: Question, shown: Sequence[Sequence[Exemplar]], name: Format) -> list[Prompt]:
    """The prompt behind each of several lists of exemplars; the same list is written once."""
    prompting = prompts.PROMPTING_OF_FORMAT[name]
    written = {id(one): one for one in shown}
    built = {at: prompts.build_prompt(question, one, prompting) for at, one in written.items()}
    return [built[id(one)] for one in shown]


def _example(
    question: Question,
    prompt: Prompt,
    name: Format,
    source: Source,
    target: str,
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
        targets=f" {target}",
        weight=weight,
    )
