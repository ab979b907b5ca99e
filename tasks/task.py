"""The interface of a task, and families of generated questions.

`Task` is what every task offers, whether its questions are generated (`Family`) or read from files
(`dataset.Dataset`). A hash of a family's question decides which split it belongs to, so the
unlabelled train questions, the labelled test questions and the documents that trained the embedded
base model are disjoint for any seeds and counts.
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, Self

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Exemplar, Kind, Question

Split = Literal["test", "train", "pretrain"]
Level = Literal["easy", "hard"]
Domain = Literal["in", "out"]

LEVELS: tuple[Level, ...] = ("easy", "hard")
# Sixteenths of all hashes; the pretrain split has the base model's documents and the exemplars.
_SHARES: dict[Split, range] = {"test": range(0, 3), "train": range(3, 8), "pretrain": range(8, 16)}
# A generator without a new question in this many tries is exhausted.
_PATIENCE = 2000


class Task(Protocol):
    """A named source of questions with its answer kind and its exemplars.

    `stream`, `labelled`, `questions` and `worked` give the same questions in the same order, a pure
    function of (task, split, level, seed). In `stream` and `questions` only those of the test split
    carry their answers.
    `domain` is "in" if the packaged runs train on the task, "out" if they only test on it.
    `levels` is empty if the task has one level only; the argument `level` is then ignored.
    `contamination_ngram` and `content` define overlap with questions of other tasks, see
    `contamination`.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def domain(self) -> Domain: ...
    @property
    def shots(self) -> int: ...
    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def contamination_ngram(self) -> int: ...

    @property
    def content(self) -> Callable[[str], Sequence[str]]:
        """The function from a question's text to its parts outside of templates."""

    def from_folder(self, data_dir: str) -> Self:
        """Returns the same task with its files in `data_dir`; itself when it has no files."""

    def stream(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Yields distinct questions until there are no more.

        Raises:
          LmsiError: a file is missing or malformed (raised by the call, not by the iteration).
        """

    def labelled(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Yields the questions of `stream` with all answers: for reports, never for training."""

    def questions(self, split: Split, level: Level, count: int, seed: int) -> list[Question]:
        """Returns `count` distinct questions; raises LmsiError if there are fewer."""

    def worked(self, split: Split, level: Level, seed: int) -> Iterator[Exemplar]:
        """Yields the questions with reasoning and answer; raises LmsiError after the last one."""

    def exemplars(self) -> tuple[Exemplar, ...]:
        """Returns the fixed worked questions of the few-shot prompt, `shots` of them."""


def too_few(name: str, split: str, count: int, level: str | None = None) -> LmsiError:
    """Returns the error for a split that has fewer questions than were asked for."""
    kind = f"distinct {level} questions" if level else "questions"
    return LmsiError(f"task {name!r} has only {count} {kind} in its {split} split; ask for fewer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A task whose questions come from a generator, in splits that cannot overlap.

    Attributes:
      name: the task's name, also its SeqIO prefix.
      kind: the kind of its answers.
      domain: "in" if the packaged runs train on it, "out" if they only test on it.
      generate: (generator, level) -> a worked question. Pre-training documents and few-shot
        exemplars use its reasoning; `questions` drops it, and the answer unless the split is test.
      shots: exemplars in a few-shot prompt.
    """

    name: str
    kind: Kind
    domain: Domain
    generate: Callable[[random.Random, Level], Exemplar]
    shots: int = 3
    contamination_ngram: int = 0  # its questions share their templates' words

    @property
    def content(self) -> Callable[[str], Sequence[str]]:
        """The function that takes a question as one part."""
        return lambda text: (text,)

    @property
    def levels(self) -> tuple[Level, ...]:
        """All levels."""
        return LEVELS

    def from_folder(self, data_dir: str) -> "Family":
        """Returns the family itself, which reads no files."""
        del data_dir
        return self

    def worked(self, split: Split, level: Level, seed: int) -> Iterator[Exemplar]:
        """Yields an endless stream of distinct worked questions of a split.

        The stream is a pure function of (family, split, level, seed), in the order of `stream`.

        Raises:
          LmsiError: the generator has no further distinct question.
        """
        count = 0
        for row in self._distinct(split, level, seed):
            count += 1
            yield row
        raise too_few(self.name, split, count, level)

    def stream(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Yields distinct questions until the generator is exhausted; only test has answers."""
        rows = self.labelled(split, level, seed)
        return rows if split == "test" else (dataclasses.replace(row, gold=None) for row in rows)

    def labelled(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Yields the same questions with their answers."""
        for row in self._distinct(split, level, seed):
            digest = hashlib.sha256(row.question.encode()).hexdigest()
            yield Question(
                uid=f"{self.name}-{level}-{digest[:12]}",
                task=self.name,
                text=row.question,
                kind=self.kind,
                gold=row.answer,
            )

    def questions(self, split: Split, level: Level, count: int, seed: int) -> list[Question]:
        """Returns `count` distinct questions; only those of the test split carry their answer.

        Raises:
          LmsiError: there are fewer.
        """
        rows = list(itertools.islice(self.stream(split, level, seed), count))
        if len(rows) < count:
            raise too_few(self.name, split, len(rows), level)
        return rows

    def exemplars(self) -> tuple[Exemplar, ...]:
        """Returns the fixed worked questions of the few-shot prompt (pretrain split, easy)."""
        stream = self.worked("pretrain", "easy", seed=0)
        return tuple(next(stream) for _ in range(self.shots))

    def _distinct(self, split: Split, level: Level, seed: int) -> Iterator[Exemplar]:
        if split not in _SHARES:
            raise LmsiError(f"unknown split {split!r}; choose one of {', '.join(_SHARES)}")
        if level not in LEVELS:
            raise LmsiError(f"unknown level {level!r}; choose one of {', '.join(LEVELS)}")
        rng = random.Random(f"{self.name}/{split}/{level}/{seed}")
        seen: set[bytes] = set()
        misses = 0
        while misses < _PATIENCE:
            row = self.generate(rng, level)
            digest = hashlib.sha256(row.question.encode()).digest()
            misses += 1
            if digest[0] % 16 in _SHARES[split] and digest not in seen:
                seen.add(digest)
                misses = 0
                yield row
