"""Training runs: learning, resuming to the same bytes, and how they fail."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from lmsi_jax.config import Optimizer, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.training import checkpoints
from lmsi_jax.training.metrics import read_metrics
from lmsi_jax.training.optimizers import transformation
from lmsi_jax.training.packing import weighted_row
from lmsi_jax.training.trainer import train

TRAINING = Training(
    steps=6,
    optimizer=Optimizer(learning_rate=3e-3),
    microbatches=2,
    sequences_per_prefix=2,
    sequence_length=24,
    max_prefix_length=8,
    log_every=1,
    save_every=2,
)


def _rows(seed=0, count=6):
    rng = np.random.default_rng(seed)
    prefixes = [(), tuple(rng.integers(3, 300, 5).tolist())]
    few = [
        weighted_row(
            prefixes[i % 2],
            rng.integers(3, 300, 4).tolist(),
            rng.integers(3, 300, 6).tolist(),
            1.0 + i % 3,
            i % 2,
        )
        for i in range(count)
    ]
    return itertools.cycle(few)


def _train(config, params, folder, training=TRAINING, rows=None):
    return train(config, training, params, rows or _rows(), folder, groups=("a", "b"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, micro_config, micro_params):
    """An uninterrupted run's folder and parameters."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, _train(micro_config, micro_params, folder)


class _Cut(Exception):
    pass


def _cut_after(rows, count):
    yield from itertools.islice(rows, count)
    raise _Cut


def test_the_window_that_a_checkpoint_cuts_goes_on_in_the_resumed_run(
    tmp_path, micro_config, micro_params
):
    training = dataclasses.replace(TRAINING, log_every=5)
    _train(micro_config, micro_params, tmp_path / "whole", training)
    with pytest.raises(_Cut):
        _train(micro_config, micro_params, tmp_path / "cut", training, rows=_cut_after(_rows(), 70))
    cut = checkpoints.Checkpoints(tmp_path / "cut")
    assert cut.latest in (2, 4) and len(cut.data_state(cut.latest)["window"]) == cut.latest
    _train(micro_config, micro_params, tmp_path / "cut", training)
    lines = read_metrics(tmp_path / "whole")
    assert [line["step"] for line in lines] == [5, 6]
    assert read_metrics(tmp_path / "cut") == lines


@pytest.mark.parametrize("rows_read", [40, 70])
def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(
    whole, tmp_path, micro_config, micro_params, rows_read
):
    with pytest.raises(_Cut):
        _train(micro_config, micro_params, tmp_path, rows=_cut_after(_rows(), rows_read))
    params = _train(micro_config, micro_params, tmp_path)
    folder, wanted = whole
    assert checkpoints.digest(params) == checkpoints.digest(wanted)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    blank = transformation(TRAINING.optimizer, 6).init(micro_params)
    trees = [
        checkpoints.Checkpoints(place).restore(6, micro_params, blank)
        for place in (tmp_path, folder)
    ]
    assert checkpoints.digest(trees[0]) == checkpoints.digest(trees[1])


