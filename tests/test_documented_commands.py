"""The commands in README, docs and gin headers: each is accepted as written, and run or skipped."""

import os
import re
import shlex

import pytest

from bench import documents
from lmsi_jax.cli.parser import COMMANDS, STAGE_COMMANDS, make_parser
from lmsi_jax.config import configurables, gin_loader
from lmsi_jax.errors import LmsiError

ROOT = documents.ROOT
# What a reader puts in: names of configurations and studies.
STAND_INS = {"CONFIG": "quickstart", "NAME": "quickstart"}
DOCUMENTED = documents.commands()


def _lmsi_commands():
    """Yields (document, the words after `lmsi`)."""
    for one in DOCUMENTED:
        for part in one.text.replace("\\\n", " ").split("&&"):
            if re.match(r"\s*(\w+=\S+ )*lmsi ", part):
                words = shlex.split(part, comments=True)
                words = [w.replace("(S,)", "(0,)") for w in words[words.index("lmsi") + 1 :]]
                yield one.document, [STAND_INS.get(word, word) for word in words]


COMMANDS_AS_WRITTEN = list(_lmsi_commands())


def _check(words, complete=True):
    assert configurables.CLASSES  # gin knows them
    gin_args, rest = gin_loader.parse([word for word in words if word != "..."])
    args = make_parser().parse_args(rest)
    config = getattr(args, "config", None)
    # Files of the reader's are left out; what else the command sets is checked.
    files = [file for file in gin_args.files if (ROOT / file).exists()]
    here = gin_loader.GinArgs(files=tuple(files), bindings=gin_args.bindings)
    if config is None or (config.endswith(".gin") and not (ROOT / config).exists()):
        return  # the reader's own
    kind = "runs" if args.command in STAGE_COMMANDS else COMMANDS[args.command].configs
    try:
        gin_loader.load(gin_loader.find_config(config, gin_args.search_paths, kind), here)
    except LmsiError as error:
        assert "required and not set" in str(error), error
        assert "..." in words or not complete, error


@pytest.mark.parametrize(
    ("document", "words"), COMMANDS_AS_WRITTEN, ids=[d for d, _ in COMMANDS_AS_WRITTEN]
)
def test_the_command_line_accepts_the_command(document, words):
    _check(words)


