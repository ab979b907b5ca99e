"""Guards the command's output streams: against texts that control terminals, and lost readers.

Texts of models, questions, file names and errors may hold control sequences, which clear a screen,
write into the clipboard, or hide what comes after them. A guarded stream drops all but colours,
writes characters that its encoding lacks as escapes, and continues in silence once nobody reads it
any more (`lmsi run quickstart | head`, a closed terminal): the work is not the output.
"""

import errno
import os
import re
import sys
from typing import Any, TextIO, cast

_CONTROL = re.compile(
    r"(?P<colour>\x1b\[[0-9;]*m)"
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"  # such as a title or the clipboard
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c\n]*(?:\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # such as moving the cursor
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_LOST = {errno.EPIPE, errno.EIO, errno.EBADF}


def printable(text: str) -> str:
    """Returns a text without control characters and sequences; tabs, lines and colours remain."""
    return _CONTROL.sub(lambda match: match["colour"] or "", text)


class _Guarded:
    """A text stream that writes printable texts alone, and drops all once its reader has left."""

    def __init__(self, stream: TextIO):
        self.unguarded = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)

    def write(self, text: str) -> int:
        try:
            self.unguarded.write(printable(text))
        except OSError as error:
            self._drop(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.unguarded.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if error.errno not in _LOST:
            raise error
        # What the stream still holds goes there too, when Python closes it.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.unguarded.fileno())
        os.close(nowhere)


def guarded(stream: TextIO) -> TextIO:
    """Returns a guarded stream over an open one."""
    return stream if isinstance(stream, _Guarded) else cast(TextIO, _Guarded(stream))


def unguarded(stream: TextIO) -> TextIO:
    """Returns the stream that a guarded one writes to, for a live display that moves the cursor."""
    return stream.unguarded if isinstance(stream, _Guarded) else stream


def guard_streams() -> None:
    """Guards standard output and standard error; opens the null device in place of closed ones.

    A descriptor that stays closed would be given to the next file that is opened, and libraries
    would write their messages into that file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free one, which is this
    sys.stdin = sys.stdin or os.fdopen(0)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or os.fdopen(descriptor, "w")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, guarded(stream))
