r"""Finds the marks of answers, and the ends of solutions and sentences.

Patterns here run over whole texts: each begins with a literal, which the regular-expression engine
looks for at the speed of `str.find`, and repeats a bounded number of times. Marks are looked for in
the text in lower case.

| strength    | mark                                                                        |
|-------------|-----------------------------------------------------------------------------|
| FINAL       | `#### 18`, `Final answer: 18`, `<answer>18</answer>`, `{"answer": 18}`      |
| SENTENCE    | "the answer is 18", also with a qualifier ("the answer (in dollars) is 18") |
| LABEL       | `Answer: 18`, `A: 18`, "the answer would be 18", "the best option is (b)"   |
| BOX         | `\boxed{18}`                                                                |
| STEP        | `Step 1 answer: 3`, "the answer to the first part is 3"                     |
| CONDITIONAL | "If he ran, then the answer is 18"                                          |
"""

import enum
import re
from collections.abc import Iterator
from typing import NamedTuple

from lmsi_jax.records import Kind


class Strength(enum.IntEnum):
    """Ranks marks by how surely their answer is the final one."""

    CONCLUSION = 0
    CONDITIONAL = 1
    STEP = 2
    BOX = 3
    LABEL = 4
    SENTENCE = 5
    FINAL = 6


CONCLUSION, CONDITIONAL, STEP, BOX, LABEL, SENTENCE, FINAL = Strength


class Mark(NamedTuple):
    """A mark: its name, its beginning, the beginning of its answer, and its strength."""

    name: str
    place: int
    start: int
    strength: Strength


class Solution(NamedTuple):
    """The text of the first solution, in lower case too, and its place.

    `text` has blanks for thoughts and is as long as the original. `concludes` is False if thoughts
    have no end.
    """

    text: str
    lowered: str
    begin: int
    stop: int
    concludes: bool


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# -- Marks.

