"""Tasks of a user: questions in files (`config.FileTask`), or from an object of Python code.

The object is small: a name, a kind, and the rows of a split as dictionaries.

    class Riddles:
        name, kind = "riddles", "number"

        def rows(self, split):  # "train" or "test"
            yield {"question": "How many legs have two ants?", "answer": "12"}

    TASK = Riddles()

A row has "question", and optionally "answer" (needed in the test split), "options" and "solution",
in the forms that `FileTask` describes. `shots`, `contamination_ngram`, `exemplars()`,
`read(text, question)`, `equal(answer, answer)` and `prompt(question, exemplars, prompt_style)` are
optional; `FileTask` describes them too. An object with all of the `Task` protocol is used as it is.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from etils import epath

from lmsi_jax import answers, prompts
from lmsi_jax.config import FileTask
from lmsi_jax.config.steps import is_task_name
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import KINDS, CustomRules, Exemplar, Kind, Question
from lmsi_jax.runtime import user_code
from lmsi_jax.tasks import exemplars as exemplar_files
from lmsi_jax.tasks import row_answers, table_files
from lmsi_jax.tasks.row_answers import Columns, Entry
from lmsi_jax.tasks.table_files import Row
from lmsi_jax.tasks.task import Domain, Level, Split, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class CustomTask:
    """A user's questions as a `Task`: unlabelled training rows, split by file or by share.

    Attributes:
      name: the task's name.
      kind: the kind of its answers.
      columns: the columns of a row.
      rows: split -> its rows, and those of the other split with `test_share`.
      worked_rows: returns the exemplars; None takes the first training rows with solutions.
      shots: most exemplars.
      test_share: share of the answered rows of one source that are test questions; 0 if both splits
        have their own.
      rules: functions in place of the package's.
      digests: returns the digests of what shapes the questions, for a stage's record.
      splits: the splits that have rows.
    """

    name: str
    kind: Kind
    columns: Columns
    rows: Callable[[Split], Iterable[Row]] = dataclasses.field(compare=False)
    worked_rows: Callable[[], tuple[Exemplar, ...]] | None = dataclasses.field(
        default=None, compare=False
    )
    shots: int = 4
    test_share: float = 0.0
    contamination_ngram: int = 13
    rules: CustomRules | None = None
    digests: Callable[[], dict[str, Any]] = dataclasses.field(compare=False)
    splits: tuple[Split, ...] = ("train", "test")
    domain: Domain = "in"
    levels: tuple[Level, ...] = ()

    @property
    def content(self) -> Callable[[str], Sequence[str]]:
        """The function that takes all lines of a question but those of its options."""
        return _lines_without_options

    def from_folder(self, data_dir: str) -> "CustomTask":
        """Returns the task itself, which names its files."""
        del data_dir
        return self

    def stream(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Returns all questions of a split; only those of the test split carry their answers.

        Raises:
          LmsiError: a file is missing or malformed, or a test question has no answer.
        """
        rows = self.labelled(split, level, seed)
        if split == "test":
            return rows
        return (dataclasses.replace(row, gold=None, also=()) for row in rows)

    def labelled(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Returns the same questions with the answers that there are; raises as `stream`."""
        del level
        return map(self._as_question, self._ordered(split, seed))

    def questions(self, split: Split, level: Level, count: int, seed: int) -> list[Question]:
        """Returns `count` questions, or all if there are fewer.

        Raises:
          LmsiError: as `stream`, or there are none.
        """
        questions = list(itertools.islice(self.stream(split, level, seed), count))
        if not questions:
            raise LmsiError(f"task {self.name!r} has no {split} questions; {self._remedy(split)}")
        return questions

    def worked(self, split: Split, level: Level, seed: int) -> Iterator[Exemplar]:
        """Yields the questions that have a solution and an answer; "pretrain" is the train split.

        Raises:
          LmsiError: as `stream`, and after the last one.
        """
        del level
        count = 0
        for row in self._ordered("train" if split == "pretrain" else split, seed):
            if row.reasoning and row.answers:
                count += 1
                yield _exemplar(row)
        raise LmsiError(f"task {self.name!r} has only {count} {split} questions with a solution")

    def exemplars(self) -> tuple[Exemplar, ...]:
        """Returns the exemplars of the few-shot prompt; () for a task that is asked zero-shot.

        Raises:
          LmsiError: their file is no file of exemplars, or as `stream`.
        """
        if self.worked_rows is not None:
            return self.worked_rows()[: self.shots]
        if "train" not in self.splits:
            return ()
        return tuple(_exemplar(row) for row in self._exemplar_rows(self._entries("train")))

    def _remedy(self, split: Split) -> str:
        if split == "test" and self.test_share:
            return "label more rows, or raise FileTask.test_share"
        if split not in self.splits:
            return f"set FileTask.{split}, or leave the task out of Questions.{split}"
        return "its source has no rows"

    def _exemplar_rows(self, entries: Sequence[Entry]) -> list[Entry]:
        """Returns the training rows that are the exemplars, wherever they are in the files."""
        worked = [row for row in entries if row.reasoning and row.answers and self._reads(row)]
        return sorted(worked, key=lambda row: _digest(row.question))[: self.shots]

    def _reads(self, row: Entry) -> bool:
        """Returns True if an exemplar's answer is read as the row's."""
        if self.rules is not None and (self.rules.read or self.rules.equal):
            return True
        options = answers.options_in(row.question) if self.kind == "choice" else ()
        text = prompts.solution(row.reasoning, row.answers[0])
        return answers.path_key(text, self.kind, options) == self._key(row, row.answers[0])

    def _as_question(self, row: Entry) -> Question:
        return Question(
            uid=f"{self.name}-{_digest(row.question)[:12]}",
            task=self.name,
            text=row.question,
            kind=self.kind,
            gold=row.answers[0] if row.answers else None,
            also=row.answers[1:],
            rules=self.rules,
        )

    def _ordered(self, split: Split, seed: int) -> list[Entry]:
        """Returns a split's rows in an order that the seed draws, in which new rows move none."""
        entries = self._entries(split)
        if split == "train" and self.worked_rows is None:
            shown = {row.question for row in self._exemplar_rows(entries)}
            entries = [row for row in entries if row.question not in shown]
        if split == "test":
            for row in entries:
                if not row.answers:
                    raise LmsiError(
                        f"{self.name}: {row.place} has no answer in the column "
                        f"{self.columns.answer!r}, and test questions need one; add it, or leave "
                        "the task out of Questions.test"
                    )
        return sorted(
            entries, key=lambda row: _digest(f"{self.name}/{split}/{seed}/{row.question}")
        )

    def _entries(self, split: Split) -> list[Entry]:
        """Returns the distinct questions of a split, in the order of the rows."""
        if split not in self.splits:
            return []
        entries: dict[str, Entry] = {}
        for place, row in self.rows(split):
            one = self._parsed(place, row)
            known = entries.get(one.question)
            if known is None or not known.answers:
                entries[one.question] = one
            elif one.answers and self._key(known, known.answers[0]) not in {
                self._key(one, answer) for answer in one.answers
            }:
                raise LmsiError(
                    f"{self.name}: {place} repeats the question of {known.place} with another "
                    f"answer, {one.answers[0]!r} for {known.answers[0]!r}; correct or remove one"
                )
        rows = list(entries.values())
        if not self.test_share:
            return rows
        return [row for row in rows if self._is_test(row) == (split == "test")]

    def _is_test(self, row: Entry) -> bool:
        return bool(row.answers) and int(_digest(row.question)[:8], 16) / 16**8 < self.test_share

    def _parsed(self, place: str, row: Mapping[str, Any]) -> Entry:
        try:
            one = row_answers.entry(place, row, self.columns, self.kind)
        except row_answers.ColumnFault as fault:
            raise LmsiError(f"{self.name}: {place}, {fault}") from None
        for answer in one.answers:
            if self._key(one, answer) is None:
                raise LmsiError(
                    f"{self.name}: {place}, column {self.columns.answer!r} has {answer[:60]!r}, "
                    f"which is no answer of the kind {self.kind!r}; correct or remove it"
                )
        return one

    def _key(self, row: Entry, answer: str) -> str | None:
        if self.rules is not None and self.rules.equal is not None:
            return " ".join(answer.split()) or None
        options = answers.options_in(row.question) if self.kind == "choice" else ()
        return answers.key(answer, self.kind, options)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _lines_without_options(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("(a) ")]


def _exemplar(row: Entry) -> Exemplar:
    return Exemplar(question=row.question, reasoning=row.reasoning, answer=row.answers[0])


# --- from settings --------------------------------------------------------------------------------


def from_files(config: FileTask) -> CustomTask:
    """Returns the task that the settings describe; no file is read before a question is needed.

    Raises:
      LmsiError: the reader, the equality or the prompt is no function that can be loaded.
    """
    names = {"read": config.reader, "equal": config.equality, "prompt": config.prompt}
    named = {part: name for part, name in names.items() if name is not None}
    functions = {
        part: user_code.load_function(name, f"FileTask.{_SETTINGS[part]}", _ARGUMENTS[part])
        for part, name in named.items()
    }

    def digests() -> dict[str, Any]:
        paths = dict.fromkeys((*config.files("train"), *config.files("test")))
        settings = dataclasses.asdict(config)
        for name in ("train", "test", "exemplars", *_SETTINGS.values()):
            del settings[name]
        files = [table_files.digest((path,), config.name)[:16] for path in paths]
        shown = [row.to_json() for row in _exemplars_of(config)] if config.exemplars else []
        return {
            **settings,
            "rows": files,
            "exemplars": _digest(json.dumps(shown, sort_keys=True))[:16],
        }

    return CustomTask(
        name=config.name,
        kind=config.kind,
        columns=Columns(
            question=config.question,
            options=config.options,
            first_option=config.first_option,
            answer=config.answer,
            solution=config.solution,
        ),
        rows=lambda split: table_files.read_rows(
            config.files("test" if split == "test" else "train"), split, config.name
        ),
        worked_rows=(lambda: _exemplars_of(config)) if config.exemplars else None,
        shots=config.shots,
        test_share=config.test_share,
        contamination_ngram=config.contamination_ngram,
        rules=CustomRules(**functions, names=tuple(named.items())) if named else None,
        digests=digests,
        splits=tuple(split for split in _SPLITS if config.files(split)),
    )


_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
_SETTINGS = {"read": "reader", "equal": "equality", "prompt": "prompt"}
_ARGUMENTS = {"read": 2, "equal": 2, "prompt": 3}


def _exemplars_of(config: FileTask) -> tuple[Exemplar, ...]:
    path, name = config.exemplars, config.exemplars.rpartition("/")[2]
    if exemplar_files.is_packaged(name) and not epath.Path(path).expanduser().is_file():
        path = name
    if config.reader is None and config.equality is None:
        return exemplar_files.load_for_task(path, config.kind)
    return exemplar_files.load(path)


# --- from Python ----------------------------------------------------------------------------------

_WHOLE = ("stream", "labelled", "questions", "worked", "exemplars", "from_folder", "content")


def from_code(name: str) -> Task:
    """Returns the task that "module:object" names.

    Raises:
      LmsiError: there is no such object, or it lacks what a task needs.
    """
    value = user_code.load(name, "Questions.tasks")
    if isinstance(value, FileTask):
        return from_files(value)
    if isinstance(value, type):
        raise LmsiError(
            f"Questions.tasks: {name} is a class; name an instance, TASK = {value.__name__}()"
        )
    if all(hasattr(value, attribute) for attribute in _WHOLE):
        return value
    for attribute, what in (("name", "a text"), ("kind", "a kind"), ("rows", "a function")):
        if not hasattr(value, attribute):
            raise LmsiError(
                f"Questions.tasks: {name} has no attribute {attribute!r}, {what}; a task has name, "
                "kind and rows(split)"
            )
    if not is_task_name(str(value.name)):
        raise LmsiError(f"Questions.tasks: {name}.name = {value.name!r}; use letters, digits and _")
    if value.kind not in KINDS:
        raise LmsiError(
            f"Questions.tasks: {name}.kind = {value.kind!r}; choose from {', '.join(KINDS)}"
        )
    user_code.check_function(value.rows, f"Questions.tasks: {name}.rows", 1)
    functions = {
        part: getattr(value, part)
        for part, arguments in _ARGUMENTS.items()
        if _checked(value, part, name, arguments)
    }
    has_exemplars = _checked(value, "exemplars", name, 0)
    return CustomTask(
        name=value.name,
        kind=value.kind,
        columns=Columns(options="options", solution="solution"),
        rows=lambda split: _code_rows(value, name, split),
        worked_rows=(lambda: _code_exemplars(value, name)) if has_exemplars else None,
        shots=getattr(value, "shots", 4),
        contamination_ngram=getattr(value, "contamination_ngram", 13),
        rules=CustomRules(**functions, names=tuple((part, f"{name}.{part}") for part in functions))
        if functions
        else None,
        digests=lambda: {"code": user_code.fingerprint(name, "Questions.tasks")},
    )


def _checked(value: Any, part: str, name: str, arguments: int) -> bool:
    """Returns True if an object has an optional function, which takes so many arguments."""
    if getattr(value, part, None) is None:
        return False
    user_code.check_function(getattr(value, part), f"Questions.tasks: {name}.{part}", arguments)
    return True


def _code_rows(value: Any, name: str, split: Split) -> Iterator[Row]:
    """Yields the rows of a user's object, each checked to be a dictionary.

    Raises:
      LmsiError: its function fails, or yields something else.
    """
    number = 0
    try:
        for row in value.rows(split) or ():
            number += 1
            if not isinstance(row, Mapping):
                raise LmsiError(
                    f"{name}.rows({split!r}), row {number} is {str(row)[:40]!r}; yield "
                    'dictionaries such as {"question": "...", "answer": "..."}'
                )
            yield f"{name}.rows({split!r}), row {number}", {"options": (), **row}
    except LmsiError:
        raise
    except Exception as error:
        raise LmsiError(
            f"{name}.rows({split!r}) fails after row {number}: {type(error).__name__}: {error}"
        ) from error


def _code_exemplars(value: Any, name: str) -> tuple[Exemplar, ...]:
    rows = []
    for number, row in enumerate(value.exemplars(), 1):
        fields = row.to_json() if isinstance(row, Exemplar) else row
        try:
            rows.append(Exemplar.from_json(dict(fields)))
        except (ValueError, TypeError) as error:
            raise LmsiError(
                f"{name}.exemplars(), item {number} is no exemplar ({error}); return "
                "lmsi_jax.records.Exemplar(question=..., reasoning=..., answer=...)"
            ) from None
    return tuple(rows)
