"""Scores paths against gold answers. PURE: records in, numbers out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from lmsi_jax import voting
from lmsi_jax.evaluation.curves import Point, curve
from lmsi_jax.records import Path, Question
from lmsi_jax.voting import EQUAL, Voting, right_keys

Ranks = Callable[[Question, Sequence[Path]], list[float] | None]
"""A ranker's score of each of a question's paths."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One task under one prompting.

    Attributes:
      task: its name.
      prompting: "standard", "cot", "zero_shot_cot" (one path) or "self_consistency" (the vote).
      temperature: of the paths.
      paths: per question.
      correct: 1 or 0 per question, in question order.
      confidence: of the vote, per question; () for one path.
      parsed: share of paths with a parsed answer.
      tied: questions whose vote was tied.
      single: accuracy of one path, averaged over all paths.
      mean_tokens: tokens per path.
      curve: majority@k and pass@k of self-consistency, for k = 1, 2, 4, ... and all paths.
    """

    task: str
    prompting: str
    temperature: float
    paths: int
    correct: tuple[int, ...]
    confidence: tuple[float, ...]
    parsed: float
    tied: int
    single: float
    mean_tokens: float
    curve: tuple[Point, ...] = ()


def score(
    questions: Sequence[Question],
    paths: Mapping[str, Sequence[Path]],
    prompting: str,
    temperature: float,
    weights: Voting = EQUAL,
    ranks: Ranks | None = None,
) -> TaskScore:
    """Votes on each question's paths (one path is its own vote) and compares with the gold answer.

    A question without a parsed answer counts as wrong.

    Args:
      questions: of one task, with gold answers.
      paths: of each question, by uid.
      prompting: how they were asked.
      temperature: at which they were answered.
      weights: how much a path's vote counts.
      ranks: what the ranker of `weights` says of a question's paths, where it has one.
    """
    several = prompting == "self_consistency"
    ordered = [paths[question.uid] for question in questions]
    votes = [
        voting.cast(question, own, weights, ranks(question, own) if ranks else None)
        for question, own in zip(questions, ordered, strict=True)
    ]
    gold = [right_keys(question) for question in questions]
    right = [vote.winner in g for vote, g in zip(votes, gold, strict=True)]
    total = max(1, sum(vote.total for vote in votes))
    agree = sum(key in g for vote, g in zip(votes, gold, strict=True) for key in vote.keys)
    tokens = sum(path.tokens for own in ordered for path in own)
    return TaskScore(
        task=questions[0].task,
        prompting=prompting,
        temperature=temperature,
        paths=max(vote.total for vote in votes),
        correct=tuple(map(int, right)),
        confidence=tuple(round(vote.confidence, 6) for vote in votes) if several else (),
        parsed=sum(vote.parsed for vote in votes) / total,
        tied=sum(bool(vote.tied) for vote in votes),
        single=agree / total,
        mean_tokens=tokens / total,
        curve=tuple(curve(ordered, votes, gold)) if several else (),
    )
