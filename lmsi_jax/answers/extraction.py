"""Where the final answer stands in what a model wrote."""

import re
from typing import NamedTuple

from lmsi_jax.answers.keys import MAX_ANSWER, key
from lmsi_jax.records import Kind

BLANK_LINE = "\n\n"

_MARKER = re.compile(r"answer\s{1,4}is\b[\s:*]{0,8}", re.IGNORECASE)
# Other ways to mark a final answer, read only where no "answer is" stands in the first solution.
_OTHER_MARKER = re.compile(
    r"####[ \t]{0,4}|^(?:final )?(?:a|answer)[ \t]{0,4}:[\s*]{0,8}|\\boxed[ \t]{0,4}(?=\{)",
    re.IGNORECASE | re.MULTILINE,
)
_NEXT_QUESTION = re.compile(r"(?:^|(?<=[.!?]))[ \t]{0,8}(?:Q|Question|Premise)[ \t]{0,4}:", re.M)
_END = re.compile(r"\n|[.!?][\"')\]*”’]{0,4}(?=\s|$)|\.(?=[A-Z])")
_ABBREVIATIONS = {"approx", "mr", "mrs", "ms", "dr", "st", "vs", "rs", "jr", "sr", "mt"}


class Found(NamedTuple):
    """A final answer in a text: `text[:end]` is the solution up to and with its answer sentence."""

    answer: str
    key: str | None
    end: int


def extract(text: str, kind: Kind) -> str | None:
    """Returns the final answer that stands in the first solution of `text`, without the full stop.

    That is what follows the first "answer is" which carries an answer of this kind; when none does,
    what follows the first one at all. The first solution ends before the next question, and with
    the paragraph of its first "answer is". Text after the answer never changes it.

    Args:
      text: what the model wrote after the prompt.
      kind: what the question asks for.

    Returns:
      The answer as written, at most `MAX_ANSWER` characters, or None when there is none.
    """
    found = find(text, kind)
    return found.answer if found else None


def path_key(text: str, kind: Kind) -> str | None:
    """Returns the canonical key of the final answer in `text`, or None when it has none."""
    found = find(text, kind)
    return found.key if found else None


def find(text: str, kind: Kind) -> Found | None:
    """Like `extract`, with the answer's key and the place where its sentence ends."""
    next_question = _NEXT_QUESTION.search(text)
    stop = next_question.start() if next_question else len(text)
    for marker in (_MARKER, _OTHER_MARKER):
        first = None
        for match in marker.finditer(text, 0, stop):
            if match.start() >= stop:
                break
            found = _read(text, match.end(), stop, kind)
            if found and found.key is not None:
                return found
            if found and first is None:
                first = found
                blank_line = text.find(BLANK_LINE, found.end)
                stop = stop if blank_line < 0 else min(stop, blank_line)
        if first:
            return first
    return None


def _read(text: str, start: int, stop: int, kind: Kind) -> Found | None:
    """The answer sentence that begins at `start`."""
    window = text[start : min(stop, start + MAX_ANSWER)]
    length, end = len(window), len(window)
    for match in _END.finditer(window):
        if not _is_abbreviation(window[: match.start()], match.group(), kind):
            length = match.start()
            end = length if match.group() == "\n" else match.end()
            break
    answer = window[:length].strip().strip("*_ ")
    return Found(answer, key(answer, kind), start + end) if answer else None


def _is_abbreviation(before: str, terminator: str, kind: Kind) -> bool:
    if not terminator.startswith("."):
        return False
    word = before[-8:].rpartition(" ")[2].rpartition(".")[2]
    initial = kind == "span" and len(word) == 1 and word.isupper()
    return initial or word.lower() in _ABBREVIATIONS
