"""Canonical keys: two answers are equal exactly when their keys are the same text."""

import functools
import re
import string
import unicodedata
from collections.abc import Callable, Sequence

from lmsi_jax.answers.dates import date_key
from lmsi_jax.answers.numbers import number_key
from lmsi_jax.answers.plain import plain
from lmsi_jax.answers.words import number_in_words
from lmsi_jax.records import Kind

MAX_ANSWER = 300


def key(answer: str, kind: Kind, options: Sequence[str] = ()) -> str | None:
    """Returns the canonical key of an answer or a gold label, or None when it is not of this kind.

    Percent signs, currencies and units are dropped ("50%" is "50", as benchmarks label it); exact
    fractions are kept, so "0.33" is not "1/3".

    Args:
      answer: as written.
      kind: what the question asks for.
      options: texts of the question's options (a), (b), ..., for a choice: then the text of one of
        them has its letter's key, and a letter that is none of them has no key.

    Raises:
      ValueError: an unknown kind.
    """
    if kind not in _KEYS:
        raise ValueError(f"unknown answer kind {kind!r}; the kinds are {', '.join(_KEYS)}")
    if options and kind == "choice":
        return _cached_option_key(answer[:MAX_ANSWER], tuple(options))
    return _cached_key(answer[:MAX_ANSWER], kind)


_LETTER = re.compile(
    r"(?:the |option |choice |answer |letter )*(?:\(([a-j])\)|([a-j])(?=\W|$)(?!['’(]| [a-z]|-))"
)
_BRACKETED = re.compile(r"(?<![a-z0-9])\(([a-j])\)")
_ANOTHER = re.compile(r"[ ,]*(?:and|or|&|/)\s*(?:option |choice )?(?:\([a-j]\)|[a-j](?:\W|$))")


def _choice_key(answer: str) -> str | None:
    text = plain(answer).lower().strip(" *_\"'`$")
    match = _LETTER.match(text)
    if match:
        return None if _ANOTHER.match(text, match.end()) else match[1] or match[2]
    letters = set(_BRACKETED.findall(text))
    return letters.pop() if len(letters) == 1 and not text.startswith("not ") else None


def _option_key(answer: str, options: tuple[str, ...]) -> str | None:
    """The letter that is named, else that of the only option with this text or this number."""
    letter = _choice_key(answer)
    if letter is not None:
        return letter if letter <= chr(ord("a") + len(options) - 1) else None
    for normal in (_option_span, number_key):
        wanted = normal(answer)
        normals = _normal_options(options, normal)
        if wanted is not None and normals.count(wanted) == 1:
            return chr(ord("a") + normals.index(wanted))
    return None


@functools.lru_cache(maxsize=1 << 12)
def _normal_options(
    options: tuple[str, ...], normal: Callable[[str], str | None]
) -> tuple[str | None, ...]:
    return tuple(normal(option[:MAX_ANSWER]) for option in options)


def _option_span(text: str) -> str | None:
    span = _span_key(text)
    return "none of these" if span and _NONE_OF_THESE.fullmatch(span) else span


_NONE_OF_THESE = re.compile(r"(?:answer is )?none of (?:these|those|above)(?: \w+)?")

_DECISIONS = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_NLI_DECISIONS = _DECISIONS | {
    "entailment": "yes",
    "contradiction": "no",
    "neutral": "unknown",
    "unknown": "unknown",
    "maybe": "unknown",
    "neither": "unknown",
    "unclear": "unknown",
    "inconclusive": "unknown",
    "undetermined": "unknown",
}
_CANNOT_TELL = re.compile(
    r"\b(?:not possible|impossible|unable|cannot|can not|can ?t|can't)(?: be)?"
    r" (?:to )?(?:tell|say|know|known|determine|determined|conclude|decide)\b"
)
_HEDGES = {"most", "very", "probably", "likely", "definitely", "clearly", "simply", "that"}


def _yes_no_key(answer: str) -> str | None:
    return _decision(answer, _DECISIONS)


def _nli_key(answer: str) -> str | None:
    if _CANNOT_TELL.search(answer.lower().replace("’", "'")):
        return "unknown"
    return _decision(answer, _NLI_DECISIONS)


def _decision(answer: str, decisions: dict[str, str]) -> str | None:
    """The decision that the answer opens with; None when it names two ("yes or no")."""
    words = re.findall(r"[a-z]+", answer.lower())
    while words and words[0] in _HEDGES:
        words = words[1:]
    if not words or words[0] not in decisions:
        return None
    second = words[2:3] if words[1:2] in (["or"], ["and"]) else words[1:2]
    other = decisions.get(second[0]) if second else None
    return decisions[words[0]] if other in (None, decisions[words[0]]) else None


_ARTICLES = frozenset(("a", "an", "the"))
_SPAN_NUMBER = re.compile(r"(-?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?)(?:\.([0-9]+))?")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " ") | dict.fromkeys("'’.", ""))


def _span_key(answer: str) -> str | None:
    """Lower case, no articles, no punctuation, plain spaces, numbers in their shortest form."""
    if alone := _alone(plain(answer)):
        return alone
    # Taking punctuation out can leave a number ("0..0" -> "00"): again until nothing changes, so
    # that a key is its own key. Each time the text gets shorter, so this ends.
    key = _span_key_once(answer)
    while key and (shorter := _span_key_once(key)) != key and len(shorter or "") < len(key):
        key = shorter
    return key


def _alone(answer: str) -> str | None:
    """The key of an answer that is nothing but a date, or a number in words."""
    if date := date_key(answer):
        return date
    number = number_in_words(answer.strip(" .\"'*"))
    return str(number[0]) if number and not number[1] else None


def _span_key_once(answer: str) -> str | None:
    text = unicodedata.normalize("NFKC", plain(answer)).casefold()
    words = [word for raw in text.split() for word in _span_words(raw)]
    # An answer that is nothing but an article ("A") keeps it.
    return " ".join([w for w in words if w not in _ARTICLES] or words) or None


def _span_words(raw: str) -> list[str]:
    token = raw.strip("\"'`()[]{}$%*_,;:!?.”“’")
    number = _SPAN_NUMBER.fullmatch(("." if raw.startswith("." + token) else "") + token)
    if not number or not (number[2] or number[3]):
        return token.translate(_PUNCTUATION).split()
    decimals = (number[3] or "").rstrip("0")
    whole = number[2].replace(",", "").lstrip("0") or "0"
    return [number[1] + whole + (f".{decimals}" if decimals else "")]


_KEYS: dict[str, Callable[[str], str | None]] = {
    "number": number_key,
    "choice": _choice_key,
    "yes_no": _yes_no_key,
    "nli": _nli_key,
    "span": _span_key,
}


@functools.lru_cache(maxsize=1 << 16)
def _cached_key(answer: str, kind: str) -> str | None:
    """Most paths of a question repeat a few answers, so most keys are looked up."""
    return _KEYS[kind](answer)


@functools.lru_cache(maxsize=1 << 16)
def _cached_option_key(answer: str, options: tuple[str, ...]) -> str | None:
    return _option_key(answer, options)
