"""docs/configuration.md: complete, and what the dataclasses say today."""

import dataclasses
import pathlib

import pytest

from lmsi_jax.config import DistributionShift, reference
from lmsi_jax.config.configurables import CLASSES

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == reference.page(), (
        "docs/configuration.md is stale; run "
        "`python -m lmsi_jax.config.reference docs/configuration.md`"
    )


def test_the_page_has_every_class_that_gin_can_configure():
    classes = [cls for group in reference.GROUPS.values() for cls in group]
    assert sorted(cls.__name__ for cls in classes) == sorted(cls.__name__ for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_is_documented_under_itself(cls):
    docs = reference.field_docs(cls)
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    assert [name for name in fields if len(docs.get(name, "")) < 2] == []


def test_an_entry_has_type_range_unit_default_and_meaning():
    entry = next(line for line in reference.page().split("\n- ") if "`Sampling.top_k`" in line)
    assert " ".join(entry.split()) == (
        "**`Sampling.top_k`** (`int`, 0 (off) or more tokens; default `0`): Sample from this many "
        "most likely tokens."
    )


def test_inherited_fields_are_documented_where_they_are_declared():
    docs = reference.field_docs(DistributionShift)
    assert docs["surest"] == 'With "confident": share of the questions in D_v.'
    assert docs["share"] == "Share of the rows to keep, k."
