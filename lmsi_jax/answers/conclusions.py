"""Reads the answer of a solution that marks none: its opening or concluding words, if plain.

Chat models often end with "So she has 18 apples." or open with "Yes, ...". Such an answer is read
only where there is one candidate; a text that stops in mid-sentence has none.
"""

import re
from collections.abc import Sequence

from lmsi_jax.answers.canonical import CANNOT_TELL, key
from lmsi_jax.answers.marks import last_sentence
from lmsi_jax.answers.spans import written_date
from lmsi_jax.answers.typeset import without_bold
from lmsi_jax.records import Kind

_TAIL = 600
"""Characters at the end of a solution that are looked at."""
_CLOSED = re.compile(r"(?:[.!。]['\")\]*$”’]{0,4}|\*\*)$")
# "I hope this helps!" belongs to no solution.
_FAREWELL = re.compile(
    r"(?:\n|(?<=[.!?*] ))(?:(?:I h|H)ope (?:this|that)|(?:Please )?(?:[Ll]et me know|[Ff]eel free)"
    r"|If you (?:have|need|want|would))\b[^\n]{0,200}$"
)
_CALCULATOR = re.compile(r"<<[^<>]{0,80}>>")
_FULL_HOUR = re.compile(r"(?<![0-9:])([0-9]{1,2}):00(?![0-9:])")
_NUMERAL = re.compile(
    r"(?<![\w^.,/{+*×-])(?<![+*×/^-] )(?<![0-9]:)[-−]?[$€£]?[0-9](?:[0-9,]*[0-9])?(?:\.[0-9]+)?"
    r"(?:%|[a-z]{2,4})?(?![\w^/}]|[.,:][0-9])"
)
_RESULT = re.compile(
    r"[=≈]\s{0,4}([-−]?[$€£]?[0-9](?:[0-9,]*[0-9])?(?:\.[0-9]+)?)"
    r"(?:%|[a-z]{2,4})?(?![\w^/])"
)
# "= $0.25, which is 25 cents" says it in the wanted unit; "= 60 inches, or 5 feet" leaves it open.
_AGAIN = re.compile(
    r",? (?:(or)|which (?:is|equals)(?: equal to| equivalent to| about| approximately)?)"
    r" ([$€£]?[0-9](?:[0-9,]*[0-9])?(?:\.[0-9]+)?)(?![\w^/]|[.,:][0-9])"
    r"(?! (?:more|less|fewer|times|higher|lower)\b)"
)
# Without a step, a sentence that draws nothing tells what is given.
_STEP = re.compile(
    r"≈|[0-9] [*×x+÷/-] [$€£]?[0-9]|\b(?:plus|minus|times|divided|multipl|subtract|add)"
)
_DRAWN = re.compile(
    r"\b(?:so|thus|therefore|hence|then|now|total|altogether|together|final|finally|must|means?"
    r"|left|remains?|remaining|average|result)\b",
    re.IGNORECASE,
)
# Words of `CANNOT_TELL`, quick to look for.
_DENIALS = ("not ", "n't", "n’t", "mpossible", "nable", "nsufficient", "no ", "No ")
# "The total number of pens in the 3 boxes is 36."
_TOTAL_IS = re.compile(
    r"^\W{0,4}(?:(?:so|thus|therefore|hence),? )?(?:the|her|his|their|its) (?:[a-z]+ )?"
    r"(?:total|number|amount|cost|price|value|sum|average|profit|distance|length|age|weight)\b"
    r"[^.=:;]{1,160}? (?:is|are|was|equals|will be|would be)"
    r"(?: about| approximately| exactly| only)?"
    r" ([-−]?[$€£]?[0-9](?:[0-9,]*[0-9])?(?:\.[0-9]+)?)(?![\w^/:])(?! (?:more|less|fewer|times))"
    r"[^0-9=]{0,60}$",
    re.IGNORECASE,
)
# "86 glasses and 42 plates"
_LIST = re.compile(r"([0-9]+)[^0-9.;:]{1,40}?(?:,|\band)\s[$€£]?([0-9]+)")
_BRACKETED = re.compile(r"(?<![A-Za-z0-9])\([A-Za-z]\)")
# "option C", "I choose C.", "C is correct"; by the letter first, which is quick to look for.
_NAMED = re.compile(
    r"[A-Z](?:(?:(?<=ption .)|(?<=hoice .))\b"
    r"|(?:(?<=hoose .)|(?<=pick .)|(?<=select .)|(?<=with .)|(?<= is .)|(?<=[Ii]t.s .)"
    r"|(?<=say .)|(?<=be .))(?=[.,:;!*]|$)"
    r"|(?<= [B-HJ-Z])(?= (?:\([^()\n]{1,60}\) )?is (?:the )?(?:correct|right|best)\b))"
)
# "B. Photosynthesis", then why; not a list of all options.
_OPENING_LETTER = re.compile(r"\W{0,4}(?:option )?(?:\(([A-Z])\)|([A-Z])[.):])", re.IGNORECASE)
_LINE_OF_OPTION = re.compile(r"\n\W{0,6}(?:option )?\(?([A-Z])[.):]", re.IGNORECASE)
_OPENING_OPTION = re.compile(r"\W{0,4}(?:option|choice) \(?([A-Z])\b", re.IGNORECASE)
_CORRECT = re.compile(r"\b(?:correct|right|best|answer|fits)\b")
_DECISION = re.compile(r"\W{0,4}(yes|no|true|false)(?=[,.!:;*—–\n]|\s[-—–(]|$)", re.IGNORECASE)
_NLI_DECISION = re.compile(
    r"\W{0,4}(yes|no|true|false|entailment|contradiction|neutral)(?=[,.!:;*—–\n]|\s[-—–(]|$)",
    re.IGNORECASE,
)
# "The premise contradicts the hypothesis."
_RELATION = re.compile(
    r"\b(?:is|as)(?: an?)? \W{0,3}(entailment|contradiction|neutral)\b|\b(entails|contradicts)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\b(?:not|neither|nor|cannot)\b|n['’]t\b")
