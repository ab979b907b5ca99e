"""The answer of a solution that marks none: what it opens or concludes with, where that is plain.

Chat models often end with "So she has 18 apples." or open with "Yes, ...". Such an answer is read
only where there is one candidate; a text that stops in mid-sentence has none.
"""

import re
from collections.abc import Sequence

from lmsi_jax.answers.keys import key
from lmsi_jax.answers.sentences import last_sentence
from lmsi_jax.records import Kind

_TAIL = 600
"""Characters at the end of a solution that are looked at."""
_CLOSED = re.compile(r"[.!。]['\")\]*$”’]{0,4}$")
_CALCULATOR = re.compile(r"<<[^<>]{0,80}>>")
_NUMERAL = re.compile(
    r"(?<![\w^.,/{+*×-])(?<![+*×/^-] )[-−]?[$€£]?[0-9](?:[0-9,]*[0-9])?(?:\.[0-9]+)?"
    r"(?:%|[a-z]{2,4})?(?![\w^/}]|[.,][0-9])"
)
_RESULT = re.compile(
    r"[=≈]\s{0,4}([-−]?[$€£]?[0-9](?:[0-9,]*[0-9])?(?:\.[0-9]+)?)"
    r"(?:%|[a-z]{2,4})?(?![\w^/])"
)
_BRACKETED = re.compile(r"(?<![A-Za-z0-9])\([A-Ja-j]\)")
_DECISION = re.compile(r"(?:\W{0,4})(yes|no|true|false)(?=[,.!:;*—–]|\s-|$)", re.IGNORECASE)
_SO = re.compile(r"\s{0,4}(?:so|thus|therefore|hence|in conclusion),?\s{1,4}", re.IGNORECASE)
_SHORT = 40

Concluded = tuple[str, str, int]
"""Answer as written, its key, and where its sentence ends."""


def conclusion(
    text: str, begin: int, stop: int, kind: Kind, options: Sequence[str]
) -> Concluded | None:
    """Returns what the solution `text[begin:stop]` concludes with, None where it is not plain.

    | kind        | read                                                                          |
    |-------------|-------------------------------------------------------------------------------|
    | all but span| a text of one line and at most 40 characters that begins with an answer       |
    |             | (yes_no, nli: "Yes" and "No" need a mark behind them, as below)               |
    | number      | of a closed last sentence: what follows its last "="; without one, its only   |
    |             | number, or of several the one that the solution's last "=" gave               |
    | choice      | the only bracketed letter of a closed last sentence                           |
    | yes_no, nli | "Yes, ..." or "No, ..." at the beginning; "So, no." at the end                |
    """
    if kind == "span":
        return None
    end = begin + len(text[begin:stop].rstrip())
    decides = kind in ("yes_no", "nli")
    answer = _decision(text[begin : min(end, begin + _SHORT)]) if decides else None
    if answer is None:
        answer = _last(text[max(begin, end - _TAIL) : end], kind)
    if answer is None:
        answer = _whole(text[begin:end].strip(), kind, options)
    found = key(answer, kind, options) if answer else None
    there = answer is not None and answer in text[begin:end]
    return (answer, found, end) if answer and there and found is not None else None


def _whole(solution: str, kind: Kind, options: Sequence[str]) -> str | None:
    if len(solution) > _SHORT or "\n" in solution:
        return None
    if kind == "number" and not re.match(r"[-−$€£\\*+.]{0,4}\s?[0-9({]", solution):
        return None
    found = key(solution, kind, options)
    decided = kind in ("yes_no", "nli") and found != "unknown"
    return solution if found is not None and not decided else None


def _last(tail: str, kind: Kind) -> str | None:
    """The candidate in a closed last sentence."""
    if not _CLOSED.search(tail[-8:]):
        return None
    begin = last_sentence(tail, kind)
    sentence = tail[begin:]
    if sentence.strip() in tail[:begin]:
        return None  # a model that repeats itself has not concluded
    if kind == "number":
        return _last_number(_CALCULATOR.sub("", tail), _CALCULATOR.sub("", sentence))
    if kind == "choice":
        letters = _BRACKETED.findall(sentence)
        return letters[0] if len({letter.lower() for letter in letters}) == 1 else None
    so = _SO.match(sentence)
    return _decision(sentence[so.end() :]) if so else None


def _last_number(tail: str, sentence: str) -> str | None:
    if "=" in sentence or "≈" in sentence:
        own = _RESULT.findall(sentence)
        last = max(sentence.rfind("="), sentence.rfind("≈"))
        return own[-1] if own and _RESULT.match(sentence, last) else None
    numerals = _NUMERAL.findall(sentence)
    keys = [key(numeral, "number") for numeral in numerals]
    if len(set(keys)) == 1:
        return numerals[0]
    results = _RESULT.findall(tail)
    result = key(results[-1], "number") if results else None
    return numerals[keys.index(result)] if result in keys else None


def _decision(text: str) -> str | None:
    match = _DECISION.match(text)
    return match[1] if match else None
