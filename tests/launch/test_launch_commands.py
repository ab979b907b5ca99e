"""A command is shown so that a shell runs it as it is; what cannot be passed on is refused."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import arguments
from launch.commands import Command, shown
from lmsi_jax.errors import LmsiError

_HOSTILE = st.sampled_from(
    ["a b", "'", '"', "$(id)", "`id`", ";", "&&", "|", "\\", "$HOME", "*", "~", "#", "!", "-x", "é"]
)
WORDS = st.lists(_HOSTILE | st.text(st.characters(codec="utf-8", exclude_characters="\0")))
WORD = WORDS.map("".join)


def _in_bash(line, **options):
    return subprocess.run(["bash", "-c", line], capture_output=True, check=True, **options).stdout


@settings(max_examples=40)
@given(argv=st.lists(WORD, max_size=4), value=WORD)
def test_a_shell_reads_the_shown_command_as_its_words(argv, value):
    printing = "import os, sys; print(ascii([sys.argv[1:], os.environ['LMSI_X']]))"
    command = Command(
        argv=(sys.executable, "-c", printing, *argv), why="prints", env=(("LMSI_X", value),)
    )
    printed = ascii([argv, value]) + "\n"
    assert _in_bash(command.shown()).decode() == printed
    assert command.run().stdout == printed


def test_what_a_command_reads_is_shown_with_it():
    command = Command(argv=("cat",), why="copies", stdin="it's $HOME\n`id`\n")
    assert command.shown() == "cat <<'LMSI_END'\nit's $HOME\n`id`\nLMSI_END"
    assert _in_bash(command.shown()).decode() == command.run().stdout == command.stdin


def test_commands_are_shown_below_what_they_are_for():
    commands = [Command(argv=("a", "b c"), why="first"), Command(argv=("d",), why="second")]
    assert shown(commands) == "# first\na 'b c'\n# second\nd\n"


@pytest.mark.parametrize("method", [Command.run, Command.attach])
def test_a_program_that_is_not_installed_is_named_with_the_remedy(method):
    with pytest.raises(LmsiError, match="no lmsi-nowhere here; install it, or .*--dry_run"):
        method(Command(argv=("lmsi-nowhere",), why=""))


def test_what_stands_behind_the_first_two_dashes_is_lmsis():
    assert arguments.split(["--a", "--", "run", "--", "x"]) == (["--a"], ("run", "--", "x"))
    assert arguments.split(["--a"]) == (["--a"], ())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), 'write lmsi\'s arguments after "--"'),
        (("lmsi", "run"), "without the word lmsi"),
        (("run", "--process_count=2"), "leave --process_count=2 out"),
        (("run", "--coordinator_address", "x"), "leave --coordinator_address out"),
        (("run", "a\nLMSI_END"), "line breaks and control characters"),
        (("run", "\x1b[0m"), "line breaks and control characters"),
    ],
)
def test_words_that_cannot_be_lmsis_are_refused(words, message):
    with pytest.raises(LmsiError, match=message):
        arguments.check_words(words)


@pytest.mark.parametrize("value", ["gs://b/x", "'gs://b/x'", '"gs://b/x"'])
def test_a_folder_that_all_machines_see_is_wanted(value):
    places = ("gs://",)
    arguments.check_shared(["run", f"--gin.Run.output_dir={value}"], places)
    for words in (["run"], ["run", f"--gin.Run.output_dir={value}", "--gin.Run.output_dir=runs/x"]):
        with pytest.raises(LmsiError, match="all machines must see .* add --gin.Run.output_dir=gs"):
            arguments.check_shared(words, places)


@pytest.mark.parametrize(
    ("flag", "good", "bad"),
    [
        ("name", ["a", "gemma-2b"], ["", "A", "2b", "a-", "a b", "a;b", "$(a)", "a\n", "a" * 41]),
        ("project", ["my-project-1", "example.com:my-project"], ["p", "my_project", "-project"]),
        (
            "zone",
            ["us-central2-b", "europe-west4-a", "us-south1-ai1b"],
            ["us-central2", "b", "--z"],
        ),
        ("accelerator_type", ["v4-8", "v5litepod-16", "v6e-64"], ["v5e", "v5litepod", "-16"]),
        ("service_account", ["a-1@p.iam.gserviceaccount.com"], ["me", "a b@c", "-a@b"]),
        (
            "image",
            ["eu.gcr.io/p/i:V1.0", "img", "h/i@sha256:" + "0" * 64],
            ["i:", "I", "a b", "-i"],
        ),
        ("bucket", ["my_bucket", "a.b"], ["gs://b", "b/x", "B"]),
        ("mount", ["/gcs", "/mnt/a.b"], ["gcs", "/", "/a b", "/a/"]),
        ("worker", ["0", "12", "all"], ["-1", "a", "0,1"]),
    ],
)
def test_names_are_taken_or_refused_with_what_is_possible(flag, good, bad):
    arguments.check_names(**dict.fromkeys([flag], None))
    for value in good:
        arguments.check_names(**{flag: value})
    for value in bad:
        with pytest.raises(LmsiError, match=f"--{flag}=.*: it is "):
            arguments.check_names(**{flag: value})
