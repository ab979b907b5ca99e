"""Canonical keys: two answers are equal exactly when their keys are the same text.

| kind   | key                                         | read by          |
|--------|---------------------------------------------|------------------|
| number | an exact fraction, "37/2"                   | `numbers`        |
| choice | a letter, "b"                               | `options`        |
| yes_no | "yes" or "no"                               | here             |
| nli    | "yes", "no" or "unknown"                    | here             |
| span   | words, "chicago bears"                      | `spans`          |
| date   | ISO 8601, "2001-07-28"                      | `spans`          |
| list   | the sorted set of its items' keys, "3; 5"   | here, by the others |
"""

import functools
import re
from collections.abc import Callable, Sequence

from lmsi_jax.answers.numbers import has_number, number_key
from lmsi_jax.answers.options import choice_key, names_option, option_with_text
from lmsi_jax.answers.spans import date_key, span_key
from lmsi_jax.answers.typeset import boxes, plain
from lmsi_jax.records import Kind

MAX_ANSWER = 300


def key(answer: str, kind: Kind, options: Sequence[str] = ()) -> str | None:
    """Return the canonical key of an answer or a gold label, or None if it is not of this kind.

    Percent signs, currencies and units are dropped ("50%" is "50", as benchmarks label it); exact
    fractions are kept, so "0.33" is not "1/3".

    Args:
      answer: as written.
      kind: what the question asks for.
      options: texts of the question's options (a), (b), ..., for a choice: then the text of one of
        them has its letter's key, and a letter that is none of them has no key.

    Raises:
      ValueError: an unknown kind.
    """
    if kind not in _KEYS:
        raise ValueError(f"unknown answer kind {kind!r}; the kinds are {', '.join(_KEYS)}")
    if options and kind in ("choice", "list"):
        return _option_key(answer[:MAX_ANSWER], kind, tuple(options))
    return _plain_key(answer[:MAX_ANSWER], kind)


def may_answer(text: str, kind: Kind, options: Sequence[str] = ()) -> bool:
    """Return whether a text without a key tries to answer: "8 onions and 8 potatoes", "A or B".

    A text that has nothing of the kind is a remark: "reasonable", "supported by the facts".
    """
    if kind == "number":
        return has_number(text)
    if kind == "choice":
        return names_option(text, options)
    if kind in ("yes_no", "nli"):
        return _VERDICT_WORDS.search(text) is not None
    return kind != "date" or any(c.isdigit() for c in text)