_SO = re.compile(
    r"\W{0,4}(?:so|thus|therefore|hence|in conclusion"
    r"|(?:[^.!?\n]{1,40}, )?i(?:['’]d| would) say(?: that)?)"
    r"[,:]?\s{1,4}(?:[a-z]{2,16}ly,?\s{1,4})?",
    re.IGNORECASE,
)
# "Pigs have no wings, so no, they cannot fly."
_SO_YES = re.compile(r", (?:so|thus|therefore|hence),? (yes|no)(?=[,.!])", re.IGNORECASE)
_STATEMENT = re.compile(
    r"(?:the|this) (?:statement|claim|hypothesis|conclusion)"
    r"(?: that [^.,]{1,80}| [\"“'][^\"”\n]{1,80}[\"”'])?"
    r" is (?:[a-z]{2,16}ly )?"
    r"(true|false|entailed|contradicted|neutral|undetermined)\b",
    re.IGNORECASE,
)
_BARE = re.compile(r"(?:[a-zA-Z] ?= ?)?[-−$€£\\*+.]{0,4}\s?[0-9({]")
_SHORT = 40

Concluded = tuple[str, str, int]
"""Answer as written, its key, and where its sentence ends."""


def conclusion(
    text: str, begin: int, stop: int, kind: Kind, options: Sequence[str], *, drawn: bool = False
) -> Concluded | None:
    """Return the conclusion of the solution `text[begin:stop]`, None if it is not plain.

    With `drawn`, only a last sentence counts that opens with "so", "thus", "therefore", ...

    | kind        | read                                                                          |
    |-------------|-------------------------------------------------------------------------------|
    | all but span| a text of one line and at most 40 characters that begins with an answer       |
    |             | (yes_no, nli: "Yes" and "No" need a mark after them, as below), or a last or |
    |             | first paragraph that is nothing but an answer                                 |
    | number      | of a closed last sentence: what follows its last "="; without one, its only   |
    |             | number, or of several the one that the solution's last "=" gave, or what a    |
    |             | quantity is ("the cost of 3 pens is $36")                                     |
    | choice      | the only letter that a closed last sentence brackets or names ("option C");   |
    |             | with options, also the option that has its number; "B. ..." at the beginning  |
    | yes_no, nli | "Yes, ..." or "No, ..." at the beginning; at the end "So, no." or "So the     |
    |             | statement is false."; nli: also "Neutral. ...", "The premise entails it.", and|
    |             | that it is not possible to tell                                               |
    """
    if kind in ("span", "list"):
        return None
    end = begin + len(text[begin:stop].rstrip())
    answer = None
    if kind in ("yes_no", "nli") and not drawn:
        answer = _decision(text[begin : min(end, begin + _SHORT)], kind)
    tail = ""
    if answer is None:
        tail = _without_farewell(text[max(begin, end - _TAIL) : end])
        end = max(begin, end - _TAIL) + len(tail)
        answer = _last(tail, kind, options, drawn)
    if answer is None and not drawn:
        answer = _whole(text[begin:end].strip(), kind, options)
        if answer is None and kind == "choice":
            answer = _opening_letter(text, begin, end)
        if answer is None:
            opening, _, explanation = text[begin : begin + _TAIL].lstrip().partition("\n\n")
            before, _, last = tail.rpartition("\n\n")
            answer = _paragraph(last, kind, options) if before else None
            if answer is None and explanation:
                answer = _paragraph(opening, kind, options)
    if answer is not None and text.find(answer, begin, end) < 0:
        answer = answer.lstrip("$€£")  # "$<<9*2=18>>18"
    if not answer or text.find(answer, begin, end) < 0:
        return None
    found = key(answer, kind, options)
    return None if found is None else (answer, found, end)


def _without_farewell(tail: str) -> str:
    if not (
        "ope th" in tail or "et me know" in tail or "eel free" in tail or "If you " in tail
    ):  # of its many lines and sentences, no pattern is tried at each
        return tail
    farewell = _FAREWELL.search(tail)
    return tail[: farewell.start()].rstrip() if farewell else tail


