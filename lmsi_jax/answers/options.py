"""Multiple choice: the options of a question, and the key of an answer that names one of them."""

import dataclasses
import functools
import re
import string
from collections.abc import Callable, Sequence

from lmsi_jax.answers.numbers import number_key
from lmsi_jax.answers.spans import span_key
from lmsi_jax.answers.typeset import boxes, plain
from lmsi_jax.records import Question

LETTERS = string.ascii_lowercase
MAX_QUESTION = 20_000
_MAX_OPTION = 300
_AROUND = " \t\n,;'\"[]"
# "(a) foo (b) bar", "A) foo B) bar", "A. foo" on lines of their own, ['A)5', 'B)6'].
_STYLES = (
    re.compile(r"\(([A-Za-z])\)"),
    re.compile(r"(?<![\w(])([A-Za-z])\)"),
    re.compile(r"(?:^|\n)[ \t]{0,8}([A-Z])[.:]"),
)


def options_of(question: Question) -> tuple[str, ...]:
    """Return the texts of a choice question's options (a), (b), ...; () for other kinds."""
    return options_in(question.text) if question.kind == "choice" else ()


def options_in(text: str) -> tuple[str, ...]:
    """Return the texts of the last list (a), (b), ... in a question; () without one.

    Where an option names others ("both (a) and (b)"), the list is the one whose options have texts.
    """
    return tuple(text[begin:end] for begin, end in _option_spans(text))