# What may stand between a mark and its answer: markdown, display mathematics, a bullet.
_GAP = (
    r"(?:[\s:：*_…]|\.{3}|(?<=\n)>|\$\$|\\\[|```[a-z]{0,8}\n){0,8}"
    r"(?:(?:as follows|the following|below|here(?: it is)?)\s?:\s{0,4}\*{0,2})?(?:(?<=\n)[-•][ ])?"
)
_OF_WHAT = (
    r"(?: (?:to|for|of|in|as|from|on|at|given|with|by|after|per)"
    r"(?:\s[^\s.!?:=]{1,24}(?=[\s:=])){1,16}?)?"
)
# "| **Answer** | **18** |" at the end of a table
_LAST_CELL = r"\|(?=[^|\n]{1,80}\|[ \t]{0,4}(?:\n(?!\|)|$))"
# "answer", a remark in brackets, what it is the answer to, and a verb, a colon or a heading's end.
_ANSWER = re.compile(
    rf"answer[\"'*_`]{{0,3}}(?:\s?\([^()\n]{{1,60}}\))?{_OF_WHAT}(?:\s?\([^()\n]{{1,60}}\))?"
    r"(?: to (?:the |this )?(?:question:? )?[\"'“‘][^\"“”\n]{1,80}[?.]?[\"'”’])?"
    r"(?:,[^.,!?\n:]{1,40},)?\s{0,4}"
    r"(?:(?P<is>\b(?:is|was|equals|is equal to|comes (?:out )?to|turns out to be|works out to be"
    r"|has to be|becomes)\b)"
    r"|(?P<modal>\b(?:would|must|should|will|could|may|might)"
    r"(?: (?:then|also|therefore|still))? be\b)"
    rf"|(?P<label>[\"'*_ ]{{0,4}}(?:[:：→]|[=-]{{1,2}}>|=|{_LAST_CELL}))"
    rf"|(?P<heading>[*_ \t]{{0,4}}\n)){_GAP}"
)
OPENED = (
    *(". the ", "\nthe ", ". so the ", ".so the ", "\nso the ", ". so, the ", "\nso, the "),
    *(". therefore, the ", "\ntherefore, the ", ". thus, the ", "\nthus, the ", ". hence, the "),
)
_PLAIN_IS = re.compile(r"answer is (?=[0-9($ynfc-]|\\[^\[])(?!\$\$)")
# "answer choices" and "answer the question" mark nothing.
_ONLY_WORDS = (
    *("nswer choice", "nswer option", "nswers ", "nswered", "nswering", "nswer the ", "nswer."),
    *("nswer that", "nswer because", "nswer since", "nswer and", "nswer or", "nswer which"),
)
_DETERMINERS = _words("the your our this that my an a its")
# "if the answer is 40", "what the answer is", "no definitive answer"
_HYPOTHESES = _words(
    "if whether what suppose assume assuming unless why how until imagine thought say no "
    "supposing guess"
)
_MAY = (["may"], ["might"], ["could"])  # "one may think the answer is 40"
_SAID = (["i'd"], ["i’d"], ["would"], ["can"], ["could"], ["to"], ["we"], ["i"], ["safely"])
_ANOTHER_CLAUSE = re.compile(r"\b(?:since|because|there|but|so|as it|although)\b")
_STEPS = _words("step part phase stage subquestion sub-question")
_PARTIAL = _words(
    "intermediate partial preliminary first second initial tentative previous wrong sub"
)
_OF_STEP = re.compile(
    r"\b(?:to|for|of|in|from) (?:the )?(?:(?:first|second|third|fourth|previous|last|each|this|next"
    r"|intermediate) (?:part|step|subproblem|sub-problem|question part|subquestion)"
    r"|(?:step|part|subproblem|subquestion) )"
)
_CONDITION = re.compile(
    r"\s{0,4}(?:but |and |so |or |now )?(?:if|unless|when|assuming|supposing|otherwise)\b"
)
# The answer sentences of MGSM's exemplars (Shi et al. 2022, arXiv 2210.03057) and the labels of
# these languages, read if there is no English sentence. A word's letter of the highest code,
# which English seldom has, is looked for before the word: that is many times faster.
_FOREIGN = tuple(
    (max(word), word, re.compile(re.escape(word) + rest + _GAP))
    for word, rest in (
        ("respuesta", r"(?: (?:final|correcta))?(?: es\b|\s?:)"),
        ("réponse", r"(?: finale| correcte)?(?: est\b|\s?:)"),
        ("antwort", r"(?: ist\b| lautet\b|\s?:)"),
        ("ответ", r"\s?[—–:-]"),
        ("答案", r"[是为:：]"),
        ("答え", r"(?:は|[:：])"),
        ("jibu ni", r"\b"),
        ("risposta", r"(?: finale| corretta)?(?: è\b|\s?:)"),
        ("resposta", r"(?: final| correta)?(?: é\b|\s?:)"),
        ("উত্তর", r"(?: হল)?\s?[:—-]?"),
        ("సమాధానం", r"\s?[:—-]?"),
        ("คำตอบ", r"(?:สุดท้าย)?(?:คือ|\s?:)"),
        ("정답", r"(?:은|\s?:)"),
        ("đáp án", r"(?: là| đúng là|\s?:)"),
        ("الجواب", r"(?: هو|\s?:)"),
        ("उत्तर", r"\s?:"),
    )
)
# "#### Step 1" and "#### 1. Eggs" are headings: what follows must look like an answer.
_HASHES = re.compile(
    r"####(?!#{0,2}[ \t]{0,4}\*{0,2}(?:step|part|case|method|[0-9]{1,2}[.):]\s?\*{0,2}[a-z]))"
    r"#{0,2}[ \t*:]{0,6}(?=\S)"
)
_HASHED_NUMBER = re.compile(r"[-−–+*$€£¥₹\\({~≈]{0,8}(?:boxed\{|frac|rs\.? ?)?\s?[-−$]?\.?[0-9]")
_TAGGED = re.compile(r"[<\[](?:final[_ ]?)?answer[>\]]\s{0,8}")
_ANS = re.compile(rf"ans(?<![a-z]ans)\s?[:.=]{_GAP}")
_LINE_A = re.compile(rf"\na[ \t]{{0,4}}:{_GAP}")
# "the best choice is (B)"; "each option:" and "multiple choice:" are none.
_CHOICE = re.compile(
    rf"(?:option|choice){_OF_WHAT}(?:\s(?:is|would be|must be|should be|seems to be|will be)\b"
    rf"|\s?[*_]{{0,2}}:){_GAP}"
)
_CHOSEN = _words(
    "correct best right final closest nearest chosen selected my appropriate likely suitable "
    "plausible logical reasonable matching valid accurate fitting only sensible probable "
    "answer"
)
# "The most fitting word for it is (C)."
_MOST = re.compile(
    r"st [^.!?\n:;]{1,80}?\s(?:is|are|be|was)[:\s]{1,3}(?=[*\"$\\]{0,3}(?:boxed\{)?\([a-z]\))"
)
# A label of the last line only: before other lines it may be a step's.
_LAST_LINE = re.compile(
    r"[#>*_\s-]{0,8}(?:final |the )?(result|conclusion|prediction|relation(?:ship)?|verdict|output"
    rf"|classification|solution|response|decision)[*_]{{0,3}}\s?:{_GAP}"
)
_NLI_LABEL = re.compile(rf"label(?<![a-z]label)[ \t*_]{{0,4}}:{_GAP}")