_DECISIONS = {"yes": "yes", "true": "yes", "affirmative": "yes"}
_DECISIONS |= {"no": "no", "false": "no", "negative": "no", "untrue": "no"}
_RELATIONS = _DECISIONS | {
    **dict.fromkeys(("entailment", "entailed", "entails", "entail"), "yes"),
    **dict.fromkeys(("contradiction", "contradicted", "contradicts", "contradictory"), "no"),
    **dict.fromkeys(
        ("neutral", "unknown", "maybe", "neither", "unclear", "inconclusive", "undetermined")
        + ("indeterminate", "unsure", "uncertain", "undecided", "unknowable", "undeterminable"),
        "unknown",
    ),
}
_VERDICT_WORDS = re.compile(
    r"\b(?:yes|no|true|false|untrue|affirmative|negative|unclear|unknown|uncertain|undetermined|inconclusive|maybe|depends"
    r"|neither|entail\w*|contradict\w*|neutral|cannot|impossible|not possible|unsure)\b",
    re.IGNORECASE,
)
CANNOT_TELL = re.compile(
    r"\b(?:(?:not possible|impossible|unable|cannot|can not|can ?t|can['’]t|could not|couldn['’]t)"
    r"(?: be)? (?:to )?(?:\w{3,16}ly )?(?:tell|say|know|known|determine|determined|conclude"
    r"|concluded|find|solve|calculate|decide|decided|infer|inferred|establish|established|verify|verified|answer)"
    r"|(?:not enough|insufficient|no|lack of|not sufficient|too little)"
    r" (?:\w{3,12} )?(?:information|info|evidence|data|context|details?)"
    r"|(?:we|i|you) (?:do not|don['’]t) (?:really )?know|no way (?:to|of) (?:tell|know|say)\w*"
    r"|neither (?:\w+ )?(?:entail|contradict)\w*)\b",
    re.IGNORECASE,
)
# "not necessarily" tells nothing of a relation; elsewhere in a sentence it may deny a word.
_OPENS_UNKNOWN = re.compile(
    r"\W*(?:that )?(?:(?:it|this|that)(?: is |['’]s ))?(?:not (?:necessarily|clear|certain|known"
    r"|sure|enough|determinable|specified|stated|mentioned|given)"
    r"|(?:\w+ ){0,3}(?:may|might|could) (?:or (?:may|might|could) not\b|be either\b))",
    re.IGNORECASE,
)
# Words before a decision, besides adverbs in -ly.
_HEDGES = frozenset(
    (
        *("most", "very", "quite", "almost", "that", "still", "also", "indeed", "just", "a", "an"),
        *("the", "clear", "definite", "definitive", "firm", "resounding", "strong", "simple", "is"),
        *("it", "statement", "claim", "hypothesis", "so", "then", "therefore", "thus", "would"),
        *("be", "must", "should", "in", "fact", "general", "principle", "theory", "short", "big"),
        *("answer", "qualified", "tentative", "emphatic", "straightforward", "i", "think", "d"),
        *("say", "believe", "course", "of", "without", "this", "conclusion", "an", "overall"),
    )
)
_FIXED = re.compile(
    r"\b(?:(?:there is |with |without )?(?:no|a|any) doubt(?: that)?(?: it is)?,?"
    r"|no question(?: about it)?,?)\s+(?=\w)",
    re.IGNORECASE,
)
# "no longer certain", "no one knows", "no information is given": a "no" that decides nothing.
_NO_NOUN = re.compile(
    r"no (?:longer|one|doubt|way|idea|clue|reason|need|matter|more|less|fewer|such|definite|clear"
    r"|other|definitive|consensus|question|means|single|simple|answer|guarantee|conclusive"
    r"|(?:information|info|evidence|data|context|details|proof|mention|indication|sign) "
    r"(?:is|was|are|were|has|to|about|on|in|available|that|can|for|or|of))\b"
)
_CONDITIONS = frozenset(("if", "unless", "otherwise", "depending", "depends", "provided", "when"))


def _yes_no_key(answer: str) -> str | None:
    return _decision(answer, _DECISIONS)


def _nli_key(answer: str) -> str | None:
    if match := CANNOT_TELL.search(answer):
        words = _words(answer)
        # "no, we cannot conclude it" says no; "it is not possible to tell" is NLI's third option.
        last = match[0].lower().rsplit(None, 1)[-1]
        denied = words[:1] == ["no"] and last.startswith(("conclude", "determine", "infer"))
        return "no" if denied and answer.lower().find("no") < match.start() else "unknown"
    return "unknown" if _OPENS_UNKNOWN.match(answer) else _decision(answer, _RELATIONS)


def _words(answer: str) -> list[str]:
    set_in_type = "\\" in answer or "<" in answer
    return re.findall(r"[a-z]+", (plain(answer) if set_in_type else answer).lower())


