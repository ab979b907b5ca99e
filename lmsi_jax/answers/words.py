"""Numbers in words, where they stand alone ("twenty-one yards", "two thirds")."""

from fractions import Fraction

# fmt: off
_SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}
# fmt: on
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NUMBER_WORDS = frozenset(_SMALL)
_MOST_WORDS = 16
_NOT_ALONE = frozenset(("of", "and", "or", "to", "point", "plus", "minus", "times"))


_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4, "fourth": 4, "fourths": 4}
_PARTS |= {
    word + plural: number
    for number, word in enumerate(("third", "", "fifth", "sixth", "seventh", "eighth"), 3)
    for plural in ("", "s")
    if word
}


def number_in_words(text: str) -> tuple[Fraction, list[str]] | None:
    """Returns the number that a text begins with and the words that follow it; None without one.

    None too where the words are no proper number ("one two") or the number is part of something
    longer ("one of them", "two dollars and ten cents").
    """
    words = text.lower().replace("-", " ").split()[:_MOST_WORDS]
    if words[:1] in (["minus"], ["negative"]):
        found = _whole_and_part(words[1:])
        return (-found[0], found[1]) if found else None
    return _part(words) or _whole_and_part(words)


def _part(words: list[str]) -> tuple[Fraction, list[str]] | None:
    """ "half", "a half", "a quarter of the cake"; not "half past two"."""
    article, rest = words[:1] == ["a"], words[1:] if words[:1] == ["a"] else words
    if rest and rest[0] in _PARTS and (article or rest[0] == "half") and rest[1:2] != ["past"]:
        return Fraction(1, _PARTS[rest[0]]), rest[1:]
    return None


def _whole_and_part(words: list[str]) -> tuple[Fraction, list[str]] | None:
    whole, length = _whole(words)
    value, rest = Fraction(whole), words[length:]
    if length and rest[:2] == ["and", "a"] and rest[2:3] and rest[2] in _PARTS:
        value, rest = value + Fraction(1, _PARTS[rest[2]]), rest[3:]
    if not length or (rest and rest[0] in {*_NOT_ALONE, *_SMALL, *SCALES, "hundred"}):
        return None
    if any(word in _SMALL and word != "one" for word in rest):
        return None  # another number
    return (value / _PARTS[rest[0]], rest[1:]) if rest and rest[0] in _PARTS else (value, rest)


def _whole(words: list[str]) -> tuple[int, int]:
    """A whole number, and how many of the words it takes; 0 where they begin with none."""
    total = group = length = 0
    scale, last = 10**15, 100  # each word must be smaller than the place that is still free
    for word in words:
        if word in _SMALL and _SMALL[word] < last and (group % 100 == 0 or last == 10):
            group += _SMALL[word]
            last = 10 if _SMALL[word] >= 20 else 0
        elif word == "hundred" and 0 < group < 10:
            group, last = group * 100, 100
        elif word in SCALES and group and SCALES[word] < scale:
            scale = SCALES[word]
            total, group, last = total + group * scale, 0, 100
        elif not (word == "and" and length and words[length - 1] in {"hundred", *SCALES}):
            break
        length += 1
    while length and words[length - 1] == "and":
        length -= 1
    return total + group, length
