"""What a careful reader would say, text by text: tests/answers/careful_reader.tsv."""

import pathlib
import re

import pytest

from lmsi_jax import answers

TABLE = pathlib.Path(__file__).with_name("careful_reader.tsv")


def _rows():
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kind, key, text = line.split("\t")
            kind, _, options = kind.partition(" of ")
            shown = re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), text)
            yield kind, tuple(options.split(", ")) if options else (), key, shown.replace("⏎", "\n")


@pytest.mark.parametrize(("kind", "options", "key", "text"), list(_rows()))
def test_the_key_is_what_a_careful_reader_says(kind, options, key, text):
    assert answers.path_key(text, kind, options) == (None if key == "none" else key)
