"""New folders appear whole or not at all, and killed processes' are cleared away."""

import subprocess
import sys

import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime.files import new_folder

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
