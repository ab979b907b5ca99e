"""Finding runs, their state, and what of them nothing needs: from folders made by hand."""

import fcntl
import json
import os
import pathlib

import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime.run_folders import (
    describe_run,
    find_freeable,
    find_runs,
    free,
    replace_folder,
    restore_replaced,
)


def make_run(folder, *stages, rounds=1, config=""):
    """Makes a run's folder; a stage that ends with "..." has begun and is not finished."""
    folder.mkdir(parents=True)
    (folder / "config.gin").write_text(f"Run.rounds = {rounds}\n{config}")
    for clock, stage in enumerate(stages):
        place = folder / stage.removesuffix("...")
        place.mkdir(parents=True)
        names = ["config.json"] + ["stage.json"] * (not stage.endswith("..."))
        for name in names:
            (place / name).write_text("{}")
            os.utime(place / name, (1000 + clock, 1000 + clock))
    return folder


def add_checkpoint(run, number, step, state=True):
    folder = run / f"round_{number}" / "train" / f"checkpoint_{step}"
    (folder / "state").mkdir(parents=True)
    entry = {"key_metadata": [{"key": "target"}], "value_metadata": {"write_shape": [10]}}
    entries = {"target": entry}
    if state:
        key = [{"key": "state"}, {"key": "param_states"}]
        entries["state"] = {"key_metadata": key, "value_metadata": {"write_shape": [20]}}
    (folder / "state" / "_METADATA").write_text(json.dumps({"tree_metadata": entries}))
    (folder / "state" / "data").write_bytes(bytes(3000))
    return folder


ROUND = ("sample", "vote", "mix", "train", "eval")


def stages_of(*numbers):
    return [f"round_{number}/{stage}" for number in numbers for stage in ROUND]


@pytest.mark.parametrize(
    ("stages", "report", "rounds", "words"),
    [
        (["round_0/eval..."], False, 0, "stopped in eval, round 0"),
        (["round_0/eval", "round_1/sample..."], False, 0, "stopped in sample, round 1"),
        (["round_0/eval", "round_1/sample"], False, 0, "stopped after sample, round 1"),
        (["round_0/eval", *stages_of(1)], False, 1, "stopped after eval, round 1"),
        (["round_0/eval", *stages_of(1, 2)], True, 2, "finished"),
        (["round_0/eval", *stages_of(1)], True, 1, "finished early"),
        ([], False, 0, "begun"),
    ],
)
def test_the_state_of_a_run_is_told_from_its_files(tmp_path, stages, report, rounds, words):
    run = make_run(tmp_path / "run", *stages, rounds=2)
    if report:
        (run / "report.json").write_text("{}")
    state = describe_run(run)
    assert (state.rounds, state.planned, state.state) == (rounds, 2, words)
    assert state.size == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


def test_a_run_that_a_process_works_in_is_running(tmp_path):
    run = make_run(tmp_path / "run", "round_0/eval", "round_1/sample...")
    handle = os.open(run, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert describe_run(run).state == "running: sample, round 1"
    with pytest.raises(LmsiError, match="another lmsi command works in"):
        free(run, [], lambda path: None)
    os.close(handle)
    assert describe_run(run).state == "stopped in sample, round 1"


def test_runs_of_studies_are_found_and_a_run_is_not_searched(tmp_path):
    make_run(tmp_path / "runs" / "b")
    make_run(tmp_path / "runs" / "study" / "variant" / "seed0")
    make_run(tmp_path / "runs" / "b" / "inside")
    (tmp_path / "runs" / "no run").mkdir()
    names = [run.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path / "runs")]
    assert names == ["runs/b", "runs/study/variant/seed0"]
    assert find_runs(tmp_path / "runs" / "b") == [tmp_path / "runs" / "b"]


def _freed(run):
    return {
        item.path.relative_to(run).as_posix(): "state" if item.optimizer else "all"
        for item in find_freeable(run)
    }


def test_only_what_nothing_needs_can_be_freed(tmp_path):
    run = make_run(tmp_path / "run", "round_0/eval", *stages_of(1, 2), rounds=2)
    for number, step in ((1, 3), (1, 6), (2, 3), (2, 6)):
        add_checkpoint(run, number, step)
    (run / "round_2" / "train" / "checkpoint_9.orbax-checkpoint-tmp").mkdir()
    assert _freed(run) == {
        "round_1/train/checkpoint_3": "all",
        "round_1/train/checkpoint_6": "all",
        "round_2/train/checkpoint_3": "all",
        "round_2/train/checkpoint_6": "state",
        "round_2/train/checkpoint_9.orbax-checkpoint-tmp": "all",
    }
    sizes = {item.path.name: item.size for item in find_freeable(run) if item.optimizer}
    assert sizes == {"checkpoint_6": pytest.approx(2000, abs=250)}  # two thirds of it

    (run / "round_2" / "eval" / "stage.json").unlink()  # round 1 may be compared with it yet
    assert _freed(run)["round_1/train/checkpoint_6"] == "state"
    (run / "config.gin").write_text("Questions.test = ()\n")  # nothing is evaluated
    assert _freed(run)["round_1/train/checkpoint_6"] == "all"
    (run / "config.gin").write_text("Training.keep_best = 1\n")
    assert _freed(run)["round_2/train/checkpoint_3"] == "state"
    (run / "round_2" / "train" / "stage.json").unlink()  # training goes on from its last step
    assert not any(path.startswith("round_2/train/checkpoint_6") for path in _freed(run))


def test_freeing_leaves_a_record_and_asks_for_the_state_to_be_dropped(tmp_path):
    run = make_run(tmp_path / "run", "round_0/eval", *stages_of(1, 2), rounds=2)
    add_checkpoint(run, 1, 6)
    last = add_checkpoint(run, 2, 6)
    dropped: list[pathlib.Path] = []
    free(run, find_freeable(run), dropped.append)
    assert dropped == [last]
    first = run / "round_1" / "train"
    assert sorted(path.name for path in first.iterdir()) == [
        *("config.json", "freed.json", "stage.json")
    ]
    add_checkpoint(run, 3, 1, state=False)
    assert not any("round_3" in path for path in _freed(run))


def test_a_checkpoint_whose_replacement_was_cut_off_comes_back(tmp_path, monkeypatch):
    old, new = tmp_path / "checkpoint_6", tmp_path / "made"
    for folder in (old, new):
        folder.mkdir()
        (folder / "is").write_text(folder.name)
    replace, calls = os.replace, []

    def cut_off(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(new, old)
    monkeypatch.undo()
    assert not old.exists()
    restore_replaced(tmp_path)
    assert (old / "is").read_text() == "checkpoint_6"
    replace_folder(new, old)
    assert (old / "is").read_text() == "made"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_6"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(LmsiError, match="is no run"):
        find_freeable(tmp_path)
