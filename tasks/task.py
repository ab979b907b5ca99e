"""What every task offers, whether its questions are generated or read from files."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, Self

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Exemplar, Kind, Question

Split = Literal["test", "train", "pretrain"]
Level = Literal["easy", "hard"]
Domain = Literal["in", "out"]

LEVELS: tuple[Level, ...] = ("easy", "hard")


class Task(Protocol):
    """A named source of questions with its answer kind and its exemplars.

    `stream`, `labelled`, `questions` and `worked` bring the same questions in the same order, which
    is a pure function of (task, split, level, seed). In `stream` and `questions` only those of the
    test split carry their answer.
    `domain` is "in" when the packaged runs train on the task, "out" when they only test on it.
    `levels` is empty when a task has one level only; the argument `level` is then ignored.
    `contamination_ngram` and `content` say what counts as the same question elsewhere, see
    `overlap`.
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
        """A question's text -> the parts of it that are no template's."""

    def from_folder(self, data_dir: str) -> Self:
        """Returns the same task with its files in `data_dir`; itself when it has no files."""

    def stream(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Yields distinct questions until there are no more.

        Raises:
          LmsiError: a file is missing or malformed (raised by the call, not by the iteration).
        """

    def labelled(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """`stream` with the answers of every split: for reports alone, nothing learns from it."""

    def questions(self, split: Split, level: Level, count: int, seed: int) -> list[Question]:
        """Returns `count` distinct questions; raises LmsiError when there are not so many."""

    def worked(self, split: Split, level: Level, seed: int) -> Iterator[Exemplar]:
        """Yields the questions with reasoning and answer; raises LmsiError after the last one."""

    def exemplars(self) -> tuple[Exemplar, ...]:
        """Returns the fixed worked questions of the few-shot prompt, `shots` of them."""


def too_few(name: str, split: str, found: int, level: str | None = None) -> LmsiError:
    """Returns the error for a split that has fewer questions than were asked for."""
    kind = f"distinct {level} questions" if level else "questions"
    return LmsiError(f"task {name!r} has only {found} {kind} in its {split} split; ask for fewer")
