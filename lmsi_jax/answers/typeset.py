r"""Typesetting: answers without LaTeX, markdown and typographic characters, and a clean surface.

`plain` is what the readers of numbers, letters and words look at. `clean` says whether a text may
be taught as it stands: "18 apples" may, "18}$, since x" may not.
"""

import re
import unicodedata

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,4}")
_TAG = re.compile(r"</?[a-z]{1,10} ?/?>", re.IGNORECASE)
_BOLD = re.compile(r"(?<![0-9])\*\*|\*\*(?![0-9])")
# An em dash beside a space is punctuation; between two numbers it is a range.
_LONG_DASH = re.compile(r"\s[—―]\s?|[—―]\s")
# "18 – Janet makes $18", but not "7 – 3" or "12 – x".
_SPACED_EN_DASH = re.compile(r"(?<=[\w)%])\s–\s(?=[A-Za-z][a-z'’])")
_ASCII = {"·": "*", "⋅": "*", "∙": "*", "٫": ".", "٬": ",", "٪": "%", "⁄": "/", "∕": "/", "′": "'"}
_ASCII |= {
    "“": '"',
    "”": '"',
    "„": '"',
    "«": '"',
    "»": '"',
    "″": '"',
    "…": "...",
    "≤": "<",
    "≥": ">",
}
_ASCII |= {"，": ",", "【": "[", "】": "]", "「": '"', "」": '"', "→": "=", "⇒": "="}
# What these make is no fraction.
_SYMBOLS = frozenset("√∛π∞±")

