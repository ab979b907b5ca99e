"""Answers without the ways to typeset them: LaTeX, markdown, typographic digits and signs."""

import re
import unicodedata


def plain(answer: str) -> str:
    """The answer without LaTeX, markdown and typographic forms of digits, signs and spaces."""
    if "\\" in answer or "{" in answer:
        answer = _without_latex(boxed(answer))
    if "<" in answer:
        answer = _TAG.sub(" ", answer)
    answer = without_bold(answer)
    return answer if answer.isascii() else "".join(map(_plain_character, answer))


def without_bold(text: str) -> str:
    """The text without markdown's **, unless it is a power's."""
    return _BOLD.sub("", text) if "**" in text else text


_TAG = re.compile(r"</?[a-z]{1,10} ?/?>", re.IGNORECASE)
_BOLD = re.compile(r"(?<![0-9])\*\*|\*\*(?![0-9])")


def boxed(answer: str) -> str:
    r"""The content of the first \boxed{...} or of braces around the whole; else the answer."""
    for command in ("\\boxed", "\\fbox"):
        at = answer.find(command)
        if at >= 0:
            answer = answer[at + len(command) :].lstrip()
            break
    if not answer.startswith("{"):
        return answer
    depth = 0
    for i, character in enumerate(answer):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            inside = answer[1:i]
            return boxed(inside) if inside.startswith(("{", "\\boxed", "\\fbox")) else inside
    return answer


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if "\uff01" <= character <= "\uff5e":  # full width
        return chr(ord(character) - 0xFEE0)
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.digit(character))
    if category == "No":
        form = unicodedata.normalize("NFKC", character)
        # "2½" is two and a half, and "10²" must not read as 102.
        return " " + form.replace("\u2044", "/") if "\u2044" in form else "^" + form
    if category == "Pd" or character == "\u2212":
        return "-"
    if character in "√∛π∞±":
        return "^"  # what these make is no fraction
    if category == "Cf":
        return ""  # marks of direction, zero-width spaces
    if character in _ASCII:
        return _ASCII[character]
    return "$" if category == "Sc" else " " if category == "Zs" else character


_ASCII = {"·": "*", "⋅": "*", "∙": "*", "٫": ".", "٬": ",", "٪": "%"}

# Commands that set type, and change nothing.
_TYPESETTING = (
    r"\\(?:d?text(?:bf|it|rm|tt|sf|normal)?|math(?:rm|bf|it|sf|tt|bb)|mbox|left|right|displaystyle"
    r"|quad|qquad|circ|degree|bold(?:symbol)?|big[lr]?|Big[lr]?|dollar|emph|underline|hspace|phantom"
    r"|approx|boxed|fbox|ldots|dots|newline)(?![a-zA-Z])"
)
_COMMAND = re.compile(rf"{_TYPESETTING}|\\[,;:! ()\[\]]|\\(?P<other>[a-zA-Z]+)|[{{}}]")


def _without_latex(answer: str) -> str:
    answer = answer.replace("^{\\circ}", " ").replace("^\\circ", " ").replace("\\%", "%")
    answer = re.sub(r"\\[dtc]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}", r" \1/\2 ", answer)
    answer = re.sub(r"\\[dtc]?frac\s?([0-9])([0-9])", r" \1/\2 ", answer)
    answer = re.sub(r"\\(?:times|cdot)(?![a-zA-Z])", "*", answer)
    answer = _COMMAND.sub(_command, answer).replace("\\", "")
    # Dollar signs are brackets when they come in pairs around the whole, money otherwise.
    answer = re.sub(r"\s+", " ", answer).replace(", ", ",").strip()
    paired = len(answer) > 1 and answer[0] == answer.rstrip(".")[-1:] == "$"
    return answer.rstrip(".")[1:-1].strip() if paired else answer


def _command(match: re.Match[str]) -> str:
    """Braces group and vanish, typesetting is a space, any other command is no part of a number."""
    if match[0] in "{}":
        return ""
    return "^" if match["other"] in _MATHEMATICS else " "


_MATHEMATICS = frozenset(
    (
        *("sqrt", "pi", "infty", "pm", "mp", "alpha", "beta", "theta", "phi", "log", "ln", "sin"),
        *("cos", "tan", "sec", "csc", "cot", "binom", "frac", "dfrac", "tfrac", "cup", "cap", "lt"),
        *("gt", "le", "ge", "leq", "geq", "neq", "ne", "div", "sum", "prod", "int", "overline"),
        "begin",
    )
)
