"""A family of procedural questions: splits that cannot overlap, levels, few-shot exemplars.

Which split a question belongs to is read off a hash of its own text, so the unlabelled train
questions, the labelled test questions and the documents that made the embedded base model are
disjoint whatever the seeds and counts are.
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Exemplar, Kind, Question
from lmsi_jax.tasks.task import LEVELS, Domain, Level, Split, too_few

# Of 16 equal shares of all hashes: 3 test, 5 train, 8 for the base model's documents and exemplars.
_SHARES: dict[Split, range] = {"test": range(0, 3), "train": range(3, 8), "pretrain": range(8, 16)}
# A generator that cannot bring a new question in this many tries has run dry.
_PATIENCE = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A task whose questions come from a generator.

    Attributes:
      name: the task's name, also its SeqIO prefix.
      kind: how its answers are read.
      domain: "in" when the packaged runs train on it, "out" when they only test on it.
      generate: (generator, level) -> a worked question. The reasoning serves pre-training documents
        and few-shot exemplars; `questions` drops it, and the answer too outside the test split.
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
        """A question as a whole."""
        return lambda text: (text,)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Every family has all levels."""
        return LEVELS

    def from_folder(self, data_dir: str) -> "Family":
        """Returns itself: a family makes its questions and reads no files."""
        del data_dir
        return self

    def worked(self, split: Split, level: Level, seed: int) -> Iterator[Exemplar]:
        """Yields an endless stream of distinct worked questions of a split.

        The stream is a pure function of (family, split, level, seed), in the order of `stream`.

        Raises:
          LmsiError: the generator has no further distinct question.
        """
        found = 0
        for row in self._distinct(split, level, seed):
            found += 1
            yield row
        raise too_few(self.name, split, found, level)

    def stream(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Yields distinct questions until the generator runs dry; only test ones are labelled."""
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
          LmsiError: there are not so many.
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