# Commands that set type and change nothing.
_TYPESETTING = (
    r"\\(?:d?text(?:bf|it|rm|tt|sf|normal)?|math(?:rm|bf|it|sf|tt|bb)|mbox|left|right|displaystyle"
    r"|quad|qquad|circ|degree|bold(?:symbol)?|big[lr]?|Big[lr]?|dollar|emph|underline|hspace|phantom"
    r"|approx|boxed|fbox|ldots|dots|newline)(?![a-zA-Z])"
)
_COMMAND = re.compile(rf"{_TYPESETTING}|\\[,;:! ()\[\]]|\\(?P<other>[a-zA-Z]+)|[{{}}]")
_FRACTION = re.compile(r"(-?)\s?\\[dtc]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"(-?)\s?\\[dtc]?frac\s?([0-9])([0-9])")
_TIMES = re.compile(r"\\(?:times|cdot)(?![a-zA-Z])")
_ABOUT = re.compile(r"\\approx(?![a-zA-Z])")
_MATHEMATICS = frozenset(
    (
        *("sqrt", "pi", "infty", "pm", "mp", "log", "ln", "sin", "cos", "tan", "sec", "csc", "cot"),
        *("binom", "frac", "dfrac", "tfrac", "cup", "cap", "lt", "gt", "le", "ge", "leq", "geq"),
        *("neq", "ne", "div", "sum", "prod", "int", "overline", "begin", "exp", "max", "min"),
        *("alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "nu", "rho"),
        *("sigma", "tau", "phi", "psi", "omega", "eta", "kappa", "xi", "chi", "varphi", "ell"),
    )
)
_MARKUP = re.compile(r"[`\\{}<>|\n\t#]|\*(?! )|(?<! )\*")
_DEBRIS_AT_EDGES = re.compile(
    r"[ ,;:*_'\u2013\u2014]|-(?![$0-9.])|.*[ ,;:*_'\u2013\u2014-]$", re.DOTALL
)
_PAIRS = {")": "(", "]": "[", "”": "“"}


def plain(answer: str) -> str:
    """Return the answer without LaTeX, markdown and typographic digits, signs and spaces."""
    if "\\" in answer or "{" in answer:
        answer = _without_latex(_unboxed(answer))
    if "<" in answer:
        answer = _TAG.sub(" ", answer)
    answer = without_bold(answer)
    if not answer.isascii():
        answer = _SPACED_EN_DASH.sub("; ", _LONG_DASH.sub("; ", answer))
        answer = "".join(map(_plain_character, answer))
    return " ".join(answer.split()) if "  " in answer or "\n" in answer else answer


def without_bold(text: str) -> str:
    """Return the text without markdown's **, unless it is a power's."""
    return _BOLD.sub("", text) if "**" in text else text


def box_content(text: str) -> tuple[str, int] | None:
    r"""Return the content and the end of the first \boxed{...} of a text; None without one."""
    box = _BOX.search(text)
    if not box:
        return None
    begin = box.end()
    if text[begin : begin + 1] != "{":
        return (text[begin], begin + 1) if text[begin : begin + 1].strip() else None
    end = closing_brace(text, begin)
    return text[begin + 1 : end], end + 1


def boxes(text: str) -> list[str]:
    r"""Return what each \boxed{...} of a text holds."""
    contents = []
    while found := box_content(text):
        contents.append(found[0])
        text = text[found[1] :]
    return contents


def clean(surface: str) -> bool:
    """Return whether a text is an answer without debris of its typesetting.

    It is one line, has no markup, its brackets and quotes close, and a dollar sign is money's.
    """
    if not surface or _DEBRIS_AT_EDGES.match(surface) or _MARKUP.search(surface):
        return False
    if surface.replace(" ", "").isalnum():
        return True
    open_brackets: list[str] = []
    for character in surface:
        if character in "([“":
            open_brackets.append(character)
        elif character in _PAIRS and (
            not open_brackets or open_brackets.pop() != _PAIRS[character]
        ):
            return False
    money = all(after.isdigit() or after == "." for after in re.findall(r"\$\s?(.?)", surface))
    return not open_brackets and surface.count('"') % 2 == 0 and money


def closing_brace(text: str, begin: int = 0) -> int:
    """Return where the brace at `begin` closes, the length of the text if it does not."""
    first = text.find("}", begin)
    if first >= 0 and text.find("{", begin + 1, first) < 0:
        return first
    depth = 0
    for i in range(begin, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i
    return len(text)


def _unboxed(answer: str) -> str:
    r"""Return what the first \boxed{...} or braces around the whole hold, with a sign before it."""
    answer = answer.strip()
    while True:
        if found := box_content(answer):
            before = answer[: answer.index("\\")].rstrip(" $([\\")
            sign = "-" if before.endswith(("-", "−")) and not before[:-1].strip(" $:=") else ""
            answer = sign + found[0]
        elif answer.startswith("{"):
            answer = answer[1 : closing_brace(answer)]
        else:
            return answer


def _without_latex(answer: str) -> str:
    answer = answer.replace("^{\\circ}", " ").replace("^\\circ", " ").replace("\\%", "%")
    answer = _FRACTION.sub(r" \1\2/\3 ", answer)
    answer = _SHORT_FRACTION.sub(r" \1\2/\3 ", answer)
    answer = _ABOUT.sub("≈", _TIMES.sub("*", answer))
    answer = _COMMAND.sub(_command, answer).replace("\\", "")
    # Dollar signs are brackets when they come in pairs around the whole, money otherwise.
    answer = " ".join(answer.split()).replace(", ", ",")
    paired = len(answer) > 1 and answer[0] == answer.rstrip(".")[-1:] == "$"
    return answer.rstrip(".")[1:-1].strip() if paired else answer


def _command(match: re.Match[str]) -> str:
    """Braces group and vanish, typesetting is a space, mathematics is no part of a number."""
    if match[0] in "{}":
        return ""
    other = match["other"]
    return "^" if other and other.lower() in _MATHEMATICS else " "


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _ASCII:
        return _ASCII[character]
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
    if character in _SYMBOLS:
        return "^"
    if category == "Cf":
        return ""  # marks of direction, zero-width spaces
    return "$" if category == "Sc" else " " if category == "Zs" else character
