"""The key of a number: an exact fraction in lowest terms, whatever it was written like."""

import re
from fractions import Fraction

from lmsi_jax.answers.plain import plain
from lmsi_jax.answers.words import NUMBER_WORDS, SCALES, number_in_words

MAX_DIGITS = 100

_DIGITS = r"[0-9]+"
# 1,234,567 · 12,34,567 (Indian) · 1 234 567 · 1'234'567 (Swiss)
_GROUPED = (
    r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])",
    r"[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])",
    r"[0-9]{1,3}(?: [0-9]{3})+(?![0-9])",
    r"[0-9]{1,3}(?:['’][0-9]{3})+(?![0-9])",
)
_NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>-\s?)?(?P<money>\$\s?)?(?P<sign2>-)?"
    rf"(?P<whole>{'|'.join(_GROUPED)}|[0-9]*)"
    r"(?:(?P<decimals>\.[0-9]+)|\.(?![0-9]))?"
    r"(?P<exponent>[eE][+-]?[0-9]{1,2}(?!\w))?"
    r"(?: ?[*×x] ?10 ?(?:\^|\*\*) ?\(?(?P<power>[+-]?[0-9]{1,2})\)?(?![0-9.]))?"
    rf"(?:(?P<part>(?:-| and | )(?={_DIGITS} ?/))?(?P<top>(?<=[ -]){_DIGITS})?"
    rf" ?/ ?(?P<bottom>{_DIGITS}))?"
)
_MALFORMED = re.compile(
    r"[.,:'’][0-9]|\s:\s?[0-9]|\s*[+*×÷^=<>]|\s?!|\s*-\s*[0-9($]|\s*/\s?[0-9($]|\s?x\s?[0-9(]"
    r"|[xyzn]\b|\s+\$?[0-9]|_[0-9]|[eE][+-]?[0-9]"
    # a difference, unless the dash goes on in plain words: "12 - that is, a dozen"
    r"|\s+-\s(?!(?:a|an|as|because|exactly|i\.e|it|just|she|he|since|so|that|the|they|this|we|which)\b)"
    r"|\s+(?:times|plus|minus|divided by|multiplied by|to)\s+-?\$?[0-9]"
    # 5 feet 6 inches
    r"|\s*(?:feet|foot|ft|hours?|hrs?|minutes?|mins?|pounds?|lbs?|years?|months?|weeks?|days?)\.?,?\s+[0-9]"
)
_LIST = re.compile(r"[^0-9]{0,60}?(?:,|&|\band|\bor)\s*-?\$?[0-9]")
_SCALE = re.compile(r"\s*(thousand|million|billion|trillion)\b")
_SHORT_SCALE = re.compile(r"([kKMB])\b")
_SHORT_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
# "12, because x = 3" is 12.
_REASON = re.compile(r"(?<=\w)[,;]?\s(?:because|since|as|where|when|if|given)\b")
_FULL_HOUR = re.compile(r"(?<![0-9:])([0-9]{1,2}):00(?![0-9:])")
_AND_A_PART = re.compile(r"(?<=[0-9]) and (?:a|one) (half|third|quarter)\b")
_PARTS = {"half": " 1/2", "third": " 1/3", "quarter": " 1/4"}
_TAIL_IN_BRACKETS = re.compile(r"(?<=[\w%])\s*\([^()]*\)\W{0,3}$")
# Points between thousands where nothing else can be meant: 1.234,50 and 1.234.567.
_POINTS = re.compile(
    r"(?<![\w.,])([0-9]{1,3}(?:\.[0-9]{3})+)(?:,([0-9]{1,2})(?![0-9.,])|(?<=\.[0-9]{3}\.[0-9]{3})(?![0-9]|[.,][0-9]))"
)
# A comma before a fraction; "1,8" alone may be a slip or a list, so something else must tell: a
# leading zero, a currency, a percent sign or a unit.
_COMMA = re.compile(
    r"(?<![\w.,])(?:(0),([0-9]+)|((?<=\$)[0-9]+|(?<=\$ )[0-9]+),([0-9]{1,2})"
    r"|([0-9]+),([0-9]{1,2}|[0-9]{4,9})(?=\s?(?:[$%]|[a-zA-Zµ°])))(?![0-9]|[.,][0-9])"
)


