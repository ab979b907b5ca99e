"""Dates in words or in ISO 8601. All in figures (01/02/1999) is left as it stands."""

import re

_MONTHS = "january february march april may june july august september october november december"
_NUMBER_OF = {month: i for i, month in enumerate(_MONTHS.split(), 1)}
_NUMBER_OF |= {month[:3]: i for month, i in _NUMBER_OF.items()} | {"sept": 9}
_MONTH = rf"(?P<month>{'|'.join(sorted(_NUMBER_OF, key=len, reverse=True))})\.?"
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[0-9]{4})"
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"{_MONTH} {_DAY},? {_YEAR}",
        rf"(?:the )?{_DAY} (?:of )?{_MONTH},? {_YEAR}",
        rf"{_MONTH},? {_YEAR}",
        rf"{_MONTH} {_DAY}",
        rf"(?:the )?{_DAY} (?:of )?{_MONTH}",
        rf"{_YEAR}-(?P<month>[0-9]{{2}})-(?P<day>[0-9]{{2}})",
    )
)


def date_key(answer: str) -> str | None:
    """Returns "1999-01-05", "january 1999" or "january 5" for an answer that is only a date.

    Not "1999-01" for a month: that is also how a season is written (1999-00).
    """
    text = " ".join(answer.lower().strip(" .\"'*").split())
    if len(text) > 40 or not any(c.isdigit() for c in text):
        return None
    for form in _FORMS:
        if match := form.fullmatch(text):
            return _written(match.groupdict())
    return None


def _written(parts: dict[str, str | None]) -> str | None:
    name, day, year = parts["month"] or "", parts.get("day"), parts.get("year")
    month = _NUMBER_OF.get(name) or int(name)
    if not 1 <= month <= 12 or not 1 <= int(day or 1) <= 31:
        return None
    if year and day:
        return f"{year}-{month:02}-{int(day):02}"
    return f"{_MONTHS.split()[month - 1]} {year or int(day or 0)}"
