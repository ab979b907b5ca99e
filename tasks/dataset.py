"""A published data set: its questions from local files in their own format, or from TFDS.

The module of a data set only says how to parse a row; everything else is here. If `data_dir` is
set, its files are read; otherwise TFDS downloads the data set and keeps it.
"""

import csv
import dataclasses
import hashlib
import io
import itertools
import os
import random
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lmsi_jax import answers
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Exemplar, Kind, Question
from lmsi_jax.runtime.files import check_regular, parse_json, read_data
from lmsi_jax.tasks import exemplars
from lmsi_jax.tasks.table_files import Row, json_lines, json_rows
from lmsi_jax.tasks.task import Domain, Level, Split, too_few


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One question of a data set.

    Attributes:
      question: the text with its prefix, without blank lines.
      answer: the label as written after "The answer is".
      also: other correct answers.
      spans: for DROP's F1, the spans of each annotator's answer, one a line.
      kind: the kind of its answers; None for that of the data set.
      test_kind: the kind if it is a test question, whose label may tell; None for `kind`.
      reasoning: a human solution without its last sentence, or "".
    """

    question: str
    answer: str
    also: tuple[str, ...] = ()
    spans: tuple[str, ...] = ()
    kind: Kind | None = None
    test_kind: Kind | None = None
    reasoning: str = ""

    def problem(self) -> str | None:
        """Says what no prompt or label may have, None if there is nothing of that."""
        for text in (self.question, self.answer, *self.also, self.reasoning):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return f"half a character, {text[error.start]!r}, in {text[:60]!r}"
        if any(line.strip() in _EMPTY for line in self.question.splitlines()):
            return f"an empty text in {self.question[:60]!r}"
        return None


_EMPTY = ("Q:", "Q: Yes or no:", "Passage:", '""')
"""Lines of a question that has no text."""


def label_of(labels: Mapping[Any, str], label: Any) -> str:
    """Returns the answer of a row's label, capitals and spaces aside.

    Raises:
      ValueError: there is no such label.
    """
    label = label.strip().lower() if isinstance(label, str) else label
    if label not in labels:
        known = ", ".join(str(name) for name in labels)
        raise ValueError(f"the label {label!r} is none of {known}")
    return labels[label]


def first_line(text: str) -> Sequence[str]:
    """Returns the first line of a question: options may be the same in other questions."""
    return text.splitlines()[:1]


def _itself(row: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (row,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A task whose questions are a published data set's, in an order drawn by the seed.

    Attributes:
      name: the task's name.
      kind: the kind of its answers.
      domain: "in" if the paper trains on it, "out" if it only tests on it (LMSI, section 4).
      parse: row -> question; None for a row of another task.
      layout: an example of a row, for messages.
      origin: the place to download the files from, for messages.
      file_names: split -> possible file names, the preferred one first; ".gz" is tried too.
      tfds: split -> "dataset/config:split"; {} if TFDS lacks the data set.
      exemplar_file: a name in `tasks/exemplars`.
      shots: exemplars of the few-shot prompt, as many as the paper has.
      folder: a folder inside `data_dir` that is searched too; by default the name of the task.
      expand: a row of the file -> the rows that `parse` takes.
      content: the text of a question -> its parts outside of templates, see `contamination`.
      contamination_ngram: words of a shared n-gram that is no coincidence in human text (Brown et
        al. 2020, appendix C).
      data_dir: the folder with the files, local or gs://; None for TFDS.
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
        """Returns the same task with its files in `data_dir`, which may begin with "~"."""
        return dataclasses.replace(self, data_dir=os.path.expanduser(data_dir))

    def stream(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Returns all questions of a split; only those of the test split carry their answers.

        Raises:
          LmsiError: the data is unavailable, or a row is malformed.
        """
        rows = self.labelled(split, level, seed)
        if split == "test":
            return rows
        return (dataclasses.replace(row, gold=None, also=(), spans=()) for row in rows)

    def labelled(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Returns the same questions with their answers; raises what `stream` raises."""
        del level
        items = self._shuffled(split, seed)
        return (self._question(item, item.test_kind if split == "test" else None) for item in items)

    def questions(self, split: Split, level: Level, count: int, seed: int) -> list[Question]:
        """Returns `count` questions.

        Raises:
          LmsiError: as `stream`, or there are fewer questions.
        """
        questions = list(itertools.islice(self.stream(split, level, seed), count))
        if len(questions) < count:
            raise too_few(self.name, split, len(questions))
        return questions

    def worked(self, split: Split, level: Level, seed: int) -> Iterator[Exemplar]:
        """Yields the questions that the data set has a human solution for, with it.

        Here "pretrain", which families keep apart for worked questions, is the train split.

        Raises:
          LmsiError: as `stream`, and after the last one.
        """
        del level
        count = 0
        for item in self._shuffled("train" if split == "pretrain" else split, seed):
            if item.reasoning:
                count += 1
                yield Exemplar(question=item.question, reasoning=item.reasoning, answer=item.answer)
        raise too_few(f"{self.name}, with a solution,", split, count)

    def exemplars(self) -> tuple[Exemplar, ...]:
        """Returns this project's worked questions for the few-shot prompt."""
        return exemplars.packaged(self.exemplar_file)[: self.shots]

    def _question(self, item: Item, kind: Kind | None) -> Question:
        return Question(
            uid=f"{self.name}-{hashlib.sha256(item.question.encode()).hexdigest()[:12]}",
            task=self.name,
            text=item.question,
            kind=kind or item.kind or self.kind,
            gold=item.answer,
            also=item.also,
            spans=item.spans,
        )

    def _shuffled(self, split: Split, seed: int) -> list[Item]:
        items: dict[str, Item] = {}
        for place, row in self._rows(split):
            for item in self._parsed(place, row):
                items.setdefault(item.question, item)
        shuffled = list(items.values())
        random.Random(f"{self.name}/{split}/{seed}").shuffle(shuffled)
        return shuffled

    def _rows(self, split: Split) -> Iterator[Row]:
        if split not in ("train", "test"):
            raise LmsiError(f"{self.name} has no split {split!r}; choose train or test")
        if self.data_dir:
            if split not in self.file_names:
                raise LmsiError(f"{self.name} has no {split} questions; ask for the other split")
            folders = [self.data_dir, f"{self.data_dir}/{self.folder or self.name}"]
            path = _find_file(folders, self.file_names[split], self.name, self.origin)
            return _read_rows(path, self.name, self.origin)
        if split not in self.tfds:
            raise LmsiError(
                f"{self.name} ({split}) is read from files: set Questions.data_dir to their "
                f"folder ({self.origin})"
            )
        return _from_tfds(self.tfds[split], self.name, self.origin)

    def _parsed(self, place: str, row: Mapping[str, Any]) -> list[Item]:
        try:
            items = [self.parse(part) for part in self.expand(row)]
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            cause = f"it has no {error}" if isinstance(error, KeyError) else error
            raise LmsiError(
                f"{self.name}: {place} is not {self.layout} ({cause}); correct or remove it "
                f"({self.origin})"
            ) from None
        questions = [item for item in items if item is not None]
        for item in questions:
            if problem := item.problem():
                raise LmsiError(f"{self.name}: {place} has {problem}; correct or remove it")
            kind = item.test_kind or item.kind or self.kind
            if answers.key(item.answer, kind) is None:
                raise LmsiError(
                    f"{self.name}: {place} has the label {item.answer!r}, which is no {kind}; "
                    "correct or remove it"
                )
        return questions


def flat(text: str) -> str:
    """Joins a text into one line: a blank line would end an item of a prompt."""
    return " ".join(text.split())


def sentences(*texts: str) -> str:
    """Joins texts into one line of sentences, each with its full stop."""
    lines = [flat(line) for text in texts for line in text.splitlines()]
    return " ".join(line if line[-1] in ".:!?" else f"{line}." for line in lines if line)


def _find_file(folders: Sequence[str], names: Sequence[str], task: str, origin: str) -> Any:
    """Finds the first of the named files, plain or .gz, in the first folder that has one.

    Args:
      folders: folders to search, local or gs://.
      names: file names, the preferred one first.
      task: the name of the task, for messages.
      origin: the place to download them from, for messages.

    Raises:
      LmsiError: no folder has such a file.
    """
    from etils import epath

    for folder in folders:
        for name in names:
            for path in (epath.Path(folder) / name, epath.Path(folder) / f"{name}.gz"):
                check_regular(path)
                if path.is_file():
                    return path
    if epath.Path(folders[0]).is_file():
        raise LmsiError(
            f"{task}: {folders[0]} is a file; set data_dir to its folder, and name the file "
            f"{' or '.join(names)} ({origin})"
        )
    if not epath.Path(folders[0]).is_dir():
        raise LmsiError(f"{task}: there is no folder {folders[0]}; correct data_dir ({origin})")
    raise LmsiError(f"{task}: {folders[0]} has no {' or '.join(names)} (or .gz); {origin}")


def _read_rows(path: Any, task: str, origin: str) -> Iterator[Row]:
    """Yields the rows of a file of JSON Lines, of one JSON list or object, or of a table (.tsv).

    Raises:
      LmsiError: the file cannot be read or parsed; names the line.
    """
    try:
        data = read_data(path, compressed=path.name.endswith(".gz"))
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise LmsiError(f"{task}: cannot read {path} ({error}); copy it anew: {origin}") from error
    name = path.name.removesuffix(".gz")
    if name.endswith(".tsv"):
        # GLUE's files have bare quotation marks in them.
        table = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        yield from ((f"{path}, line {number}", row) for number, row in enumerate(table, 2))
    elif text.lstrip()[:1] == "[" or (name.endswith(".json") and "\n{" not in text.strip()):
        yield from _whole(text, path, task, origin)
    else:
        yield from json_lines(path, text, task, f"correct or remove it ({origin})")


def _whole(text: str, path: Any, task: str, origin: str) -> Iterator[Row]:
    """Yields the rows of a JSON list, or of an object; a row of the latter gets its "key"."""
    try:
        content = parse_json(text)
        if isinstance(content, dict) and all(isinstance(row, dict) for row in content.values()):
            content = [{**row, "key": key} for key, row in content.items()]
        elif isinstance(content, dict):  # a file of one line
            content = [content]
    except ValueError as error:  # names line and column
        raise LmsiError(f"{task}: {path} is not JSON ({error}); copy it anew: {origin}") from error
    yield from json_rows(path, content, task, f"correct or remove it ({origin})")


def _from_tfds(name: str, task: str, origin: str) -> Iterator[Row]:
    """Yields a TFDS split's rows with texts as str; the class of a label stays a number.

    Raises:
      LmsiError: the data set is not on this machine and cannot be downloaded.
    """
    import tensorflow_datasets as tfds

    dataset, _, split = name.partition(":")
    try:
        builder = tfds.builder(dataset)
        if not builder.is_prepared():
            _check_network()  # TFDS itself would try for minutes
        rows = tfds.as_numpy(tfds.load(dataset, split=split, shuffle_files=False))
    except Exception as error:  # TFDS, its downloader and its file formats raise anything
        raise LmsiError(
            f"{task}: TFDS could not load {dataset} ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0][:150] if str(error).strip() else ''}). Name a "
            f"folder with its files ({origin}) in Questions.data_dir (`data_dirs` of "
            "seqio_suite.register), or set TFDS_DATA_DIR to where it was prepared"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", _plain(row)


_HOSTS = ("https://storage.googleapis.com", "https://github.com")


def _check_network() -> None:
    """Raises OSError if no host that data sets come from can be reached within seconds."""
    causes = []
    for host in _HOSTS:
        try:
            urllib.request.urlopen(host, timeout=3).close()
            return
        except urllib.error.HTTPError:
            return  # an answer all the same
        except OSError as error:
            causes.append(getattr(error, "reason", error))
    raise ConnectionError(f"it is not on this machine, and there is no network: {causes[0]}")


def _plain(value: Any) -> Any:
    """Converts NumPy values to Python ones and bytes to text."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
