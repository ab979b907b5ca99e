"""A run that launch/local.py starts in two processes of four devices is the run of one process."""

import pathlib
import subprocess
import sys

import pytest
from micro_run import contents

ROOT = pathlib.Path(__file__).resolve().parents[2]
_MESH = {"Decoding.data": 2, "Decoding.model": 2, "Training.data": 2, "Training.model": 2}


def _launched(processes, words):
    flags = [f"--processes={processes}", "--devices=4"]
    done = subprocess.run(
        [sys.executable, "launch/local.py", *flags, "--", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_processes_of_four_devices_leave_the_run_of_one(words, tmp_path):
    alone = _launched(1, words("run", tmp_path / "one", _MESH))
    both = _launched(2, words("run", tmp_path / "two", _MESH))
    assert "[0] " in alone and "[1] " not in alone
    assert "[1] " in both
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
