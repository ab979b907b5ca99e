"""Shards and stages outlive kills, damage and changed configurations."""

import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime import files
from lmsi_jax.runtime.files import read_json, write_json
from lmsi_jax.runtime.store import ShardStore, Stage, shard_names

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_FINITE = _SCALARS.filter(lambda value: value not in (float("inf"), float("-inf")))
_ROWS = st.lists(
    st.dictionaries(st.text(), _FINITE | st.lists(_FINITE, max_size=3), max_size=4), max_size=5
)


@given(rows=_ROWS)
def test_rows_come_back_equal(tmp_path_factory, rows):
    store = ShardStore(tmp_path_factory.mktemp("store"))
    store.write("a", rows)
    assert store.read("a") == rows
    assert store.missing(["a"]) == ()


def test_a_shard_is_plain_gzip_json_lines(tmp_path):
    store = ShardStore(tmp_path)
    store.write("a", [{"uid": "q1", "text": "sechs\n"}, {"uid": "q2"}])
    lines = gzip.decompress(store.path("a").read_bytes()).splitlines()
    assert [json.loads(line)["uid"] for line in lines] == ["q1", "q2"]


def test_equal_rows_give_equal_bytes_at_any_time_and_in_any_key_order(tmp_path, monkeypatch):
    first, second = ShardStore(tmp_path / "1"), ShardStore(tmp_path / "2")
    first.write("a", [{"uid": "q", "text": "x"}])
    monkeypatch.setattr(time, "time", lambda: 2e9)
    second.write("a", [{"text": "x", "uid": "q"}])
    assert first.path("a").read_bytes() == second.path("a").read_bytes()


def test_names_missing_and_what_is_read_agree(tmp_path):
    store = ShardStore(tmp_path / "absent")
    assert store.names() == () and store.missing(["a"]) == ("a",)
    names = shard_names(4)
    for name in (names[2], names[0]):
        store.write(name, [{"shard": name}])
    assert store.names() == (names[0], names[2])
    assert store.missing(names) == (names[1], names[3])
    assert [store.read(name) for name in store.names()] == [[{"shard": n}] for n in store.names()]
    with pytest.raises(LmsiError, match="00001-of-00004.*missing; repeat"):
        store.read(names[1])


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "header", "check", "no check"])
def test_a_damaged_shard_is_named_dropped_and_counted_as_missing(tmp_path, caplog, damage):
    store = ShardStore(tmp_path)
    store.write("good", [{"uid": "q"}])
    store.write("bad", [{"uid": "q", "text": "The answer is 9."}])
    _damage(store.path("bad"), tmp_path / "bad.check.json", damage)
    assert store.missing(["bad", "good"]) == ("bad",)
    if damage != "no check":  # without it the shard never counted as complete
        assert "bad.jsonl.gz was truncated or altered" in caplog.text
        assert not store.path("bad").exists()
    store.write("bad", [{"uid": "again"}])
    assert store.read("bad") == [{"uid": "again"}]


def _damage(shard: pathlib.Path, check: pathlib.Path, damage: str) -> None:
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    if damage == "header":
        data[4] ^= 1  # the date in the header, which gzip itself does not check
    shard.write_bytes({"truncate": data[:-3], "empty": b""}.get(damage, bytes(data)))
    if damage == "check":
        check.write_text("{")
    if damage == "no check":
        check.unlink()


def test_reading_a_damaged_shard_is_an_error_not_data(tmp_path):
    store = ShardStore(tmp_path)
    store.write("a", [{"uid": "q"}])
    store.path("a").write_bytes(gzip.compress(b'{"uid": "forged"}\n'))
    with pytest.raises(LmsiError, match="a.jsonl.gz was truncated or altered"):
        store.read("a")
    assert store.names() == ()


_WRITER = """
import sys
from lmsi_jax.runtime.store import ShardStore, shard_names
store = ShardStore(sys.argv[1])
for name in store.missing(shard_names(400)):
    rows = ({"uid": f"{name}/{i}", "text": "The answer is 9. " * 20} for i in range(200))
    store.write(name, rows)
"""


def test_after_a_sigkill_each_shard_is_whole_or_missing_and_a_restart_gives_the_same_bytes(
    tmp_path,
):
    killed = ShardStore(tmp_path / "killed")
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(killed.directory)])
    while len(killed.names()) < 5:
        assert process.poll() is None, "the writer ended before it was killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    names = shard_names(400)[: len(killed.names()) + 2]
    done = killed.names()
    assert set(killed.missing(names)) == set(names) - set(done)
    for name in done:
        assert len(killed.read(name)) == 200

    whole = ShardStore(tmp_path / "whole")
    for store in (killed, whole):
        for name in store.missing(names):
            rows = ({"uid": f"{name}/{i}", "text": "The answer is 9. " * 20} for i in range(200))
            store.write(name, rows)
    for name in names:
        assert killed.path(name).read_bytes() == whole.path(name).read_bytes()


