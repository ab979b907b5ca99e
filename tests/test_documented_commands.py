"""The commands in README, docs and gin headers: the command line accepts each as it is written."""

import pathlib
import re
import shlex

import pytest

from lmsi_jax.cli.parser import COMMANDS, STAGE_COMMANDS, make_parser
from lmsi_jax.config import configurables, gin_loader
from lmsi_jax.errors import LmsiError

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What a reader puts in: names of configurations and studies.
STAND_INS = {"CONFIG": "quickstart", "NAME": "quickstart"}


def _texts():
    """Yields (document, its shell lines)."""
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```bash\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL):
            yield file.name, block
    for file in sorted((ROOT / "gin_configs").rglob("*.gin")):
        head = re.match(r"(?:#.*\n)*", file.read_text(encoding="utf-8"))[0]
        lines = [line.removeprefix("#") for line in head.splitlines()]
        # A command is indented by three and goes on behind a backslash.
        yield (
            file.relative_to(ROOT).as_posix(),
            "\n".join(line.strip() for line in lines if re.match(r"   \S|      +", line)),
        )


def _commands():
    """Yields (document, the words after `lmsi`)."""
    for document, text in _texts():
        for line in text.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                if not re.match(r"\s*(\w+=\S+ )*lmsi ", command):
                    continue
                words = shlex.split(command, comments=True)
                words = [w.replace("(S,)", "(0,)") for w in words[words.index("lmsi") + 1 :]]
                yield document, [STAND_INS.get(word, word) for word in words]


COMMANDS_AS_WRITTEN = list(_commands())


@pytest.mark.parametrize(
    ("document", "words"), COMMANDS_AS_WRITTEN, ids=[d for d, _ in COMMANDS_AS_WRITTEN]
)
def test_the_command_line_accepts_the_command(document, words):
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
        assert "required and not set" in str(error) and "..." in words, error


def test_there_are_commands_to_check():
    documents = {document for document, _ in COMMANDS_AS_WRITTEN}
    assert len(COMMANDS_AS_WRITTEN) > 60
    assert {"README.md", "usage.md", "samples.md", "gin_configs/runs/quickstart.gin"} <= documents
