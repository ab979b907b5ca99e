"""Texts and what a careful reader says they answer: careful_reader.tsv and chat_reader.tsv."""

import pathlib
import re

import pytest

from lmsi_jax import answers

TABLES = [pathlib.Path(__file__).with_name(f"{name}_reader.tsv") for name in ("careful", "chat")]


def _rows():
    for line in "".join(table.read_text(encoding="utf-8") for table in TABLES).splitlines():
        if not line.startswith("#"):
            kind, key, text = line.split("\t")
            kind, _, options = kind.partition(" of ")
            shown = re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), text)
            yield kind, tuple(options.split(", ")) if options else (), key, shown.replace("⏎", "\n")


ROWS = list(_rows())


@pytest.mark.parametrize(("kind", "options", "key", "text"), ROWS)
def test_the_key_is_what_a_careful_reader_says(kind, options, key, text):
    assert answers.path_key(text, kind, options) == (None if key == "none" else key)


@pytest.mark.parametrize(("kind", "options", "key", "text"), ROWS)
def test_the_surface_is_clean_and_reads_back_to_the_key(kind, options, key, text):
    reading = answers.read(text, kind, options)
    assert (reading.surface is None) == (key == "none")
    if key != "none":
        assert answers.path_key(f" The answer is {reading.surface}.", kind, options) == key
        assert not set("\\{}\n`<>") & set(reading.surface) and "**" not in reading.surface


@pytest.mark.parametrize(("kind", "options", "key", "text"), ROWS)
def test_all_functions_read_a_text_alike(kind, options, key, text):
    reading, found = answers.read(text, kind, options), answers.find(text, kind, options)
    assert reading.key == answers.path_key(text, kind, options)
    assert (found.answer if found else None) == answers.extract(text, kind, options)
    if found:
        assert found == (reading.chosen.text, reading.key, reading.end, reading.marked)


def test_the_tables_have_every_kind_and_no_row_twice():
    assert {row[0] for row in ROWS} == {"number", "choice", "yes_no", "nli", "span", "date", "list"}
    assert len(set(ROWS)) == len(ROWS) > 550
