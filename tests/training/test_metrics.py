"""Metrics: losses by label, files with and without a clock, and what a tracker gets."""

import json

import numpy as np
import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.training.metrics import Log, group_weights, read_metrics

GROUPS = ("self_generated/cot", "self_generated/direct", "human/cot", "human/direct")


def _batch(seed):
    draw = np.random.default_rng(seed)
    shape = (2, 3, 8)
    return {
        "groups": draw.integers(0, 3, shape),  # the last group has no token
        "weights": draw.uniform(0, 2, shape).astype(np.float32),
        "segments": np.ones(shape, np.int32),
    }


def _step(seed):
    by_group = np.array([1.0, 2.0, 4.0, np.nan], np.float32) + np.float32(seed)
    return {
        "loss": np.float32(seed),
        "grad_norm": np.float32(2),
        "tokens": 48,
        "by_group": by_group,
        "z_loss": np.float32(0.5),
    }


def _log(folder, **changes):
    clock = iter(range(0, 1000, 2))
    settings = {
        "ends": lambda step: step % 2 == 0,
        "rate": lambda step: 0.5,
        "roofline_seconds": lambda batch: 0.25,
        "clock": lambda: next(clock),
    }
    return Log("run", folder, GROUPS, **{**settings, **changes})


def _filled(folder):
    log = _log(folder)
    for step in range(1, 5):
        log.add(step, _step(step), _batch(step))
    log.write()
    log.close()
    return log


def test_a_label_counts_all_groups_that_bear_it_by_their_weights(tmp_path):
    _filled(tmp_path)
    wanted = []
    for seed in (1, 2):
        batch, sums, weights = _batch(seed), 0.0, 0.0
        for group, weight in zip(batch["groups"].flat, batch["weights"].flat, strict=True):
            if group in (0, 2):  # self_generated/cot and human/cot
                sums += float(weight) * (float([1, 2, 4][group]) + seed)
                weights += float(weight)
        wanted.append(sums / weights)
    first = read_metrics(tmp_path)[0]
    assert first["loss/cot"] == pytest.approx(np.mean(wanted), abs=1e-6)
    assert first["loss/human"] == pytest.approx(5.5)  # one group alone, in both steps
    assert first["loss/direct"] == pytest.approx(3.5)
    assert list(first)[:5] == ["step", "loss", "grad_norm", "learning_rate", "tokens"]
    assert first["loss"] == 1.5 and first["tokens"] == 96 and first["z_loss"] == 0.5


def test_the_weights_of_groups_are_sums_over_tokens():
    batch = _batch(7)
    found = group_weights(batch, 4)
    for group in range(4):
        assert found[group] == pytest.approx(batch["weights"][batch["groups"] == group].sum())
    assert found[3] == 0


def test_speeds_have_a_file_of_their_own_and_the_first_step_does_not_count(tmp_path):
    _filled(tmp_path)
    speed = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    # The clock goes on by 2 s whenever it is read: after step 1, and at both windows' ends.
    assert speed == [
        {"step": 2, "tokens_per_second": 24.0, "roofline_ratio": 0.125},
        {"step": 4, "tokens_per_second": 48.0, "roofline_ratio": 0.25},
    ]
    assert not any("second" in name for line in read_metrics(tmp_path) for name in line)


def test_an_open_window_goes_on_in_another_process(tmp_path):
    _filled(tmp_path / "whole")
    log = _log(tmp_path / "cut")
    for step in (1, 2, 3):
        log.add(step, _step(step), _batch(step))
    window = json.loads(json.dumps(log.window))
    log.write()
    again = _log(tmp_path / "cut", first=3, window=window)
    again.add(4, _step(4), _batch(4))
    again.write()
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1] and files[0].count(b"\n") == 2


def test_a_tracker_gets_each_line_once_with_its_speed_and_what_was_measured_after_it(tmp_path):
    tracked = []
    log = _log(tmp_path, track=lambda step, values: tracked.append((step, dict(values))))
    for step in range(1, 5):
        log.add(step, _step(step), _batch(step))
        if step == 2:
            log.measured(step, "validation_loss", 0.25)
    assert [step for step, _ in tracked] == [2]
    log.write()
    log.close()
    assert [step for step, _ in tracked] == [2, 4]
    files = [tmp_path / name for name in ("metrics.jsonl", "speed.jsonl")]
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    for (step, values), *parts in zip(tracked, *rows, strict=True):
        assert {"step": step, **values} == {**parts[0], **parts[1]}
    assert tracked[0][1]["validation_loss"] == 0.25


@pytest.mark.parametrize("line", [b"x", b"\xff\xfe", b"[3]", b"{}", b'{"step": "2"}', b""])
def test_a_line_that_nobody_wrote_is_named_with_its_file(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.5}\n' + line + b"\n")
    with pytest.raises(LmsiError, match=r"metrics.jsonl is damaged \(line 2\); delete it and"):
        read_metrics(tmp_path)
