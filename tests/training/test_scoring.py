"""What is stored of a row comes back with it, in whatever order rows are drawn."""

import dataclasses

import numpy as np
import pytest

from lmsi_jax.config import Loss, Preference, Training
from lmsi_jax.training.losses import Teacher
from lmsi_jax.training.packing import Row, batch_shape, pair_row, weighted_row
from lmsi_jax.training.scoring import ScoredRows, TargetScorer, with_reference, with_top_k

SOFT = Training(
    sequences_per_prefix=2,
    sequence_length=24,
    max_prefix_length=6,
    loss=Loss(distillation="top_k", top_k=3),
    microbatches=1,
)
PAIRS = dataclasses.replace(SOFT, loss=Loss(), preference=Preference())


def _rows():
    rng = np.random.default_rng(3)
    prefixes = [(), tuple(rng.integers(3, 300, 5).tolist())]
    drawn = [
        weighted_row(
            prefixes[i % 2], rng.integers(3, 300, 3).tolist(), rng.integers(3, 300, 4).tolist(), 1.0
        )
        for i in range(6)
    ]
    too_long = weighted_row((), [5] * 30, [6], 1.0)
    return [dataclasses.replace(row, example=i) for i, row in enumerate([*drawn, too_long])]


@pytest.mark.parametrize("order", [(0, 3, 6, 1), (5, 5, 2)])
def test_a_teachers_tokens_come_back_at_the_targets_alone(micro_config, micro_params, order):
    rows = _rows()
    records = TargetScorer(config=micro_config, params=micro_params, training=SOFT).records(rows)
    assert records[6] == {}
    teacher = Teacher(config=micro_config, params=micro_params)
    wanted = with_top_k(teacher, rows[:6], batch_shape(SOFT), 3)
    for found, at in zip(ScoredRows([rows[i] for i in order], records), order, strict=True):
        assert found.tokens == rows[at].tokens
        if at == 6:
            assert type(found) is Row
            continue
        assert np.isneginf(found.teacher_logprobs[:3]).all()
        np.testing.assert_array_equal(found.teacher_ids[3:], wanted[at].teacher_ids[3:])
        logprobs = wanted[at].teacher_logprobs
        np.testing.assert_allclose(found.teacher_logprobs[3:], logprobs[3:], atol=1e-5)


def test_a_pairs_reference_comes_back_exactly(micro_config, micro_params):
    rows = _rows()
    pairs = [dataclasses.replace(pair_row(rows[i], rows[i + 2]), example=i) for i in (0, 1, 2, 3)]
    records = TargetScorer(config=micro_config, params=micro_params, training=PAIRS).records(pairs)
    wanted = with_reference(micro_config, micro_params, pairs, batch_shape(PAIRS))
    found = list(ScoredRows(pairs[::-1], records))
    assert [row.reference for row in found] == [row.reference for row in wanted[::-1]]
