"""Where the final answer stands in what a model wrote."""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lmsi_jax.answers.conclusions import conclusion
from lmsi_jax.answers.keys import MAX_ANSWER, key
from lmsi_jax.answers.sentences import sentence_length
from lmsi_jax.records import Kind

BLANK_LINE = "\n\n"

# What may stand between a marker and its answer: markdown, display mathematics, a bullet.
_GAP = r"(?:[\s:*_]|\$\$|\\\[){0,8}(?:(?<=\n)[-•][ ])?"
# Each pattern begins with a literal, which the regular-expression engine looks for at the speed of
# `str.find`; all run over the text in lower case.
_ANSWER_IS = re.compile(rf"answer(?:\s{{1,4}}is\b(?!\s{{1,4}}not\b)|\s?=){_GAP}")
# The answer sentences of MGSM's exemplars (Shi et al. 2022, arXiv 2210.03057), read where there is
# no English one.
_FOREIGN = tuple(
    re.compile(marker + _GAP)
    for marker in (
        *(r"respuesta es\b", r"réponse est\b", r"antwort (?:ist|lautet)\b", r"ответ\s?[—–:-]"),
        *(r"答案[是为:：]", r"答えは", r"jibu ni\b", r"risposta è\b", r"resposta é\b"),
    )
)
# There a comma stands before a fraction.
_COMMA = re.compile(r"([^0-9]{0,4}[0-9]{1,9}),([0-9]{1,2}(?![0-9]))")
# Other ways to mark a final answer, read where no sentence above carries one.
_LABELS = tuple(
    re.compile(label)
    for label in (
        r"####[ \t]{0,4}",
        rf"answer[ \t*_]{{0,4}}:{_GAP}",
        rf"final answer[ \t*_]{{0,4}}\n{_GAP}",
        rf"\na[ \t]{{0,4}}:{_GAP}",
        r"\\boxed[ \t]{0,4}(?=\{)",
        r"\\fbox[ \t]{0,4}(?=\{)",
        rf"option\s?is\b{_GAP}",
        rf"choice\s?is\b{_GAP}",
    )
)
_FIRST_LABEL = re.compile(rf"a[ \t]{{0,4}}:{_GAP}")

_NEXT_QUESTION = re.compile(
    r"(?:^|(?<=[.!?]))[ \t]{0,8}(?:#{1,6}[ \t]{1,4})?"
    r"(?:Q|Question|Premise|Problem|Instruction|Human|User)[ \t]{0,4}[0-9]{0,3}:"
    r"|^#{1,6}[ \t]{1,4}(?:Question|Problem|Instruction|Input)\b"
    r"|<\|(?:im_end|eot_id|endoftext|end|return)\|>|</s>|<end_of_turn>|<eos>",
    re.MULTILINE,
)
# A reasoning model's answer stands behind its thoughts.
_THOUGHTS = (("<think>", "</think>"), ("<|channel|>analysis", "<|channel|>final<|message|>"))


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
    begin, stop = _first_solution(text)
    lowered = _lower(text)
    unread = None
    for markers in (_sentences, _foreign, _labels):
        for start in markers(lowered, begin, stop):
            comma = kind == "number" and markers is _foreign
            found = _read(text, start, stop, kind, options, comma) if start <= stop else None
            if found is None or found.answer.endswith(":"):
                continue
            if found.key is not None:
                return found
            if unread is None:
                unread = found
                blank_line = text.find(BLANK_LINE, found.end)
                stop = stop if blank_line < 0 else min(stop, blank_line)
        if unread:
            return unread
    if not finished and stop == len(text):
        return None
    concluded = conclusion(text, begin, stop, kind, options)
    return Found(*concluded, marked=False) if concluded else None


def _first_solution(text: str) -> tuple[int, int]:
    """Where the first solution begins and ends; an empty one where thoughts have no end."""
    begin, stop = 0, len(text)
    if "<" in text:
        for opening, closing in _THOUGHTS:
            if (closed := text.find(closing)) >= 0:
                begin = closed + len(closing)
            elif opening in text:
                return 0, 0
    if _may_go_on(text):
        next_question = _NEXT_QUESTION.search(text, begin)
        stop = next_question.start() if next_question else stop
    return begin, stop


def _may_go_on(text: str) -> bool:
    """Whether `_NEXT_QUESTION` can match: plain searches are many times faster than it."""
    return (
        ("Q" in text or "<" in text or "Premise" in text or "Problem" in text)
        or ("Human" in text or "User" in text or "Instruction" in text)
        or "# Input" in text
    )


def _lower(text: str) -> str:
    """The text in lower case, each character in its place."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(c if len(c.lower()) > 1 else c.lower() for c in text)


def _sentences(lowered: str, begin: int, stop: int) -> Iterator[int]:
    """Where an answer begins behind "the answer is", in order."""
    return (match.end() for match in _ANSWER_IS.finditer(lowered, begin, stop))


def _foreign(lowered: str, begin: int, stop: int) -> Iterator[int]:
    """The same in other languages."""
    return _in_order(_FOREIGN, lowered, begin, stop)


def _labels(lowered: str, begin: int, stop: int) -> Iterator[int]:
    """Where an answer begins behind a label, in order."""
    first = _FIRST_LABEL.match(lowered, begin, stop)
    others = _in_order(_LABELS, lowered, begin, stop)
    return itertools.chain([first.end()], others) if first else others


def _in_order(
    patterns: Sequence[re.Pattern[str]], lowered: str, begin: int, stop: int
) -> Iterator[int]:
    return iter(sorted(m.end() for p in patterns for m in p.finditer(lowered, begin, stop)))


def _read(
    text: str, start: int, stop: int, kind: Kind, options: Sequence[str], comma: bool
) -> Found | None:
    """The answer sentence that begins at `start`; with `comma`, one stands before fractions."""
    window = text[start : min(stop, start + MAX_ANSWER)]
    length, end = sentence_length(window, kind)
    answer = window[:length].strip().strip("*_ ")
    if not answer:
        return None
    written = _COMMA.sub(r"\1.\2", answer, count=1) if comma else answer
    return Found(answer, key(written, kind, options), start + end)
