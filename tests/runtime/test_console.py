"""Nothing that the command prints controls the terminal, and a lost reader stops nothing."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.runtime.console import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 7 € 雪\n\ta", "plain 7 € 雪\n\ta"),
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
        ("a\x1b[2J\x1b[Hb", "ab"),  # clears the screen
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;cm0gLXJm\x1b\\b", "ab"),  # writes into the clipboard
        ("a\x1b]52;c;unfinished", "a52;c;unfinished"),
        ("a\x1bP1;2qimage\x1b\\b", "ab"),
        ("wrong\rright", "wrongright"),  # writes over the line
        ("a\b\b\x00\x7fb", "ab"),
        ("a\x9b2Jb\x9d0;t\x9cc", "abc"),  # the same in one character
        ("\x1b\x1b[2J[31m", "[31m"),
        ("\x1bc reset", " reset"),
    ],
)
def test_control_sequences_are_dropped(text, shown):
    assert printable(text) == shown


_PIECES = st.sampled_from(
    ["\x1b", "[", "]", "2J", "31m", "\x9b", "P", "\\", "\x07", "0;", "a", "\n"]
)


@given(st.lists(_PIECES | st.characters()).map("".join))
def test_no_pieces_make_a_control_sequence_and_colours_remain(text):
    shown = printable(text)
    rest = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", rest)
    assert printable(shown) == shown


_SCRIPT = """
import os, sys
from lmsi_jax.runtime import console
console.guard_streams()
for number in range(20_000):
    print("line", number, "\\u96ea \\udcff \\x1b[2J" * (number == 1))
print("error \\x1b[2J", file=sys.stderr)
open("ended", "w").close()
"""


def _run(tmp_path, line):
    command = line.replace("RUN", f"{sys.executable} -c '{_SCRIPT}'")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=tmp_path
    )
    assert (tmp_path / "ended").exists(), done.stderr
    return done


@pytest.mark.parametrize(
    ("line", "out", "error"),
    [
        ("RUN | head -1", "line 0 \n", "error \n"),
        ("RUN >&-", "", "error \n"),
        ("RUN 2>&- | head -1", "line 0 \n", ""),
        ("RUN <&- >&- 2>&-", "", ""),
        ("PYTHONIOENCODING=ascii RUN | sed -n 2p", "line 1 \\u96ea \\udcff \n", "error \n"),
    ],
)
def test_a_lost_reader_and_a_poor_encoding_stop_nothing(tmp_path, line, out, error):
    done = _run(tmp_path, line)
    assert (done.returncode, done.stdout, done.stderr) == (0, out, error)