def strong_marks(solution: Solution, kind: Kind) -> list[Mark]:
    """Return the marks with "answer" in them, `####` and tags, in the order of their places."""
    lowered, begin, stop = solution.lowered, solution.begin, solution.stop
    marks: list[Mark] = []
    place = lowered.find("answer", begin, stop)
    if place >= 0:
        while place >= 0:
            if mark := _answer_mark(lowered, place, begin, stop):
                marks.append(mark)
            place = lowered.find("answer", place + 6, stop)
        if ("<" in lowered or "[" in lowered) and ("answer>" in lowered or "answer]" in lowered):
            marks += [
                Mark("<answer>", match.start(), match.end(), FINAL)
                for match in _TAGGED.finditer(lowered, begin, stop)
            ]
        if kind == "list" and "answers" in lowered:
            marks += _answers(lowered, begin, stop)
    if "#" in lowered and "####" in lowered:
        marks += [
            Mark("####", match.start(), match.end(), FINAL)
            for match in _HASHES.finditer(lowered, begin, stop)
            if kind != "number" or _HASHED_NUMBER.match(lowered, match.end())
        ]
    if len(marks) > 1:
        marks.sort(key=by_place)
    return marks


def foreign_marks(solution: Solution) -> list[Mark]:
    """Return the answer sentences of other languages, in the order of their places."""
    lowered = solution.lowered
    if lowered.isascii() and not (
        "sposta" in lowered or "espuesta" in lowered or "ntwort" in lowered or "jibu ni" in lowered
    ):
        return []
    marks = [
        Mark("foreign", match.start(), match.end(), SENTENCE)
        for letter, word, pattern in _FOREIGN
        if letter in lowered and word in lowered
        for match in pattern.finditer(lowered, solution.begin, solution.stop)
    ]
    return sorted(marks, key=by_place)


def weak_marks(solution: Solution, kind: Kind) -> list[Mark]:
    """Return labels without the word "answer", in the order of their places."""
    lowered, begin, stop = solution.lowered, solution.begin, solution.stop
    marks: list[Mark] = []
    if "ans" in lowered and (
        "ans:" in lowered
        or "ans." in lowered
        or "ans=" in lowered
        or "ans :" in lowered
        or "ans =" in lowered
    ):
        for match in _ANS.finditer(lowered, begin, stop):
            marks.append(Mark("ans:", match.start(), match.end(), LABEL))
    if "\na" in lowered and ("\na:" in lowered or "\na " in lowered):
        for match in _LINE_A.finditer(lowered, begin, stop):
            marks.append(Mark("a:", match.start(), match.end(), LABEL))
    if first := _FIRST_A.match(lowered, begin, stop):
        marks.append(Mark("a:", first.start(), first.end(), LABEL))
    if ":" in lowered and (last := _last_line_mark(lowered, begin, stop)):
        marks.append(last)
    if kind == "choice":
        marks += _choices(lowered, begin, stop)
    if kind == "nli" and "label" in lowered:
        for match in _NLI_LABEL.finditer(lowered, begin, stop):
            marks.append(Mark("label:", match.start(), match.end(), LABEL))
    if len(marks) > 1:
        marks.sort(key=by_place)
    return marks