def test_metrics_of_steps_after_the_checkpoint_are_written_anew(
    whole, tmp_path, micro_config, micro_params
):
    """As when a process dies after it wrote the metrics and before the checkpoint was whole."""
    folder, _ = whole
    (tmp_path / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes())
    _train(micro_config, micro_params, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_a_finished_run_returns_its_parameters_and_reads_no_rows(whole, micro_config, micro_params):
    folder, wanted = whole
    never = (pytest.fail("a row was read") for _ in range(1))
    # Skipping reads nothing either: the steps that are left are none.
    found = _train(micro_config, micro_params, folder, rows=itertools.chain(_rows(), never))
    assert checkpoints.digest(found) == checkpoints.digest(wanted)


def test_the_callers_parameters_survive(whole, micro_config, micro_params):
    assert jax.tree.all(jax.tree.map(lambda leaf: not leaf.is_deleted(), micro_params))


def test_metrics_count_steps_tokens_rates_and_groups(whole):
    lines = read_metrics(whole[0])
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(0 < line["tokens"] <= 2 * 2 * 24 for line in lines)
    assert all(line["learning_rate"] == pytest.approx(3e-3) for line in lines)
    assert all(np.isfinite(line["grad_norm"]) for line in lines)
    assert {"loss/a", "loss/b"} <= set(lines[0])


def test_the_loss_falls_when_a_few_rows_are_learnt(tmp_path, micro_config, micro_params):
    training = Training(
        steps=120,
        optimizer=Optimizer(learning_rate=1e-2),
        microbatches=1,
        sequences_per_prefix=2,
        sequence_length=24,
        max_prefix_length=8,
        log_every=20,
        save_every=120,
    )
    rows = itertools.cycle([next(_rows(count=1))])
    _train(micro_config, micro_params, tmp_path, training, rows)
    losses = [line["loss"] for line in read_metrics(tmp_path)]
    assert losses[0] > 1.0 and losses[-1] < 0.1


def test_a_stream_that_ends_names_the_step_and_the_remedy(tmp_path, micro_config, micro_params):
    few = itertools.islice(_rows(), 5)
    with pytest.raises(LmsiError, match="ended before step 2.*lower Training.microbatches"):
        _train(micro_config, micro_params, tmp_path, rows=few)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, micro_config, micro_params):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, micro_params)
    with pytest.raises(LmsiError, match="the loss is nan at step 1; lower Optimizer.learning_rate"):
        _train(micro_config, broken, tmp_path)
    assert not checkpoints.has_checkpoint(tmp_path)


def test_a_step_between_two_lines_that_is_no_number_is_named_and_never_saved(
    tmp_path, micro_config, micro_params
):
    """Weights that are too large come after step 4; the line of steps 1 to 9 comes after all."""
    large = weighted_row((), [3, 4], [5, 6], 3e38, 0)
    training = dataclasses.replace(TRAINING, steps=9, log_every=9, save_every=2)
    rows = itertools.chain(itertools.islice(_rows(), 70), itertools.repeat(large))
    with pytest.raises(LmsiError, match=r"the (loss|gradient's norm) is \w+ at step 5;"):
        _train(micro_config, micro_params, tmp_path, training, rows)
    assert list(checkpoints.steps(checkpoints.find(tmp_path).parent)) == [4]


def test_groups_are_those_of_the_rows_and_unknown_ones_are_refused(
    tmp_path, micro_config, micro_params
):
    """A group without a name would leave the sum of the weights, but not that of the losses."""

    class Rows:
        groups = ("a", "b")

        def __iter__(self):
            return iter(_rows())

    losses = []
    for name, rows in (("named", Rows()), ("given", _rows())):
        groups = {"groups": ("a", "b")} if name == "given" else {}
        train(micro_config, TRAINING, micro_params, rows, tmp_path / name, **groups)
        losses.append([line["loss"] for line in read_metrics(tmp_path / name)])
    assert losses[0] == losses[1] and max(losses[0]) < 10
    with pytest.raises(LmsiError, match="step 1: a row is of group 1, and `groups` names 1"):
        train(micro_config, TRAINING, micro_params, _rows(), tmp_path / "none")


@pytest.mark.parametrize("weight", [0.0, 1e-9])
def test_a_step_without_weight_is_refused_and_one_of_small_weights_keeps_its_loss(
    tmp_path, micro_config, micro_params, weight
):
    def rows(weight):
        return itertools.cycle([weighted_row((), [3, 4], [5, 6, 7], weight, 0)])

    if not weight:
        with pytest.raises(LmsiError, match="step 1: no token has a loss weight"):
            _train(micro_config, micro_params, tmp_path, rows=rows(0.0))
        return
    for name, value in (("small", weight), ("one", 1.0)):
        _train(micro_config, micro_params, tmp_path / name, rows=rows(value))
    small, one = (read_metrics(tmp_path / name) for name in ("small", "one"))
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in small] == pytest.approx([row[key] for row in one], rel=1e-3)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"sequences_per_prefix": 0}, {"log_every": 0}, {"human_rate": 1.5}]
)
def test_settings_out_of_range_are_named(changes):
    with pytest.raises(LmsiError, match=f"Training.{next(iter(changes))} = "):
        Training(**changes)
