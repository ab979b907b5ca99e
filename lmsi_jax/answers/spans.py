"""Keys of answers that are words or dates.

A span's key is its words in lower case without articles and punctuation, as SQuAD and DROP compare
them; a span that is nothing but a date or a number in words has the key of that date or number,
and a list of three or more items has the key of the set.
"""

import re
import string
import unicodedata

from lmsi_jax.answers.numbers import number_in_words
from lmsi_jax.answers.typeset import plain

_MONTHS = "january february march april may june july august september october november december"
_NUMBER_OF = {month: i for i, month in enumerate(_MONTHS.split(), 1)}
_NUMBER_OF |= {month[:3]: i for month, i in _NUMBER_OF.items()} | {"sept": 9}
_DAYS_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MONTH = rf"(?P<month>{'|'.join(sorted(_NUMBER_OF, key=len, reverse=True))})\.?"
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[0-9]{4})"
_WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday"
_WEEKDAY = r"(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs?)?|fri|sat(?:ur)?|sun)(?:day)?)"
_IN_WORDS = tuple(
    re.compile(rf"(?<![\w/.-]){form}(?![\w/-]|[.,][0-9])")
    for form in (
        rf"{_MONTH}[ -]{_DAY}(?:,? ?| of |-){_YEAR}",
        rf"{_DAY}[ -](?:of )?{_MONTH}(?:,? |-| of ){_YEAR}",
        rf"{_YEAR},? {_MONTH} {_DAY}",
        rf"{_YEAR}[-/.](?P<month>[0-9]{{1,2}})[-/.](?P<day>[0-9]{{1,2}})",
    )
)
_IN_FIGURES = re.compile(
    rf"(?<![\w/.-])(?P<first>[0-9]{{1,2}})(?P<mark>[-/.])(?P<second>[0-9]{{1,2}})(?P=mark){_YEAR}"
    r"(?![\w/-]|[.,][0-9])"
)
# Without a year or without a day, read only if they are the whole answer.
_PARTS = tuple(
    re.compile(form)
    for form in (
        rf"{_MONTH},?(?: of)? {_YEAR}",
        rf"{_MONTH} {_DAY}",
        rf"{_DAY} (?:of )?{_MONTH}",
    )
)
_SOME_MONTH = re.compile(
    rf"\b{_MONTH.replace('?P<month>', '?:')} [0-9]|[0-9] {_MONTH.replace('?P<month>', '?:')}"
)
_MAX_DATE = 60
_DATE_EDGES = " .,;:!?\"'*_`()[]“”‘’"


def span_date(answer: str) -> str | None:
    """Return "1999-01-05", "january 1999" or "january 5" if an answer is nothing but a date.

    Not "1999-01" for a month: that is also how a season is written (1999-00). A date in figures
    alone (01/02/1999) is none unless only one of its numbers can be the month.
    """
    text = _date_text(answer)
    if len(text) > _MAX_DATE or not any(c.isdigit() for c in text):
        return None
    for form in _IN_WORDS:
        if match := form.fullmatch(text):
            return _day(match)
    if match := _IN_FIGURES.fullmatch(text):
        key = _day_in_figures(match)
        return None if key is None or "/" in key else key
    for form in _PARTS:
        if match := form.fullmatch(text):
            return _part_of_date(match.groupdict())
    return None


def date_key(answer: str) -> str | None:
    """Return the key of the only date in an answer: "2001-07-28"; None without one or with two.

    Dates in figures are month first, as in "07/28/2001", or day first if only that is a date;
    if both are, the key keeps the figures ("01/02/1999"). A point puts the day first. A weekday
    beside the date is dropped; a year, a month, a day of a month or a weekday alone is a key too.
    """
    text = _date_text(answer)
    matches = [match for form in _IN_WORDS for match in form.finditer(text)]
    keys = {_day(match) for match in matches}
    keys |= {_day_in_figures(match) for match in _IN_FIGURES.finditer(text)}
    iso = {key for key in keys if key and "-" in key}
    if len(iso) == 1 and len(keys) == 2:  # "January 2, 1999 (01/02/1999)"
        year, month, day = iso.copy().pop().split("-")
        keys -= {f"{month}/{day}/{year}", f"{day}/{month}/{year}"}
    if keys:
        months = len(_SOME_MONTH.findall(text)) if matches else 0
        return keys.pop() if len(keys) == 1 and months < 2 else None
    if key := span_date(text):
        return key
    if re.fullmatch(_YEAR, text):
        return text
    if re.fullmatch(_WEEKDAY, text):
        return next(day for day in _WEEKDAYS.split() if day.startswith(text[:3]))
    return None


def written_date(text: str) -> str | None:
    """Return the only full date of a text as written, None without one or with several."""
    low = text.lower()
    dates = [match[0] for form in (*_IN_WORDS, _IN_FIGURES) for match in form.finditer(low)]
    if len(set(dates)) != 1:
        return None
    place = low.index(dates[0])
    return text[place : place + len(dates[0])] if len(low) == len(text) else None


