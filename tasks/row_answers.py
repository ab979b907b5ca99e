"""Questions, options and answers out of the columns of a user's row."""

import ast
import dataclasses
import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmsi_jax import answers
from lmsi_jax.records import Kind
from lmsi_jax.tasks.dataset import flat
from lmsi_jax.tasks.math_word_problems import one_line
from lmsi_jax.tasks.multiple_choice import options as options_text


class Columns(NamedTuple):
    """The columns of a row, as `FileTask` describes them."""

    question: str = "question"
    options: str | tuple[str, ...] = ()
    first_option: int = 0
    answer: str = "answer"
    solution: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A row as a question.

    Attributes:
      place: the row, such as "train.csv, line 3".
      question: the text with its prefix and options, without blank lines.
      answers: the right answers, the one to show first; () for an unlabelled row.
      reasoning: the human solution without its last sentence, "" without one.
    """

    place: str
    question: str
    answers: tuple[str, ...]
    reasoning: str


class ColumnFault(ValueError):
    """A row that cannot be a question: the column, and what is wrong with it."""

    def __init__(self, column: str, problem: str):
        super().__init__(f"column {column!r} {problem}")


def entry(place: str, row: Mapping[str, Any], columns: Columns, kind: Kind) -> Entry:
    """Returns a row as a question; whether its answers have keys is not checked.

    Raises:
      ColumnFault: a column is missing, or what it has does not fit the kind.
    """
    text = _question(row, columns.question)
    options = _options(row, columns.options)
    if options:
        if kind not in ("choice", "list"):
            shown = columns.options if isinstance(columns.options, str) else columns.options[0]
            raise ColumnFault(
                shown, f"has options, and answers are of the kind {kind!r}; use choice"
            )
        text = f"{text}\n{options_text([option for _, option in options])}"
    labels = _answers(row, columns, kind, options)
    reasoning = _reasoning(row, columns.solution) if columns.solution else ""
    for column, part in (
        (columns.question, text),
        *((columns.answer, label) for label in labels),
        (columns.solution, reasoning),
    ):
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise ColumnFault(column, f"has half a character, {part[error.start]!r}") from None
    return Entry(place=place, question=text, answers=labels, reasoning=reasoning)


# --- columns --------------------------------------------------------------------------------------

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_PREFIX = re.compile(r"(?:Q|Premise):")


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """Returns a column's value; "a.b" is b within a, unless there is a column of that name.

    Raises:
      ColumnFault: there is no such column.
    """
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ColumnFault(
                column, f"is missing; the row has {', '.join(map(str, row)) or 'none'}"
            )
        value = value[part]
    return value


def _text(row: Mapping[str, Any], template: str) -> str:
    """Returns a column's text, or a template with its columns filled in."""
    if "{" not in template:
        return _plain_text(value_of(row, template), template)

    def fill(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        return _plain_text(value_of(row, match[1]), match[1])

    return _FIELD.sub(fill, template)


def _plain_text(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value, column)
    raise ColumnFault(column, f"has {str(value)[:40]!r}, which is no text")


def _number(value: float, column: str) -> str:
    if not math.isfinite(value):
        raise ColumnFault(column, f"has {value}, which is no number")
    return str(int(value)) if float(value).is_integer() else f"{value:.15g}"


def _question(row: Mapping[str, Any], template: str) -> str:
    lines = [line.strip() for line in _text(row, template).splitlines()]
    text = "\n".join(line for line in lines if line)
    if not text or _PREFIX.fullmatch(text):
        raise ColumnFault(template, "has no question")
    return text if _PREFIX.match(text) else f"Q: {text}"


_ENDING = re.compile(
    r"\s*(?:####.*|(?:(?:so|thus|therefore|hence),? )?(?:the )?(?:final )?answer is\b[^\n]*)$",
    re.IGNORECASE | re.DOTALL,
)


def _reasoning(row: Mapping[str, Any], column: str) -> str:
    """Returns a human solution as sentences, without the sentence that states its answer."""
    try:
        text = _text(row, column)
    except ColumnFault:
        return ""  # as of an answer, rows need not have one
    return reasoning_of(text)


def reasoning_of(solution: str) -> str:
    """Returns a solution in one line, without the sentence that states its answer."""
    return one_line(_ENDING.sub("", solution.strip()))


# --- options --------------------------------------------------------------------------------------

Options = Sequence[tuple[str, str]]
"""(label, text) of each option; the label is "" if the row gives none."""
_LETTERED = re.compile(r"\s*\(?([A-Za-z])[).:]\s*(.*)", re.DOTALL)


def _options(row: Mapping[str, Any], columns: str | tuple[str, ...]) -> Options:
    if not columns:
        return ()
    if not isinstance(columns, str):
        values = [(column, row.get(column)) for column in columns]
        while values and _is_absent(values[-1][1]):
            values.pop()
        pairs = [("", _plain_text(value, column)) for column, value in values]
        column = columns[0]
    else:
        column, value = columns, value_of(row, columns)
        pairs = _listed(value, column)
        if not pairs:
            return ()
    if not 2 <= len(pairs) <= len(string.ascii_lowercase):
        raise ColumnFault(column, f"has {len(pairs)} options; a question has 2 to 26")
    matches = [_LETTERED.fullmatch(text) for _, text in pairs]
    letters = [match[1].lower() if match else "" for match in matches]
    if "".join(letters) == _LOWER[: len(pairs)]:
        pairs = [(pairs[i][0], match[2]) for i, match in enumerate(matches) if match]
    for number, (_, text) in enumerate(pairs, 1):
        if not text.strip():
            raise ColumnFault(column, f"has no text in option {number}")
    return [(label, flat(text)) for label, text in pairs]


_LOWER = string.ascii_lowercase


def _listed(value: Any, column: str) -> list[tuple[str, str]]:
    if isinstance(value, str):
        value = _parsed_list(value, column)
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label")
        if texts is None:  # {"A": "...", "B": "..."}
            return [(str(label), _plain_text(text, column)) for label, text in value.items()]
        labels = [""] * len(texts) if labels is None else labels
        if len(labels) != len(texts):
            raise ColumnFault(column, f"has {len(labels)} labels for {len(texts)} options")
        return [(str(a), _plain_text(b, column)) for a, b in zip(labels, texts, strict=True)]
    if not isinstance(value, Sequence):
        raise ColumnFault(column, f"has {str(value)[:40]!r}, which is no list of options")
    pairs = []
    for option in value:
        if isinstance(option, Mapping):
            if "text" not in option:
                raise ColumnFault(column, f"has an option without 'text': {str(option)[:40]!r}")
            pairs.append((str(option.get("label", "")), _plain_text(option["text"], column)))
        else:
            pairs.append(("", _plain_text(option, column)))
    return pairs


def _parsed_list(text: str, column: str) -> Any:
    """Returns the list of a table's cell: as JSON, as Python writes it, or as "(a) x (b) y"."""
    if lettered := answers.options_in(text):
        return list(lettered)
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list | dict):
            return value
    raise ColumnFault(column, f'has {text[:40]!r}; write a list such as ["ice", "a nail"]')


