"""What marks an answer, and where a solution ends: patterns that run over whole texts.

Each begins with a literal, which the regular-expression engine looks for at the speed of
`str.find`, and repeats a bounded number of times. Marks run over the text in lower case.
"""

import itertools
import re
from collections.abc import Iterator, Sequence

# What may stand between a mark and its answer: markdown, display mathematics, a bullet.
_GAP = r"(?:[\s:：*_]|\$\$|\\\[){0,8}(?:(?<=\n)[-•][ ])?"
_ANSWER_IS = re.compile(
    r"answer(?:\s{1,4}to\s{1,4}(?:this|the|your)\s{1,4}(?:question|problem))?"
    r"\s{1,4}is\b"
    rf"(?!\s{{1,4}}(?:not(?! enough)|as follows|below|correct|incorrect)\b){_GAP}"
)
# "if the answer is 40" answers nothing.
_CONDITION = re.compile(
    r"\b(?:if|whether|suppose|assume|assuming)\s(?:that\s)?(?:the|our|my|your)\s(?:\w{1,8}\s)?$"
)
_CONDITION_LENGTH = 32
# The answer sentences of MGSM's exemplars (Shi et al. 2022, arXiv 2210.03057) and the labels of
# these languages, read where there is no English sentence.
_FOREIGN = tuple(
    re.compile(mark + _GAP)
    for mark in (
        *(
            r"respuesta(?: es\b|\s?:)",
            r"réponse(?: est\b|\s?:)",
            r"antwort(?: ist\b| lautet\b|\s?:)",
        ),
        *(r"ответ\s?[—–:-]", r"答案[是为:：]", r"答え(?:は|[:：])", r"jibu ni\b"),
        *(r"risposta(?: è\b|\s?:)", r"resposta(?: é\b|\s?:)"),
    )
)
# Other ways to mark a final answer, read where no sentence above carries one.
_LABELS = tuple(
    re.compile(label)
    for label in (
        r"####[ \t]{0,4}",
        rf"answer[ \t*_]{{0,4}}:{_GAP}",
        rf"answer\s?={_GAP}",
        rf"answer\s(?:would|must|should)\sbe\b(?!\s(?:not|an?|in)\b){_GAP}",
        r"answer(?:(?<=final answer)|(?<=\nanswer)|(?<=\*answer)|(?<=# answer))"
        rf"[ \t*_]{{0,4}}\n{_GAP}",
        rf"ans(?<![a-z]ans)\s?[:.=]{_GAP}",
        r"<answer>\s{0,8}",
        rf"\na[ \t]{{0,4}}:{_GAP}",
        r"\\boxed[ \t]{0,4}(?=\{)",
        r"\\fbox[ \t]{0,4}(?=\{)",
        rf"option\s?(?:is\b|:){_GAP}",
        rf"choice\s?(?:is\b|:){_GAP}",
        rf"label[ \t*_]{{0,4}}:{_GAP}",
    )
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
    for match in _ANSWER_IS.finditer(lowered, begin, stop):
        if not _CONDITION.search(lowered, max(0, match.start() - _CONDITION_LENGTH), match.start()):
            yield match.end()


def foreign(lowered: str, begin: int, stop: int) -> Iterator[int]:
    """The same in other languages."""
    return _in_order(_FOREIGN, lowered, begin, stop)


def labels(lowered: str, begin: int, stop: int) -> Iterator[int]:
    """Where an answer begins behind a label, in order."""
    first = _FIRST_LABEL.match(lowered, begin, stop)
    others = _in_order(_LABELS, lowered, begin, stop)
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
    return (
        ("Q" in text or "<" in text or "Premise" in text or "Problem" in text)
        or ("Human" in text or "User" in text or "Instruction" in text)
        or ("# Input" in text or "Exercise" in text or "[INST]" in text)
    )


def _in_order(
    patterns: Sequence[re.Pattern[str]], lowered: str, begin: int, stop: int
) -> Iterator[int]:
    return iter(sorted(m.end() for p in patterns for m in p.finditer(lowered, begin, stop)))
