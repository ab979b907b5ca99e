"""Trackers of files: the same values in each, every step once, also after a kill."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from etils import epath

from lmsi_jax.config import JsonLines, TensorBoard, WandB
from lmsi_jax.errors import LmsiError
from lmsi_jax.integrations import tracker_services
from lmsi_jax.integrations.trackers import (
    Measurements,
    RunInfo,
    Table,
    Trackers,
    Writer,
    axis,
    markdown,
    png,
)

BOTH = (TensorBoard(), JsonLines())
TABLE = Table(columns=("task", "n"), rows=(("a|b", 3), ("c\nd", 4)))
PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def _open(folder, settings=BOTH):
    return Trackers(settings, RunInfo(name="run", folder=epath.Path(folder)))


def _scalars(**values):
    return lambda: Measurements(scalars={f"train/{name}": v for name, v in values.items()})


def _lines(folder):
    return [json.loads(line) for line in (folder / "tracker.jsonl").read_text().splitlines()]


def _events(folder):
    """All values of the event files of a folder as (step, value), read by TensorBoard's reader."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.errors import OutOfRangeError
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        reader = PyRecordReader_New(str(file))
        while True:
            try:
                reader.GetNext()  # compares checksums
            except OutOfRangeError:
                break
            event = Event.FromString(reader.record())
            found += [(event.step, value) for value in event.summary.value]
    return found


def _series(events, name):
    from tensorboard.util import tensor_util

    values = [(step, value.tensor) for step, value in events if value.tag == name]
    return [(step, tensor_util.make_ndarray(tensor).item()) for step, tensor in values]


def test_tensorboard_and_json_lines_have_the_same_scalars(tmp_path):
    trackers = _open(tmp_path)
    for step in (1, 2, 4):
        trackers.send("train", step, _scalars(loss=3 - step / 2, tokens=7.0))
    wanted = [(step, 3 - step / 2) for step in (1, 2, 4)]
    assert _series(_events(tmp_path), "train/loss") == wanted
    assert [(row["step"], row["train/loss"]) for row in _lines(tmp_path)] == wanted
    assert {row["axis"] for row in _lines(tmp_path)} == {"train/step"}


def test_a_restarted_process_sends_no_step_twice_and_misses_none(tmp_path):
    first = _open(tmp_path)
    for step in (1, 2, 3):
        first.send("train", step, _scalars(loss=float(step)))
    # Killed without `close`: the next process trains again from step 2 of its checkpoint.
    second = _open(tmp_path)
    for step in (2, 3, 4):
        second.send("train", step, _scalars(loss=float(step)))
    wanted = [(step, float(step)) for step in (1, 2, 3, 4)]
    assert _series(_events(tmp_path), "train/loss") == wanted
    assert [(row["step"], row["train/loss"]) for row in _lines(tmp_path)] == wanted


def test_what_all_trackers_have_is_not_measured(tmp_path):
    _open(tmp_path).send("vote", 1, _scalars(x=1.0))

    def measure():
        raise AssertionError("measured again")

    _open(tmp_path).send("vote", 1, measure)


def test_a_tracker_that_is_added_later_gets_what_is_sent_again(tmp_path):
    _open(tmp_path, (JsonLines(),)).send("vote", 1, _scalars(x=1.0))
    _open(tmp_path).send("vote", 1, _scalars(x=1.0))
    assert _series(_events(tmp_path), "train/x") == [(1, 1.0)]
    assert len(_lines(tmp_path)) == 1


def test_a_stage_of_other_settings_starts_new_runs_of_all_trackers(tmp_path):
    trackers = _open(tmp_path)
    assert not trackers.is_new("train/1", "first")
    trackers.send("train", 1, _scalars(loss=1.0))
    again = _open(tmp_path)
    assert not again.is_new("train/1", "first")
    assert again.is_new("train/1", "second")
    again.send("train", 1, _scalars(loss=2.0))
    assert _series(_events(tmp_path), "train/loss") == [(1, 2.0)]
    assert [row["train/loss"] for row in _lines(tmp_path)] == [2.0]


