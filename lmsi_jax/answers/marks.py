"""What marks an answer, and where a solution ends: patterns that run over whole texts.

Each begins with a literal, which the regular-expression engine looks for at the speed of
`str.find`, and repeats a bounded number of times. Marks run over the text in lower case.
"""

import itertools
import re
from collections.abc import Iterator, Sequence


def _compiled(*marks: tuple[str, str]) -> tuple[tuple[str, ...], tuple[re.Pattern[str], ...]]:
    """The words that marks begin with, and the patterns."""
    words = tuple(word for word, _ in marks)
    return words, tuple(re.compile(re.escape(word) + rest) for word, rest in marks)


# What may stand between a mark and its answer: markdown, display mathematics, a bullet.
_GAP = r"(?:[\s:：*_]|\$\$|\\\[){0,8}(?:(?<=\n)[-•][ ])?"
# "#### Step 1" and "#### 1. Eggs" are headings.
_NO_HEADING = r"(?![ \t]{0,4}\*{0,2}(?:step|part|case|method|[0-9]{1,2}[.):]\s?\*{0,2}[a-z]))"
# "If the answer is 40" answers nothing.
_CONDITIONS = ("if", "whether", "suppose", "suppose that", "assume", "assume that", "assuming")
_ANSWER_IS = re.compile(
    "answer"
    + "".join(f"(?<!{word} the answer)" for word in _CONDITIONS)
    + r"(?:\s{1,4}to\s{1,4}(?:this|the|your)\s{1,4}(?:question|problem))?\s{1,4}is\b"
    rf"(?!\s{{1,4}}(?:not(?! enough)|as follows|below|correct|incorrect)\b){_GAP}"
)
# The answer sentences of MGSM's exemplars (Shi et al. 2022, arXiv 2210.03057) and the labels of
# these languages, read where there is no English sentence. Here and below: a word, what follows it.
_FOREIGN_WORDS, _FOREIGN = _compiled(
    ("respuesta", r"(?: es\b|\s?:)" + _GAP),
    ("réponse", r"(?: est\b|\s?:)" + _GAP),
    ("antwort", r"(?: ist\b| lautet\b|\s?:)" + _GAP),
    ("ответ", r"\s?[—–:-]" + _GAP),
    ("答案", r"[是为:：]" + _GAP),
    ("答え", r"(?:は|[:：])" + _GAP),
    ("jibu ni", r"\b" + _GAP),
    ("risposta", r"(?: è\b|\s?:)" + _GAP),
    ("resposta", r"(?: é\b|\s?:)" + _GAP),
)
# Other ways to mark a final answer, read where no sentence above carries one.
_LABEL_WORDS, _LABELS = _compiled(
    ("####", _NO_HEADING + r"[ \t]{0,4}"),
    # also {"answer": 18} and "Answer (in dollars): 18"
    ("answer", rf"(?:[ \t*_\"]{{0,4}}(?:\(\w{{1,8}} ?\w{{0,8}}\))?\*{{0,2}}:|\s?=){_GAP}"),
    ("answer", rf"\s(?:would|must|should)\sbe\b(?!\s(?:not|an?|in)\b){_GAP}"),
    (
        "answer",
        r"(?:(?<=final answer)|(?<=\nanswer)|(?<=\*answer)|(?<=# answer))"
        rf"[ \t*_]{{0,4}}\n{_GAP}",
    ),
    ("ans", rf"(?<![a-z]ans)\s?[:.=]{_GAP}"),
    ("<answer>", r"\s{0,8}"),
    ("\na", rf"[ \t]{{0,4}}:{_GAP}"),
    ("\\boxed", r"[ \t]{0,4}(?=\{)"),
    ("\\fbox", r"[ \t]{0,4}(?=\{)"),
    ("option", rf"\s?(?:is\b|:){_GAP}"),
    ("choice", rf"\s?(?:is\b|:){_GAP}"),
    ("label", rf"[ \t*_]{{0,4}}:{_GAP}"),
)
# Labels that no step of a solution has.
_FINAL = re.compile(
    rf"####{_NO_HEADING}[ \t]{{0,4}}(?=-?\$?[0-9])|final answer[ \t*_]{{0,4}}:{_GAP}|<answer>"
)
_FIRST_LABEL = re.compile(rf"a[ \t]{{0,4}}:{_GAP}")

