"""The services' own libraries, offline: what was sent is in their stores, each step once."""

import json
import sys

import numpy as np
import pytest
from etils import epath

from lmsi_jax.config import MLflow, Trackio, WandB
from lmsi_jax.integrations.trackers import Measurements, RunInfo, Table, Trackers

TABLE = Table(columns=("task", "n"), rows=(("a", 3), ("b", 4)))
SETTINGS = {"Run.seed": 1, "Run.name": "tried", "Questions.train": ("a", "b")}


def _training(folder, tracker, steps):
    """Sends steps and closes, as a process of a run does."""
    info = RunInfo(name="tried", folder=epath.Path(folder), settings=SETTINGS)
    trackers = Trackers((tracker,), info)
    for step in steps:
        values = {"train/loss": 3.0 - step, "train/round": 1.0}
        trackers.send("train", step, lambda values=values: Measurements(scalars=values))
    return trackers


def _evaluation(trackers):
    measured = Measurements(
        scalars={"eval/accuracy/cot/a": 0.5},
        tables={"eval/scores": TABLE},
        texts={"run/config": "**x**"},
        images={"vote/agreement": np.zeros((4, 6, 3), np.uint8)},
    )
    trackers.send("eval", 1, lambda: measured)
    trackers.close()


def _run_id(folder, name):
    return json.loads((folder / "trackers.json").read_text())["runs"][name]["id"]


def _in_two_processes(folder, tracker):
    _training(folder, tracker, (1, 2, 3)).close()
    first = _run_id(folder, type(tracker).__name__)
    _evaluation(_training(folder, tracker, (2, 3, 4)))
    assert _run_id(folder, type(tracker).__name__) == first
    return first


def test_mlflow_has_one_run_in_a_local_store(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run_id = _in_two_processes(tmp_path, MLflow())
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    losses = client.get_metric_history(run_id, "train/loss")
    assert sorted((one.step, one.value) for one in losses) == [(1, 2), (2, 1), (3, 0), (4, -1)]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "tried"
    assert run.data.params["Questions.train"] == "('a', 'b')"
    assert run.data.metrics["eval/accuracy/cot/a"] == 0.5
    experiment = client.get_experiment_by_name("lmsi").experiment_id
    assert len(client.search_runs([experiment])) == 1
    files = {p.relative_to(tmp_path / "mlartifacts" / run_id / "artifacts").as_posix()
             for p in (tmp_path / "mlartifacts").rglob("*") if p.is_file()}  # fmt: skip
    assert files == {
        "tables/eval/scores/round_1.json",
        "texts/run/config/round_1.md",
        "images/vote/agreement/round_1.png",
    }


def _records(file):
    """Yields the records of an offline run, in LevelDB's log format behind a header."""
    data, at, record = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, last
            yield record
            record = b""


def test_wandb_has_offline_parts_of_one_run(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run_id = _in_two_processes(tmp_path, WandB())
    parts = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and all(part.name.endswith(run_id) for part in parts)
    import wandb

    wandb.teardown()  # its service writes the last records when it ends
    history = []
    for part in parts:
        (file,) = part.glob("*.wandb")
        for data in _records(file):
            record = wandb_internal_pb2.Record.FromString(data)
            items = record.history.item
            if record.HasField("history"):
                names = (one.key or "/".join(one.nested_key) for one in items)
                values = (json.loads(one.value_json) for one in items)
                history.append(dict(zip(names, values, strict=True)))
    losses = [(row["train/step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert losses == [(1, 2), (2, 1), (3, 0), (4, -1)]
    steps = [row["_step"] for row in history]
    assert steps == sorted(set(steps))  # W&B drops a step that does not rise
    (evaluation,) = (row for row in history if "eval/accuracy/cot/a" in row)
    assert evaluation["round"] == 1
    table = {name: value for row in history for name, value in row.items() if "scores" in name}
    assert (table["eval/scores/nrows"], table["eval/scores/ncols"]) == (2, 2)


def test_trackio_has_one_run_in_its_database(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    for module in [one for name, one in sys.modules.items() if name.startswith("trackio.")]:
        for name, folder in (("TRACKIO_DIR", "trackio"), ("MEDIA_DIR", "trackio/media")):
            if name in vars(module):
                monkeypatch.setattr(module, name, tmp_path / folder)
    run_id = _in_two_processes(tmp_path, Trackio(project="tried"))
    storage = sqlite_storage.SQLiteStorage
    assert storage.get_runs("tried") == [run_id]
    logs = storage.get_logs("tried", run_id)
    losses = [(row["step"], row["train/loss"]) for row in logs if "train/loss" in row]
    assert losses == [(1, 2), (2, 1), (3, 0), (4, -1)]
    assert [row["eval/accuracy/cot/a"] for row in logs if "eval/accuracy/cot/a" in row] == [0.5]
    names = {name for row in logs for name in row}
    assert names >= {"eval/scores", "run/config", "vote/agreement"}
