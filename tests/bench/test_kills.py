"""The kill campaign: what it draws, counts and compares, and two real kills."""

import fcntl
import json
import pathlib
import random
import subprocess
import sys

import pytest

from bench import kills
from bench.kill_scenarios import digests

_LOG = """\
100 mkdir 1 /case/run
103 write 1 /case/run/.a.tmp
110 fsync 1 /case/run/.a.tmp
110 rename 1 /case/run/a
110 killed after rename 1 /case/run/a
"""


def test_a_log_is_read_as_counts_and_time_and_its_last_line():
    profile, last = kills.read_log(_LOG)
    assert profile.counts == {"rename": 1, "write": 1, "unlink": 0, "mkdir": 1, "fsync": 1}
    assert profile.milliseconds == 10
    assert last == "killed after rename 1 /case/run/a"
    assert kills.read_log("") == (kills.Profile(dict.fromkeys(profile.counts, 0), 0), "")


def test_every_kind_process_and_moment_is_drawn_and_each_within_what_happens():
    counts = {"rename": 4, "write": 7, "unlink": 0, "mkdir": 5, "fsync": 9}
    profiles = [kills.Profile(counts, 1000), kills.Profile(counts | {"mkdir": 0}, 500)]
    drawn = [kills.draw_kill(random.Random(seed), profiles) for seed in range(2000)]
    assert {one.kind for one in drawn} == {"time", "rename", "write", "mkdir", "fsync"}
    assert {one.kind for one in drawn if one.victim} == {"time", "rename", "write", "fsync"}
    assert {one.number for one in drawn if one.kind == "rename"} == {1, 2, 3, 4}
    assert {one.moment for one in drawn if one.kind == "write"} == {"before", "half of", "after"}
    assert "half of" not in {one.moment for one in drawn if one.kind != "write"}
    times = [one.number for one in drawn if one.kind == "time" and not one.victim]
    assert 0 <= min(times) < 50 and 950 < max(times) < 1000
    assert {one.everyone for one in drawn} == {True, False}


def test_after_a_kill_the_next_one_is_drawn_from_what_is_left():
    counts = {"rename": 10, "write": 0, "unlink": 0, "mkdir": 0, "fsync": 0}
    before = [(0, kills.Profile(counts | {"rename": 6}, 900)), (1, kills.Profile(counts, 1000))]
    profiles = [kills.Profile(counts, 1000)]
    drawn = [kills.draw_kill(random.Random(seed), profiles, before) for seed in range(300)]
    assert {one.number for one in drawn if one.kind == "rename"} == {1, 2, 3, 4}
    assert max(one.number for one in drawn if one.kind == "time") == 99


def test_files_that_differ_are_missing_or_left_over_are_told_apart():
    reference = {"same": "1", "other": "2", "gone": "3"}
    assert kills.compare(reference, dict(reference)) == []
    assert kills.compare(reference, {"same": "1", "other": "x", ".run.tmp": "4"}) == [
        ".run.tmp is left over",
        "gone is missing",
        "other differs",
    ]


def test_digests_leave_out_times_and_the_command_alone(tmp_path):
    def written(folder, seconds, value):
        (folder / "tensorboard").mkdir(parents=True)
        (folder / "tensorboard" / f"events.{seconds}").write_text("event")
        (folder / "speed.jsonl").write_text(str(seconds))
        record = {
            "seconds": seconds,
            "command": f"port {seconds}",
            "rounds": [{"minutes": seconds, "value": value}],
        }
        (folder / "stage.json").write_text(json.dumps(record))
        (folder / "rows.jsonl").write_text(json.dumps({"seconds": 1}))
        return digests(folder)

    first, second, third = (
        written(tmp_path / str(number), *one) for number, one in enumerate([(1, 5), (2, 5), (1, 6)])
    )
    assert first == second and set(first) == {"stage.json", "speed.jsonl", "rows.jsonl"}
    assert kills.compare(first, third) == ["stage.json differs"]


def test_what_went_wrong_is_kept_in_full_and_the_rest_is_counted():
    equal = {"case": 0, "kills": ["a", "b"], "kinds": ["time", "write"], "starts": 3}
    equal |= {"remarks": [], "outcome": "equal"}
    wrong = {"case": 1, "kills": ["c"], "kinds": ["write"], "starts": 2, "remarks": ["x"]}
    wrong |= {"outcome": "failed", "why": ["exit codes [1]"]}
    summary = kills.summarize([equal, wrong], 12.0)
    assert (summary["kills"], summary["kinds"]) == (3, {"time": 1, "write": 2})
    assert (summary["equal"], summary["different"], summary["failed"]) == (1, 0, 1)
    assert summary["starts"] == 5 and summary["seconds_per_kill"] == 4.0
    assert summary["wrong"] == [wrong] and summary["remarks"] == ["x"]


def test_two_campaigns_do_not_share_a_folder(tmp_path, capsys):
    with open(tmp_path / "lock", "w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        mine.write("123")
        mine.flush()
        with pytest.raises(SystemExit) as left:
            kills.main(["--kills=1", f"--scratch={tmp_path}"])
    assert left.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path} is in use by another campaign (process 123); wait" in error
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]
    assert kills.lock(tmp_path) == ""  # its owner is gone


@pytest.mark.slow
def test_an_import_that_is_killed_twice_leaves_what_an_undisturbed_one_does(tmp_path):
    pytest.importorskip("safetensors", reason="wants the extra [hf]")
    command = [sys.executable, "-m", "bench.kills", "--kills=2", "--scenarios=import"]
    done = subprocess.run(
        [*command, f"--scratch={tmp_path}"],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = json.loads(done.stdout)["scenarios"].values()
    assert result["kills"] >= 2 and result["starts"] >= result["kills"] + result["cases"]
    assert result["equal"] == result["cases"] >= 1
