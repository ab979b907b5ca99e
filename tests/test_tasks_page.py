"""docs/tasks.md: its rows, gin and code run as they are printed."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from lmsi_jax.cli.main import main
from lmsi_jax.config import gin_loader
from lmsi_jax.config.configurables import load_run
from lmsi_jax.tasks import registry

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
FILES = {"sums": "sums.jsonl", "rocks": "rocks.csv"}
BASE = """
include 'models/embedded.gin'
Run.output_dir = 'unused'
Run.model = @ModelConfig()
Run.questions = @Questions()
"""


def _block(name):
    """Returns the block behind "<!-- example: NAME -->"."""
    (text,) = re.findall(rf"<!-- example: {re.escape(name)} -->\n```\w*\n(.*?)```", PAGE, re.S)
    return text


def _gin(*words):
    """Returns the gin blocks that have one of these words."""
    blocks = re.findall(r"```gin\n(.*?)```", PAGE, re.S)
    return "\n".join(block for block in blocks if any(word in block for word in words))


@pytest.fixture
def folder(tmp_path):
    """A folder with everything that the page prints."""
    for name, file in FILES.items():
        (tmp_path / file).write_text(_block(name), encoding="utf-8")
    for name in ("my_task.py", "my_rules.py", "my_prompt.py"):
        (tmp_path / name).write_text(_block(name), encoding="utf-8")
    return tmp_path


def _questions(folder, gin):
    (folder / "page.gin").write_text(BASE + gin, encoding="utf-8")
    gin_loader.load(str(folder / "page.gin"), gin_loader.GinArgs())
    return load_run().questions


def test_every_gin_block_is_of_an_example_below():
    words = ("name = 'sums'", "name = 'rocks'", "my_task:", "my_rules:", "my_prompt:")
    assert _gin(*words) == _gin("")


def test_rows_are_read_by_column(folder):
    questions = _questions(folder, _gin("'sums.jsonl'"))
    task = registry.find(questions, "sums")
    labels = {row.text[3:6]: row.gold for row in task.labelled("train", "hard", 0)}
    assert labels == {"Ann": None, "Ben": "84", "Eva": "92"}
    assert registry.find(questions, "purchases").kind == "number"


def test_options_are_columns_and_a_share_is_tested(folder):
    task = registry.find(_questions(folder, _gin("'rocks.csv'")), "rocks")
    splits = [list(task.labelled(split, "hard", 0)) for split in ("train", "test")]
    assert all(splits)
    assert {row.text.splitlines()[0]: row.gold for rows in splits for row in rows} == {
        "Q: Which rusts in the rain?": "(b)",
        "Q: Which melts in the sun?": "(a)",
        "Q: Which floats on water?": "(c)",
        "Q: Which sinks in water?": "(b)",
    }


def test_two_tasks_have_scopes_of_their_own(folder):
    more = "\n".join(f"{n}/FileTask.{s} = {v!r}" for n in FILES for s, v in (
        ("train", FILES[n]), ("kind", "number"), ("question", "text")
    ))  # fmt: skip
    gin = "\n".join([_gin("@sums/FileTask()"), more, "Questions.train = ('sums',)"])
    assert list(registry.custom_tasks(_questions(folder, gin))) == ["sums", "rocks"]


def test_the_task_in_python_has_exemplars_and_rules(folder):
    task = registry.find(_questions(folder, _gin("my_task:TASK")), "pairs")
    shown = task.exemplars()
    assert len(shown) == 4 and "+" in shown[0].reasoning
    assert len(task.questions("train", "hard", 99, 0)) == 16


def test_the_rules_read_compare_and_prompt(folder):
    from lmsi_jax import prompts, voting
    from lmsi_jax.records import Sample

    gin = "\n".join([_gin("'sums.jsonl'"), _gin("my_rules:", "my_prompt:")])
    task = registry.find(_questions(folder, gin), "sums")
    ben = next(row for row in task.labelled("train", "hard", 0) if "Ben" in row.text)
    texts = ["<final>1</final> No: <final>84.2</final>", "<final>84</final>", "84", "<final>x"]
    samples = [
        Sample(uid=ben.uid, sample_index=n, text=t, tokens=1, logprob=-1.0, end="end_token")
        for n, t in enumerate(texts)
    ]
    vote = voting.vote(ben, samples)
    assert vote.winner == "84" and vote.kept == (0, 1) and vote.keys[2] is None
    assert vote.winner in voting.right_keys(ben)
    prefix, text = prompts.build_prompt(ben, (), "zero_shot_cot")
    assert prefix == "Worksheet.\n\n" and text == f"{ben.text}\nA:"


def test_the_starter_is_checked_without_a_fault(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (command, dry_run, run) = re.findall(r"^lmsi (.*?)(?: +#.*)?$", PAGE, re.M)[:3]
    assert run == "run riddles/riddles.gin"
    assert main(command.split()) == 0
    assert f"next: lmsi {run}" in capsys.readouterr().out
    assert main(dry_run.split()) == 0
    assert "no mistake found" in capsys.readouterr().out


_LOOP = """
from lmsi_jax.cli.main import main
import sys
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_starter_runs_from_an_installed_wheel(tmp_path):
    copy = "cp -a setup.py pyproject.toml MANIFEST.in LICENSE README.md lmsi_jax tasks gin_configs"
    (tmp_path / "source").mkdir()
    subprocess.run([*copy.split(), str(tmp_path / "source")], cwd=ROOT, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    target = tmp_path / "installed"
    subprocess.run([*pip, f"--target={target}", "."], cwd=tmp_path / "source", check=True)
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(target), "JAX_PLATFORMS": "cpu"}

    def lmsi(*words):
        command = [sys.executable, "-c", _LOOP, *words]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)

    where = [sys.executable, "-c", "import lmsi_jax; print(lmsi_jax.__file__)"]
    place = subprocess.run(where, cwd=work, env=environment, capture_output=True, text=True)
    assert place.stdout.startswith(str(target)), place
    assert lmsi("init", "riddles").returncode == 0
    done = lmsi("run", "riddles/riddles.gin")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "riddles" in (work / "runs" / "riddles" / "report.html").read_text()
    (work / "mine").mkdir()
    for name in ("my_task.py", "my_rules.py", "my_prompt.py"):
        (work / "mine" / name).write_text(_block(name), encoding="utf-8")
    for name, file in FILES.items():
        (work / "mine" / file).write_text(_block(name), encoding="utf-8")
    small = (work / "riddles" / "riddles.gin").read_text().partition("# --- the task")[0]
    loop = (work / "riddles" / "riddles.gin").read_text().partition("# --- the loop")[2]
    for name, gin in {
        "sums": _gin("'sums.jsonl'").replace("'purchases'", ""),
        "rocks": _gin("'rocks.csv'"),
        "pairs": _gin("my_task:TASK"),
        "ruled": _gin("'sums.jsonl'").replace("'purchases'", "") + _gin("my_rules:", "my_prompt:"),
    }.items():
        text = f"{small}{gin}\n#{loop}\nRun.output_dir = 'runs/{name}'\nTraining.steps = 1\n"
        (work / "mine" / f"{name}.gin").write_text(text)
        command = "vote" if name == "ruled" else "mix"  # nothing may be left to train on
        for stage in ("sample", "vote", *(("mix",) if command == "mix" else ())):
            done = lmsi(stage, f"mine/{name}.gin")
            assert done.returncode == 0, (name, stage, done.stderr[-2000:])