# --- answers --------------------------------------------------------------------------------------


def _is_absent(value: Any) -> bool:
    empty = value is None or (isinstance(value, str) and not value.strip())
    return empty or (isinstance(value, float) and math.isnan(value))


def _answers(
    row: Mapping[str, Any], columns: Columns, kind: Kind, options: Options
) -> tuple[str, ...]:
    """Returns the right answers of a row; () if it has none."""
    column = columns.answer
    if not column:
        return ()
    try:
        value = _text(row, column) if "{" in column else value_of(row, column)
    except ColumnFault:
        return ()
    if isinstance(value, Mapping) and "text" in value:  # as in SQuAD
        value = value["text"]
    several = isinstance(value, Sequence) and not isinstance(value, str)
    if kind == "list":
        several = several and any(isinstance(one, list | tuple) for one in value)
    labels = [
        _answer(one, columns, kind, options)
        for one in (value if several else [value])
        if not _is_absent(one)
    ]
    return tuple(dict.fromkeys(label for label in labels if label is not None))


_DECISIONS = {"True": "yes", "False": "no", "1": "yes", "0": "no"}
_RELATIONS = ("yes", "it is not possible to tell", "no")
_RELATION_OF = {"yes": 0, "unknown": 1, "no": 2}
_LETTERS = {"e": 0, "n": 1, "c": 2, "0": 0, "1": 1, "2": 2}


def _answer(value: Any, columns: Columns, kind: Kind, options: Options) -> str | None:
    """Returns an answer as it is written after "The answer is"; None if it is -1, for no label."""
    column = columns.answer
    if kind in ("choice", "nli") and not isinstance(value, bool) and value in (-1, "-1"):
        return None
    if kind == "list":
        items = value if isinstance(value, list | tuple) else [value]
        if options:
            return ", ".join(_choice(item, columns, options) for item in items)
        return ", ".join(_plain_text(item, column) for item in items)
    if kind == "choice" and options:
        return _choice(value, columns, options)
    if kind == "yes_no":
        text = str(value) if isinstance(value, bool) else _plain_text(value, column).strip()
        return _DECISIONS.get(text) or answers.key(text, kind) or text
    if kind == "nli":
        text = _plain_text(value, column).strip()
        key = answers.key(text, kind)
        number = _LETTERS.get(text.lower(), _RELATION_OF.get(key or ""))
        return text if number is None else _RELATIONS[number]
    text = _plain_text(value, column).strip()
    return text.rpartition("####")[2].strip() if kind == "number" else text


def _choice(value: Any, columns: Columns, options: Options) -> str:
    """Returns "(b)" for a letter, a label, a number or the text of an option."""
    column, text = columns.answer, str(value).strip()
    labels = [label for label, _ in options]
    if text in labels:
        return _letter(labels.index(text))
    by_text = [i for i, (_, option) in enumerate(options) if option == flat(text)]
    if not any(labels):
        if isinstance(value, int) or re.fullmatch(r"\d+", text):
            number = int(text) - columns.first_option
            if by_text and by_text != [number] and not isinstance(value, int):
                number = -1 if 0 <= number < len(options) else by_text[0]
            if not 0 <= number < len(options):
                raise ColumnFault(
                    column,
                    f"has {text!r}, which is no option, or more than one: they are numbered from "
                    f"{columns.first_option} (FileTask.first_option)",
                )
            return _letter(number)
        bare = text.strip("(). :").lower()
        by_letter = [i for i in range(len(options)) if _LOWER[i] == bare]
        if by_letter and by_text and by_letter != by_text:
            raise ColumnFault(column, f"has {text!r}, the letter of one option and another's text")
        by_text = by_letter or by_text
    if len(by_text) != 1:
        known = ", ".join(label or _LOWER[i] for i, label in enumerate(labels))
        raise ColumnFault(column, f"has {text[:40]!r}, which is none of the options {known}")
    return _letter(by_text[0])


def _letter(number: int) -> str:
    return f"({_LOWER[number]})"
