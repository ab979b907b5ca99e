"""Scores paths against gold answers. PURE: records in, numbers out."""

import dataclasses
from collections.abc import Mapping, Sequence

from lmsi_jax import answers, voting
from lmsi_jax.records import Path, Question


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


def score(
    questions: Sequence[Question],
    paths: Mapping[str, Sequence[Path]],
    prompting: str,
    temperature: float,
) -> TaskScore:
    """Votes on each question's paths (one path is its own vote) and compares with the gold answer.

    A question without a parsed answer counts as wrong.
    """
    votes = [voting.vote(question, paths[question.uid]) for question in questions]
    gold = [_right_keys(question) for question in questions]
    right = [vote.winner in g for vote, g in zip(votes, gold, strict=True)]
    total = max(1, sum(vote.total for vote in votes))
    agree = sum(key in g for vote, g in zip(votes, gold, strict=True) for key in vote.keys)
    several = prompting == "self_consistency"
    tokens = sum(path.tokens for question in questions for path in paths[question.uid])
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
    )


def _right_keys(question: Question) -> set[str]:
    """The keys that count as right."""
    keys = (answers.key(label, question.kind) for label in (question.gold or "", *question.also))
    return {key for key in keys if key is not None}
