"""Answers without the ways to typeset them: LaTeX, markdown, typographic digits and signs."""

import re
import unicodedata


def plain(answer: str) -> str:
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
