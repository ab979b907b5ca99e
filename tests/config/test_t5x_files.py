"""The gin files for T5X name modules, functions and classes of ours that exist.

T5X itself is not needed: our modules are found, and read without being imported.
"""

import ast
import importlib.util
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "gin_configs" / "t5x"


def _names_of(module: str) -> set[str]:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    tree = ast.parse(pathlib.Path(spec.origin).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.gin")), ids=lambda file: file.stem)
def test_everything_of_ours_that_the_file_names_exists(file):
    text = "".join(line for line in file.open(encoding="utf-8") if not line.startswith("#"))
    modules = re.findall(r"^from (lmsi_jax\S*) import (\w+)$", text, re.MULTILINE)
    assert modules
    for package, module in modules:
        used = set(re.findall(rf"(?<![\w.]){module}\.(\w+)", text))
        assert used and used <= _names_of(f"{package}.{module}"), module
