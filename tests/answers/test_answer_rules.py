"""The tables of rules in docs/answers.md, row by row."""

import pathlib
import re

import pytest

from lmsi_jax import answers

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "answers.md"
WHERE, KEYS = (
    ["kind", "the model wrote", "answer", "key", "rule"],
    ["kind", "answer", "key", "rule"],
)


def _tables():
    """The rows of each table by its head."""
    tables, head = {}, None
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [
            cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]
        ]
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = tuple(cells)
            tables.setdefault(head, [])
        elif set(line) - set("|-: "):
            tables[head].append(cells)
    return tables


TABLES = _tables()


def _kind(cell):
    kind, _, options = cell.partition(" of ")
    return kind, tuple(options.split(", ")) if options else ()


def _or_none(cell):
    return None if cell == "none" else cell


@pytest.mark.parametrize("row", TABLES[tuple(WHERE)], ids=lambda row: row[1][:40])
def test_the_answer_is_read_where_the_table_says(row):
    kind, written, answer, key, _ = row
    text = " " + written.replace("⏎", "\n")
    assert answers.extract(text, kind) == _or_none(answer)
    assert answers.path_key(text, kind) == _or_none(key)


@pytest.mark.parametrize("row", TABLES[tuple(KEYS)], ids=lambda row: f"{row[0]} {row[1][:40]}")
def test_the_key_is_the_one_of_the_table(row):
    (kind, options), key = _kind(row[0]), _or_none(row[2])
    assert answers.key(row[1], kind, options) == key
    assert key is None or answers.key(key, kind, options) == key


def test_the_tables_cover_every_kind():
    kinds = {_kind(row[0])[0] for table in (WHERE, KEYS) for row in TABLES[tuple(table)]}
    assert kinds == {"number", "choice", "yes_no", "nli", "span", "date", "list"}
    assert len(TABLES[tuple(KEYS)]) > 60
