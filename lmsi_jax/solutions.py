"""What of a path is learnt: its solution up to and with the answer, the answer, its key."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from lmsi_jax import answers, prompts
from lmsi_jax.records import Path, Question, Vote
from lmsi_jax.selection.rows import Row

Keep = Literal["majority", "parsed"]


class Solution(NamedTuple):
    """The part of a path that is learnt, the answer as the path writes it, and its key."""

    text: str
    answer: str
    key: str


def solutions(question: Question, paths: Sequence[Path]) -> dict[int, Solution]:
    """Returns what is learnt of each path of the question that has an answer, by path index."""
    options = answers.options_of(question)
    found = [
        (path, answers.find(path.text, question.kind, options, finished=path.finished))
        for path in paths
        if path.uid == question.uid
    ]
    return {
        path.index: Solution(_ending(path.text[: hit.end].strip(), hit), hit.answer, hit.key)
        for path, hit in found
        if hit is not None and hit.key is not None
    }


def _ending(solution: str, found: answers.Found) -> str:
    """The solution, with the answer sentence where the path has no mark of its own."""
    sentence = prompts.answer_sentence(found.answer)
    return solution if found.marked else f"{solution} {sentence}"


def voted_rows(
    question: Question, paths: Sequence[Path], vote: Vote, keep: Keep = "majority"
) -> list[Row]:
    """Returns a question's paths that training may learn, by index, for filters to judge.

    Args:
      question: what was asked.
      paths: its paths, in any order.
      vote: the vote over these paths.
      keep: the paths that agree with the "majority"; or every "parsed" path, one that voted at all.

    Raises:
      ValueError: the vote is of another question; a path that voted is missing, or is not the one
        that did.
    """
    if vote.uid != question.uid:
        raise ValueError(f"the vote on {vote.uid!r} is not on question {question.uid!r}")
    if vote.winner is None:
        return []
    by_index = {path.index: path for path in paths if path.uid == question.uid}
    learnt = solutions(question, paths)
    keys = dict(zip(sorted(by_index), vote.keys, strict=False))
    chosen = vote.kept if keep == "majority" else [i for i, key in keys.items() if key is not None]
    rows = []
    for index in sorted(chosen):
        own = learnt.get(index)
        if own is None or own.key != (vote.winner if keep == "majority" else keys[index]):
            raise ValueError(f"path {index} of question {question.uid!r} is not the one that voted")
        rows.append(
            Row(
                question=question,
                vote=vote,
                path=by_index[index],
                solution=own.text,
                answer=own.answer,
                key=own.key,
            )
        )
    return rows
