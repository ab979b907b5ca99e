"""A run that is interrupted or killed anywhere, and repeated, ends with the same bytes."""

import errno
import os
import signal

import pytest
from micro_run import contents, killed_after, snapshot

from lmsi_jax.cli.main import main
from lmsi_jax.runtime import files
from lmsi_jax.training import checkpoints


@pytest.mark.slow
def test_killed_between_two_checkpoints_it_goes_on_to_the_same_bytes(
    finished, words, tmp_path, micro_params
):
    arguments = words("run", tmp_path / "run")
    killed_after(arguments, "training.checkpoints", "Checkpoints.save", 2)
    train = tmp_path / "run" / "round_1" / "train"
    # The second one was being written in the background.
    assert checkpoints.find(train).name in ("checkpoint_1", "checkpoint_2")
    assert not (train / "stage.json").exists()
    assert main(arguments) == 0
    assert contents(tmp_path / "run") == contents(finished)
    models = [checkpoints.load_params(run / "round_1" / "train", micro_params)
              for run in (tmp_path / "run", finished)]  # fmt: skip
    assert len(set(map(checkpoints.digest, models))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "count"),
    [
        ("runtime.store", "ShardStore.write", 1),
        ("runtime.store", "ShardStore.write", 5),
        ("runtime.store", "ShardStore.write", 8),
        ("runtime.store", "Stage.finish", 3),
        ("training.checkpoints", "Checkpoints.save", 1),
        ("training.checkpoints", "Checkpoints.save", 4),
    ],
)
def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    finished, words, tmp_path, module, name, count
):
    arguments = words("run", tmp_path / "run")
    killed_after(arguments, module, name, count)
    assert main(arguments) == 0
    assert contents(tmp_path / "run") == contents(finished)


@pytest.mark.parametrize(
    "written", ["purchases-00000-of-00002.jsonl.gz", "compare.jsonl.gz", "digest.json"]
)
def test_an_interrupt_is_one_line_and_the_run_goes_on(
    finished, words, tmp_path, capsys, monkeypatch, request, written
):
    """Ctrl-C arrives just before a file is written."""
    # A shell starts its background jobs with SIGINT ignored, and the suite may be one of them.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    replace = files._replace

    def interrupted(path, data):
        if path.name == written and not (tmp_path / "hit").exists():
            (tmp_path / "hit").touch()
            signal.raise_signal(signal.SIGINT)
        replace(path, data)

    monkeypatch.setattr(files, "_replace", interrupted)
    capsys.readouterr()
    assert main(words("run", tmp_path / "run")) == 130
    error = capsys.readouterr().err
    assert error.endswith("\ninterrupted; the same command continues where it stopped\n")
    assert "Traceback" not in error
    assert main(words("run", tmp_path / "run")) == 0
    assert contents(tmp_path / "run") == contents(finished)


@pytest.mark.parametrize("written", ["purchases-00001-of-00002.jsonl.gz", "compare.jsonl.gz"])
def test_sigterm_finishes_the_step_and_the_run_goes_on(
    finished, words, tmp_path, capsys, monkeypatch, written
):
    """It arrives before a shard of samples is written, which then still stands; or before votes."""
    replace = files._replace

    def terminated(path, data):
        if path.name == written and not (tmp_path / "hit").exists():
            (tmp_path / "hit").touch()
            signal.raise_signal(signal.SIGTERM)
        replace(path, data)

    monkeypatch.setattr(files, "_replace", terminated)
    capsys.readouterr()
    assert main(words("run", tmp_path / "run")) == 143
    error = capsys.readouterr().err
    assert error.endswith("\nterminated; the same command continues where it stopped\n")
    assert "Traceback" not in error
    sampling = written.startswith("purchases")
    folder = tmp_path / "run" / "round_1" / ("sample" if sampling else "vote")
    assert (folder / written).exists() == sampling  # the vote left at once
    assert not (folder / "stage.json").exists()
    assert main(words("run", tmp_path / "run")) == 0
    assert contents(tmp_path / "run") == contents(finished)


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "make room on the disk"), (errno.EROFS, "make it writable")]
)
def test_a_disk_that_refuses_a_shard_is_named_and_the_run_goes_on(
    finished, words, tmp_path, capsys, monkeypatch, code, remedy
):
    replace = files._replace

    def refuse(path, data):
        if path.name == "compare-00000-of-00002.jsonl.gz":
            raise OSError(code, os.strerror(code))
        replace(path, data)

    monkeypatch.setattr(files, "_replace", refuse)
    capsys.readouterr()
    assert main(words("sample", tmp_path / "run")) == 2
    error = " ".join(capsys.readouterr().err.partition("lmsi: error: ")[2].split())
    assert os.strerror(code) in error and remedy in error and len(error) < 400
    stand = snapshot(tmp_path / "run" / "round_1" / "sample")
    assert len(stand) == 5  # config.json, two shards and their checks
    monkeypatch.setattr(files, "_replace", replace)
    assert main(words("run", tmp_path / "run")) == 0
    assert contents(tmp_path / "run") == contents(finished)
    assert stand.items() <= snapshot(tmp_path / "run" / "round_1" / "sample").items()


def test_a_damaged_shard_is_made_again(finished, copy, words):
    shard = copy / "round_1" / "sample" / "purchases-00001-of-00002.jsonl.gz"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert main(words("run", copy)) == 0
    assert contents(copy) == contents(finished)