@functools.lru_cache(maxsize=1 << 12)
def _option_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Return begin and end of the texts that `options_in` returns."""
    for style in _STYLES:
        marks = list(style.finditer(text[:MAX_QUESTION]))
        for first in reversed([i for i, mark in enumerate(marks) if mark[1] in "aA"]):
            run = _run(marks[first:])
            if len(run) < 2:
                continue
            ends = [mark.start() for mark in run[1:]] + [_end(text, run[-1])]
            spans = tuple(
                _stripped(text, mark.end(), end) for mark, end in zip(run, ends, strict=True)
            )
            texts = [text[begin:end] for begin, end in spans]
            if not any(option in ("", "and", "or", "&") for option in texts) or first == 0:
                return spans
    return ()


def _stripped(text: str, begin: int, end: int) -> tuple[int, int]:
    """Return a span without the spaces and marks at its ends."""
    option = text[begin:end].lstrip(_AROUND)
    begin = end - len(option)
    return begin, begin + len(option.rstrip(_AROUND))


# Options that name others, or their places, mean something else in another order.
_NAMES_OTHERS = re.compile(
    r"[(\[][A-Za-z][)\]]|\b(?:above|below|former|latter|preceding|following)\b"
    r"|\b(?:both|neither|either|none|all|any) of\b"
    r"|\b[A-H] (?:and|or|&) [A-H]\b",
    re.IGNORECASE,
)


def rotations(question: Question) -> int:
    """Return how many orders of its options a question can be asked in, 1 if only in its own.

    That is the number of options, unless one names others ("both (a) and (b)", "none of the
    above"), or a user's equality compares the answers, which need not be letters then.
    """
    if question.rules is not None and question.rules.equal is not None:
        return 1
    options = options_of(question)
    if len(options) < 2 or any(not option or _NAMES_OTHERS.search(option) for option in options):
        return 1
    return len(options)


def rotate(question: Question, by: int) -> Question:
    """Return a question whose place i shows option i + `by`, counted round; without its answer.

    Places after the last option begin again at the first. A question with one rotation, and every
    one after a whole turn, is returned as it is.
    """
    count = rotations(question)
    if by % count == 0:
        return question
    spans = _option_spans(question.text)
    parts, at = [], 0
    for place, (begin, end) in enumerate(spans):
        shown = spans[(place + by) % count]
        parts += [question.text[at:begin], question.text[slice(*shown)]]
        at = end
    text = "".join(parts) + question.text[at:]
    return dataclasses.replace(question, text=text, gold=None, also=())


def unrotated_letter(letter: str, by: int, count: int) -> str:
    """Return the letter, in the question's own order, of what `rotate` shows at `letter`."""
    place = LETTERS.find(letter)
    return LETTERS[(place + by) % count] if 0 <= place < count else letter


def _run(marks: list[re.Match[str]]) -> list[re.Match[str]]:
    """Return the marks that go on as a, b, c, ..., in one case; others are inside an option."""
    letters = LETTERS if marks[0][1] == "a" else LETTERS.upper()
    run: list[re.Match[str]] = []
    for mark in marks:
        named = _named_beside(mark)
        if mark[1] == letters[len(run) : len(run) + 1] and not (run and named):
            run.append(mark)
    return run


def _named_beside(mark: re.Match[str]) -> bool:
    """Return whether a mark names an option inside another: "both (a) and (b)"."""
    before = mark.string[max(0, mark.start() - 6) : mark.start()].lower()
    return before.endswith(("both ", " and ", " or ", "not ", "either "))


def _end(text: str, last: re.Match[str]) -> int:
    """Return where the last option ends: with its line."""
    newline = text.find("\n", last.end())
    return len(text) if newline < 0 else newline


# What may introduce a letter: "I think it is most likely option (C)".
_INTRODUCTION = (
    r"(?:the|my|option|choice|answer|letter|number|statement|is|are|most|very|so|i['’]?d|i['’]ll"
    r"|i(?= (?:think|believe|guess|would|will|say|choose|pick|select|go))|think|believe|guess|say"
    r"|choose|pick|select|go|with|for|it|it['’]s|its|would|will|must|should|be|that|this|one"
    r"|correct|best|right|final|indeed|therefore|thus|hence|clear|closest|nearest|to|likely"
    r"|plausible|probable|suitable|appropriate|reasonable|logical|accurate|sensible|still|only"
    r"|indicated|by|as|probably|[a-z]{3,16}ly|no doubt|without a doubt|of course|in fact)"
)
_NAME = re.compile(
    rf"(?:{_INTRODUCTION}[,:]{{0,2}}[ \"'`]{{1,3}}){{0,10}}[\"'`$]{{0,2}}"
    r"(?:[(\[]\s?([A-Za-z])\s?[)\]]|([A-Za-z])(?![\w'’]|-[a-z]))",
    re.IGNORECASE,
)
# What may follow a bare letter without a mark between; "a" and "I" are words, too.
_REASON = re.compile(r" (?:because|since|as|is|which|due|and|or|not|but)\b")
_FORMULA = re.compile(r"\s?(?:[=+*/<>^_×÷≈≠±|]|\([^)]|-\s?[A-Z0-9]\b|[0-9]+(?!\w))")
_OTHER = r"(?:(?:the|option|choice|answer|either|possibly|maybe|also|even) ){0,3}"
# "(A) or (B)", "A, C", "B/C", "(A) the shelf and (C) the desk"; not "(C) ore" or "A, a dog".
_ANOTHER = re.compile(
    rf"[\s,]*(?:\band\b|\bor\b|&|/|\+)[\s,]*{_OTHER}(?:[(\[][A-Za-z][)\]]|[A-HJ-Za-hj-z](?:\W|$)(?!\s?[a-z]{{2}}))"
    rf"|,\s?{_OTHER}(?:[(\[][A-Za-z][)\]]|[A-HJ-Za-hj-z](?=[,.;)]|\s(?:and|or)\b|$))"
    rf"|[^.;,:()]{{1,60}}?(?:,|\s(?:and|or|&)\s)\s?{_OTHER}[(\[][A-Za-z][)\]]",
)
_BRACKETED = re.compile(r"(?<![A-Za-z0-9])[(\[]([A-Za-z])[)\]]")
_DENIED = re.compile(r"(?:not|neither|none)\b", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"\W{0,4}([A-Za-z])\*{0,2}\s?[-–—/(=:]\s?([^\n]{1,80})")
_EDGES = " *_\"'`$“”‘’:-–—"
_POSSIBLE = re.compile(r"[(\[]([A-Za-z])[)\]]|(?<![\w'’\\])([A-HJ-Z])(?![\w'’])")


def choice_key(answer: str, options: tuple[str, ...] = ()) -> str | None:
    """Return the letter of the option that an answer names; None without one or with several.

    With options, an answer that is one option's text or number names it too, and a letter after
    the last option names nothing.
    """
    letters = _named_letters(answer) or _letter_with_text(answer, options)
    letter = letters.pop() if len(letters) == 1 else None
    if not options or letters:
        return letter
    known = letter if letter and LETTERS.index(letter) < len(options) else None
    if letter and (len(answer) < 4 or answer.lstrip(" *$").startswith(("(", "[", "\\boxed", "{"))):
        return known
    by_text = option_with_text(answer, options)  # "E. coli" may be one of them
    return by_text or (known if letter else _only_option(answer, options, number_key))


def names_option(text: str, options: Sequence[str]) -> bool:
    """Return whether a text has something that may be the letter of an option."""
    last = LETTERS[min(len(options), len(LETTERS)) - 1] if options else LETTERS[-1]
    return any((match[1] or match[2]).lower() <= last for match in _POSSIBLE.finditer(text))


def _named_letters(answer: str) -> set[str]:
    """Return the letters of the options that an answer names, in boxes if it has any."""
    if "\\boxed" in answer or "\\fbox" in answer:
        return set().union(*(_letters(plain(content).strip(_EDGES)) for content in boxes(answer)))
    return _letters(plain(answer).strip(_EDGES))


def _letter_with_text(answer: str, options: tuple[str, ...]) -> set[str]:
    """Return the letter of "C - 3" and "C (3)" if (c) is 3, which might be a formula otherwise."""
    parts = _LETTER_AND_TEXT.match(answer) if options else None
    if parts is None or LETTERS.index(parts[1].lower()) >= len(options):
        return set()
    letter, text = parts[1].lower(), parts[2].strip(_EDGES + "().")
    named = option_with_text(text, options) or _only_option(text, options, number_key)
    return {letter} if named == letter else set()


def _letters(written: str) -> set[str]:
    """Return the letters that plain text names, alone or with an option's text after them."""
    name = _NAME.match(written)
    if (
        name
        and (name[1] or name[2]).isascii()
        and (name[1] or _stands_alone(name[2], written[name.end() :]))
    ):
        letter = (name[1] or name[2]).lower()
        another = _ANOTHER.match(written, name.end())
        return {letter, another[0][-2:].strip(")] .,;").lower() or "?"} if another else {letter}
    return set() if _DENIED.match(written) else {x.lower() for x in _BRACKETED.findall(written)}


def option_with_text(answer: str, options: tuple[str, ...]) -> str | None:
    """Return the letter of the only option whose text an answer is."""
    return _only_option(answer, options, _option_span)


def _stands_alone(letter: str, behind: str) -> bool:
    """Return whether a bare letter is an option's name, no word and no part of a formula."""
    if _FORMULA.match(behind):
        return False
    if letter.isupper() and letter not in "AI":
        return True
    if behind[:1] == " " and behind[1:2].isalpha():
        return letter != "I" and _REASON.match(behind) is not None
    return letter != "I" or behind[:1] in ("", ".", ")", ":")


def _only_option(
    answer: str, options: tuple[str, ...], normal: Callable[[str], str | None]
) -> str | None:
    """Return the letter of the only option that is equal to the answer in a normal form."""
    key, keys = normal(answer), _normal_options(options, normal)
    return LETTERS[keys.index(key)] if key is not None and keys.count(key) == 1 else None


@functools.lru_cache(maxsize=1 << 12)
def _normal_options(
    options: tuple[str, ...], normal: Callable[[str], str | None]
) -> tuple[str | None, ...]:
    return tuple(normal(option[:_MAX_OPTION]) for option in options[: len(LETTERS)])


def _option_span(text: str) -> str | None:
    span = span_key(text)
    return "none of these" if span and _NONE_OF_THESE.fullmatch(span) else span


_NONE_OF_THESE = re.compile(r"(?:answer is )?none of (?:these|those|above)(?: \w+)?")