def _last_line_mark(lowered: str, begin: int, stop: int) -> Mark | None:
    """Return the mark of a last line such as "**Result:** 18", None for any other."""
    end = begin + len(lowered[begin:stop].rstrip())
    line = max(begin, lowered.rfind("\n", begin, end) + 1)
    if end - line > 300 or lowered.find(":", line, end) < 0:
        return None
    match = _LAST_LINE.match(lowered, line, end)
    return Mark("result:", match.start(1), match.end(), LABEL) if match else None


def boxes_from_end(solution: Solution) -> Iterator[Mark]:
    """Yield the boxes of a solution, the last one first."""
    lowered, begin = solution.lowered, solution.begin
    if "\\boxed" not in lowered and "\\fbox" not in lowered:
        return
    place = solution.stop
    while place > begin:
        place = max(lowered.rfind("\\boxed", begin, place), lowered.rfind("\\fbox", begin, place))
        if place < 0:
            return
        start = place + (6 if lowered[place + 1] == "b" else 5)
        while lowered[start : start + 1] == " ":
            start += 1
        if lowered[start : start + 1] == "{" or lowered[start : start + 1].isalnum():
            yield Mark("\\boxed", place, start, BOX)


_FIRST_A = re.compile(rf"\s{{0,4}}a[ \t]{{0,4}}:{_GAP}")
_ANSWERS_ARE = re.compile(
    rf"answers(?:\s?\([^()\n]{{1,60}}\))?{_OF_WHAT}\s{{0,4}}(?:\bare\b|[*_ ]{{0,4}}:){_GAP}"
)


def _answers(lowered: str, begin: int, stop: int) -> list[Mark]:
    return [
        Mark("answers are", match.start(), match.end(), SENTENCE)
        for match in _ANSWERS_ARE.finditer(lowered, begin, stop)
    ]


def by_place(mark: Mark) -> tuple[int, int]:
    """Return the order of marks: of two at one place the longer one comes first."""
    return mark.place, -mark.start


def _choices(lowered: str, begin: int, stop: int) -> Iterator[Mark]:
    """Yield the marks "the best option is" and "Choice:", but not "each option:"."""
    for word in ("option", "choice"):
        place = lowered.find(word, begin, stop)
        while place >= 0:
            if match := _CHOICE.match(lowered, place, stop):
                before = lowered[max(begin, place - 24) : place]
                words = before.split()
                opens_line = not before.rpartition("\n")[2].strip("#>*_- ") and (
                    "\n" in before or place - len(before) == begin
                )
                if opens_line or (words and words[-1].strip("\"'*_") in _CHOSEN):
                    yield Mark("option", place, match.end(), LABEL)
            place = lowered.find(word, place + 6, stop)


def superlative_marks(solution: Solution) -> list[Mark]:
    """Return the marks of "the most fitting word is (c)" for a choice."""
    lowered, begin, stop = solution.lowered, solution.begin, solution.stop
    if not ("most " in lowered or "best " in lowered or "least " in lowered):
        return []
    return [
        Mark("most", match.start(), match.end(), STEP)
        for match in _MOST.finditer(lowered, begin, stop)
        if lowered.endswith(("mo", "be", "lea"), begin, match.start())
    ]


