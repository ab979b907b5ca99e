"""A published data set: its questions from local files in their own format, or from TFDS.

Each data set's module says how one row reads; everything else is here. Where `data_dir` is set, the
files in it are read; otherwise the data set comes through TFDS, which downloads and keeps it.
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lmsi_jax import answers
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Exemplar, Kind, Question
from lmsi_jax.tasks import exemplars, files
from lmsi_jax.tasks.task import Domain, Level, Split, too_few


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One question as a data set has it.

    Attributes:
      question: with its own prefix, without a blank line.
      answer: the label, as it stands after "The answer is".
      also: other answers that count as right.
      kind: how its answers are read; None: as the data set's.
      reasoning: a human solution without its last sentence, "" where there is none.
    """

    question: str
    answer: str
    also: tuple[str, ...] = ()
    kind: Kind | None = None
    reasoning: str = ""


def first_line(text: str) -> Sequence[str]:
    """Returns a question without its options: what is its own, and no template's."""
    return text.splitlines()[:1]


def _itself(row: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (row,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A task whose questions are a published data set's, in an order drawn by the seed.

    Attributes:
      name: the task's name.
      kind: how its answers are read.
      domain: "in" where the paper trains on it, "out" where it only tests on it (LMSI, section 4).
      parse: row -> what it asks; None for a row that does not belong to the task.
      layout: what a row looks like, for messages.
      origin: where a person gets the files.
      file_names: split -> names of its file, the preferred one first; ".gz" is tried too.
      tfds: split -> "dataset/config:split"; {}: TFDS does not have it.
      exemplar_file: a name in `tasks/exemplars`.
      shots: exemplars of the few-shot prompt, as many as the paper has.
      folder: of `data_dir`, looked into besides `data_dir` itself.
      expand: a file's row -> the rows that `parse` takes.
      content: a question's text -> the parts of it that are no template's, see `overlap`.
      contamination_ngram: as many equal words in a row are no accident in people's text (Brown et
        al. 2020, appendix C).
      data_dir: the folder with the files, local or gs://; None: TFDS.
    """

    name: str
    kind: Kind
    domain: Domain
    parse: Callable[[Mapping[str, Any]], Item | None]
    layout: str
    origin: str
    file_names: Mapping[str, tuple[str, ...]]
    tfds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exemplar_file: str
    shots: int
    folder: str = ""
    expand: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]] = _itself
    content: Callable[[str], Sequence[str]] = first_line
    contamination_ngram: int = 13
    data_dir: str | None = None
    levels: tuple[Level, ...] = ()

    def from_folder(self, data_dir: str) -> "Dataset":
        """Returns the task with its files in `data_dir`."""
        return dataclasses.replace(self, data_dir=data_dir)

    def stream(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Returns all questions of a split; only those of the test split carry their answers.

        Raises:
          LmsiError: the data cannot be had, or a row is not as it should be.
        """
        rows = self.labelled(split, level, seed)
        if split == "test":
            return rows
        return (dataclasses.replace(row, gold=None, also=()) for row in rows)

    def labelled(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Returns the same questions with their answers; raises what `stream` raises."""
        del level
        return map(self._question, self._shuffled(split, seed))

    def questions(self, split: Split, level: Level, count: int, seed: int) -> list[Question]:
        """Returns `count` questions; raises LmsiError also when there are not so many."""
        found = list(itertools.islice(self.stream(split, level, seed), count))
        if len(found) < count:
            raise too_few(self.name, split, len(found))
        return found

    def worked(self, split: Split, level: Level, seed: int) -> Iterator[Exemplar]:
        """Yields questions with the data set's own (human) solutions, where it has some.

        The split "pretrain", where families keep worked questions apart, is the train split here.

        Raises:
          LmsiError: as `stream`, and after the last one.
        """
        del level
        found = 0
        for item in self._shuffled("train" if split == "pretrain" else split, seed):
            if item.reasoning:
                found += 1
                yield Exemplar(question=item.question, reasoning=item.reasoning, answer=item.answer)
        raise too_few(f"{self.name}, with a solution,", split, found)

    def exemplars(self) -> tuple[Exemplar, ...]:
        """Returns this project's worked questions for the few-shot prompt."""
        return exemplars.packaged(self.exemplar_file)[: self.shots]

    def _question(self, item: Item) -> Question:
        return Question(
            uid=f"{self.name}-{hashlib.sha256(item.question.encode()).hexdigest()[:12]}",
            task=self.name,
            text=item.question,
            kind=item.kind or self.kind,
            gold=item.answer,
            also=item.also,
        )

    def _shuffled(self, split: Split, seed: int) -> list[Item]:
        items: dict[str, Item] = {}
        for place, row in self._rows(split):
            for item in self._parsed(place, row):
                items.setdefault(item.question, item)
        found = list(items.values())
        random.Random(f"{self.name}/{split}/{seed}").shuffle(found)
        return found

    def _rows(self, split: Split) -> Iterator[files.Row]:
        if split not in ("train", "test"):
            raise LmsiError(f"{self.name} has no split {split!r}; choose train or test")
        if self.data_dir:
            if split not in self.file_names:
                raise LmsiError(f"{self.name} has no {split} questions; ask for the other split")
            folders = [self.data_dir, f"{self.data_dir}/{self.folder or self.name}"]
            path = files.find(folders, self.file_names[split], self.name, self.origin)
            return files.rows(path, self.name, self.origin)
        if split not in self.tfds:
            raise LmsiError(
                f"{self.name} ({split}) is read from files: set Questions.data_dir to their "
                f"folder ({self.origin})"
            )
        return _from_tfds(self.tfds[split], self.name, self.origin)

    def _parsed(self, place: str, row: Mapping[str, Any]) -> list[Item]:
        try:
            items = [self.parse(one) for one in self.expand(row)]
        except (KeyError, ValueError, TypeError, AttributeError, IndexError):
            raise LmsiError(
                f"{self.name}: {place} is not {self.layout}; mend or remove it ({self.origin})"
            ) from None
        found = [item for item in items if item is not None]
        for item in found:
            kind = item.kind or self.kind
            if answers.key(item.answer, kind) is None:
                raise LmsiError(
                    f"{self.name}: {place} has the label {item.answer!r}, which is no {kind}; "
                    "mend or remove it"
                )
        return found


def flat(text: str) -> str:
    """Returns a text in one line: a blank line would end an item of a prompt."""
    return " ".join(text.split())


def sentences(*texts: str) -> str:
    """Joins texts into one line of sentences, each with its full stop."""
    lines = [flat(line) for text in texts for line in text.splitlines()]
    return " ".join(line if line[-1] in ".:!?" else f"{line}." for line in lines if line)


def _from_tfds(name: str, task: str, origin: str) -> Iterator[files.Row]:
    """Yields a TFDS split's rows with texts as str; the class of a label stays a number.

    Raises:
      LmsiError: it is not on this machine and cannot be downloaded.
    """
    import tensorflow_datasets as tfds

    dataset, _, split = name.partition(":")
    try:
        rows = tfds.as_numpy(tfds.load(dataset, split=split, shuffle_files=False))
    except Exception as error:  # TFDS, its downloader and its file formats raise what they like
        raise LmsiError(
            f"{task}: TFDS could not load {dataset} ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0][:150] if str(error).strip() else ''}). Set "
            f"Questions.data_dir to a folder with its files ({origin}), or TFDS_DATA_DIR to where "
            "it was prepared"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", _plain(row)


def _plain(value: Any) -> Any:
    """NumPy's values as Python's, bytes as text."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
