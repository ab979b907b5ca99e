"""The roofline of a training step, against a count token by token and XLA's own."""

import dataclasses

import jax
import numpy as np
import pytest

from lmsi_jax.training.metrics import matmul_rate, step_flops
from lmsi_jax.training.packing import Shape, batches, weighted_row


@pytest.mark.parametrize("windows", [(0,), (4, 0)])
def test_flops_are_those_of_each_token_and_each_key_it_sees(micro_config, windows):
    config = dataclasses.replace(micro_config, windows=windows)
    rows = [weighted_row((5, 6, 7), [8] * (2 + i % 3), [9] * 4, 1.0) for i in range(60)]
    batch = next(batches(rows, Shape(microbatches=1, rows=2, length=24, prefix_length=8)))
    wanted = 0.0
    places = list(range(3))  # the prefix, once
    for line in range(2):
        for column in range(24):
            if batch["segments"][0, line, column]:
                places.append(int(batch["positions"][0, line, column]))
    assert len(places) > 30
    for place in places:
        wanted += 6 * 1000
        for layer in range(2):
            window = config.window(layer)
            keys = min(place + 1, window) if window else place + 1
            wanted += 3 * 2 * 2 * keys * config.num_heads * config.head_dim
    assert step_flops(config, 1000, batch) == wanted


def test_the_rate_is_that_of_some_real_machine():
    rate = matmul_rate()
    assert 1e8 < rate < 1e16 and np.isfinite(rate)
    assert jax.default_backend() == "cpu"