def _answer_mark(lowered: str, place: int, begin: int, stop: int) -> Mark | None:
    """Return the mark that "answer" at a place is, None if it is only the word."""
    # Two usual marks need none of the checks below.
    if lowered.endswith(OPENED, begin, place) and _PLAIN_IS.match(lowered, place, stop):
        return Mark("answer is", place, place + 10, SENTENCE)
    if place > begin and lowered.startswith('"answer": ', place - 1):
        return Mark("answer field", place, place + 9, FINAL)
    if lowered.startswith(_ONLY_WORDS, place + 1):
        return None
    before = lowered[max(begin, place - 40) : place]
    match = _ANSWER.match(lowered, place, stop)
    if match is None:
        return None
    start, form, words = match.end(), match.lastgroup, before.split()
    if words and words[-1] in ("to", "can", "could", "cannot", "please"):
        return None  # the verb
    name, strength = "answer:", LABEL
    if form in ("is", "modal"):
        of_what = match[0] if start - place > 14 else ""
        if _hypothetical(words) or (of_what and _ANOTHER_CLAUSE.search(of_what)):
            return None
        name = "answer is" if form == "is" else "answer be"
        if _conditional(lowered, begin, place):
            strength = CONDITIONAL
        elif form == "is":
            strength = SENTENCE
        if of_what and _OF_STEP.search(of_what):
            strength = STEP
    elif before.endswith(("<", "</", "<final_", "</final_", "[/", "|")) or (
        form == "heading" and not _opens_heading(before, place - len(before) == begin)
    ):
        return None
    elif form == "label" and before.endswith(('"', "'", '"final_', '"final ')):
        name, strength = "answer field", FINAL
    elif before.endswith(("final ", "final\xa0", "final_", "final-")):
        name, strength = "final answer:", FINAL
    elif start - place > 14 and _OF_STEP.search(match[0]):
        strength = STEP
    if words and (
        words[-1].rstrip("-") in _PARTIAL or (len(words) > 1 and words[-2].strip("*#(") in _STEPS)
    ):
        strength = STEP
    return Mark(name, place, start, strength)


def _opens_heading(before: str, at_begin: bool) -> bool:
    """Return whether the line before "answer" has only words of a heading: "## Final"."""
    _, newline, line = before.rpartition("\n")
    words = line.strip("#*_>- ")
    return bool(newline or at_begin) and words in ("", "final", "the final", "the", "correct", "my")


def _hypothetical(words: list[str]) -> bool:
    """Return whether the words before "answer is" only suppose or ask it: "if the correct"."""
    position = len(words) - 1
    if position > 0 and words[position] not in _DETERMINERS and words[position] not in _HYPOTHESES:
        position -= 1  # an adjective
    while position > 0 and words[position] in _DETERMINERS:
        position -= 1
    if words[position - 1 : position] in _MAY and words[position] in ("think", "believe", "expect"):
        return True
    if position < 0 or words[position] not in _HYPOTHESES:
        return False
    # "say the answer is 40" supposes it, "I'd say the answer is 40" says it
    return words[position] != "say" or words[position - 1 : position] not in _SAID


def _conditional(lowered: str, begin: int, place: int) -> bool:
    """Return whether the sentence before a place opens with a condition."""
    window = lowered[max(begin, place - 160) : place]
    if not (
        "if " in window
        or "unless" in window
        or "when " in window
        or "assum" in window
        or "suppos" in window
        or "otherwise" in window
    ):
        return False
    opening = max(window.rfind(". "), window.rfind("\n"), window.rfind("? "), window.rfind("! "))
    return _CONDITION.match(window, opening + 1) is not None


# -- The first solution.

_QUESTION = re.compile(
    r"(?P<word>Q|Question|Premise|Problem|Exercise|Instruction|Human|User|Input)[ \t]{0,4}"
    r"(?P<number>[0-9]{0,3})[ \t]{0,2}\*{0,2}(?:(?P<colon>:)|[.]?[ \t]{0,4}(?=\n|$))"
)
_LINE_OPENING = re.compile(r"\n[ \t]{0,8}(?P<heading>#{1,6}[ \t]{1,4})?\*{0,2}$")
_SENTENCE_OPENING = re.compile(r"[.!?][\"')*]{0,3}[ \t]{0,8}$")
# The first letter is looked for first, which is many times faster.
_NEEDLES = tuple(
    (word[0], word)
    for word in ("Q", "Premise", "Problem", "Exercise", "Human", "User", "Instruction", "Input")
)
# Neither "x < 5" nor a calculator's "<<9*2=18>>" is a tag.
_TAG = re.compile(r"<(?![<0-9 =.])")
_TOKEN = re.compile(
    r"[<\[](?:(?<=<)(?:[|｜][A-Za-z_▁:]{1,30}[|｜]|/?s|end_of_turn|start_of_turn|eos)>|(?<=\[)/?INST\])"
)
_ROLE = re.compile(r"\s{0,4}(?:assistant|model|final|analysis|message|\||>|<){0,3}\s{0,4}")
# What may open a text that then restates its question.
_OPENING_WORDS = re.compile(
    r"\W{0,8}(?:sure|certainly|of course|absolutely|okay|ok|great|let['’]?s|let us|let me|here"
    r"|to (?:solve|answer|find|determine)|we (?:need|are|have|will|can)"
    r"|i(?:['’]ll| will| need|['’]m)|first|given|the (?:problem|question|following)|step"
    r"|understand|restat|rewrit|thank|hello|hi|solution)",
    re.IGNORECASE,
)
_MOST_OPENING = 400
_THOUGHT_NAME = (
    r"think|thinking|thoughts?|reasoning|reason|reflection|scratchpad|analysis|cot|inner_monologue"
    r"|chain_of_thought|rationale|begin_of_thought|end_of_thought"
)
_THOUGHT = re.compile(
    rf"[<◁\[](?:(?<=<)(/?)\|?(?:seed:)?(?:{_THOUGHT_NAME})\|?>|(?<=◁)(/?)think▷|(?<=\[)(/?)think\]"
    r"|(?<=<)\|channel\|>(analysis|final)<\|message\|>)"
)


