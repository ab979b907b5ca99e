"""The gin files for T5X name modules and functions that exist; T5X need not be installed."""

import importlib
import pathlib
import re

import pytest

from lmsi_jax.interop import t5x as lmsi_t5x
from lmsi_jax.runtime.files import embedded_path

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


@pytest.mark.parametrize(
    ("word", "same"),
    [
        ("--gin.MODEL_DIR='runs/t5x'", "--gin.MODEL_DIR='{here}/runs/t5x'"),
        ("--gin.RUN_DIR=runs/a", "--gin.RUN_DIR='{here}/runs/a'"),
        ("--gin.CHECKPOINT_PATH='/a/b'", "--gin.CHECKPOINT_PATH='/a/b'"),
        ("--gin.CHECKPOINT_PATH='gs://b/c'", "--gin.CHECKPOINT_PATH='gs://b/c'"),
        ("--gin.CHECKPOINT_PATH='embedded'", "--gin.CHECKPOINT_PATH='{embedded}'"),
        ("--gin.CHECKPOINT_PATH=%MODEL_DIR", "--gin.CHECKPOINT_PATH=%MODEL_DIR"),
        ("--gin.TOKENIZER='embedded'", "--gin.TOKENIZER='embedded'"),
        ("--gin_file=t5x/eval.gin", "--gin_file=t5x/eval.gin"),
    ],
)
def test_folders_in_flags_are_absolute_as_orbax_needs_them(word, same, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = embedded_path("checkpoint_2400")
    assert lmsi_t5x.absolute(word) == same.format(here=tmp_path, embedded=checkpoint)