_NEXT_QUESTION = re.compile(
    r"(?:^|(?<=[.!?]))[ \t]{0,8}(?:#{1,6}[ \t]{1,4}|\*{1,2})?"
    r"(?:Q|Question|Premise|Problem|Exercise|Instruction|Human|User)[ \t]{0,4}[0-9]{0,3}:"
    r"|^#{1,6}[ \t]{1,4}(?:Question|Problem|Instruction|Input)\b"
    r"|<\|(?:im_end|eot_id|endoftext|end|return|user)\|>|</s>|<end_of_turn>|<start_of_turn>|<eos>"
    r"|\[INST\]",
    re.MULTILINE,
)
_RESTATED = re.compile(r"[#* \t]{0,8}(?:Question|Problem)[ \t]{0,4}:")
# A reasoning model's answer stands behind its thoughts.
_THOUGHTS = (("<think>", "</think>"), ("<|channel|>analysis", "<|channel|>final<|message|>"))


def sentences(lowered: str, begin: int, stop: int) -> Iterator[int]:
    """Where an answer begins behind "the answer is", in order."""
    return (match.end() for match in _ANSWER_IS.finditer(lowered, begin, stop))


def final(lowered: str, begin: int, stop: int) -> int | None:
    """Where an answer begins behind the first label that says it is final."""
    if "####" in lowered or "final answer" in lowered or "<answer>" in lowered:
        match = _FINAL.search(lowered, begin, stop)
        return match.end() if match else None
    return None


def foreign(lowered: str, begin: int, stop: int) -> Iterator[int]:
    """The same in other languages."""
    return _in_order(_FOREIGN_WORDS, _FOREIGN, lowered, begin, stop)


def labels(lowered: str, begin: int, stop: int) -> Iterator[int]:
    """Where an answer begins behind a label, in order."""
    first = _FIRST_LABEL.match(lowered, begin, stop)
    others = _in_order(_LABEL_WORDS, _LABELS, lowered, begin, stop)
    return itertools.chain([first.end()], others) if first else others


def first_solution(text: str) -> tuple[int, int]:
    """Where the first solution begins and ends; an empty one where thoughts have no end."""
    begin, stop = 0, len(text)
    if "<" in text:
        for opening, closing in _THOUGHTS:
            if (closed := text.find(closing)) >= 0:
                begin = closed + len(closing)
            elif opening in text:
                return 0, 0
    if _may_go_on(text):
        restated = _RESTATED.match(text, begin)  # the question that is asked, not the next one
        next_question = _NEXT_QUESTION.search(text, restated.end() if restated else begin)
        stop = next_question.start() if next_question else stop
    return begin, stop


def _may_go_on(text: str) -> bool:
    """Whether `_NEXT_QUESTION` can match: plain searches are many times faster than it."""
    if ":" in text and (
        ("Q" in text or "Problem" in text or "Premise" in text or "Exercise" in text)
        or ("Human" in text or "User" in text or "Instruction" in text)
    ):
        return True
    if "<" in text and ("<|" in text or "</s>" in text or "_of_turn>" in text or "<eos>" in text):
        return True
    return "# " in text or "[INST]" in text


def _in_order(
    words: Sequence[str],
    patterns: Sequence[re.Pattern[str]],
    lowered: str,
    begin: int,
    stop: int,
) -> Iterator[int]:
    there = [p for word, p in zip(words, patterns, strict=True) if word in lowered]
    return iter(sorted(m.end() for p in there for m in p.finditer(lowered, begin, stop)))
