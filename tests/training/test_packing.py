"""Rows keep every token and weight through packing, in a deterministic order."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsi_jax.training.packing import Shape, batches, check, microbatches, weighted_row

SHAPE = Shape(microbatches=2, rows=2, length=12, prefix_length=3)
ROWS = st.builds(
    weighted_row,
    st.sampled_from([(), (9,), (8, 9, 7)]),
    st.lists(st.integers(1, 50), min_size=1, max_size=6),
    st.lists(st.integers(1, 50), min_size=1, max_size=6),
    st.sampled_from([0.5, 1.0, 32.0]),
    st.integers(0, 3),
)


def _unpack(batch):
    prefix = tuple(batch["prefix"][: batch["prefix_length"]].tolist())
    for row in range(SHAPE.rows):
        for segment in range(1, batch["segments"][row].max() + 1):
            where = batch["segments"][row] == segment
            yield (
                prefix,
                tuple(batch["tokens"][row][where].tolist()),
                tuple(batch["weights"][row][where].tolist()),
                tuple(batch["positions"][row][where].tolist()),
                tuple(set(batch["groups"][row][where].tolist())),
            )


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, max_size=60))
def test_every_row_comes_out_once_with_its_weights_and_positions(rows):
    packed = collections.Counter(
        one for batch in microbatches(rows, SHAPE) for one in _unpack(batch)
    )
    expected = collections.Counter(
        (
            row.prefix,
            tuple(row.tokens),
            (0.0, *row.weights[1:]),
            tuple(range(len(row.prefix), len(row.prefix) + len(row.tokens))),
            (row.group,),
        )
        for row in rows
    )
    assert packed == expected


@settings(max_examples=20, deadline=None)
@given(st.lists(ROWS, min_size=20, max_size=60))
def test_packing_is_deterministic(rows):
    first, second = list(microbatches(rows, SHAPE)), list(microbatches(rows, SHAPE))
    for a, b in zip(first, second, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_batches_stack_whole_steps_only():
    rows = [weighted_row((), [1] * 6, [2] * 6, 1.0)] * 10
    steps = list(batches(rows, SHAPE))
    assert len(steps) == 2
    assert steps[0]["tokens"].shape == (2, 2, 12)
    assert steps[0]["prefix"].shape == (2, 3)


def test_long_documents_do_not_starve():
    rows = [weighted_row((), [1] * (7 if i % 5 else 12), [], 1.0) for i in range(50)]
    packed = sum(1 for batch in microbatches(rows, SHAPE) for _ in _unpack(batch))
    assert packed == 50


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="13 tokens"):
        check(weighted_row((), [1] * 12, [1], 1.0), SHAPE)
    with pytest.raises(ValueError, match="prefix"):
        check(weighted_row((1, 2, 3, 4), [1], [1], 1.0), SHAPE)
