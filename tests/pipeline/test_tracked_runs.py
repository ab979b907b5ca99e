"""What trackers get of a whole run: every stage under its documented name, and once."""

import json
import pathlib
import re
import shutil

from lmsi_jax.cli.main import main

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _lines(run):
    return [json.loads(line) for line in (run / "tracker.jsonl").read_text().splitlines()]


def _scalars(run):
    """Values by (name, step)."""
    return {
        (name, row["step"]): value
        for row in _lines(run)
        if "axis" in row
        for name, value in row.items()
        if "/" in name
    }


def _names(run):
    return {name for name, _ in _scalars(run)} | {
        row[kind] for row in _lines(run) for kind in ("table", "text", "image") if kind in row
    }


def _run(words, run, *more, trackers="(@JsonLines(),)"):
    return main([*words("run", run), f"--gin.Run.trackers={trackers}", *more])


def test_a_finished_run_is_sent_whole_to_a_tracker_that_is_added_later(copy, words):
    assert _run(words, copy) == 0
    sent = _scalars(copy)
    metrics = [
        json.loads(line)
        for line in (copy / "round_1" / "train" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [sent["train/loss", row["step"]] for row in metrics] == [row["loss"] for row in metrics]
    for row in json.loads((copy / "eval.json").read_text()):
        name = f"eval/accuracy/{row['prompt_style']}/{row['task']}"
        assert [sent[name, step] for step in (0, 1)] == [one["share"] for one in row["accuracy"]]
    report = json.loads((copy / "report.json").read_text())
    (mixed,) = report["rounds"]
    assert sent["vote/confidence", 1] == mixed["mean_confidence"]
    assert sent["mix/self_generated", 1] == mixed["sources"]["self_generated"]
    (watched,) = (row for row in report["collapse"] if row["source"] == "train")
    assert sent["monitor/train/entropy", 1] == watched["entropy"]
    before = [(copy / name).read_bytes() for name in ("tracker.jsonl", "trackers.json")]
    assert _run(words, copy) == 0
    after = [(copy / name).read_bytes() for name in ("tracker.jsonl", "trackers.json")]
    assert after == before


def test_the_names_are_those_that_the_documentation_lists(copy, words):
    assert _run(words, copy) == 0
    page = (ROOT / "docs" / "trackers.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    patterns = [re.compile(re.sub("[A-Z]{3,}", "[^ ]+", name) + "$") for name in listed]
    assert len(listed) > 40
    unknown = {name for name in _names(copy) if not any(p.match(name) for p in patterns)}
    assert unknown == set()
    # What MLflow takes; the others take more.
    assert [name for name in _names(copy) if not re.fullmatch(r"[\w./ :-]+", name)] == []


def test_a_run_has_tensorboard_s_files_by_default_and_none_if_asked(finished, copy, words):
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))
    shutil.rmtree(copy / "tensorboard")
    (copy / "trackers.json").unlink()
    assert _run(words, copy, trackers="()") == 0
    assert not (copy / "tensorboard").exists() and not (copy / "trackers.json").exists()


def test_a_stage_that_is_made_again_of_other_settings_replaces_what_was_sent(copy, words):
    assert _run(words, copy) == 0
    old = _scalars(copy)
    for name in ("mix", "train", "eval"):
        shutil.rmtree(copy / "round_1" / name)
    assert _run(words, copy, "--gin.Mixing.formats=('zero_shot_cot',)") == 0
    new = _scalars(copy)
    assert (old["mix/rows", 1], new["mix/rows", 1]) == (16, 4)
    metrics = (copy / "round_1" / "train" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in metrics]
    assert [new["train/loss", step] for step in (1, 2, 3, 4)] == losses
    assert not any("direct" in name for name, _ in new)
    keys = [(row["step"], tuple(row)) for row in _lines(copy)]
    assert len(keys) == len(set(keys))
    assert new["vote/confidence", 1] == old["vote/confidence", 1]  # of a stage that was kept
