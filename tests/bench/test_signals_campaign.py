"""The campaign of signals: what it draws, and which answers of a command it calls wrong."""

import json
import pathlib
import random
import subprocess
import sys

import pytest

from bench import signals
from bench.signals import Disturbance


def test_every_kind_phase_and_process_is_drawn():
    drawn = [signals.draw_disturbance(random.Random(seed), 2) for seed in range(500)]
    assert {one.kind for one in drawn} == set(signals.KINDS)
    sent = [one for one in drawn if one.kind in signals.KINDS[:4]]
    assert {one.phase for one in sent} == set(signals.PHASES)
    assert {one.victim for one in drawn} == {0, 1}
    assert min(one.share for one in drawn) < 0.05 and max(one.share for one in drawn) > 0.95


def _problems(kind, code, said="", answer="interrupted", seconds=0.4, **more):
    disturbance = Disturbance(kind, "working", 0.5, 1.0, 0)
    result = {"code": code, "reason": "", "answer": answer, "seconds": seconds, "done": False}
    result |= more
    if kind in signals.KINDS[4:]:
        del result["seconds"]
    return signals.problems(disturbance, result, said)


@pytest.mark.parametrize(
    ("kind", "code"),
    [("Ctrl-C", 130), ("Ctrl-C twice", 130), ("SIGTERM", 143), ("SIGHUP", 143), ("head", 0)],
)
def test_the_documented_exit_code_is_right_and_all_others_are_wrong(kind, code):
    assert _problems(kind, [code]) == []
    assert _problems(kind, [0]) == []  # the command had finished
    for other in {1, 2, -11, 129, 130, 143, -15} - {code}:
        assert _problems(kind, [other]) == [f"process 0 ends with {other}, not {sorted({0, code})}"]


def test_silence_a_late_answer_and_a_crash_are_wrong():
    assert _problems("Ctrl-C", [130], answer="") == ["it says nothing of the signal"]
    assert _problems("SIGTERM", [143], seconds=2.5) == ["the first line comes after 2.5 s"]
    assert _problems("Ctrl-C twice", [130], second=3.0) == ["the second Ctrl-C takes 3.0 s"]
    assert _problems("Ctrl-C", [130], "a\nTraceback (most recent call last):\nb") == [
        "it writes 'Traceback (most recent call last):'"
    ]
    assert _problems("Ctrl-C", [130], reason="it hangs") == ["it hangs"]
    assert _problems("Ctrl-C", [-2], answer="", done=True) == []  # nobody was there to answer
    assert len(_problems("Ctrl-C", [-2], answer="")) == 2


def test_of_several_processes_the_others_may_end_because_one_is_gone():
    assert _problems("SIGTERM", [143, 75]) == []
    assert _problems("SIGTERM", [75, 143]) == ["process 0 ends with 75, not [0, 143]"]


def test_the_table_counts_by_kind():
    case = {"kind": "Ctrl-C", "seconds": 0.5, "finished": False, "problems": []}
    rows = signals.table({"a": [case, case | {"seconds": 1.5}], "b": [case | {"kind": "head"}]})
    assert rows[2] == "| Ctrl-C | 2 | 2 | 1.5 |  | 0 |"
    assert rows[-1] == "| head | 1 | 1 | 0.5 |  | 0 |"


@pytest.mark.slow
def test_an_import_that_is_disturbed_keeps_every_promise(tmp_path):
    pytest.importorskip("safetensors", reason="wants the extra [hf]")
    command = [sys.executable, "-m", "bench.signals", "--signals=2", "--scenarios=import"]
    done = subprocess.run(
        [*command, f"--scratch={tmp_path}"],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) == 2 and not any(case["problems"] for case in cases)
