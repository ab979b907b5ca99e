"""Data that nobody here wrote: a folder beside the checkout, which the repository does not have."""

import pathlib

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = _ROOT.parent / "shared" / "data"


def needed(name: str = "") -> pytest.MarkDecorator:
    """Skips, with the reason, where the data or this part of it is absent."""
    place = DATA / name
    return pytest.mark.skipif(not place.exists(), reason=f"{place} is not there")
