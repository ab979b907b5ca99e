"""Records in, a round's figures out. Means are over questions unless it says otherwise."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from lmsi_jax.records import Example, ExamplePair, Path, Question, Vote
from lmsi_jax.selection.confidence import relative_entropy
from lmsi_jax.voting import right_keys

EASY = 0.9
"""A question is easy where more than this share of its paths agrees with the vote."""
LONGEST = 3
"""Distinct-n is measured for n = 1 to this."""
_WORD = re.compile(r"\w+|[^\w\s]")  # a run of letters and digits, or a single other character


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """What gold answers say of questions that have one.

    Attributes:
      questions: how many.
      confidence: mean share of the paths that agree with the vote.
      majority: share of questions whose vote over all m paths is right (majority@m).
      passed: share of questions with a right path among m (pass@m).
      single: share of right paths (pass@1).
    """

    questions: int
    confidence: float
    majority: float
    passed: float
    single: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """One round, or one model on some questions.

    Attributes:
      questions: how many.
      paths: of all of them.
      confidence: share of the paths that agree with the vote.
      entropy: of a question's answers, over the largest possible, log m.
      distinct: distinct-n for n = 1, 2, 3 (Li et al. 2016): different n-grams of words over all,
        among the paths of one question. Comparable between equal numbers of paths.
      length: tokens of a path, mean over paths.
      unparsed: share of the paths without an answer.
      easy: share of the questions whose confidence is above `EASY`.
      distinct_kept: different texts among the paths that agree with a question's vote.
      empty: share of the questions without a parsed answer.
      kept: share of the questions with at least one training row; None where none were made yet.
      rows: the model's own training rows.
      easy_weight: share of their weight that is of easy questions.
      scored: what gold answers say; None without any.
    """

    questions: int
    paths: int
    confidence: float
    entropy: float
    distinct: tuple[float, ...]
    length: float
    unparsed: float
    easy: float
    distinct_kept: float
    empty: float
    kept: float | None
    rows: int | None
    easy_weight: float | None
    scored: Scored | None


def measure(
    questions: Sequence[Question],
    paths: Mapping[str, Sequence[Path]],
    votes: Sequence[Vote],
    examples: Iterable[Example | ExamplePair] | None = None,
) -> Figures:
    """Measures a round.

    Args:
      questions: what was asked; those with `gold` are scored.
      paths: of each question, by uid.
      votes: one on each question, in their order.
      examples: what training learns of it; rows of other questions (given solutions) are not
        counted. None: nothing was made yet.
    """
    flat = [path for vote in votes for path in paths[vote.uid]]
    easy = {vote.uid for vote in votes if vote.confidence > EASY}
    kept, rows, easy_weight = _learnt(votes, easy, examples)
    return Figures(
        questions=len(votes),
        paths=len(flat),
        confidence=_mean([vote.confidence for vote in votes]),
        entropy=_mean([relative_entropy(vote) for vote in votes]),
        distinct=_distinct([path.text for path in paths[vote.uid]] for vote in votes),
        length=_mean([path.tokens for path in flat]),
        unparsed=1 - sum(vote.parsed for vote in votes) / len(flat) if flat else 0.0,
        easy=len(easy) / max(1, len(votes)),
        distinct_kept=_mean([distinct_kept(vote, paths[vote.uid]) for vote in votes]),
        empty=_mean([vote.winner is None for vote in votes]),
        kept=kept,
        rows=rows,
        easy_weight=easy_weight,
        scored=_scored(questions, votes),
    )


def distinct_kept(vote: Vote, paths: Iterable[Path]) -> int:
    """Returns how many different texts a question's kept paths have."""
    kept = set(vote.kept)
    return len({path.text for path in paths if path.index in kept})


def _distinct_n(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """Different n-grams over all of them, of texts in words; None where there is none."""
    grams: list[tuple[str, ...]] = []
    for words in texts:
        grams += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else None


def _distinct(questions: Iterable[Sequence[str]]) -> tuple[float, ...]:
    """Means over questions for n = 1 to `LONGEST`; questions without n-grams are left out."""
    found: list[list[float]] = [[] for _ in range(LONGEST)]
    for texts in questions:
        words = [_WORD.findall(text) for text in texts]
        for n, shares in enumerate(found, start=1):
            share = _distinct_n(words, n)
            if share is not None:
                shares.append(share)
    return tuple(map(_mean, found))


def _learnt(
    votes: Sequence[Vote], easy: set[str], examples: Iterable[Example | ExamplePair] | None
) -> tuple[float | None, int | None, float | None]:
    """(kept, rows, easy_weight) of `Figures`."""
    if examples is None:
        return None, None, None
    asked = {vote.uid for vote in votes}
    own = [row for row in examples if row.uid in asked]
    total = math.fsum(row.weight for row in own)
    of_easy = math.fsum(row.weight for row in own if row.uid in easy)
    kept = len({row.uid for row in own}) / max(1, len(votes))
    return kept, len(own), of_easy / total if total else 0.0


def _scored(questions: Sequence[Question], votes: Sequence[Vote]) -> Scored | None:
    both = [
        (vote, right_keys(question))
        for question, vote in zip(questions, votes, strict=True)
        if question.gold is not None
    ]
    if not both:
        return None
    right = [sum(key in gold for key in vote.keys if key is not None) for vote, gold in both]
    return Scored(
        questions=len(both),
        confidence=_mean([vote.confidence for vote, _ in both]),
        majority=_mean([vote.winner in gold for vote, gold in both]),
        passed=_mean([count > 0 for count in right]),
        single=_mean(
            [count / max(1, vote.total) for count, (vote, _) in zip(right, both, strict=True)]
        ),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
