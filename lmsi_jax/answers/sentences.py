"""Where a sentence ends: not at the point of a number, an abbreviation or a person's initial."""

import re

from lmsi_jax.records import Kind

# A set of characters comes first, which the engine looks for quickly.
_END = re.compile(r"[\n.!?。](?:(?<=[\n。])|(?<=[.!?])[\"')\]*”’]{0,4}(?=\s|$)|(?<=\.)(?=[A-Z]))")
_ABBREVIATIONS = frozenset(
    (
        *("approx", "mr", "mrs", "ms", "dr", "st", "vs", "rs", "jr", "sr", "mt"),
        *("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"),
    )
)


def sentence_length(text: str, kind: Kind) -> tuple[int, int]:
    """Returns the length of the first sentence without its end mark, and with it."""
    match = _END.search(text)
    while match and text[match.start()] == "." and _abbreviated(text, match.start(), kind):
        match = _END.search(text, match.end())
    if not match:
        return len(text), len(text)
    length = match.start()
    return length, length if text[length] == "\n" else match.end()


def last_sentence(text: str, kind: Kind) -> int:
    """Returns where the last sentence of a text begins; whatever follows the last end mark."""
    end = len(text.rstrip())
    for match in reversed(list(_END.finditer(text, 0, end))):
        short = text[match.start()] == "." and _abbreviated(text, match.start(), kind)
        if match.end() < end and not short:
            return match.end()
    return 0


def _abbreviated(text: str, point: int, kind: Kind) -> bool:
    """Whether the point at `point` belongs to an abbreviation."""
    if not text[point - 1 : point].isalpha():
        return False
    word = text[max(0, point - 8) : point].rpartition(" ")[2].rpartition(".")[2].lower()
    if len(word) == 1 and kind in ("span", "choice") and text[point - 1].isupper():
        # "J. K. Rowling"; "B. photosynthesis", but not "B. It is the largest."
        return kind == "span" or text[point + 2 : point + 3].islower()
    if word == "no":
        return text[point + 1 : point + 2] == " " and text[point + 2 : point + 3].isdigit()
    return word in _ABBREVIATIONS