def _decision(answer: str, decisions: dict[str, str]) -> str | None:
    """Return the decision that an answer opens with; None if it names two ("yes or no")."""
    if "\\boxed" in answer and answer.count("\\boxed") > 1:
        keys = {_decision(content, decisions) for content in boxes(answer)}
        return keys.pop() if len(keys) == 1 else None
    if "doubt" in answer or "question" in answer:
        answer = _FIXED.sub("", answer)
    all_words = _words(answer)
    words = _unhedged(all_words)
    if words[:2] == ["not", "true"]:
        return decisions["no"]
    if len(all_words) == 3 and all_words[0] in ("a", "an") and all_words[2] in decisions:
        words = all_words[2:]  # "an unequivocal yes"
    if words == ["not"] and len(all_words) > 1:
        return decisions["no"]  # "probably not"
    if not words or words[0] not in decisions:
        return None
    if words[0] == "no" and _NO_NOUN.match(" ".join(words[:4])):
        return None
    decision = decisions[words[0]]
    beside = _unhedged(words[2:]) if words[1:2] in (["or"], ["and"]) else words[1:]
    if beside and decisions.get(beside[0], decision) != decision:
        return None
    opposite = [i for i, word in enumerate(words) if decisions.get(word, decision) != decision]
    if not opposite:
        return decision
    # "yes in summer and no in winter"
    both = words[opposite[0] - 1] == "and" and not _NO_NOUN.match(
        " ".join(words[opposite[0] : opposite[0] + 4])
    )
    return None if both or not _CONDITIONS.isdisjoint(words) else decision


def _unhedged(words: list[str]) -> list[str]:
    """Return the words without the hedges that they begin with."""
    hedges = 0
    while hedges < len(words) and (
        words[hedges] in _HEDGES or (words[hedges].endswith("ly") and len(words[hedges]) > 3)
    ):
        hedges += 1
    return words[hedges:]


# Items stand on lines of their own, else between semicolons, else between commas and "and".
_LINES = re.compile(r"\s*\n\s*(?:[-*•]|\(?[0-9]{1,2}[.)](?=\s))?\s*")
_COMMAS = re.compile(
    r"\s*(?:;\s*(?:and\s)?|,(?![0-9]{3}(?![0-9]))\s*(?:and\s+|&\s*|or\s+)?|\s(?:and|&)\s+)"
)
_LIST_EDGES = " \t\n[](){}.:;,*_\"'`$“”"
_ITEM_MARK = re.compile(r"^(?:[-*•]\s+|\(?[0-9]{1,2}[.)]\s+)")


def list_key(answer: str, options: tuple[str, ...] = ()) -> str | None:
    """Return the key of a set of answers: the sorted keys of its items without repetition.

    Items are separated by line breaks, else by semicolons, else by commas and "and". An item that
    is a date or a plain number has its key, one that names an option the option's letter, any
    other the key of a span.
    """
    lines = [line for line in answer.strip().split("\n") if line.strip()]
    if len(lines) > 1:
        items = [_ITEM_MARK.sub("", line.strip()) for line in lines]
    else:
        text = plain(answer).strip(_LIST_EDGES)
        items = text.split(";") if ";" in text else _COMMAS.split(_ITEM_MARK.sub("", text))
    keys = {_item_key(item.strip(_LIST_EDGES), options) for item in items}
    joined = "; ".join(sorted(key for key in keys if key)) or None
    # A key is its own key: taking punctuation out can leave a number or another list.
    again = joined if joined is None or joined == answer else list_key(joined, options)
    return again if again is None or len(again) <= len(joined or "") else joined


def _item_key(item: str, options: tuple[str, ...]) -> str | None:
    if options and (letter := option_with_text(item, options)):
        return letter
    bracketed = re.fullmatch(r"\(?([A-Za-z])\)?", item)
    if bracketed:
        return bracketed[1].lower()
    if date := date_key(item) if any(c.isdigit() for c in item) and len(item) > 5 else None:
        return date
    number = number_key(item) if re.fullmatch(r"[^A-Za-z]*", item) else None
    return number or span_key(item)


_KEYS: dict[str, Callable[[str], str | None]] = {
    "number": number_key,
    "choice": choice_key,
    "yes_no": _yes_no_key,
    "nli": _nli_key,
    "span": span_key,
    "date": date_key,
    "list": list_key,
}


@functools.lru_cache(maxsize=1 << 16)
def _plain_key(answer: str, kind: str) -> str | None:
    """Most samples of a question repeat a few answers, so most keys are looked up."""
    return _KEYS[kind](answer)


@functools.lru_cache(maxsize=1 << 16)
def _option_key(answer: str, kind: str, options: tuple[str, ...]) -> str | None:
    return (choice_key if kind == "choice" else list_key)(answer, options)