def first_solution(text: str) -> Solution:
    """Return the first solution of a text: after its thoughts, before the next question."""
    lowered = text.lower()
    if len(lowered) != len(text):
        lowered = _lower(text)
    begin, stop, concludes = 0, len(text), True
    if (
        ("<" in text and _TAG.search(text))
        or "◁" in text
        or ("]" in text and ("think]" in lowered or "INST]" in text))
    ):
        if _THOUGHT.search(lowered):
            text, begin, stop, concludes = _without_thoughts(text, lowered)
            lowered = _lower(text)
            begin += len(text[begin:]) - len(text[begin:].lstrip())
        begin = _behind_role(text, begin)
        token = _TOKEN.search(text, begin, stop)
        stop = token.start() if token else stop
    if ":" in text or "#" in text:
        stop = _next_question(text, begin, stop)
    return Solution(text, lowered, begin, stop if stop > begin else begin, concludes)


def _lower(text: str) -> str:
    """Return the text in lower case, each character in its place."""
    return "".join(c if len(c.lower()) > 1 else c.lower() for c in text)


def _without_thoughts(text: str, lowered: str) -> tuple[str, int, int, bool]:
    """Return the text with line breaks for thoughts, its begin, its stop, and if it concludes."""
    begin, kept = 0, 0
    opened: int | None = None
    pieces: list[str] = []
    for match in _THOUGHT.finditer(lowered):
        closing = (
            bool(match[1] or match[2] or match[3]) or match[4] == "final" or "end_of" in match[0]
        )
        if not closing:
            opened = match.start() if opened is None else opened
            continue
        if opened is None:  # the prompt opened it
            if match[4] == "final" or not pieces:
                begin = match.end()
            continue
        pieces.append(text[kept:opened] + "\n" * (match.end() - opened))
        kept, opened = match.end(), None
    whole = "".join(pieces) + text[kept:]
    return whole, begin, len(text) if opened is None else opened, opened is None


def _behind_role(text: str, begin: int) -> int:
    """Return where the text begins after the tokens of a chat template that open it."""
    while True:
        blank = begin + len(text[begin : begin + 40]) - len(text[begin : begin + 40].lstrip())
        token = _TOKEN.match(text, blank)
        if not token or token[0].lower().strip("<|>") in ("user", "end", "im_end", "eot_id"):
            return begin
        role = _ROLE.match(text, token.end())
        begin = role.end() if role else token.end()


def _next_question(text: str, begin: int, stop: int) -> int:
    """Return where the next question begins before `stop`, else `stop`."""
    for initial, needle in _NEEDLES:
        place = text.find(needle, begin, stop) if initial in text else -1
        while place >= 0:
            if _opens_question(text, begin, place):
                stop = _line_begin(text, place)
                break
            place = text.find(needle, place + len(needle), stop)
    return stop


def _line_begin(text: str, place: int) -> int:
    """Return where the markup of the line or sentence begins that a place opens."""
    while place and text[place - 1] in "#* \t":
        place -= 1
    return place


