"""Filters in a row: what each sees, what is counted, and how weights multiply."""

import dataclasses

import pytest
from selection_rows import row

from lmsi_jax.config import Cap, ImportanceWeights, MinConfidence
from lmsi_jax.selection.rows import Facts, select

ROWS = [
    row("a", 0, confidence=0.9, loss=1.0),
    row("a", 1, confidence=0.9, loss=2.0),
    row("a", 2, confidence=0.9, loss=4.0),
    row("b", 0, confidence=0.3, loss=1.0),
    row("c", 0, confidence=0.6, loss=0.5),
    row("d", 0, confidence=0.6),
]
# Nobody knows the answer of "d".
ANSWERS = {"a": frozenset({"7"}), "b": frozenset({"8"}), "c": frozenset({"9", "10"})}
WEIGHTS = ImportanceWeights(cap=3.0)


def test_each_filter_sees_what_the_one_before_left_and_is_counted():
    chosen = select(
        ROWS, (MinConfidence(), Cap(num_samples=2), WEIGHTS), Facts(human_losses=(2.0,)), ANSWERS
    )
    assert [r.name for r in chosen.rows] == [("a", 0), ("a", 1), ("c", 0)]
    assert chosen.weights == (2.0, 1.0, 3.0)
    first, second, third = [step.to_json() for step in chosen.steps]
    assert first == {
        "filter": "MinConfidence",
        "rows": 6,
        "kept": 5,
        "questions": 3,
        "weight": 5.0,
        "dropped": {"the vote is not sure enough": 1},
        "right": 3,
        "wrong": 1,
        "punished": 0,
        "punished_right": 0,
    }
    assert (second["rows"], second["kept"], second["right"]) == (5, 4, 2)
    assert third["dropped"] == {"not scored: longer than the batch shape": 1}
    assert (third["weight"], third["questions"]) == (6.0, 2)


def test_weights_multiply():
    twice = select(ROWS[:3], (WEIGHTS, WEIGHTS), Facts(human_losses=(2.0,)))
    assert twice.weights == pytest.approx((4.0, 1.0, 0.25))


def test_without_filters_every_voted_sample_is_kept_with_weight_one():
    chosen = select(ROWS, ())
    assert chosen.rows == tuple(ROWS) and set(chosen.weights) == {1.0} and not chosen.steps


def test_filters_are_values():
    assert dataclasses.replace(MinConfidence(), confidence=0.5) == MinConfidence()
    with pytest.raises(dataclasses.FrozenInstanceError):
        MinConfidence().confidence = 1.0