def _date_text(answer: str) -> str:
    """Return the answer in plain lower case without a weekday, "the" and marks at its edges."""
    text = " ".join(plain(answer).lower().strip(_DATE_EDGES).split())
    if text.startswith(("mon", "tue", "wed", "thu", "fri", "sat", "sun", "on ", "the ")):
        text = re.sub(rf"^(?:on )?(?:{_WEEKDAY}\.?,? (?:the )?(?=[\w]))?", "", text)
        text = text.removeprefix("the ")
    text = re.sub(rf",? \(?{_WEEKDAY}\)?$", "", text) if "day" in text[-9:] else text
    return text.replace(" the ", " ").strip(_DATE_EDGES) if " the " in text else text


def _day(match: re.Match[str]) -> str | None:
    name, day, year = match.group("month", "day", "year")
    return _iso(year, _NUMBER_OF.get(name) or int(name), int(day))


def _iso(year: str, month: int, day: int) -> str | None:
    if not 1 <= month <= 12 or not 1 <= day <= _DAYS_OF_MONTH[month - 1]:
        return None
    number = int(year)
    leap = number % 4 == 0 and (number % 100 != 0 or number % 400 == 0)
    return None if (month, day) == (2, 29) and not leap else f"{year}-{month:02}-{day:02}"


def _day_in_figures(match: re.Match[str]) -> str | None:
    year, first, second = match["year"], int(match["first"]), int(match["second"])
    if match["mark"] == ".":
        return _iso(year, second, first)
    month_first, day_first = _iso(year, first, second), _iso(year, second, first)
    if month_first and day_first and month_first != day_first:
        return f"{first:02}/{second:02}/{year}"
    return month_first or day_first


def _part_of_date(parts: dict[str, str | None]) -> str | None:
    month = _NUMBER_OF[parts["month"] or ""]
    day, year = parts.get("day"), parts.get("year")
    if day and not 1 <= int(day) <= _DAYS_OF_MONTH[month - 1]:
        return None
    return f"{_MONTHS.split()[month - 1]} {year or int(day or 0)}"


# "Paris, which is the capital of France"
_ASIDE = re.compile(
    r"(?<=\w)(?:, (?:which|because|since|who|where)\b| because (?:he|she|it|they|the)\b).*",
    re.DOTALL,
)
_ARTICLES = frozenset(("a", "an", "the"))
_SPAN_NUMBER = re.compile(r"(-?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?)(?:\.([0-9]+))?")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " ") | dict.fromkeys("'’.", ""))
_EDGES = "\"'`()[]{}$%*_,;:!?.”“’‘«»"
_ITEM_ENDS = re.compile(r"\s*(?:[,;]\s*(?:and|&)\s+|[,;](?![0-9])\s*|\s(?:and|&)\s+)")
_MAX_ITEM_WORDS = 6


def span_key(answer: str) -> str | None:
    """Return the key of a span, for example "chicago bears" for 'The "Chicago  Bears".'."""
    answer = _ASIDE.split(answer, maxsplit=1)[0] or answer
    if key := _alone(answer):
        return key
    # Taking punctuation out can leave a number ("0..0" -> "00"), an article or a date, so again
    # until nothing changes. Each time the text gets shorter, so this ends.
    key = _set_of_three(answer) or _words_key(answer)
    while key:
        again = _alone(key) or _set_of_three(key) or _words_key(key)
        if again == key or again is None or len(again) > len(key):
            break
        key = again
    return key


def _alone(answer: str) -> str | None:
    """Return the key of an answer that is nothing but a date, or a number in words."""
    if date := span_date(answer):
        return date
    if answer.isascii() and not answer[:1].isalpha() and answer[:1] not in _EDGES:
        return None
    number = number_in_words(plain(answer).strip(_EDGES + " "))
    return str(number[0]) if number and not number[1] and number[0].denominator == 1 else None


def _set_of_three(answer: str) -> str | None:
    """Return the key of a list of three or more items, whose order does not count."""
    if "," not in answer and ";" not in answer:
        return None
    items = [item for item in _ITEM_ENDS.split(plain(answer).strip(_EDGES + " ")) if item]
    if len(items) < 3 or any(len(item.split()) > _MAX_ITEM_WORDS for item in items):
        return None
    keys = {_words_key(item) for item in items} - {None}
    return ", ".join(sorted(key for key in keys if key)) or None


def _words_key(answer: str) -> str | None:
    text = unicodedata.normalize("NFKC", plain(answer)).casefold()
    words = [word for raw in text.split() for word in _words(raw)]
    # "s a n r" keeps its letter: an article stands before a word of two or more letters.
    kept = [
        word
        for word, after in zip(words, [*words[1:], ""], strict=False)
        if word not in _ARTICLES or len(after) < 2
    ]
    return " ".join(kept) or None


def _words(raw: str) -> list[str]:
    token = raw.strip(_EDGES)
    number = _SPAN_NUMBER.fullmatch(("." if raw.startswith("." + token) else "") + token)
    if not number or not (number[2] or number[3]):
        return token.translate(_PUNCTUATION).split()
    decimals = (number[3] or "").rstrip("0")
    whole = number[2].replace(",", "").lstrip("0") or "0"
    return [number[1] + whole + (f".{decimals}" if decimals else "")]
