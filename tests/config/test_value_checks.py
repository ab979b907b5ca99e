"""Ranges beside types: what they let through, and what a message says of the rest."""

import dataclasses
import math
from typing import Annotated, Literal

import pytest

from lmsi_jax.config.value_checks import above, at_least, check_fields, field_ranges, fraction
from lmsi_jax.errors import LmsiError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kettle:
    cups: Annotated[int, at_least(1, unit="cups")] = 2
    heat: Annotated[float, above(0)] = 1.0
    milk: Annotated[float, fraction()] = 0.5
    minutes: Annotated[float | None, at_least(0, unit="minutes", note="cold")] = None
    tea: Literal["green", "black", "red"] = "green"
    label: str = "any"

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    "changes",
    [{"cups": 1}, {"heat": 1e-9}, {"milk": 0}, {"milk": 1}, {"minutes": 0}, {"minutes": None}]
    + [{"tea": "red"}, {"label": ""}],
)
def test_values_at_the_edge_are_inside(changes):
    Kettle(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cups": 0}, "Kettle.cups = 0; use 1 or more cups"),
        ({"cups": None}, "Kettle.cups = None; use 1 or more cups"),
        ({"cups": "2"}, "Kettle.cups = '2'; use 1 or more cups"),
        ({"heat": 0.0}, "Kettle.heat = 0.0; use a number above 0"),
        ({"heat": math.inf}, "Kettle.heat = inf; use a number above 0"),
        ({"heat": math.nan}, "Kettle.heat = nan; use a number above 0"),
        ({"milk": 1.1}, "Kettle.milk = 1.1; use a share, 0 to 1"),
        ({"minutes": -1}, "Kettle.minutes = -1; use 0 (cold) or more minutes, or None"),
        ({"tea": "white"}, "Kettle.tea = 'white'; use 'green', 'black' or 'red'"),
    ],
)
def test_values_outside_are_refused_with_the_range(changes, message):
    with pytest.raises(LmsiError) as error:
        Kettle(**changes)
    assert str(error.value) == message


def test_fields_without_a_range_have_none():
    assert list(field_ranges(Kettle)) == ["cups", "heat", "milk", "minutes", "tea"]
