"""The training benchmark: its roofline, its batches, its check of losses, and ours running."""

import argparse
import math
import sys

import numpy as np
import pytest

from bench import driver, train
from bench.steps import STEPS, batch, flops_per_token, roofline

OPTIONS = argparse.Namespace(peer_python=sys.executable, repeats=1, budget=60.0, timeout=300.0)


def test_the_floor_counts_each_product_of_a_step_once() -> None:
    steps = STEPS["smoke"]
    model, length = steps.model, steps.length
    forward = 0
    for position in range(length):
        for _ in range(model.layers):
            forward += 4 * 2 * model.width * model.heads * model.head_dim  # q, k, v, o
            forward += 3 * 2 * model.width * model.mlp  # gate, up, down
            # Scores with position + 1 keys, and as many values summed up.
            forward += 2 * 2 * (position + 1) * model.heads * model.head_dim
        forward += 2 * model.width * model.vocabulary
    assert flops_per_token(steps) == 3 * forward / length
    assert roofline(steps, 1e9)["flops"] == 3 * forward * steps.rows


def test_the_floor_of_a_known_machine() -> None:
    got = roofline(STEPS["train"], matmul_rate=485e9)
    # By hand: 6 * 37,748,736 + 12 * 8 layers * 512 wide * 256.5 positions on average.
    assert flops_per_token(STEPS["train"]) == 226_492_416 + 12_607_488
    assert round(got["tokens_per_s"]) == 2028
    assert got["seconds"] * got["tokens_per_s"] == pytest.approx(16 * 512)


def test_batches_differ_by_number_and_not_by_call() -> None:
    steps = STEPS["train"]
    first = batch(steps, 0)
    assert first.shape == (16, 512) and first.min() >= 2 and first.max() < 8192
    assert (first == batch(steps, 0)).all() and (first != batch(steps, 1)).any()


def test_losses_that_should_be_the_same_and_are_not_fail() -> None:
    chance = math.log(STEPS["smoke"].model.vocabulary)
    results = [
        {"system": "lmsi", "losses": [chance + 0.6, 6.0], "same_weights": False},
        {"system": "hf", "losses": [chance, 6.1, 6.2], "same_weights": True},
        {"system": "t5x", "losses": [chance, 6.1], "same_weights": True},
        {"system": "tunix", "losses": [chance, 6.2], "same_weights": True},
        {"system": "gone", "skipped": "not installed"},
    ]
    train.check("smoke", results)
    assert [r["system"] for r in results if "failed" in r] == ["tunix"]
    assert results[0]["loss_above_chance"] == pytest.approx(0.6)
    assert "losses_apart" not in results[0] and results[2]["losses_apart"] == 0


@pytest.mark.parametrize("loss", [0.0, 20.0, math.nan])
def test_a_first_loss_far_from_that_of_guessing_fails(loss: float) -> None:
    results = [{"system": "lmsi", "losses": [loss], "same_weights": False}]
    train.check("smoke", results)
    assert "guessing" in results[0]["failed"]


def test_ours_runs_the_smoke_workload_and_starts_near_chance() -> None:
    system = train.BENCH.systems[driver.OURS]
    result = driver.run_one(driver.OURS, system, "smoke", OPTIONS, tuned={})
    train.check("smoke", [result])
    assert "failed" not in result, result
    assert result["tokens_per_step"] == 4 * 32 and result["tokens_per_s"] > 0
    assert len(result["losses"]) == 3 and np.isfinite(result["losses"]).all()
    assert result["peak_memory_bytes"] > 0 and result["settings"]["microbatches"] == 4
