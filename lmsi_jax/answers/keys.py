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
    r"(?:(?:the|option|choice|answer|letter) )*(?:\(([a-j])\)|([a-j])(?=\W|$)(?!['’(]|-))",
    re.IGNORECASE,
)
# What may stand behind a letter without a mark between; "a" and "I" are words, too.
_REASON = re.compile(r" (?:because|since|as|is|which|due|and|or|not)\b")
_BRACKETED = re.compile(r"(?<![a-z0-9])\(([a-j])\)")
_ANOTHER = re.compile(
    r"[ ,]*(?:and|or|&|/)\s*(?:option |choice )?(?:\([a-j]\)|[a-j](?:\W|$))"
    r"|, ?(?:\([a-j]\)|[a-j](?=[,.;)]|$))"
)


def _choice_key(answer: str) -> str | None:
    written = plain(answer).strip(" *_\"'`$")
    text = written.lower()
    match = _LETTER.match(written)
    if match and (match[1] or _stands_alone(match[2], text, match.end())):
        return None if _ANOTHER.match(text, match.end()) else match[match.lastindex or 0].lower()
    letters = set(_BRACKETED.findall(text))
    return letters.pop() if len(letters) == 1 and not text.startswith("not ") else None


def _stands_alone(letter: str, text: str, end: int) -> bool:
    """Whether a bare letter is an option's name, not a word or a part of one."""
    if not (text[end : end + 1] == " " and text[end + 1 : end + 2].isalpha()):
        return True
    return letter in "BCDEFGHJ" or _REASON.match(text, end) is not None


def _option_key(answer: str, options: tuple[str, ...]) -> str | None:
    """The letter that is named, else that of the only option with this text or this number."""
    letter = _choice_key(answer)
    known = letter if letter and letter <= chr(ord("a") + len(options) - 1) else None
    if letter and (len(answer) < 4 or answer.startswith("(")):
        return known
    by_text = _only_option(answer, options, _option_span)  # "E. coli" may be one of them
    return by_text or (known if letter else _only_option(answer, options, number_key))


def _only_option(
    answer: str, options: tuple[str, ...], normal: Callable[[str], str | None]
) -> str | None:
    """The letter of the only option that is equal to the answer in a normal form."""
    wanted, normals = normal(answer), _normal_options(options, normal)
    once = wanted is not None and normals.count(wanted) == 1
    return chr(ord("a") + normals.index(wanted)) if once else None


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
    **dict.fromkeys(("entailment", "entailed", "entails"), "yes"),
    **dict.fromkeys(("contradiction", "contradicted", "contradicts"), "no"),
    "neutral": "unknown",
    "unknown": "unknown",
    "maybe": "unknown",
    "neither": "unknown",
    "unclear": "unknown",
    "inconclusive": "unknown",
    "undetermined": "unknown",
}
CANNOT_TELL = re.compile(
    r"\b(?:(?:not possible|impossible|unable|cannot|can not|can ?t|can['’]t)(?: be)?"
    r" (?:to )?(?:tell|say|know|known|determine|determined|conclude|decide)"
    r"|(?:not enough|insufficient) (?:information|evidence))\b",
    re.IGNORECASE,
)
# Words before a decision, besides adverbs in -ly.
_HEDGES = frozenset(
    (
        *("most", "very", "quite", "almost", "that", "still", "also", "indeed", "just", "a", "an"),
        *("the", "clear", "definite", "definitive", "firm", "resounding", "strong", "simple"),
    )
)


def _yes_no_key(answer: str) -> str | None:
    return _decision(_words(answer), _DECISIONS)


def _nli_key(answer: str) -> str | None:
    words = _words(answer)
    if match := CANNOT_TELL.search(answer):
        # "no, we cannot conclude it" says no; "it is not possible to tell" is NLI's third option.
        denied = words[0] == "no" and match[0].lower().endswith(("conclude", "determine"))
        return "no" if denied else "unknown"
    return _decision(words, _NLI_DECISIONS)


def _words(answer: str) -> list[str]:
    set_in_type = "\\" in answer or "<" in answer
    return re.findall(r"[a-z]+", (plain(answer) if set_in_type else answer).lower())


def _decision(words: list[str], decisions: dict[str, str]) -> str | None:
    """The decision that an answer opens with; None when it names two ("yes or no")."""
    first = _unhedged(words)
    if first and first[0] == "not" and len(first) == 1 and len(words) > 1:
        return decisions["no"]  # "probably not"
    if not first or first[0] not in decisions:
        return None
    rest = _unhedged(first[2:]) if first[1:2] in (["or"], ["and"]) else first[1:]
    other = decisions.get(rest[0]) if rest else None
    return decisions[first[0]] if other in (None, decisions[first[0]]) else None


def _unhedged(words: list[str]) -> list[str]:
    """The words without the hedges that they begin with."""
    hedges = 0
    while hedges < len(words) and (words[hedges] in _HEDGES or words[hedges].endswith("ly")):
        hedges += 1
    return words[hedges:]


# "Paris, which is the capital of France"
_ASIDE = re.compile(r"(?<=\w), (?:which|because|since|who|where)\b.*", re.DOTALL)
_ARTICLES = frozenset(("a", "an", "the"))
_SPAN_NUMBER = re.compile(r"(-?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?)(?:\.([0-9]+))?")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " ") | dict.fromkeys("'’.", ""))


def _span_key(answer: str) -> str | None:
    """Lower case, no articles, no punctuation, plain spaces, numbers in their shortest form."""
    answer = _ASIDE.split(answer, maxsplit=1)[0] or answer
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
    whole = number is not None and not number[1] and number[0].denominator == 1
    return str(number[0]) if number and whole else None


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
