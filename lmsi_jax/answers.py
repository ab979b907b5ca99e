r"""What a reasoning path answers: find the final answer in its text, and give it a canonical key.

Two answers are equal exactly when their keys are the same text, so equality is an equivalence by
construction and a vote can count keys (LMSI, section 3.1). An answer without a key does not vote.

| kind   | read                                                         | key                  |
|--------|--------------------------------------------------------------|----------------------|
| number | 18 · 18.0 · $18 · 18 dollars · 9 * 2 = 18 · \boxed{18} · 18% | 18                   |
| number | 1,800 · 1 800 · 1.8 thousand                                 | 1800                 |
| number | 2 1/2 · 2.5 · 5/2 · 2\frac{1}{2} · 2½                        | 5/2                  |
| number | 1,8 · 1.2.3 · 1/0 · 3 + 4 · 10:30 · 3 cats and 4 dogs · 2x   | none                 |
| choice | (a) · A · (A) foo · option a                                 | a                    |
| yes_no | Yes, it does · true                                          | yes                  |
| nli    | yes · no · it is not possible to tell                        | yes · no · unknown   |
| span   | The  "Chicago Bears" · 1,800 men                             | chicago bears · 1800 men |

Every answer is cut to `MAX_ANSWER` characters before it is looked at closely and every pattern that
runs over a whole text moves forward only, so time is linear in the length of the text.
"""

import functools
import re
import string
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from lmsi_jax.records import Kind

MAX_ANSWER = 300
MAX_DIGITS = 100
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


def key(answer: str, kind: Kind) -> str | None:
    """Returns the canonical key of an answer or a gold label, or None when it is not of this kind.

    Percent signs, currencies and units are dropped ("50%" is "50", as benchmarks label it); exact
    fractions are kept, so "0.33" is not "1/3".

    Raises:
      ValueError: an unknown kind.
    """
    if kind not in _KEYS:
        raise ValueError(f"unknown answer kind {kind!r}; the kinds are {', '.join(_KEYS)}")
    return _cached_key(answer[:MAX_ANSWER], kind)


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


def _number_key(answer: str) -> str | None:
    if answer.isascii() and answer.isdigit() and len(answer) <= MAX_DIGITS:
        return answer.lstrip("0") or "0"
    text = _TAIL_IN_BRACKETS.sub("", _plain(answer).lstrip(" *_\"'#`:+"))
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


def _plain(answer: str) -> str:
    """The answer without LaTeX, markdown and typographic forms of digits, signs and spaces."""
    if "\\" in answer or "{" in answer:
        answer = _without_latex(answer)
    answer = answer.replace("**", "")
    return answer if answer.isascii() else "".join(map(_plain_character, answer))


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.digit(character))
    if category == "No":
        form = unicodedata.normalize("NFKC", character)
        # "2½" is two and a half, and "10²" must not read as 102.
        return " " + form.replace("\u2044", "/") if "\u2044" in form else "^" + form
    if category == "Pd" or character == "\u2212":
        return "-"
    return "$" if category == "Sc" else " " if category == "Zs" else character


def _without_latex(answer: str) -> str:
    answer = re.sub(r"\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}", r" \1/\2 ", answer)
    answer = re.sub(r"\\[dt]?frac\s?([0-9])([0-9])", r" \1/\2 ", answer)
    answer = re.sub(r"\\(?:times|cdot)(?![a-zA-Z])", "*", answer)
    answer = re.sub(
        r"\\[a-zA-Z]+|\\[,;:! ()\[\]]|[{}]", lambda m: "" if m[0] in "{}" else " ", answer
    )
    answer = answer.replace("\\", "")
    # Dollar signs are brackets when they come in pairs around the whole, money otherwise.
    answer = re.sub(r"\s+", " ", answer).replace(", ", ",").strip()
    paired = len(answer) > 1 and answer[0] == answer.rstrip(".")[-1] == "$"
    return answer.rstrip(".")[1:-1].strip() if paired else answer


_LETTER = re.compile(
    r"(?:the |option |choice |answer |letter )*(?:\(([a-j])\)|([a-j])(?=\W|$)(?!['’(]| [a-z]|-))"
)
_BRACKETED = re.compile(r"(?<![a-z0-9])\(([a-j])\)")
_ANOTHER = re.compile(r"[ ,]*(?:and|or|&|/)\s*(?:option |choice )?(?:\([a-j]\)|[a-j](?:\W|$))")


def _choice_key(answer: str) -> str | None:
    text = _plain(answer).lower().strip(" *_\"'`$")
    match = _LETTER.match(text)
    if match:
        return None if _ANOTHER.match(text, match.end()) else match[1] or match[2]
    letters = set(_BRACKETED.findall(text))
    return letters.pop() if len(letters) == 1 and not text.startswith("not ") else None


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
    # Taking punctuation out can leave a number ("0..0" -> "00"): again until nothing changes, so
    # that a key is its own key. Each time the text gets shorter, so this ends.
    key = _span_key_once(answer)
    while key and (shorter := _span_key_once(key)) != key and len(shorter or "") < len(key):
        key = shorter
    return key


def _span_key_once(answer: str) -> str | None:
    text = unicodedata.normalize("NFKC", _plain(answer)).casefold()
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
    "number": _number_key,
    "choice": _choice_key,
    "yes_no": _yes_no_key,
    "nli": _nli_key,
    "span": _span_key,
}


@functools.lru_cache(maxsize=1 << 16)
def _cached_key(answer: str, kind: str) -> str | None:
    """Most paths of a question repeat a few answers, so most keys are looked up."""
    return _KEYS[kind](answer)