def _whole(solution: str, kind: Kind, options: Sequence[str]) -> str | None:
    if len(solution) > _SHORT or "\n" in solution:
        return None
    if kind == "number" and not _BARE.match(solution):
        return None
    found = key(solution, kind, options)
    decided = kind in ("yes_no", "nli") and found != "unknown"
    return solution if found is not None and not decided else None


def _paragraph(paragraph: str, kind: Kind, options: Sequence[str]) -> str | None:
    """Return the answer of a paragraph that is nothing else: "18", "**Yes**", "(C) ore"."""
    bare = paragraph.strip(" *_$\\()[].\n")
    if not bare or len(paragraph) > _SHORT or "\n" in paragraph.strip():
        return None
    if kind in ("yes_no", "nli"):
        return bare if bare.isalpha() and key(bare, kind) is not None else None
    if kind == "number" and ("=" in paragraph or not _BARE.match(paragraph.strip())):
        return None
    return paragraph.strip(" *_\n") if key(paragraph, kind, options) is not None else None


def _opening_letter(text: str, begin: int, end: int) -> str | None:
    first = _OPENING_LETTER.match(text, begin, end)
    if not first:
        return None
    letter = first[1] or first[2]
    others = _LINE_OF_OPTION.findall(text, first.end(), end)
    return letter if all(other.lower() == letter.lower() for other in others) else None


def _last(tail: str, kind: Kind, options: Sequence[str], drawn: bool) -> str | None:
    """The candidate in a closed last sentence."""
    if tail.endswith(("$$", "\\]")):
        tail = tail[:-2].rstrip()
    elif not _CLOSED.search(tail[-8:]):
        return None
    begin = last_sentence(tail, kind)
    sentence = tail[begin:]
    if sentence.strip() in tail[:begin]:
        return None  # a model that repeats itself has not concluded
    if kind == "number" and not drawn:
        return _last_number(tail, begin)
    so = _SO.match(sentence)
    if drawn and not so:
        return None
    if kind == "number":
        return _last_number(tail, begin)
    if kind == "date":
        return written_date(sentence)
    if kind == "choice":
        letters = _BRACKETED.findall(sentence) or _NAMED.findall(sentence)
        if not letters and options:
            return _last_number(tail, begin)
        if _OPENING_LETTER.match(sentence) and _LINE_OF_OPTION.search("\n" + tail[:begin]):
            letters = letters if _CORRECT.search(sentence) else []  # the options, gone through
        if (named := _OPENING_OPTION.match(sentence)) and not so and not _CORRECT.search(sentence):
            others = {
                letter.lower() for letter in re.findall(r"\b[Oo]ption \(?([A-Z])\b", tail[:begin])
            }
            letters = letters if others <= {named[1].lower()} else []
        return letters[0] if len({letter.lower() for letter in letters}) == 1 else None
    return _last_decision(sentence, so.end() if so else None, kind)


def _last_number(tail: str, begin: int) -> str | None:
    before, sentence = _unset(tail[:begin]), _unset(tail[begin:])
    if "=" in sentence or "≈" in sentence:
        own = _RESULT.match(sentence, max(sentence.rfind("="), sentence.rfind("≈")))
        again = _AGAIN.search(sentence, own.end()) if own else None
        if again:
            return None if again[1] else again[2]
        return own[1] if own else None
    numerals = _NUMERAL.findall(sentence)
    keys = [key(numeral, "number") for numeral in numerals]
    if any(word in sentence for word in _DENIALS) and CANNOT_TELL.search(sentence):
        return None
    if len(set(keys)) == 1:
        steps = "=" in before or _STEP.search(before)
        drawn = steps or not before.strip() or _DRAWN.search(sentence)
        return numerals[0] if drawn else None
    total = _TOTAL_IS.search(sentence)
    if total and (before.strip() == "" or "=" in before or _DRAWN.search(sentence)):
        return total[1]
    results = _RESULT.findall(before)
    result = key(results[-1], "number") if results else None
    listed = {key(numeral, "number") for pair in _LIST.findall(sentence) for numeral in pair}
    return numerals[keys.index(result)] if result in keys and result not in listed else None


def _unset(text: str) -> str:
    """The text without bold letters, calculators' notes and the minutes of full hours."""
    text = _CALCULATOR.sub("", text) if "<<" in text else text
    text = _FULL_HOUR.sub(r"\1", text) if ":00" in text else text
    return without_bold(text)


def _last_decision(sentence: str, so: int | None, kind: Kind) -> str | None:
    if kind == "nli":
        if match := CANNOT_TELL.search(sentence):
            return match[0]
        if (relation := _RELATION.search(sentence)) and not _DENIED.search(sentence):
            return relation[1] or relation[2]
    if so is None:
        decided = _SO_YES.search(sentence)
        return decided[1] if decided else None
    statement = _STATEMENT.match(sentence, so)
    return statement[1] if statement else _decision(sentence[so:], kind)


def _decision(text: str, kind: Kind) -> str | None:
    match = (_NLI_DECISION if kind == "nli" else _DECISION).match(text)
    return match[1] if match else None