def test_the_command_line_accepts_the_commands_within_sentences():
    """Those with a space after the command's name: others only name it.

    They may leave out what the paragraph is not about, such as a folder of data.
    """
    seen = 0
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = re.sub(r"^```.*?^```", "", file.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        for command in re.findall(r"`lmsi ([\w-]+\s[^`]+)`", text):
            words = shlex.split(command)
            if "&&" in words or re.search(r"\b[A-Z]{3,}\b|\.\.\.", command):
                continue
            _check(words, complete=False)
            seen += 1
    assert seen > 50


def test_there_are_commands_to_check():
    names = {document for document, _ in COMMANDS_AS_WRITTEN}
    assert len(COMMANDS_AS_WRITTEN) > 60
    assert {"README.md", "docs/usage.md", "gin_configs/runs/quickstart.gin"} <= names


@pytest.mark.parametrize("one", documents.SKIPPED, ids=[s.pattern for s in documents.SKIPPED])
def test_every_reason_to_skip_a_command_is_of_use(one):
    """So a command that no reason fits is run: none is forgotten."""
    assert any(re.search(one.pattern, c.text, re.MULTILINE) for c in DOCUMENTED), one
    assert one.reason


def test_only_a_cloud_an_accelerator_or_a_reader_keeps_a_command_from_being_run(monkeypatch):
    monkeypatch.setattr(documents, "_is_there", bool)
    left = {documents.reason_to_skip(one, installs=True) for one in DOCUMENTED} - {""}
    assert left == {one.reason for one in documents.SKIPPED if not one.without}
    run = [one.text for one in DOCUMENTED if not documents.reason_to_skip(one, installs=True)]
    assert len(run) > 60 and "lmsi run quickstart" in run
    assert any("interop.t5x infer" in text for text in run)


def test_programs_and_flags_of_other_commands_exist():
    seen = 0
    for one in DOCUMENTED:
        words = shlex.split(one.text.replace("\\\n", " "), comments=True)
        words = [word.replace("peers/bin/python", "python") for word in words]
        of_others = ("build", "lmsi_jax.interop.t5x", "lmsi_jax.integrations.lm_eval_model")
        if words[0] != "python" or (words[1] == "-m" and words[2] in of_others):  # their flags
            continue
        seen += 1
        name = f"{words[2].replace('.', '/')}.py" if words[1] == "-m" else words[1]
        assert (ROOT / name).exists(), one
        sources = "".join(
            file.read_text("utf-8")
            for file in (ROOT / name, *(ROOT / name).parent.glob("*.py"), *ROOT.glob("bench/*.py"))
        )
        own = words[: words.index("--")] if "--" in words else words
        for flag in (word.partition("=")[0] for word in own if word.startswith("--")):
            assert f'"{flag}"' in sources, f"{one.document}:{one.line} {flag}"
    assert seen > 10


def test_what_a_command_says_it_writes_is_read_off_it():
    files = documents.stated_files
    assert files("lmsi import-hf downloads/x models/y   # a > b") == ["models/y/model.gin"]
    assert files("lmsi run a --gin.Run.output_dir=runs/a && lmsi init b") == [
        "runs/a/report.html",
        "b/b.gin",
    ]
    assert files("lmsi run a --dry_run --gin.Run.output_dir=runs/a") == []
    assert files("python -m bench.kills > kills.json") == ["kills.json"]
    assert files("lmsi aot a --topology=b --json=c.json") == ["c.json"]
    text = "python -m lmsi_jax.interop.t5x infer --gin.INFER_OUTPUT_DIR=\"'runs/s'\""
    assert files(text) == ["runs/s/*-predict_with_aux.jsonl-00000-of-00001"]


def _run(text, tmp_path, block=""):
    command = documents.Command("README.md", 1, text, block)
    environment = {**os.environ, "LMSI_DOCUMENTS_FLAGS": ""}
    return documents.run(command, tmp_path, environment, small=False, seconds=60)


def test_a_command_passes_if_it_does_what_it_says(tmp_path):
    assert _run("echo $A > a.txt", tmp_path, "A=3\n").result == "passed"
    assert (tmp_path / "a.txt").read_text() == "3\n"
    assert "exit code 3: why" in _run("echo why && exit 3", tmp_path).why
    assert "exit code 1" in _run("false | true", tmp_path).why
    assert _run("echo Traceback '(most recent call last)':", tmp_path).why == "a traceback"
    assert "no c.json" in _run("true --json=c.json", tmp_path).why
    assert "does not say 'nothing was run|to set'" in _run("true --dry_run", tmp_path).why


def test_blocks_of_all_kinds_are_read(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/tasks.md", "docs/usage.md", "CONTRIBUTING.md"):
        (tmp_path / name).write_text("# Title\n")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "README.md").write_text("```bash\nlmsi a\n```\n")
    (tmp_path / "README.md").write_text(
        "```python\nno\n```\n\n```bash\nA=1\nlmsi b \\\n  c  # d\n\n# e\nB=$(f)\n```\n"
    )
    runs = tmp_path / "gin_configs" / "runs"
    runs.mkdir(parents=True)
    (runs / "x.gin").write_text("# Title\n#\n#   lmsi run x \\\n#     y\n#   lmsi z\n# lmsi no\n")
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    assert documents.commands() == [
        documents.Command("README.md", 7, "lmsi b \\\n  c  # d", "A=1\n"),
        documents.Command("README.md", 11, "B=$(f)", "A=1\n"),
        documents.Command("bench/README.md", 2, "lmsi a", ""),
        documents.Command("gin_configs/runs/x.gin", 3, "lmsi run x \\\ny", ""),
        documents.Command("gin_configs/runs/x.gin", 5, "lmsi z", ""),
    ]