def _opens_question(text: str, begin: int, place: int) -> bool:
    """Return whether another question begins at a place, and not the one that is answered."""
    question = _QUESTION.match(text, place)
    if question is None:
        return False
    word, colon = question["word"], question["colon"] is not None
    before = text[place - 16 : place] if place - begin > 16 else "\n" + text[begin:place]
    line = _LINE_OPENING.search(before)
    if line is None:
        return colon and word in ("Q", "Question") and _SENTENCE_OPENING.search(before) is not None
    if not colon and (word == "Q" or not line["heading"]):
        return False
    if word in ("Q", "Premise"):
        return True
    opening = text[begin:place].strip(" \t\n#*-—")
    return not _introduces(opening, question["number"])


def _introduces(opening: str, number: str) -> bool:
    """Return True if the text before a restated question only introduces it."""
    if not opening:
        return True
    if number not in ("", "1") or len(opening) > _MOST_OPENING or any(c.isdigit() for c in opening):
        return False
    return opening.endswith(":") or _OPENING_WORDS.match(opening) is not None


# -- Sentences.

# A set of characters comes first, which the engine looks for quickly.
_END = re.compile(r"[\n.!?。।](?:(?<=[\n。।])|(?<=[.!?])[\"')\]*”’]{0,4}(?=\s|$)|(?<=\.)(?=[A-Z]))")
_END_MARK = re.compile(r"[\n.!?。।]")
_ABBREVIATIONS = _words(
    "approx mr mrs ms dr st vs rs jr sr mt prof gen col jan feb mar apr jun jul aug sep sept "
    "oct nov dec inc ltd co corp lt sgt capt rev hon gov sen rep ft"
)
# Words that open a sentence, also after an initial: "Malcolm X. He was a minister."
_OPENERS = _words(
    "he she it they the this that these those his her its their we i you in on at an so but "
    "and however there therefore thus because since after before as for when while both "
    "according note then also if from with by during here although though who which what let "
    "to hence answer question not no yes my our explanation reason based now all one"
)
# A single letter after these is no initial: "Vitamin C. Carrots have it."
_LETTERED = _words(
    "vitamin group war malcolm class type plan part section team grade hepatitis appendix "
    "figure table option point model route division series chapter choice answer league block "
    "phase line gate room building level case exhibit company act letter"
)


def sentence_length(text: str, kind: Kind) -> tuple[int, int]:
    """Return the length of the first sentence without its end mark, and with it."""
    match = _END.search(text)
    while match:
        length, end = match.span()
        mark = text[length]
        if mark != "." or not text[length - 1].isalpha() or not _abbreviated(text, length, kind):
            return length, length if mark == "\n" else end
        match = _END.search(text, end)
    return len(text), len(text)


def last_sentence(text: str, kind: Kind) -> int:
    """Return where the last sentence of a text begins, whatever follows the last end mark."""
    end, length = len(text.rstrip()), len(text)
    for mark in _END_MARK.finditer(text[::-1], length - end):
        place = length - mark.end()
        match = _END.match(text, place, end)
        if match and match.end() < end and not (mark[0] == "." and _abbreviated(text, place, kind)):
            return match.end()
    return 0


def _abbreviated(text: str, point: int, kind: Kind) -> bool:
    """Return whether the point at `point` belongs to an abbreviation or an initial."""
    if not text[point - 1].isalpha():
        return False
    head = text[max(0, point - 24) : point]
    word = head.rpartition(" ")[2].rpartition(".")[2].lower()
    if len(word) == 1 and kind in ("span", "choice", "list") and text[point - 1].isupper():
        if kind == "choice":
            # "B. photosynthesis", but not "B. It is the largest."
            return text[point + 2 : point + 3].islower()
        following = text[point + 1 : point + 16].split()
        if following and following[0].strip(",.'’").lower() in _OPENERS:
            return False
        words = head.lower().split()
        return not (len(words) > 1 and words[-2] in _LETTERED)
    if word == "no":
        return text[point + 1 : point + 2] == " " and text[point + 2 : point + 3].isdigit()
    if word in ("jr", "sr", "inc", "ltd", "co", "corp"):
        following = text[point + 1 : point + 16].split()
        return not (following and following[0].strip(",.'’").lower() in _OPENERS)
    return word in _ABBREVIATIONS and word != "ft"
