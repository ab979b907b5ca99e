"""The reading position: a resumed packer gives what it would have given."""

import itertools
import json

import numpy as np
import one_run
import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.training.data import BatchIterator, RowReader
from lmsi_jax.training.packing import Shape, batches

SHAPE = Shape(microbatches=2, rows=2, length=24, prefix_length=8)


def _equal(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("taken", [0, 1, 5, 11])
def test_steps_go_on_from_a_position_that_went_through_json(taken):
    wanted = list(itertools.islice(batches(one_run.rows(), SHAPE), 15))
    first = BatchIterator(one_run.rows(), SHAPE)
    for step in range(taken):
        assert _equal(first.next(), wanted[step])
    position = json.loads(json.dumps(first.state))
    assert bool(position["open"]) == bool(taken)
    again = BatchIterator(one_run.rows(), SHAPE, position)
    for step in range(taken, 15):
        assert _equal(again.next(), wanted[step])
    for _ in range(taken, 15):
        first.next()
    assert again.state == first.state


class _Skipping:
    """A stream that can pass over rows by itself."""

    def __init__(self):
        self.skipped = 0

    def skip(self, count):
        self.skipped = count

    def __iter__(self):
        return itertools.islice(one_run.rows(), self.skipped, None)


def test_a_stream_that_can_skip_is_asked_to_and_rows_left_out_count_as_read():
    source = _Skipping()
    short = RowReader(source, lambda row: len(row.tokens) < 9)
    kept = [next(short) for _ in range(10)]
    assert short.read > 10
    again = RowReader(other := _Skipping(), lambda row: len(row.tokens) < 9)
    again.skip(short.read)
    assert other.skipped == again.read == short.read
    assert next(again) == next(short)
    assert all(len(row.tokens) < 9 for row in kept)


def test_a_position_of_another_version_is_refused_with_the_remedy():
    with pytest.raises(LmsiError, match="of another version: delete the run's checkpoints"):
        BatchIterator(
            one_run.rows(), SHAPE, {"rows": 3, "open": [{"tokens": [1], "prefix": [], "x": 1}]}
        )