def number_key(answer: str) -> str | None:
    """Returns the number as an exact fraction in lowest terms; None when it is none or unclear."""
    if answer.isascii() and answer.isdigit() and len(answer) <= MAX_DIGITS:
        return answer.lstrip("0") or "0"
    text = _TAIL_IN_BRACKETS.sub("", plain(answer).lstrip(" *_\"'#`:+"))
    if "=" not in text and "≈" not in text:
        return _side_key(text.strip())
    reason = _REASON.search(text)
    sides = re.split("[=≈]", text[: reason.start()] if reason else text)
    found = _side_key(sides[-1].strip())
    if found is None and len(sides) > 1:  # 12 = 3 * 4
        found = _side_key(sides[0].strip())
    if found is None and reason:  # "since x = 12, 12"
        found = _side_key(re.split("[=≈]", text)[-1].strip())
    return found


def _side_key(text: str) -> str | None:
    """The key of a text without an equals sign."""
    text = re.sub(r"^(?:minus|negative) (?=\$?[0-9])", "-", text, flags=re.IGNORECASE)
    text = re.sub(r"^rs\.? ?(?=[0-9])", "$", text, flags=re.IGNORECASE)
    if ":00" in text:
        text = _FULL_HOUR.sub(r"\1", text)
    if " and " in text:
        text = _AND_A_PART.sub(lambda m: _PARTS[m[1]], text)
    text = _with_points(text) if "," in text or text.count(".") > 1 else text
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


def _with_points(text: str) -> str:
    """The text with a point before its fractions, where a comma stands for certain."""
    text = _POINTS.sub(lambda m: m[1].replace(".", "") + (f".{m[2]}" if m[2] else ""), text)
    return _COMMA.sub(lambda m: ".".join(part for part in m.groups() if part is not None), text)


def _unclear_lead(lead: str, rest: str) -> bool:
    """Whether the words before the number deny it, calculate with it or share it with another."""
    words = lead.lower().split()
    several = len(words) > 2 and any(c.isdigit() for c in rest)
    share = words[:1] != [] and words[0] in NUMBER_WORDS and "of" in words[1:3]
    glued = bool(lead) and (lead[-1].isalnum() or lead[-1] in ".,")
    return (
        "not" in words
        or "than" in words
        or several
        or share
        or glued
        or any(c in "+*/^<>×÷±" for c in lead)
    )


def _value(match: re.Match[str]) -> Fraction | None:
    """The matched number, exact; None when it is malformed or too long for any real answer."""
    if len(match.group()) > MAX_DIGITS:
        return None
    whole = re.sub("[, '’]", "", match["whole"])
    decimals, exponent, top, bottom = match.group("decimals", "exponent", "top", "bottom")
    negative = bool(match["sign"]) or bool(match["sign2"])
    if not whole and not decimals:
        return None
    if exponent and match["power"]:
        return None
    power = exponent or (f"e{match['power']}" if match["power"] else "")
    value = Fraction(f"{whole or 0}{decimals or ''}{power}")
    if bottom is not None:
        if int(bottom) == 0 or (top is not None and (decimals or power)):
            return None
        share = Fraction(1, int(bottom))
        value = value * share if top is None else value + int(top) * share
    return -value if negative else value


def _scale(rest: str, money: bool) -> int:
    if word := _SCALE.match(rest.lower()):
        return SCALES[word[1]]
    short = _SHORT_SCALE.match(rest) if money else None
    return _SHORT_SCALES[short[1]] if short else 1


def _word_key(text: str) -> str | None:
    found = number_in_words(text)
    return str(found[0]) if found else None
