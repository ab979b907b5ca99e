"""Two processes that train on one mesh: killed, told to leave, taken up by one process, and back.

One process of four devices and two of two each do the same sums in the same order here, as the axes
that cross the processes have two places: so all bytes are compared.
"""

import itertools
import random
import re
import signal

import one_run
import pytest
import shared_run

from lmsi_jax.training.checkpoints import Checkpoints

STEPS = one_run.SETTINGS["steps"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Where programs keep what they compiled: the second one starts sooner."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled):
    """What one uninterrupted process with four devices leaves."""
    folder = tmp_path_factory.mktemp("whole")
    codes, errors = shared_run.ended(shared_run.start(folder, 1, compiled=compiled))
    assert codes == [0], errors
    return one_run.outcome(folder)


def _finish(folder, count, compiled):
    codes, errors = shared_run.ended(shared_run.start(folder, count, compiled=compiled))
    assert codes == [0] * count, errors
    return one_run.outcome(folder)


@pytest.mark.parametrize("counts", [(2,), (2, 1)], ids=str)
def test_killed_again_and_again_and_resumed_by_either_number_it_ends_with_the_same_bytes(
    whole, compiled, tmp_path, counts
):
    draw = random.Random(len(counts))
    numbers = itertools.cycle(counts)
    for _ in range(3):
        programs = shared_run.start(tmp_path, next(numbers), compiled=compiled)
        codes, errors = shared_run.signalled(programs, signal.SIGKILL, draw.randint(5, 20))
        assert codes == [-signal.SIGKILL] * len(programs), errors
    assert 0 < Checkpoints(tmp_path).latest < STEPS
    assert _finish(tmp_path, next(numbers), compiled) == whole


@pytest.mark.parametrize("to", [[0], [1], [0, 1]], ids=str)
def test_sigterm_to_any_of_them_lets_all_save_one_step_and_leave(whole, compiled, tmp_path, to):
    programs = shared_run.start(tmp_path, 2, compiled=compiled)
    codes, errors = shared_run.signalled(programs, signal.SIGTERM, 8, to)
    assert codes == [143, 143], errors
    assert 8 <= Checkpoints(tmp_path, None).latest < STEPS
    assert _finish(tmp_path, 2, compiled) == whole


def test_processes_that_read_different_rows_refuse_to_train(compiled, tmp_path):
    programs = shared_run.start(tmp_path, 2, {"disagree": True}, compiled)
    codes, errors = shared_run.ended(programs)
    assert codes == [2, 2]
    assert all("have read different examples" in error for error in errors)
    assert Checkpoints(tmp_path).latest is None


def test_one_that_fails_is_followed_by_the_other_which_waits_for_it(compiled, tmp_path):
    """The other one waits in the midst of a step, where no signal is heard."""
    programs = shared_run.start(tmp_path, 2, {"fail": True}, compiled)
    codes, errors = shared_run.ended(programs)
    assert codes == [2, 2], errors
    assert "error: the disk is full" in errors[1]
    assert re.search("process 1 failed: the disk is full", errors[0])
