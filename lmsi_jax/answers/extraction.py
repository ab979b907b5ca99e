"""Where the final answer stands in what a model wrote."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from lmsi_jax.answers import marks
from lmsi_jax.answers.conclusions import conclusion
from lmsi_jax.answers.keys import MAX_ANSWER, key
from lmsi_jax.answers.sentences import sentence_length
from lmsi_jax.records import Kind

BLANK_LINE = "\n\n"
# Behind a mark of another language a comma stands before a fraction.
_COMMA = re.compile(r"([^0-9]{0,4}[0-9]{1,9}),([0-9]{1,2}(?![0-9]))")
_TWO_WORDS = re.compile(r"[A-Za-z'’]{1,20},? [A-Za-z'’]{1,20}\b")


class Found(NamedTuple):
    """A final answer in a text: `text[:end]` is the solution up to and with its answer sentence.

    `marked` is False where nothing says that this is the answer, as in "So she has 18 apples."
    """

    answer: str
    key: str | None
    end: int
    marked: bool = True


def extract(text: str, kind: Kind, options: Sequence[str] = ()) -> str | None:
    """Returns the final answer that stands in the first solution of `text`, without the full stop.

    That is what follows the first "answer is" which carries an answer of this kind; where there is
    none, the first other mark (`#### 18`, `Answer: 18`, `\\boxed{18}`) that carries one; where
    nothing is marked, what the solution concludes with (`conclusions`). The first solution begins
    behind a reasoning model's thoughts and ends before the next question, and with the paragraph of
    its first marked answer. Text after a marked answer never changes it.

    Args:
      text: what the model wrote after the prompt.
      kind: what the question asks for.
      options: texts of the question's options (a), (b), ..., for a choice.

    Returns:
      The answer as written, at most `MAX_ANSWER` characters, or None when there is none.
    """
    found = find(text, kind, options)
    return found.answer if found else None


def path_key(
    text: str, kind: Kind, options: Sequence[str] = (), *, finished: bool = True
) -> str | None:
    """Returns the canonical key of the final answer in `text`, or None when it has none.

    Arguments as of `extract`; `finished` is False where the token limit cut the text, which then
    concludes nothing.
    """
    found = find(text, kind, options, finished=finished)
    return found.key if found else None


def find(
    text: str, kind: Kind, options: Sequence[str] = (), *, finished: bool = True
) -> Found | None:
    """Like `extract`, with the answer's key and its end; `finished` as of `path_key`."""
    begin, stop = marks.first_solution(text)
    lowered = _lower(text)
    if (final := marks.final(lowered, begin, stop)) is not None:
        found = _read(text, final, stop, kind, options, False)
        if found and found.key is not None:  # what follows its paragraph is another solution
            stop = _paragraph(text, found.end, stop)
    unread, introduces = None, False  # a label may introduce a solution: "Answer: Let's see."
    for starts in (marks.sentences, marks.foreign, marks.labels):
        for start in starts(lowered, begin, stop):
            comma = kind == "number" and starts is marks.foreign
            found = _read(text, start, stop, kind, options, comma) if start <= stop else None
            if found is None or found.answer.endswith(":"):
                continue
            if found.key is not None:
                if starts is marks.labels and kind == "number":
                    return _solved(text, found, stop) or found
                return found
            if unread is None:
                unread, introduces = found, starts is marks.labels and not _shown(text, start)
                stop = stop if introduces else _paragraph(text, found.end, stop)
        if unread and not introduces:
            return unread
    if not finished and stop == len(text):
        return unread
    drawn = unread is not None and kind != "number"
    concluded = conclusion(text, begin, stop, kind, options, drawn=drawn)
    return Found(*concluded, marked=False) if concluded else unread


def _shown(text: str, start: int) -> bool:
    """Whether an answer stands in a box or behind ####, which no solution does."""
    return text.startswith("{", start) or "#" in text[max(0, start - 5) : start]


def _solved(text: str, found: Found, stop: int) -> Found | None:
    """What a paragraph concludes with that is a solution behind a label, not an answer.

    "A: Janet has 16 eggs. She eats 3. So she sells 16 - 3 = 13." does not answer 16.
    """
    if not _TWO_WORDS.match(found.answer):
        return None
    stop = _paragraph(text, found.end, stop)
    concluded = conclusion(text, found.end, stop, "number", (), drawn=True)
    return Found(*concluded, marked=False) if concluded else None


def _paragraph(text: str, begin: int, stop: int) -> int:
    """Where the paragraph ends that `begin` stands in."""
    blank_line = text.find(BLANK_LINE, begin, stop)
    return stop if blank_line < 0 else blank_line


def _lower(text: str) -> str:
    """The text in lower case, each character in its place."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(c if len(c.lower()) > 1 else c.lower() for c in text)


def _read(
    text: str, start: int, stop: int, kind: Kind, options: Sequence[str], comma: bool
) -> Found | None:
    """The answer sentence that begins at `start`; with `comma`, one stands before fractions."""
    window = text[start : min(stop, start + MAX_ANSWER)]
    length, end = sentence_length(window, kind)
    answer = window[:length].strip().strip("*_ ")
    if "<" in answer:
        answer = answer.partition("</answer>")[0].strip()
    if not answer:
        return None
    written = _COMMA.sub(r"\1.\2", answer, count=1) if comma else answer
    return Found(answer, key(written, kind, options), start + end)
