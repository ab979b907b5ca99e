"""The key of a number: an exact fraction in lowest terms, whatever it was written like."""

import re
from fractions import Fraction

from lmsi_jax.answers.plain import plain

MAX_DIGITS = 100

_DIGITS = r"[0-9]+"
_NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>-\s?)?(?P<money>\$\s?)?(?P<sign2>-)?"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,3}(?: [0-9]{3})+(?![0-9])|[0-9]*)"
    r"(?:(?P<decimals>\.[0-9]+)|\.(?![0-9]))?"
    r"(?P<exponent>[eE][+-]?[0-9]{1,2}(?!\w))?"
    rf"(?:(?P<part>(?:-| and | )(?={_DIGITS} ?/))?(?P<top>(?<=[ -]){_DIGITS})?"
    rf" ?/ ?(?P<bottom>{_DIGITS}))?"
)
_MALFORMED = re.compile(
    r"[.,:][0-9]|\s*[+*×÷^=<>]|\s?!|\s*-\s*[0-9($]|\s+-\s|\s*/\s?[0-9($]|\s?x\s?[0-9(]"
    r"|[xyzn]\b|\s+\$?[0-9]"
)
_LIST = re.compile(r"[^0-9]{0,60}?(?:,|&|\band|\bor)\s*-?\$?[0-9]")
_SCALE = re.compile(r"\s*(thousand|million|billion|trillion)\b")
_SHORT_SCALE = re.compile(r"([kKMB])\b")
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_TAIL_IN_BRACKETS = re.compile(r"(?<=[\w%])\s*\([^()]*\)\W{0,3}$")
# fmt: off
_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}
# fmt: on


def number_key(answer: str) -> str | None:
    """Returns the number as an exact fraction in lowest terms; None when it is none or unclear."""
    if answer.isascii() and answer.isdigit() and len(answer) <= MAX_DIGITS:
        return answer.lstrip("0") or "0"
    text = _TAIL_IN_BRACKETS.sub("", plain(answer).lstrip(" *_\"'#`:+"))
    text = re.split("[=≈]", text)[-1].strip()
    text = re.sub(r"^(?:minus|negative) (?=\$?[0-9])", "-", text, flags=re.IGNORECASE)
    match = next((m for m in _NUMBER.finditer(text) if any(c.isdigit() for c in m.group())), None)
    if match is None:
        return _word_key(text)
    lead, rest = text[: match.start()], text[match.end() :]
    if _MALFORMED.match(rest) or _LIST.match(rest) or _unclear_lead(lead, rest):
        return None
    value = _value(match)
    if value is None:
        return None
    canonical = str(value * _scale(rest, bool(match["money"])))
    return canonical if len(canonical) <= MAX_DIGITS else None


def _unclear_lead(lead: str, rest: str) -> bool:
    """Whether the words before the number deny it, calculate with it or share it with another."""
    words = lead.lower().split()
    several = len(words) > 2 and any(c.isdigit() for c in rest)
    glued = bool(lead) and (lead[-1].isalnum() or lead[-1] in ".,")
    return "not" in words or several or glued or any(c in "+*/^<>×÷" for c in lead)


def _value(match: re.Match[str]) -> Fraction | None:
    """The matched number, exact; None when it is malformed or too long for any real answer."""
    if len(match.group()) > MAX_DIGITS:
        return None
    whole = re.sub("[, ]", "", match["whole"])
    decimals, exponent, top, bottom = match.group("decimals", "exponent", "top", "bottom")
    negative = bool(match["sign"]) or bool(match["sign2"])
    if not whole and not decimals:
        return None
    value = Fraction(f"{whole or 0}{decimals or ''}{exponent or ''}")
    if bottom is not None:
        if int(bottom) == 0 or (top is not None and (decimals or exponent)):
            return None
        share = Fraction(1, int(bottom))
        value = value * share if top is None else value + int(top) * share
    return -value if negative else value


def _scale(rest: str, money: bool) -> int:
    if word := _SCALE.match(rest.lower()):
        return _SCALES[word[1]]
    short = _SHORT_SCALE.match(rest) if money else None
    return _SHORT_SCALES[short[1]] if short else 1


def _word_key(text: str) -> str | None:
    """Numbers up to ninety-nine in words, when the answer begins with one ("twenty-one yards")."""
    words = text.lower().replace("-", " ").split()[:3]
    if not words or words[0] not in _WORDS or words[1:2] in (["of"], ["and"], ["or"]):
        return None
    value = _WORDS[words[0]]
    if value >= 20 and len(words) > 1 and 0 < _WORDS.get(words[1], 0) < 10:
        value += _WORDS[words[1]]
        words = words[1:]
    return None if len(words) > 1 and words[1] in {*_WORDS, *_SCALES, "hundred"} else str(value)
