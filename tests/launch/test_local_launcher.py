"""Several commands side by side: their output, their failures, the signals they get."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from launch import local
from launch.commands import Command

ROOT = pathlib.Path(__file__).resolve().parents[2]
_READY = """
import os, pathlib, signal, sys, time
def up():
    pathlib.Path("up").touch()
    time.sleep(100)
def when_up():
    while not pathlib.Path("up").exists():
        time.sleep(0.01)
"""
# Runs the commands that follow as a launcher does, each a text for `python -c`.
_TOGETHER = """
import sys
from launch import local
from launch.commands import Command
local._FOLLOW = 0.2
made = [Command(argv=(sys.executable, "-uc", text), why="") for text in sys.argv[2:]]
sys.exit(local.run_together(made, float(sys.argv[1])))
"""


def _start(*texts, grace=20.0, place=ROOT):
    return subprocess.Popen(
        [sys.executable, "-c", _TOGETHER, str(grace), *texts],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ended(launcher):
    out, err = launcher.communicate(timeout=120)
    return launcher.returncode, out, err


def test_lines_carry_the_number_of_their_process():
    code, out, err = _ended(
        _start("print('a'); print('b', end='')", "import sys; print('c', file=sys.stderr)")
    )
    assert (code, out, err) == (0, "[0] a\n[0] b\n", "[1] c\n")


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_when_one_fails_the_others_are_ended_and_its_code_is_returned(tmp_path, end, code):
    waits = _READY + "signal.signal(15, lambda *_: sys.exit('told')); up()"
    found, _, err = _ended(_start(waits, _READY + "when_up(); " + end, place=tmp_path))
    assert found == code
    assert err == "[0] told\n"


def test_who_does_not_listen_is_killed_after_the_grace(tmp_path):
    deaf = _READY + "signal.signal(15, signal.SIG_IGN); up()"
    fails = _READY + "when_up(); sys.exit(4)"
    assert _ended(_start(deaf, fails, grace=0.2, place=tmp_path)) == (4, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on_to_every_process(number):
    text = _READY + (
        f"signal.signal({int(number)}, lambda n, _: (print('got', n), sys.exit(128 + n)))\n"
        "print('up')\ntime.sleep(100)"
    )
    launcher = _start(text, text)
    up = {launcher.stdout.readline() for _ in range(2)}
    assert up == {"[0] up\n", "[1] up\n"}
    launcher.send_signal(number)
    code, out, _ = _ended(launcher)
    assert code == 128 + number
    assert sorted(out.splitlines()) == [f"[{index}] got {int(number)}" for index in range(2)]


_DRY = """\
# process 0 of 2
env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo \
PYTHONUNBUFFERED=1 python3 -m lmsi_jax.cli.main run quickstart '--gin.Run.name=a b' \
--coordinator_address=localhost:8476 --process_count=2 --process_index=0 &
# process 1 of 2
env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo \
PYTHONUNBUFFERED=1 python3 -m lmsi_jax.cli.main run quickstart '--gin.Run.name=a b' \
--coordinator_address=localhost:8476 --process_count=2 --process_index=1 &
wait
"""
_ARGV = ["--processes=2", "--devices=4", "--port=8476", "--python=python3"]
_WORDS = ["--", "run", "quickstart", "--gin.Run.name=a b"]


def test_the_dry_run_prints_what_would_run(capsys):
    assert local.main([*_ARGV, "--dry_run", *_WORDS]) == 0
    assert capsys.readouterr().out == _DRY


def test_what_runs_is_what_the_dry_run_prints(monkeypatch):
    ran = []
    monkeypatch.setattr(local, "run_together", lambda made, grace: ran.extend(made) or 0)
    assert local.main([*_ARGV, *_WORDS]) == 0
    assert local._shown(ran) == _DRY


def test_one_process_is_not_connected_and_a_port_is_found():
    (alone,) = local.commands(("run",), 1, 2, local.free_port(), "python3")
    assert alone.argv == ("python3", "-m", "lmsi_jax.cli.main", "run")
    assert 0 < local.free_port() < 65536


@pytest.mark.parametrize("start", [["launch/local.py"], ["-m", "launch.local"]])
def test_it_starts_as_a_file_and_as_a_module_and_errors_are_one_line(start):
    done = subprocess.run(
        [sys.executable, *start, "--processes=0", "--", "run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "launch: error: --processes and --devices are at least 1\n"


@pytest.mark.parametrize("name", ["local", "tpu_vm", "gke"])
def test_no_launcher_imports_jax_or_tensorflow(name):
    code = f"import sys, launch.{name}; print({{'jax', 'tensorflow', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_every_process_has_its_devices(capfd):
    code = (
        "import jax; print(jax.local_device_count(), jax.config.jax_cpu_collectives_implementation)"
    )
    (command,) = local.commands((), 1, 3, 0, sys.executable)
    made = Command(argv=(sys.executable, "-c", code), why="", env=command.env)
    assert made.run().stdout == "3 gloo\n"
