"""Data that nobody here wrote, which the repository does not have: $LMSI_DATA or ../shared/data."""

import pytest

from bench import real_outputs

DATA = real_outputs.default()


def needed(name: str = "") -> pytest.MarkDecorator:
    """Skips, with the reason, where the data or this part of it is absent."""
    place = DATA / name
    return pytest.mark.skipif(not place.exists(), reason=f"{place} is not there")
