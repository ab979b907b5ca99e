"""SIGTERM: at once for a command, between two steps for a stage, never in the way afterwards."""

import signal
import threading

import pytest

from lmsi_jax.runtime.signals import Terminated, deferred_signals, signals_as_exceptions


@pytest.fixture(autouse=True)
def untouched():
    """A handler of the caller's, which must be back after each test."""
    heard: list[int] = []

    def mine(number, _frame):
        heard.append(number)

    before = signal.signal(signal.SIGTERM, mine)
    yield heard
    assert signal.getsignal(signal.SIGTERM) is mine
    signal.signal(signal.SIGTERM, before)


def _terminate():
    signal.raise_signal(signal.SIGTERM)


def test_a_command_leaves_at_once():
    steps = []
    with pytest.raises(Terminated), signals_as_exceptions():
        steps.append(1)
        _terminate()
        steps.append(2)
    assert steps == [1]


def test_a_stage_finishes_its_step_first():
    steps = []
    with pytest.raises(Terminated), signals_as_exceptions(), deferred_signals() as requested:
        for step in range(9):
            assert not requested()
            if step == 3:
                _terminate()
            steps.append(step)
            if requested():
                raise Terminated
    assert steps == [0, 1, 2, 3]


def test_a_request_that_nobody_read_is_not_lost():
    with pytest.raises(Terminated), deferred_signals():
        _terminate()


def test_another_error_goes_first():
    with pytest.raises(ValueError, match="the disk"), deferred_signals():
        _terminate()
        raise ValueError("the disk")


def test_the_callers_handler_is_back_afterwards(untouched):
    with signals_as_exceptions(), deferred_signals() as requested:
        assert not requested()
    _terminate()
    assert untouched == [signal.SIGTERM]


def test_off_the_main_thread_nothing_is_touched(untouched):
    seen = []

    def work():
        with signals_as_exceptions(), deferred_signals() as requested:
            seen.append((requested(), signal.getsignal(signal.SIGTERM).__name__))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, "mine")]


def test_no_broad_except_swallows_it():
    assert not issubclass(Terminated, Exception)
