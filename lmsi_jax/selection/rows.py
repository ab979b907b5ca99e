"""The one interface of selection: rows in, a verdict on each out.

A row is a voted path that training may learn. A filter is a frozen dataclass with two members:
`needs`, the names of the scores that it reads, and `judge`, a pure function of a task's rows. Its
verdicts do not depend on the order in which the rows come: equal scores go by uid and index.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from lmsi_jax.records import Path, Question, Vote

LOSS = "loss"
"""Mean cross entropy (nats) of the solution's tokens after exemplars and question, base model."""
QUESTION_LOSS = "question_loss"
"""The same after the question alone."""
ALONE_LOSS = "alone_loss"
"""The same after "A:" alone, without a question."""
LOGPROBS = "logprobs"
"""Of each of the solution's tokens, where `LOSS` has their mean: `Row.logprobs`."""
RATING = "rating"
"""What the model itself gives the solution, 0 to 10."""
STRONG_LOSSES = "strong_losses"
"""Not of a row: `LOSS` of given (human) solutions, see `Facts.strong_losses`."""
RANK = "rank:"
"""Begins the name of a ranker's score: "rank:module:function"."""

Ranker = Callable[[Question, Path], float]
"""Says how good a path is: the higher the better."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A path that training may learn.

    Attributes:
      question: what was asked.
      vote: the vote on it.
      path: what the model wrote.
      solution: the part that is learnt, up to and with its answer.
      answer: the answer as the path writes it.
      key: its canonical form.
      scores: by name; a score that could not be had is absent.
      logprobs: of the solution's tokens under the base model, nats; () where no filter needs them,
        or there was no room to compute them.
    """

    question: Question
    vote: Vote
    path: Path
    solution: str
    answer: str
    key: str
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    logprobs: tuple[float, ...] = ()

    @property
    def name(self) -> tuple[str, int]:
        """What identifies it: question and index of the path."""
        return self.path.uid, self.path.index

    def has(self, score: str) -> bool:
        """Whether a score could be had."""
        return bool(self.logprobs) if score == LOGPROBS else score in self.scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What filters know of a task beside its rows.

    Attributes:
      strong_losses: `LOSS` of given solutions of this task.
    """

    strong_losses: tuple[float, ...] = ()


NOTHING = Facts()


class Verdict(NamedTuple):
    """What a filter says of a row.

    Attributes:
      weight: factor of the row's loss weight; 0 drops the row.
      reason: why it is dropped, a few words.
    """

    weight: float
    reason: str = ""


KEPT = Verdict(1.0)


class Filter(Protocol):
    """What stands in `Mixing.selection`."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the scores that it reads."""

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """Returns a verdict on each of a task's rows.

        Raises:
          LmsiError: a fact is missing.
        """


def scored(rows: Sequence[Row], *names: str) -> list[int]:
    """Returns which of the rows have all of these scores."""
    return [i for i, row in enumerate(rows) if all(map(row.has, names))]
