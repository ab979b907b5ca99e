"""What early stop would have done to paths that were all sampled. PURE: records in, numbers out."""

import dataclasses
from collections.abc import Mapping, Sequence

from lmsi_jax import voting
from lmsi_jax.records import Path, Question, Vote


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """The rule on one set of questions; every tuple is in their order.

    Attributes:
      taken: paths that the rule takes of each question.
      same: 1 where the vote on these has the winner of the vote on all paths, else 0.
      correct: 1 where the vote on all paths is right, else 0; () without gold answers.
      correct_stopped: the same for the vote on the paths that the rule takes.
    """

    taken: tuple[int, ...]
    same: tuple[int, ...]
    correct: tuple[int, ...]
    correct_stopped: tuple[int, ...]


def replay(
    questions: Sequence[Question],
    votes: Sequence[Vote],
    paths: Mapping[str, Sequence[Path]],
    threshold: float,
    every: int,
) -> Replay:
    """Applies `voting.paths_needed` to votes on all paths, and votes again on what it takes.

    A vote without a winner is wrong, and the same as another without one.

    Args:
      questions: with gold answers, or at least one without (then nothing is judged).
      votes: on all paths of each question, in the same order.
      paths: by question uid.
      threshold: wanted probability that the leading answer stays ahead, in (0.5, 1).
      every: how many paths lie between two looks.

    Raises:
      ValueError: as many votes as questions are needed, or a vote is not over its question's paths.
    """
    taken = [voting.paths_needed(vote.keys, threshold, every) for vote in votes]
    winners = [
        voting.winner_of_first(vote, paths[question.uid], count)
        for question, vote, count in zip(questions, votes, taken, strict=True)
    ]
    return Replay(
        taken=tuple(taken),
        same=tuple(int(w == vote.winner) for w, vote in zip(winners, votes, strict=True)),
        correct=_right(questions, [vote.winner for vote in votes]),
        correct_stopped=_right(questions, winners),
    )


def _right(questions: Sequence[Question], winners: Sequence[str | None]) -> tuple[int, ...]:
    if any(question.gold is None for question in questions):
        return ()
    gold = [voting.right_keys(question) for question in questions]
    return tuple(int(w in g) for w, g in zip(winners, gold, strict=True))
