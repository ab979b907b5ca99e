"""The gin files for T5X name modules and functions that exist; T5X need not be installed."""

import importlib
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "gin_configs" / "t5x"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.gin")), ids=lambda file: file.name)
def test_every_name_of_ours_in_a_gin_file_exists(file):
    text = re.sub(r"#.*", "", file.read_text(encoding="utf-8"))
    imports = re.findall(r"^from (lmsi_jax\S*) import (\w+)(?: as (\w+))?$", text, re.MULTILINE)
    assert imports
    for package, name, alias in imports:
        module = importlib.import_module(f"{package}.{name}")
        attributes = set(re.findall(rf"(?<![\w.]){alias or name}\.([A-Za-z_]\w*)", text))
        assert attributes, f"{file.name} imports {package}.{name} and does not use it"
        for attribute in attributes:
            assert hasattr(module, attribute), f"{file.name}: {module.__name__}.{attribute}"
