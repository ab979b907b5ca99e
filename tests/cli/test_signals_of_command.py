"""Ctrl-C, SIGTERM and SIGHUP at any moment: a line that says so, an exit code, no traceback."""

import signal
import subprocess
import sys
import time

import pytest

_SCRIPT = """
import hashlib, importlib, signal, sys, threading, time, types
import lmsi_jax
from lmsi_jax.runtime import progress

def work(*_args):
    # Only once the work goes on.
    threading.Timer(0.3, print, ("working",), {"flush": True}).start()
    {work}

configurables = types.ModuleType("lmsi_jax.config.configurables")
configurables.load_run = lambda: "the run"
rounds = types.ModuleType("lmsi_jax.pipeline.rounds")
rounds.execute = work
for module in (configurables, rounds):
    sys.modules[module.__name__] = module
from lmsi_jax.cli import run_command
sys.argv[1:] = ["run", "empty.gin"]
sys.exit(run_command())
"""
# No signal interrupts this in Python's eyes: it is one call, without the lock of the interpreter.
_LONG = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
_LOOP = "\n    while True: time.sleep(0.01)"


@pytest.fixture(autouse=True)
def _interrupts():
    """A shell starts its background jobs with SIGINT ignored, and the suite may be one of them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start(tmp_path):
    """Starts the command with given work in a stage; returns the process once that has begun."""
    (tmp_path / "empty.gin").write_text("# nothing\n")
    processes = []

    def start(work, before=()):
        process = subprocess.Popen(
            [*before, sys.executable, "-c", _SCRIPT.replace("{work}", work)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "working\n", process.stderr.read()
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


_GOES_ON = "the same command continues where it stopped\n"


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, f"\ninterrupted; {_GOES_ON}"),
        (signal.SIGTERM, 143, f"terminated; {_GOES_ON}"),
        (signal.SIGHUP, 143, f"terminated; {_GOES_ON}"),
    ],
)
def test_a_signal_ends_the_command_in_one_line(start, number, code, line):
    process = start(_LOOP)
    process.send_signal(number)
    # A busy machine takes over two seconds, and then another line says what is being finished.
    error = process.communicate(timeout=60)[1]
    assert error.endswith(line) and "Traceback" not in error and process.returncode == code


def test_a_library_that_fails_because_of_the_signal_is_not_blamed(start):
    work = (
        "\n    try:\n        while True: time.sleep(0.01)"
        "\n    except BaseException: raise ImportError('initialization failed')"
    )
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = start(work)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        assert error.endswith(_GOES_ON) and "Traceback" not in error
        assert process.returncode == code


def test_threads_that_fail_at_the_end_are_silent(start):
    work = """
    def fail():
        event.wait()
        raise RuntimeError("cannot schedule new futures after shutdown")
    event = threading.Event()
    threading.Thread(target=fail).start()
    try:
        while True: time.sleep(0.01)
    finally:
        event.set()
        time.sleep(0.2)
"""
    process = start(work)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert error.endswith(f"\ninterrupted; {_GOES_ON}")
    assert "Traceback" not in error and "futures" not in error


def test_work_that_no_signal_reaches_is_named_and_a_second_interrupt_ends_it(start):
    process = start(f"with progress.Progress('training'): {_LONG}")
    process.send_signal(signal.SIGINT)
    line = process.stderr.readline()
    assert line == (
        "interrupted: waiting for training; Ctrl-C ends it at once, what is finished is kept\n"
    )
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == f"interrupted; {_GOES_ON}"
    assert process.returncode == 130


def test_a_terminated_stage_that_takes_its_time_says_so(start):
    process = start(_LONG)
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline().startswith("terminated: waiting for the work at hand; Ctrl-C")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == f"interrupted; {_GOES_ON}"


def test_a_launcher_that_passes_the_signal_on_sends_no_second_one(start):
    process = start(
        "\n    try:\n        while True: time.sleep(0.01)\n    finally: time.sleep(0.1)"
    )
    for _ in range(3):
        process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert error.endswith(f"\ninterrupted; {_GOES_ON}")
    assert "Traceback" not in error and "futures" not in error
    assert process.returncode == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_library_swallows_is_raised_again(start, number, code):
    process = start(
        "\n    try:\n        while True: time.sleep(0.01)"
        "\n    except BaseException: pass\n    while True: time.sleep(0.01)"
    )
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert "waiting for the work at hand" in error and error.endswith(_GOES_ON)
    assert process.returncode == code and "Traceback" not in error


def test_a_signal_within_a_callback_is_raised_again_without_a_traceback(start):
    """Python can only print what a destructor raises."""
    work = """
    class Kept:
        def __del__(self):
            while True: time.sleep(0.01)
    Kept()
    while True: time.sleep(0.01)
"""
    process = start(work)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert error.endswith(f"\ninterrupted; {_GOES_ON}") and process.returncode == 130
    assert "Traceback" not in error and "ignored" not in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_the_end_is_silent(start, number):
    """Exit functions of libraries would print the exception that interrupts them."""
    process = start("\n    import atexit\n    atexit.register(time.sleep, 60)")
    process.send_signal(number)
    assert process.communicate(timeout=30)[1] == "" and process.returncode == 0


def test_two_interrupts_in_quick_succession_end_the_command_too(start):
    """They may have waited for a library that keeps the interpreter's lock."""
    work = "\n    try:\n        while True: time.sleep(0.01)"
    process = start(f"{work}\n    finally:\n        {_LONG}")
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)  # so that the system keeps both
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].endswith(_GOES_ON)
    assert process.returncode == 130


def test_nohup_and_background_are_respected(start):
    process = start("\n    time.sleep(1.0)", before=["nohup"])
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60)[1].replace("nohup: ignoring input\n", "") == ""
    assert process.returncode == 0


def test_an_interrupt_while_the_command_starts_has_no_traceback(tmp_path):
    (tmp_path / "empty.gin").write_text("# nothing\n")
    words = [
        sys.executable,
        "-c",
        "import lmsi_jax.cli as c, sys; print(flush=True); "
        "sys.argv[1:] = ['run', 'empty.gin', '--dry_run']; sys.exit(c.run_command())",
    ]
    for delay in (0.05, 0.1, 0.3):  # not at once: the script itself has statements before the call
        process = subprocess.Popen(
            words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
        # Python restores the system's handler once nothing but its own end is left to do.
        ends = (130, 2, -signal.SIGINT) if error.startswith("lmsi: error: ") else (130, 2)
        assert "Traceback" not in error and process.returncode in ends