def test_an_altered_record_is_named_and_everything_is_sent_anew(tmp_path, caplog):
    _open(tmp_path).send("train", 1, _scalars(loss=1.0))
    (tmp_path / "trackers.json").write_bytes(b"{}\n")
    _open(tmp_path).send("train", 1, _scalars(loss=1.0))
    assert "trackers.json was altered" in caplog.text
    assert len(_lines(tmp_path)) == len(_series(_events(tmp_path), "train/loss")) == 1


def test_tables_texts_and_images(tmp_path):
    measured = Measurements(
        tables={"eval/scores": TABLE},
        texts={"run/config": "**x**"},
        images={"vote/agreement": PIXELS},
    )
    _open(tmp_path).send("eval", 2, lambda: measured)
    table, text, image = _lines(tmp_path)
    assert table == {
        "step": 2,
        "table": "eval/scores",
        "columns": ["task", "n"],
        "rows": [["a|b", 3], ["c\nd", 4]],
    }
    assert text == {"step": 2, "text": "run/config", "value": "**x**"}
    assert base64.b64decode(image["png"]) == png(PIXELS)
    events = _events(tmp_path)
    shown = {value.tag: value.tensor.string_val for _, value in events if not value.image.width}
    assert shown["run/config"] == [b"**x**"]
    shown = shown["eval/scores"][0].decode()
    assert shown == markdown(TABLE)
    assert shown.splitlines()[2:] == ["| a\\|b | 3 |", "| c d | 4 |"]
    ((step, image),) = ((step, value.image) for step, value in events if value.image.width)
    assert (step, image.width, image.height) == (2, 6, 4)
    assert image.encoded_image_string == png(PIXELS)


def test_an_image_is_a_png_file_of_its_pixels():
    data = png(PIXELS)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    file, chunks = io.BytesIO(data[8:]), {}
    while head := file.read(8):
        body = file.read(int.from_bytes(head[:4], "big"))
        assert zlib.crc32(head[4:] + body) == int.from_bytes(file.read(4), "big")
        chunks[head[4:]] = body
    assert list(chunks[b"IHDR"][:8]) == [0, 0, 0, 6, 0, 0, 0, 4]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(4, 19)
    assert (lines[:, 0] == 0).all() and (lines[:, 1:].reshape(4, 6, 3) == PIXELS).all()


def test_a_tracker_that_fails_ends_nothing_and_gets_it_at_the_next_start(
    tmp_path, monkeypatch, capsys
):
    class Down(Writer):
        run_id = "abc"

        def scalars(self, step, values):
            raise ConnectionError("no route to host")

    monkeypatch.setattr(tracker_services, "check_installed", lambda one: None)
    monkeypatch.setattr(tracker_services, "open_service", lambda *_: Down())
    trackers = _open(tmp_path, (WandB(), JsonLines()))
    for step in (1, 2):
        trackers.send("train", step, _scalars(loss=1.0))
    assert capsys.readouterr().out.count("tracker WandB failed and is left out") == 1
    assert [row["step"] for row in _lines(tmp_path)] == [1, 2]
    got = []
    monkeypatch.setattr(Down, "scalars", lambda self, step, values: got.append(step))
    again = _open(tmp_path, (WandB(), JsonLines()))
    for step in (1, 2):
        again.send("train", step, _scalars(loss=1.0))
    assert got == [1, 2] and len(_lines(tmp_path)) == 2


def test_a_service_that_is_not_installed_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_services.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LmsiError, match=r"wandb is not installed: pip install 'lmsi_jax\[trackers"):
        _open(tmp_path, (WandB(),))


def test_without_trackers_nothing_is_written(tmp_path):
    trackers = _open(tmp_path, ())
    assert not trackers.is_new("train/1", "x")
    trackers.send("train", 1, _scalars(loss=1.0))
    trackers.close()
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_none_are_null_in_json_lines(tmp_path):
    _open(tmp_path).send("train", 1, _scalars(loss=float("nan")))
    assert _lines(tmp_path)[0]["train/loss"] is None


def test_files_on_a_bucket_grow_too(bucket):
    folder = epath.Path("gs://bucket/run")
    for step in (1, 2):
        _open(folder, (JsonLines(),)).send("train", step, _scalars(loss=1.0))
    assert len(_lines(bucket.root / "run")) == 2


def test_only_trainings_count_steps():
    assert [axis(name) for name in ("train/loss", "pretrain/loss", "eval/accuracy/cot/x")] == [
        *("train/step", "pretrain/step", "round")
    ]
