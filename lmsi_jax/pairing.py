"""Pairs, to prefer one continuation over another, in the four formats of `mixing`."""

from collections.abc import Sequence

from lmsi_jax import prompts
from lmsi_jax.records import FORMATS, ExamplePair, Exemplar, Format, Path, Question, Vote
from lmsi_jax.selection.pairs import pair
from lmsi_jax.solutions import solutions


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
    learnt = solutions(question, paths)
    chosen, rejected = (learnt[index][:2] for index in (found.chosen, found.rejected))
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
    own = solutions(question, [path]).get(path.index)
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
    if not prompts.is_direct(prompts.PROMPTING_OF_FORMAT[name]):
        return solution
    return None if surface is None else prompts.answer_sentence(surface)
