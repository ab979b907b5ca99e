"""New folders appear whole or not at all, and killed processes' are cleared away."""

import fcntl
import gzip
import os
import subprocess
import sys
import tracemalloc

import pytest

from lmsi_jax.errors import Damaged, LmsiError
from lmsi_jax.runtime import files
from lmsi_jax.runtime.files import (
    exclusive,
    file_sha256,
    new_folder,
    parse_json,
    read_bytes,
    read_data,
    read_json,
    read_record,
    system_errors,
    write_record,
)

_KILLED = """
import os, pathlib, signal, sys
from lmsi_jax.runtime.files import new_folder
with new_folder(pathlib.Path(sys.argv[1])) as made:
    (made / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_once_it_is_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_folder(out) as made:
        (made / "file").write_text("all")
        assert not out.exists()
    assert _names(out.parent) == ["out"] and _names(out) == ["file"]
    with pytest.raises(LmsiError, match="is there already"), new_folder(out):
        pass


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as made:
        (made / "file").write_text("half")
        raise KeyboardInterrupt
    assert _names(tmp_path) == []


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path):
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", _KILLED, str(out)], check=False)
    (left,) = _names(tmp_path)
    assert left.startswith(".out.") and left.endswith(".tmp")
    with pytest.raises(KeyError), new_folder(out) as alive, new_folder(out) as second:
        assert set(_names(tmp_path)) == {alive.name, second.name}
        raise KeyError
    assert _names(tmp_path) == []


def test_data_is_read_whole_and_gzip_is_known_by_its_first_bytes(tmp_path):
    for name, data in {"a.jsonl": b"{}\n", "b.jsonl": gzip.compress(b"{}\n") * 2}.items():
        (tmp_path / name).write_bytes(data)
        assert read_data(tmp_path / name).splitlines() == [b"{}"] * (1 + (name == "b.jsonl"))


def test_a_file_that_expands_without_end_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_DATA_BYTES", 1 << 20)
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(bytes(64 << 20), compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(LmsiError, match=r"bomb.jsonl.gz expands to more than 1 MiB; split"):
            read_data(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(LmsiError, match=r"large has more than 1 MiB; split"):
        read_data(tmp_path / "large")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for read in (read_data, read_json, read_bytes, file_sha256):
        with pytest.raises(LmsiError, match=r"pipe.json is no regular file; name a file"):
            read(tmp_path / "pipe.json")
    with pytest.raises(FileNotFoundError):
        read_data(tmp_path / "nothing")
    with pytest.raises(LmsiError, match="cannot read"):
        read_json(tmp_path / "nothing")


def test_a_json_document_has_a_largest_size_and_depth(monkeypatch):
    assert parse_json(b'{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
    monkeypatch.setattr(files, "_DOCUMENT_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="more than 1 MiB; write one object a line"):
        parse_json(" " * (1 << 20) + "1")


def test_a_record_knows_that_it_is_unaltered(tmp_path):
    path = tmp_path / "stage.json"
    value = {"name": "vote", "config": {"a": [1, 2.5, None, "é"]}, "seconds": 0.1}
    write_record(path, value)
    assert read_record(path) == value
    data = path.read_bytes()
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(Damaged, match="stage.json (is damaged|was altered); delete it and"):
            read_record(path)
    for other in (b"", b"[]", b"null", b"{}", b"7", data[:-1], data + b" ", b'{"schema": []}'):
        path.write_bytes(other)
        with pytest.raises(Damaged):
            read_record(path)
    path.unlink()
    with pytest.raises(LmsiError, match="cannot read"):
        read_record(path)


def test_a_record_of_another_version_says_so(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"schema": 5, "name": "vote"}')
    with pytest.raises(LmsiError, match=r"another version of lmsi_jax \(schema 5, here \d+\); use"):
        read_record(path)


def test_two_commands_do_not_work_in_one_folder(tmp_path):
    folder = tmp_path / "deep" / "run"
    refused = pytest.raises(LmsiError, match="another lmsi command works in .*run; wait until")
    with exclusive(folder), refused, exclusive(folder):
        pass
    assert not folder.exists()  # nothing was written
    with exclusive(folder):
        (folder / "file").touch()
    with exclusive(folder), exclusive("gs://bucket/run"):
        assert (folder / "file").exists()


def test_unfinished_files_of_killed_processes_are_removed_and_those_of_live_ones_are_not(tmp_path):
    for folder in (tmp_path, tmp_path / "round_1", tmp_path / "round_1" / "vote"):
        folder.mkdir(exist_ok=True)
        (folder / ".report.json.1234.tmp").write_text("half")
    (tmp_path / ".out.1234.tmp").mkdir()
    kept = {tmp_path / name for name in (".eval.json.5.tmp", ".hidden", "a.tmp")}
    for path in kept:
        path.write_text("whole")
    with (tmp_path / ".eval.json.5.tmp").open() as alive, exclusive(tmp_path / "none"):
        fcntl.flock(alive, fcntl.LOCK_EX)
        with exclusive(tmp_path):
            left = {path for path in tmp_path.rglob("*") if path.is_file()}
    # A stage's folder is cleared when the stage is finished.
    assert left == kept | {tmp_path / "round_1" / "vote" / ".report.json.1234.tmp"}
    assert (tmp_path / ".out.1234.tmp").is_dir()  # `new_folder` removes those


def test_a_file_is_locked_while_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    fsync = os.fsync

    def swept(handle):
        files.remove_abandoned_files(tmp_path)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", swept)
    files.write_bytes(tmp_path / "a", b"new")
    assert _names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "new"


class _OpError(Exception):
    """As TensorFlow's, which are no OSErrors."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("RESOURCE_EXHAUSTED: Failed to write [os_error_code='28']"), "No space left"),
        (
            ValueError("PERMISSION_DENIED: open() [os_error_code='13']"),
            "Permission denied; make it",
        ),
        (_OpError("/r/events.v2; No space left on device\n\tFailed to flush"), "No space left"),
        (OSError(30, "Read-only file system"), "Read-only file system; make it writable"),
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded; make room on the disk"),
    ],
)
def test_errors_of_a_disk_are_told_whoever_raises_them(error, reason):
    with pytest.raises(LmsiError, match=f"cannot write /r: {reason}"), system_errors("/r"):
        raise error


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError(28), LmsiError("no room left")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, system_errors("/r"):
        raise error
    assert raised.value is error
