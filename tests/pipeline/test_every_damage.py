"""Every file of a finished run, damaged in every way: repaired and named, or told with a remedy.

The same command repairs what it can and names it, and leaves by a message with a remedy otherwise:
never a traceback, and never in silence but for files that it writes anew each time. A report of a
damaged run is the report of the whole one, or a message.
"""

import json
import pathlib
import random
import shutil

import pytest
from micro_run import contents

from lmsi_jax.cli.main import main

_OTHER = "other run's"
# No command reads these, or each one writes them anew.
_WRITTEN_ANEW = {"report.html", "report.json", "eval.json"}
_NEVER_READ = ("speed.jsonl", "events.out.tfevents")
# A stage without its record is one that is not finished; the figures against collapse are of the
# stages whose fingerprints are in their file, and are measured again for others.
# What trackers got is sent anew without their record, and if it is of other stages.
_NO_DAMAGE = {
    *(("stage.json", "delete"), ("collapse.json", "delete"), ("collapse.json", _OTHER)),
    *(("trackers.json", "delete"), ("trackers.json", _OTHER)),
}


def _flip(data, rng):
    place = rng.randrange(8 * len(data))
    return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]


_DAMAGES = {
    "flip": _flip,
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "append": lambda data, rng: data + bytes([rng.randrange(256)]),
    "list": lambda data, rng: b"[]\n",
    "null": lambda data, rng: b"null\n",
    "object": lambda data, rng: b"{}\n",
}
_HOWS = (*_DAMAGES, "delete", _OTHER)


@pytest.fixture(scope="module")
def other(tmp_path_factory, gin_file):
    """A finished run that differs in its seed."""
    output = tmp_path_factory.mktemp("other") / "run"
    words = [f"--gin.Run.output_dir={str(output)!r}", "--gin.Run.seed=6", "--gin.Questions.seed=1"]
    assert main(["run", gin_file, *words]) == 0
    return output


def _files(run):
    return sorted(
        path.relative_to(run).as_posix()
        for path in run.rglob("*")
        if path.is_file() and "checkpoint_" not in str(path.relative_to(run))
    )


def _cases(run, count, seed):
    """Returns (file, how): all of them, or so many at random, rare kinds of files more often."""
    cases = [(name, how) for name in _files(run) for how in _HOWS]
    if count is None:
        return cases
    kinds = {}
    for name, how in cases:
        kinds.setdefault((pathlib.Path(name).name.split("-")[0], how), []).append((name, how))
    rng = random.Random(seed)
    return [rng.choice(kinds[kind]) for kind in rng.sample(sorted(kinds), count)]


def _damage(copy, other, name, how, rng):
    """Damages a file; returns False if that leaves it as it was."""
    file, theirs = copy / name, other / name
    before = file.read_bytes()
    if how == "delete":
        file.unlink()
        return True
    after = theirs.read_bytes() if how == _OTHER and theirs.exists() else before
    if how in _DAMAGES:
        after = _DAMAGES[how](before, rng) if before else before
    file.write_bytes(after)
    return after != before


def _text(json_file):
    """Returns the report's figures: times and the command differ from run to run."""
    return json.loads(json_file.read_text())["rounds"]


def _check(finished, other, lmsi, caplog, case, folder):
    name, how = case
    rng = random.Random(str(case))
    for command in ("report", "run"):
        copy = folder / command
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(finished, copy)
        if not _damage(copy, other, name, how, rng):
            continue
        caplog.clear()
        code, out, error = lmsi(command, copy)  # an exception that is no LmsiError fails the test
        said = caplog.text + error
        if (pathlib.Path(name).name, how) in _NO_DAMAGE:
            assert code == 0 and (command == "report" or contents(copy) == contents(finished))
        elif name in _WRITTEN_ANEW or any(one in name for one in _NEVER_READ):
            assert code == 0, (case, command, said)
        elif command == "report":
            same = code == 0 and _text(copy / "report.json") == _text(finished / "report.json")
            assert same or (code == 2 and error), (case, command, said)
        elif code:
            assert code == 2 and str(copy) in error, (case, command, said)
            assert "delete" in error or "repeat" in error, (case, command, said)
        else:
            assert contents(copy) == contents(finished), (case, command, said)
            assert pathlib.Path(name).name.partition(".")[0] in said, (case, command, said)


@pytest.mark.parametrize("number", range(40))
def test_a_damage_is_repaired_and_named_or_told(finished, other, lmsi, caplog, tmp_path, number):
    case = _cases(finished, 40, seed=1)[number]
    _check(finished, other, lmsi, caplog, case, tmp_path)


@pytest.mark.slow
def test_every_damage_is_repaired_and_named_or_told(finished, other, lmsi, caplog, tmp_path):
    for case in _cases(finished, None, seed=0):
        _check(finished, other, lmsi, caplog, case, tmp_path)
