"""DROP, football and the rest (Dua et al. 2019, arXiv 1903.00161; numbers and spans, in domain).

Passage: The Mariners kicked field goals of 23 and 41 yards. The Foxes did not score.
Q: How many yards was the longest field goal?
A: According to the passage, the field goals were 23 and 41 yards long. The answer is 41 yards.

The question alone decides how its answer is read, for training questions have no label: "how many"
and similar words ask for a number, everything else asks for a span. A test question whose label is
no number asks for a span.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmsi_jax import answers
from lmsi_jax.records import Kind
from lmsi_jax.tasks.dataset import Dataset, Item, flat

_LAYOUT = (
    '{"passage": "...", "question": "...", "answer": {"number": "2", "date": {}, "spans": []}}'
)
_ORIGIN = "drop_dataset.zip, drop_dataset_train.json and _dev.json, is at allenai.org/data/drop"
_FILES = {
    "train": ("drop_dataset_train.json", "train.json"),
    "test": ("drop_dataset_dev.json", "dev.json"),
}
_NUMBER = re.compile(
    r"\b(?:how (?:many|much|long|old|tall|far)|what (?:is|was|were|are) the (?:total|difference|"
    r"average|combined|number|percent)|(?:what|which) percent)",
    re.I,
)
_FOOTBALL = re.compile(r"\b(?:touchdown|quarterback|field goal|interception|fumble)s?\b", re.I)


def _pairs(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields one row for each question of a passage of the published file."""
    if "qa_pairs" not in row:
        yield row
        return
    for pair in row["qa_pairs"]:
        yield {"key": row["key"], "passage": row["passage"], **pair}


def _about_football(row: Mapping[str, Any]) -> bool:
    """Decides by the key of the published file ("nfl_653"), or by words: TFDS has no key."""
    if "key" in row:
        return str(row["key"]).startswith("nfl")
    return len(_FOOTBALL.findall(row["passage"])) >= 2


def _item(row: Mapping[str, Any]) -> Item:
    question = flat(row["question"])
    answered = [spans for spans in _answers(row) if any(spans)]
    if not answered:
        raise ValueError("it has no answer")
    first, *others = dict.fromkeys(label for spans in answered for label in _orders(spans))
    kind: Kind = "number" if _NUMBER.search(question) else "span"
    return Item(
        question=f"Passage: {flat(row['passage'])}\nQ: {question}",
        answer=first,
        also=tuple(others),
        spans=tuple(dict.fromkeys("\n".join(spans) for spans in answered)),
        kind=kind,
        test_kind=kind if answers.key(first, kind) is not None else "span",
    )


def _answers(row: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields the spans of every correct answer, the published one first."""
    if isinstance(row["answer"], str):  # TFDS
        yield from ([flat(answer)] for answer in (row["answer"], *row["validated_answers"]))
        return
    validated = row.get("validated_answers") or []
    for answer in (row["answer"], *(validated if isinstance(validated, list) else [])):
        yield [flat(span) for span in _spans(answer)]


def _spans(answer: Mapping[str, Any]) -> Sequence[str]:
    date = answer.get("date") or {}
    parts = [str(date[name]) for name in ("day", "month", "year") if date.get(name)]
    if answer.get("number") not in (None, ""):
        return [str(answer["number"])]
    return [" ".join(parts)] if parts else answer["spans"]


def _orders(spans: Sequence[str]) -> Iterator[str]:
    """Yields the ways to write a list that have different keys; of three or more a key is a set."""
    yield ", ".join(spans)
    if len(spans) > 1:
        yield f"{', '.join(spans[:-1])} and {spans[-1]}"
    if len(spans) == 2:
        yield f"{spans[1]}, {spans[0]}"
        yield f"{spans[1]} and {spans[0]}"


def _half(name: str, about_football: bool) -> Dataset:
    """Makes the task of the passages about football, or of all others; each has its own prompt."""

    def parse(row: Mapping[str, Any]) -> Item | None:
        """Parses a row of this half; None for one of the other half."""
        return _item(row) if _about_football(row) == about_football else None

    return Dataset(
        name=name,
        kind="span",
        domain="in",
        parse=parse,
        expand=_pairs,
        content=str.splitlines,
        layout=_LAYOUT,
        origin=_ORIGIN,
        file_names=_FILES,
        tfds={"train": "drop:train", "test": "drop:dev"},
        exemplar_file=name,
        shots=3,
        folder="drop",
    )


TASKS = (_half("drop_football", True), _half("drop_nonfootball", False))
