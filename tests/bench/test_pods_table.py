"""docs/pods.md's table of compiled configurations: made from the files beside it, and they fit."""

import json
import pathlib

import pytest

from bench import pods

_DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
_FILES = sorted((_DOCS / "pods").glob("*.json"))


def test_the_page_s_table_is_what_the_files_say(capsys):
    pods.main([str(path) for path in _FILES])
    assert capsys.readouterr().out in (_DOCS / "pods.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_a_configuration_leaves_some_memory_free(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    programs = {"train", "sample"} & set(found)
    assert programs, "the file is of no program"
    for name in programs:
        assert found[name]["fits"]
        assert found[name]["peak"] < 0.92 * found["chip"]["memory"]
