"""The whole command in several processes that share a folder: the same run as in one."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest
from micro_run import contents

ROOT = pathlib.Path(__file__).resolve().parents[2]
_LMSI = "import sys\nfrom lmsi_jax.main import main\nsys.exit(main(sys.argv[1:]))\n"
# The disk of this process is full when it comes to the paths of the train questions.
_FULL = """
import errno, os
from lmsi_jax import files
replace = files._replace
def refuse(path, data):
    if path.parent.name == "sample":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    replace(path, data)
files._replace = refuse
"""


def _together(arguments, count, before=None):
    """Runs the command in `count` processes; `before` is code that one of them runs first."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = [f"--coordinator_address={address}", f"--process_count={count}"]
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", (before or {}).get(index, "") + _LMSI),
                *(*arguments, *flags, f"--process_index={index}"),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    outputs = [process.communicate(timeout=1200) for process in processes]
    return [process.returncode for process in processes], [error for _, error in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_leave_the_run_of_one(finished, words, tmp_path, count):
    codes, errors = _together(words("run", tmp_path / "run"), count)
    assert codes == [0] * count, errors
    assert contents(tmp_path / "run") == contents(finished)
    for index, error in enumerate(errors):
        assert f"round 1: sampling, process {index} of {count}" in error
        assert ("training" in error) == (index == 0)


@pytest.mark.slow
def test_a_failure_of_one_process_is_said_by_all_and_the_run_goes_on(finished, words, tmp_path):
    codes, errors = _together(words("run", tmp_path / "run"), 2, {1: _FULL})
    assert codes == [2, 2], errors
    zero, one = (" ".join(error.partition("lmsi: error: ")[2].split()) for error in errors)
    assert one.startswith("cannot write") and "make room on the disk" in one
    assert zero == f"process 1 failed: {one}"
    codes, errors = _together(words("run", tmp_path / "run"), 2)
    assert codes == [0, 0], errors
    assert contents(tmp_path / "run") == contents(finished)
