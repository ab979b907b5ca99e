"""New folders appear whole or not at all, and killed processes' are cleared away."""

import gzip
import os
import subprocess
import sys
import tracemalloc

import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime import files
from lmsi_jax.runtime.files import new_folder, parse_json, read_data, read_json

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
    for read in (read_data, read_json):
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
