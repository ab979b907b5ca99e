"""The options of a multiple-choice question, read from its text."""

import functools
import re

from lmsi_jax.records import Question

LETTERS = "abcdefghij"
MAX_QUESTION = 20_000
# "(a) foo (b) bar", "A) foo B) bar", "A. foo" on lines of their own, ['A)5', 'B)6'].
_STYLES = (
    re.compile(r"\(([A-Ja-j])\)"),
    re.compile(r"(?<![\w(])([A-Ja-j])\)"),
    re.compile(r"(?:^|\n)[ \t]{0,8}([A-J])[.:]"),
)


def options_of(question: Question) -> tuple[str, ...]:
    """Returns the texts of a choice question's options (a), (b), ...; () for other kinds."""
    return options_in(question.text) if question.kind == "choice" else ()


@functools.lru_cache(maxsize=1 << 12)
def options_in(text: str) -> tuple[str, ...]:
    """Returns the texts of the last list (a), (b), ... in a question; () where there is none."""
    for style in _STYLES:
        marks = list(style.finditer(text[:MAX_QUESTION]))
        for first in reversed([i for i, mark in enumerate(marks) if mark[1] in "aA"]):
            listed = _run(marks[first:])
            if len(listed) > 1:
                ends = [mark.start() for mark in listed[1:]] + [_end(text, listed[-1])]
                spans = zip(listed, ends, strict=True)
                return tuple(text[mark.end() : end].strip(" \t\n,;'\"[]") for mark, end in spans)
    return ()


def _run(marks: list[re.Match[str]]) -> list[re.Match[str]]:
    """Those of the marks that go on as a, b, c, ..., in one case; others stand in an option."""
    letters = LETTERS if marks[0][1] == "a" else LETTERS.upper()
    run: list[re.Match[str]] = []
    for mark in marks:
        if mark[1] == letters[len(run) : len(run) + 1]:
            run.append(mark)
    return run


def _end(text: str, last: re.Match[str]) -> int:
    """The last option ends with its line."""
    newline = text.find("\n", last.end())
    return len(text) if newline < 0 else newline
