"""Training programs that are killed, by SIGKILL and SIGTERM, and end with the same bytes."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import one_run
import pytest

from lmsi_jax.training.checkpoints import Checkpoints

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run leaves."""
    folder = tmp_path_factory.mktemp("whole")
    one_run.run(folder)
    return one_run.outcome(folder)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Where programs keep what they compiled: the second one starts sooner."""
    return str(tmp_path_factory.mktemp("compiled"))


def _start(folder, compiled, *arguments):
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parents[1]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, str(HERE / "one_run.py"), str(folder), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def _signalled(program, sent, after, delay=0.0):
    """Sends a signal some steps after the first; returns (exit code, last step begun, stderr)."""
    steps = []
    for line in program.stdout:
        steps.append(int(line.split()[1]))
        if len(steps) == after:
            time.sleep(delay)
            program.send_signal(sent)
    error = program.stderr.read()
    return program.wait(600), (steps or [0])[-1], error


def _killed_repeatedly(folder, compiled, seed, most):
    """Runs and kills at random moments; returns how often, at last it is done or to be ended."""
    draw = random.Random(seed)
    for kills in range(most):
        program = _start(folder, compiled)
        after, delay = draw.randint(1, 25), draw.uniform(0.0, 0.05)
        code, _, error = _signalled(program, signal.SIGKILL, after, delay)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, error[-2000:]
    return most


def test_a_run_that_was_killed_once_ends_with_the_same_bytes(whole, compiled, tmp_path):
    assert _killed_repeatedly(tmp_path, compiled, seed=1, most=1) == 1
    assert 0 < Checkpoints(tmp_path).latest < one_run.SETTINGS["steps"]
    one_run.run(tmp_path)
    assert one_run.outcome(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    whole, compiled, tmp_path, seed
):
    assert _killed_repeatedly(tmp_path, compiled, seed, most=12) >= 3
    one_run.run(tmp_path)
    assert one_run.outcome(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 7, 13])
def test_sigterm_saves_the_very_step_and_the_run_goes_on(whole, compiled, tmp_path, after):
    code, step, error = _signalled(_start(tmp_path, compiled), signal.SIGTERM, after)
    assert code == 143, error[-2000:]
    assert Checkpoints(tmp_path, None).latest == step >= after
    one_run.run(tmp_path)
    assert one_run.outcome(tmp_path) == whole


@pytest.mark.slow
def test_a_save_that_outlasts_the_deadline_is_left_behind(whole, compiled, tmp_path):
    code, _, error = _signalled(_start(tmp_path, compiled, 2), signal.SIGTERM, 8)
    assert code == 143 and "not all was saved within 2 s" in error
    one_run.run(tmp_path)
    assert one_run.outcome(tmp_path) == whole