@contextlib.contextmanager
def _files_of_at_most(size: int):
    """The system's own refusal in the middle of a write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_half_written_and_names_the_remedy(tmp_path):
    store = ShardStore(tmp_path / "store")
    rows = [
        {"uid": str(index), "text": hashlib.sha256(bytes([index])).hexdigest()}
        for index in range(200)
    ]
    with _files_of_at_most(1000), pytest.raises(LmsiError, match=r"store/a\.jsonl\.gz.*make room"):
        store.write("a", rows)
    assert os.listdir(store.directory) == []
    store.write("a", rows)
    assert store.read("a") == rows


def test_a_failed_rewrite_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with _files_of_at_most(10), pytest.raises(LmsiError):
        write_json(tmp_path / "x.json", {"a": "0123456789"})
    assert read_json(tmp_path / "x.json") == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_read_only_folder_is_named_with_the_remedy(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    # Root may write everywhere, so the refusal is put where the system would raise it.
    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(LmsiError, match=r"cannot write .*Permission denied; make it writable"):
        ShardStore(tmp_path / "store").write("a", [])


def test_a_path_through_a_file_is_an_error_with_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LmsiError, match=r"file/store.*another output_dir"):
        ShardStore(tmp_path / "file" / "store").write("a", [])


def test_a_shard_name_cannot_leave_the_folder(tmp_path):
    with pytest.raises(ValueError, match="no shard name"):
        ShardStore(tmp_path).write("../a", [])


def test_damaged_and_absent_json_are_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(LmsiError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")
    with pytest.raises(LmsiError, match=r"cannot read .*y\.json"):
        read_json(tmp_path / "y.json")


# --- stages ---------------------------------------------------------------------------------------

_CONFIG = {"Sampling": {"temperature": 0.7, "num_samples": 32}, "tasks": ("a", "b"), "Run.seed": 0}


def _stage(folder, **changes) -> Stage:
    config = changes.pop("config", _CONFIG)
    return Stage(folder / "sample", "sample", config, changes.pop("inputs", {"model": "ab" * 32}))


def test_a_stage_is_new_then_resumed_then_done(tmp_path):
    assert _stage(tmp_path).begin() == "new"
    stage = _stage(tmp_path)
    assert stage.begin() == "resume"
    ShardStore(stage.directory).write("a", [{"uid": "q"}])
    (stage.directory / ".a.jsonl.gz.123.tmp").write_bytes(b"of a killed process")
    stage.finish()
    assert _stage(tmp_path).begin() == "done"
    record = read_json(stage.directory / "stage.json")
    assert sorted(record["outputs"]) == ["a.check.json", "a.jsonl.gz"]
    data = (tmp_path / "sample" / "a.jsonl.gz").read_bytes()
    assert record["outputs"]["a.jsonl.gz"] == hashlib.sha256(data).hexdigest()
    assert record["fingerprint"] == stage.fingerprint
    assert record["seconds"] >= 0 and record["schema"] >= 1
    assert sorted(os.listdir(tmp_path / "sample")) == [
        *("a.check.json", "a.jsonl.gz", "config.json", "stage.json")
    ]


def test_outputs_may_be_chosen_and_may_be_folders(tmp_path):
    stage = _stage(tmp_path)
    stage.begin()
    for name in ("model/step/x", "model/y", "log"):
        files.write_bytes(stage.directory / name, name.encode())
    stage.finish([stage.directory / "model"])
    outputs = read_json(stage.directory / "stage.json")["outputs"]
    assert sorted(outputs) == ["model/step/x", "model/y"]


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_parameter_is_named_with_both_values_and_the_remedy(tmp_path, finished):
    stage = _stage(tmp_path)
    stage.begin()
    if finished:
        stage.finish()
    changed = {
        "Sampling": {"temperature": 0.9, "num_samples": 32},
        "tasks": ["a", "b"],
        "Run.rounds": 2,
    }
    with pytest.raises(LmsiError) as error:
        _stage(tmp_path, config=changed).begin()
    text = str(error.value)
    assert "Sampling.temperature was 0.7, is now 0.9" in text
    assert "Run.seed was 0, is now not set" in text
    assert "Run.rounds was not set, is now 2" in text
    assert "paths" not in text and "tasks" not in text
    assert f"another output_dir, or delete {tmp_path / 'sample'}" in text
    assert len(text.splitlines()) == 2


def test_changed_inputs_are_named(tmp_path):
    _stage(tmp_path).begin()
    with pytest.raises(LmsiError, match="input model was 'abababababab', is now 'cdcdcdcdcdcd'"):
        _stage(tmp_path, inputs={"model": "cd" * 32}).begin()


def test_an_altered_output_is_dropped_and_its_stage_taken_up_again(tmp_path, caplog):
    stage = _stage(tmp_path)
    stage.begin()
    store = ShardStore(stage.directory)
    store.write("a", [{"uid": "q"}])
    store.write("b", [{"uid": "r"}])
    stage.finish()
    store.path("a").write_bytes(b"x")
    store.path("b").unlink()
    assert _stage(tmp_path).begin() == "resume"
    assert "a.jsonl.gz was altered" in caplog.text and "b.jsonl.gz is missing" in caplog.text
    assert store.missing(["a", "b"]) == ("a", "b")
    assert _stage(tmp_path).begin() == "resume"


def test_the_fingerprint_depends_on_name_configuration_and_inputs_alone(tmp_path):
    stage = _stage(tmp_path)
    others = [
        Stage(tmp_path, "vote", _CONFIG, {"model": "ab" * 32}),
        Stage(tmp_path, "sample", {**_CONFIG, "Run.seed": 1}, {"model": "ab" * 32}),
        Stage(tmp_path, "sample", _CONFIG, {"model": "cd" * 32}),
    ]
    assert len({stage.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert _stage(tmp_path / "elsewhere").fingerprint == stage.fingerprint


def test_a_number_that_is_none_is_named_by_its_row(tmp_path):
    store = ShardStore(tmp_path)
    with pytest.raises(LmsiError, match=r"a.jsonl.gz: row 2 \(question 'q2'\) has a number"):
        store.write("a", [{"uid": "q1", "x": 1.0}, {"uid": "q2", "x": float("nan")}])
    with pytest.raises(LmsiError, match="report.json would have a number that is NaN or infinite"):
        write_json(tmp_path / "report.json", {"x": [float("inf")]})
    assert list(tmp_path.iterdir()) == []
