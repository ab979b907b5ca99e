"""The interface of selection: rows in, a verdict on each out.

A row is a voted sample that training may learn (`voted_rows`). A filter is a frozen dataclass with
`needs`, the names of the scores that it reads, and a pure function `judge` of a task's rows: its
own method, or an implementation registered here. Verdicts do not depend on the order of the rows:
equal scores go by uid and index.
`select` applies filters one after the other and counts what each of them keeps.
"""

import collections
import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal, NamedTuple

from lmsi_jax import prompts
from lmsi_jax.config import Filter
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Question, Sample, Vote

LOGPROBS = "logprobs"
"""Per-token log-probabilities of the solution, `Row.logprobs`; `LOSS` is their negative mean."""
ScoringFunction = Callable[[Question, Sample], float]
"""Says how good a sample is: the higher the better."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A sample that training may learn.

    Attributes:
      question: what was asked.
      vote: the vote on it.
      sample: what the model wrote.
      solution: the part that is learnt, up to and with its answer.
      answer: the answer as the sample writes it; None if nothing was read of it.
      key: its canonical form.
      scores: by name; a score that could not be had is absent.
      logprobs: of the solution's tokens under the base model, nats; () if no filter needs them,
        or there was no room to compute them.
    """

    question: Question
    vote: Vote
    sample: Sample
    solution: str
    answer: str | None
    key: str | None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    logprobs: tuple[float, ...] = ()

    @property
    def name(self) -> tuple[str, int]:
        """The question's uid and the sample's index."""
        return self.sample.uid, self.sample.sample_index

    def has(self, score: str) -> bool:
        """Returns True if the row has a score."""
        return bool(self.logprobs) if score == LOGPROBS else score in self.scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Task-level inputs to filters.

    Attributes:
      human_losses: `LOSS` of human solutions of this task.
      base_shares: by question, the share of the frozen base's vote; empty unless a filter needs it.
      right: by question, the keys that count as right; empty unless a filter needs labels.
      voted_rows: rows of the task that agree with their vote; None if that is not known.
    """

    human_losses: tuple[float, ...] = ()
    base_shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    right: "Answers" = dataclasses.field(default_factory=dict)
    voted_rows: int | None = None


NOTHING = Facts()


class Verdict(NamedTuple):
    """A filter's verdict on a row.

    Attributes:
      weight: factor of the row's loss weight; 0 drops the row, below 0 it is punished in place of
        learnt (`Loss.negatives`).
      reason: why it is dropped, a few words.
    """

    weight: float
    reason: str = ""


KEPT = Verdict(1.0)


@functools.singledispatch
def judge(rule: Filter, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    """Returns a filter's verdict on each of a task's rows.

    The filters of `lmsi_jax.config` have implementations in `filters`. Any other
    filter is asked by its own method `judge(rows, facts)`.

    Raises:
      LmsiError: a fact is missing, or the filter has no such method.
    """
    method = getattr(rule, "judge", None)
    if method is None:
        raise LmsiError(
            f"{type(rule).__name__} is no filter: give it a method judge(rows, facts), or choose "
            "one of docs/selection.md"
        )
    return method(rows, facts)


def rows_with_scores(rows: Sequence[Row], *names: str) -> list[int]:
    """Returns which of the rows have all of these scores."""
    return [i for i, row in enumerate(rows) if all(map(row.has, names))]


Answers = Mapping[str, Set[str]]
"""The keys that count as right, by the uid of their question."""
NO_ANSWERS: Answers = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterCounts:
    """The effect of one filter on a task's rows.

    Attributes:
      filter: its name.
      rows: that came in.
      kept: that went on.
      questions: that still have some.
      weight: sum of the weights that went on, without their signs.
      dropped: rows by reason.
      right, wrong: rows that went on to be learnt, by their answer, if the right ones are known.
      punished: rows that went on with a weight below 0.
      punished_right: those of them whose answer is right, if that is known.
    """

    filter: str
    rows: int
    kept: int
    questions: int
    weight: float
    dropped: dict[str, int]
    right: int
    wrong: int
    punished: int = 0
    punished_right: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary of plain JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows that all filters kept.

    Attributes:
      rows: in the order in which they came.
      weights: of each: above 0 to learn it, below 0 to punish it.
      steps: one for each filter.
    """

    rows: tuple[Row, ...]
    weights: tuple[float, ...]
    steps: tuple[FilterCounts, ...]


