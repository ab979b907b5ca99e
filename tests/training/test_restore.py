"""Which checkpoints a training goes on from."""

import contextlib

import jax.numpy as jnp
import pytest

from lmsi_jax.training.checkpoints import Checkpoints
from lmsi_jax.training.trainer import drop_unrecorded

LINE = b'{"step": 1, "loss": 2.5}\n'


@pytest.mark.parametrize(
    ("metrics", "ours", "kept"),
    [
        (LINE, True, True),
        (b"", True, True),  # the first window of steps is still open
        (None, True, False),
        (LINE + b"x", True, False),
        (None, False, True),  # T5X's
    ],
)
def test_checkpoints_go_with_the_metrics_that_lead_up_to_them(tmp_path, metrics, ours, kept):
    with contextlib.closing(Checkpoints(tmp_path, keep=None)) as made:
        for step in (1, 2):
            reading = {"rows": step} if ours else None
            made.save(step, {"w": jnp.ones(3)}, data_state=reading)
    if metrics is not None:
        (tmp_path / "metrics.jsonl").write_bytes(metrics)
    drop_unrecorded(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    record = set() if metrics is None or not kept else {"metrics.jsonl"}
    assert names == record | ({"checkpoint_1", "checkpoint_2"} if kept else set())


def test_nothing_is_dropped_where_nothing_is(tmp_path):
    drop_unrecorded(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