def select(
    rows: Sequence[Row],
    filters: Sequence[Filter],
    facts: Facts = NOTHING,
    answers: Answers = NO_ANSWERS,
) -> Selection:
    """Applies the filters in order; each sees the rows that those before it kept.

    Args:
      rows: of one task.
      filters: in their order; factors of the weights are multiplied.
      facts: the task's.
      answers: which rows are right; counted in the steps, and never shown to a filter.

    Raises:
      LmsiError: a fact is missing that a filter needs.
    """
    kept, weights = list(rows), [1.0] * len(rows)
    steps = []
    for one in filters:
        verdicts = judge(one, kept, facts)
        dropped = collections.Counter(v.reason for v in verdicts if not _matters(v.weight))
        came = len(kept)
        passed = [
            (row, weight * verdict.weight)
            for row, weight, verdict in zip(kept, weights, verdicts, strict=True)
            if _matters(verdict.weight)
        ]
        kept, weights = [row for row, _ in passed], [weight for _, weight in passed]
        learnt = [row for row, weight in passed if weight > 0]
        punished = [row for row, weight in passed if weight < 0]
        right, wrong = right_and_wrong(learnt, answers)
        steps.append(
            FilterCounts(
                filter=type(one).__name__,
                rows=came,
                kept=len(kept),
                questions=len({row.question.uid for row in kept}),
                weight=math.fsum(map(abs, weights)),
                dropped=dict(sorted(dropped.items())),
                right=right,
                wrong=wrong,
                punished=len(punished),
                punished_right=right_and_wrong(punished, answers)[0],
            )
        )
    return Selection(rows=tuple(kept), weights=tuple(weights), steps=tuple(steps))


def _matters(weight: float) -> bool:
    """Returns False for 0 and for what is no number."""
    return weight > 0 or weight < 0


def right_and_wrong(rows: Sequence[Row], answers: Answers) -> tuple[int, int]:
    """Counts rows whose answers are right and wrong; those of unknown questions are neither."""
    known = [row.key in answers[row.sample.uid] for row in rows if row.sample.uid in answers]
    return sum(known), len(known) - sum(known)


Keep = Literal["majority", "parsed", "all"]


def solution_text(text: str, surface: str, end: int, marked: bool) -> str:
    """Returns the part of a sample that is learnt: up to and with its answer sentence.

    Args:
      text: what the model wrote.
      surface, end, marked: what was read of it, as in `voting.Reading`; an answer that nothing
        marks gets the answer sentence.
    """
    solution = text[:end].strip()
    return solution if marked else f"{solution} {prompts.answer_sentence(surface)}"


def voted_rows(
    question: Question, samples: Sequence[Sample], vote: Vote, keep: Keep = "majority"
) -> list[Row]:
    """Returns a question's samples that training may learn, by index, for filters to judge.

    Args:
      question: what was asked.
      samples: its samples, in any order.
      vote: the vote over these samples.
      keep: the samples that agree with the "majority"; or every "parsed" one, which voted at all;
        or "all", with the whole text of those without an answer that no limit cut.

    Raises:
      ValueError: the vote is of another question, or over another number of samples.
    """
    if vote.uid != question.uid:
        raise ValueError(f"the vote on {vote.uid!r} is not on question {question.uid!r}")
    ordered = sorted(
        (sample for sample in samples if sample.uid == question.uid),
        key=lambda sample: sample.sample_index,
    )
    if len(ordered) != vote.total:
        raise ValueError(
            f"{vote.uid!r}: a vote over {vote.total} samples, {len(ordered)} are given"
        )
    if vote.winner is None and keep != "all":
        return []
    kept = set(vote.kept)
    rows = []
    readings = zip(ordered, vote.keys, vote.surfaces, vote.ends, vote.marked, strict=True)
    for sample, key, surface, end, marked in readings:
        if key is None or surface is None:
            # A text that the token limit cut would teach to stop in the middle.
            if keep != "all" or not sample.finished or not sample.text.strip():
                continue
            key = surface = None
            solution = sample.text.strip()
        elif keep == "majority" and sample.sample_index not in kept:
            continue
        else:
            solution = solution_text(sample.text, surface, end, marked)
        rows.append(
            Row(
                question=question,
                vote=vote,
                sample=sample,
                solution=solution,
                answer=surface,
                key=key,
            )
        )
    return rows
