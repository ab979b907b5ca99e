r"""Reading: which of the answers in a text is its final answer.

One pass finds the candidates of the first solution: each has a mark, a place, a strength, the text
that it gives as the answer, its key, and where its sentence ends (`marks` lists the strengths). A
candidate is a *value* if its text has a key; an *attempt* if it has none but tries to answer ("8
onions and 8 potatoes", "A or B"); else a remark ("the answer is reasonable"), which counts for
nothing. The rule that chooses, the first line that gives a value:

1. FINAL and SENTENCE: the first value. It ends the solution with its paragraph, so text after it
   changes nothing. Inside that paragraph a FINAL mark beats sentences, and two FINAL values that
   differ are no answer. After the paragraph of an attempt, sentences no longer count. A JSON
   answer field beats the sentences inside its object.
2. BOX against LABEL: the last value in a box if it comes after the first value of a label, else
   that value; of boxes alone the last.
3. STEP: the last value.
4. CONDITIONAL: the value that all of them give.
5. CONCLUSION: what an unmarked solution opens or ends with (`conclusions`), unless something
   attempted to answer.
"""

import functools
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from lmsi_jax.answers import marks
from lmsi_jax.answers.canonical import MAX_ANSWER, key, may_answer
from lmsi_jax.answers.conclusions import conclusion
from lmsi_jax.answers.marks import (
    BOX,
    CONCLUSION,
    CONDITIONAL,
    FINAL,
    LABEL,
    SENTENCE,
    STEP,
    Mark,
    Solution,
    Strength,
    sentence_length,
)
from lmsi_jax.answers.typeset import clean, closing_brace, plain
from lmsi_jax.records import KINDS, Kind

_LOG = logging.getLogger(__name__)
BLANK_LINE = "\n\n"
MOST_READ = 64
"""Marks of a strength that are read; a text with more of them that give no value has no answer."""


class Candidate(NamedTuple):
    """An answer that a text gives somewhere.

    `text` is the answer as written, `end` where its sentence ends, `attempts` whether it tries to
    answer: it has a key, or something of the kind that has none.
    """

    mark: str
    strength: Strength
    place: int
    text: str
    key: str | None
    end: int
    attempts: bool


class Found(NamedTuple):
    """A final answer in a text: `text[:end]` is the solution up to and with its answer sentence.

    `marked` is False if nothing says that this is the answer, as in "So she has 18 apples."
    """

    answer: str
    key: str | None
    end: int
    marked: bool = True


class Reading(NamedTuple):
    """The reading of a text: its answer and all that was looked at to find it.

    `chosen` is the candidate that is the final answer, None without one; `candidates` are those
    that were read, in the order of reading. `surface` is the answer as it may be taught.
    """

    kind: Kind
    options: Sequence[str]
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]

    @property
    def key(self) -> str | None:
        """The key of the final answer, None without one."""
        return self.chosen.key if self.chosen else None

    @property
    def end(self) -> int:
        """The length of the text up to and with the answer's sentence; 0 without an answer."""
        return self.chosen.end if self.chosen else 0

    @property
    def marked(self) -> bool:
        """True if the text marks its answer."""
        return self.chosen is not None and self.chosen.strength != CONCLUSION

    @property
    def surface(self) -> str | None:
        """The answer in clean, balanced words that read back to the key, None without a key."""
        if self.chosen is None or self.chosen.key is None:
            return None
        return surface(self.chosen.text, self.kind, self.chosen.key, self.options)


def read(text: str, kind: Kind, options: Sequence[str] = (), *, finished: bool = True) -> Reading:
    """Return the reading of the first solution in a text.

    Args:
      text: what the model wrote after the prompt.
      kind: what the question asks for.
      options: texts of the question's options (a), (b), ..., for a choice.
      finished: False if the token limit or a stop string cut the text, which then concludes
        nothing.
    """
    candidates: list[Candidate] = []
    chosen = _answer(text, kind, options, finished, candidates)
    return Reading(kind, options, chosen, tuple(candidates))


def find(
    text: str, kind: Kind, options: Sequence[str] = (), *, finished: bool = True
) -> Found | None:
    """Return the final answer of the first solution in a text; arguments as of `read`.

    Its key is None if the text tries to answer and what it says has no key.
    """
    chosen = _answer(text, kind, options, finished)
    if chosen is None:
        return None
    return Found(chosen.text, chosen.key, chosen.end, chosen.strength != CONCLUSION)


def extract(text: str, kind: Kind, options: Sequence[str] = ()) -> str | None:
    """Return the final answer of the first solution in a text as written; None without one."""
    chosen = _answer(text, kind, options, True)
    return chosen.text if chosen else None


def path_key(
    text: str, kind: Kind, options: Sequence[str] = (), *, finished: bool = True
) -> str | None:
    """Return the key of the final answer of the first solution in a text; None without one."""
    chosen = _answer(text, kind, options, finished)
    return chosen.key if chosen else None


def explain(
    text: str, kind: Kind, options: Sequence[str] = (), *, finished: bool = True
) -> list[tuple[str, ...]]:
    """Return a table of all candidates in a text, its head first; arguments as of `read`.

    A row has the candidate's mark, strength, place, answer as written, key ("-" without one) and
    verdict: "chosen", "value", "attempt" or "remark".
    """
    reader = _Reader(marks.first_solution(text), kind, options, [])
    chosen = reader.choose(finished)
    reader.read_all()
    rows: list[tuple[str, ...]] = [("mark", "strength", "place", "answer", "key", "verdict")]
    for candidate in sorted(set(reader.candidates), key=lambda row: (row.place, row.mark)):
        verdict = "value" if candidate.key is not None else "attempt"
        verdict = verdict if candidate.attempts else "remark"
        rows.append(
            (
                candidate.mark,
                candidate.strength.name.lower(),
                str(candidate.place),
                candidate.text,
                candidate.key or "-",
                "chosen" if candidate == chosen else verdict,
            )
        )
    return rows


def _answer(
    text: str,
    kind: Kind,
    options: Sequence[str],
    finished: bool,
    candidates: list[Candidate] | None = None,
) -> Candidate | None:
    """Return the final answer of a text by the rule; `candidates` gets all that were read.

    A defect of a reader costs this text, not the run that reads it.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown answer kind {kind!r}; the kinds are {', '.join(KINDS)}")
    if candidates is None:
        candidates = []
    try:
        solution = marks.first_solution(text)
        if usual := _usual_answer(solution, kind, options):
            candidates.append(usual)
            return usual
        return _Reader(solution, kind, options, candidates).choose(finished)
    except Exception:  # noqa: BLE001
        _LOG.exception("a text could not be read and has no answer: %r", text[:200])
        return None


# "... The answer is $18.\n" and '..., "answer": "18"\n}\n```', up to the text's end.
_PLAIN_VALUE = r"-?\$?[0-9](?:[0-9,]{0,20}[0-9])?(?:\.[0-9]{1,9})?%?|\([a-z]\)|yes|no"
_USUAL_END = re.compile(
    rf"answer(?: is (?P<sentence>{_PLAIN_VALUE})\."
    rf"|\": \"(?P<field>{_PLAIN_VALUE})\"(?:\s{{0,4}}\}}(?:\s{{0,4}}```)?)?)(?=\s{{0,8}}\Z)"
)


def _usual_answer(solution: Solution, kind: Kind, options: Sequence[str]) -> Candidate | None:
    """Return the answer of a solution that has only one mark of line 1, at its plain end.

    It is what the rule chooses, as there is nothing to choose from, in half the time. Most texts
    end so.
    """
    text, lowered, begin, stop, _ = solution
    place = lowered.find("answer", begin, stop)
    if place <= begin or "#" in lowered or kind == "list":
        return None
    match = _USUAL_END.match(lowered, place, stop)
    if match is None:
        return None
    if match.lastgroup == "field":
        name, strength, opened = "answer field", FINAL, lowered[place - 1] == '"'
    else:
        name, strength = "answer is", SENTENCE
        opened = lowered.endswith(marks.OPENED, begin, place)
    start, end = match.span(match.lastgroup or 0)
    answer_key = key(answer := text[start:end], kind, options) if opened else None
    if answer_key is None:
        return None
    return Candidate(name, strength, place, answer, answer_key, match.end(), True)


# -- The text after a mark.

# A JSON field's value, with the object's end.
_FIELD = re.compile(
    r"(?:(?P<quote>[\"'])(?P<quoted>(?:(?!(?P=quote))[^\\]|\\.){0,280})(?P=quote)"
    r"|(?P<list>\[[^\[\]]{0,280}\])|(?P<bare>[^\",}\n]{0,280}))(?:\s{0,4}\}(?:\s{0,4}```)?)?"
)
# "\boxed{3} or \boxed{4}"
_ALTERNATIVE = re.compile(
    r"\\boxed.{0,16}(?:\bor\b|\band\b|\\text\{ or \})[^a-z]{0,4}$"
    r"|\}[$)\\ ]{0,4}(?:or|and)[$(\\ ]{1,5}$"
)
_CLOSERS = frozenset((" ", "\n", "\\", "$", "*", "<", "`"))
_CLOSING = re.compile(r"\s{0,2}(?:\\\]|\$\$)|\\\)|\*\*|</answer>|```")
_CLOSING_TAG = re.compile(r"</(?:final[_ ])?answer>|\[/answer\]", re.IGNORECASE)
_TWO_WORDS = re.compile(r"[A-Za-z'’]{1,20},? [A-Za-z'’]{1,20}\b")
# After a mark of these languages points part thousands and a comma begins a fraction: respuesta,
# Antwort, ответ (a Cyrillic letter), đáp án, by their first letters.
_DECIMAL_COMMA = frozenset("ra\u043eđ")
_POINTS = re.compile(r"(?<![0-9.,])([1-9][0-9]{0,2}(?:\.[0-9]{3}){1,6})(?![0-9.])")
_COMMA = re.compile(r"([^0-9]{0,4}[0-9]{1,9}),([0-9]{1,2}(?![0-9]))")
_BULLETS = re.compile(
    r"(?:[-*•]|\(?[0-9]{1,2}[.)])\s[^\n]{1,80}(?:\n\s{0,4}(?:[-*•]|\(?[0-9]{1,2}[.)])\s[^\n]{1,80}){0,20}"
)
# "(A) red: no", and on the next line "(B) blue: yes"
_OPTIONS = re.compile(
    r"(?:[-*•]\s)?\W{0,4}(?:option )?\(?([A-Z])[).:][^\n]{1,280}\n{1,2}(?:[-*•]\s)?\W{0,4}"
    r"(?:option )?\(?(?!\1)([A-Z])[).:]",
    re.IGNORECASE,
)
# "The answer is reasonable", "correct: 18 / 2 = 9": words that judge an answer and give none.
_REMARK = re.compile(
    r"(?:(?:also|indeed|now|still|in fact|thus|therefore|quite|very|so|most|more|both"
    r"|[a-z]{2,16}ly)\s){0,3}"
    r"(?:not(?! enough\b)|reasonable|plausible|sensible|correct|incorrect|right|wrong|valid|invalid"
    r"|verified|confirmed|complete|incomplete|clear|obvious|consistent|accurate|inaccurate"
    r"|supported|backed|explained|justified|based|rounded(?: off)?(?: to| up| down)|final"
    r"|expressed|written|given (?:below|above|in)|shown|stated|required|expected|needed|asked"
    r"|important|simple|easy|straightforward|as follows|below|above|here|already|ready|done"
    r"|in (?:the|terms|form)\b|(?:found|located|mentioned|listed|contained|provided) (?:in|on|at)"
    r"[^.,:;\n]{0,60}|between|independent|unique|satisfied|proven|checked|good|fine"
    r"|double[- ]checked)"
    r"(?:\s?[.,:;!)]|\s?$|\s(?:because|since|as|and|but|that|when|if|by|with|in|for|to|from|given"
    r"|considering|now|on|of|so|too|according|under|after|enough|form|[0-9])|(?<=not)\s)",
    re.IGNORECASE,
)
# "found by adding 9 and 9" tells how, unless a value follows.
_METHOD = re.compile(
    r"(?:found|obtained|calculated|computed|determined|derived|reached|given|got)\b"
)


class _Reader:
    """The candidates of one solution, read as far as the rule asks for them."""

    def __init__(
        self, solution: Solution, kind: Kind, options: Sequence[str], candidates: list[Candidate]
    ) -> None:
        self.solution, self.kind, self.options = solution, kind, options
        self.candidates = candidates

    def choose(self, finished: bool) -> Candidate | None:
        """Return the final answer by the rule at the top of this module."""
        solution, kind = self.solution, self.kind
        attempts: list[Candidate] = []
        strong = marks.strong_marks(solution, kind)
        if strong and (value := self._final(strong, attempts)):
            return value
        foreign = [] if attempts else marks.foreign_marks(solution)
        if foreign and (value := self._final(foreign, attempts)):
            return value
        weak = [mark for mark in strong if mark.strength < SENTENCE]
        weak += marks.weak_marks(solution, kind)
        introductions: list[Candidate] = []
        if value := self._weak(weak, attempts, introductions):
            return value
        if attempts:
            return attempts[0]
        return self._conclusion(finished, introductions)

    def read_all(self) -> None:
        """Read also the candidates that the rule did not need."""
        found = marks.strong_marks(self.solution, self.kind) + marks.foreign_marks(self.solution)
        found += marks.weak_marks(self.solution, self.kind)
        for mark in itertools.chain(found, marks.boxes_from_end(self.solution)):
            self._candidate(mark)

    def _final(self, strong: Sequence[Mark], attempts: list[Candidate]) -> Candidate | None:
        """Apply line 1 of the rule."""
        chosen: Candidate | None = None
        paragraph = blocked = self.solution.stop
        last, left = strong[-1], MOST_READ
        for mark in strong:
            if mark.strength < SENTENCE or not left:
                continue
            left -= 1
            if chosen is not None and mark.place >= paragraph and mark.name != "answer field":
                continue
            if mark.place >= blocked and mark.strength == SENTENCE:
                continue
            candidate = self._candidate(mark)
            if candidate is None or not candidate.attempts:
                continue
            if candidate.key is None:
                attempts.append(candidate)
                blocked = min(blocked, _paragraph_end(self.solution, candidate.end))
            elif chosen is None or _overrules(self.solution, candidate, chosen, paragraph):
                if mark is last:
                    return candidate
                if chosen is None:
                    paragraph = _paragraph_end(self.solution, candidate.end)
                chosen = candidate
            elif (
                candidate.strength == chosen.strength == FINAL
                and candidate.place < paragraph
                and candidate.key != chosen.key
            ):  # two final answers
                attempts.insert(0, chosen._replace(key=None))
                return None
        return chosen

    def _weak(
        self, weak: list[Mark], attempts: list[Candidate], introductions: list[Candidate]
    ) -> Candidate | None:
        """Apply lines 2 to 4 of the rule."""
        if len(weak) > 1:
            weak.sort(key=marks.by_place)
        label = self._label(weak, attempts, introductions) if weak else None
        box = None
        if "\\" in self.solution.text:
            box = self._last(marks.boxes_from_end(self.solution), attempts)
        if box is not None and (label is None or box.place > label.place):
            return box
        if label is not None:
            return self._solved(label) or label if self.kind == "number" else label
        if self.kind == "choice":
            weak = sorted([*weak, *marks.superlative_marks(self.solution)], key=marks.by_place)
        if not weak:
            return None
        if step := self._last((m for m in reversed(weak) if m.strength == STEP), []):
            return step
        if attempts:
            return None
        conditions = [mark for mark in weak if mark.strength == CONDITIONAL]
        read_all = map(self._candidate, conditions[:MOST_READ])
        conditional = [row for row in read_all if row is not None and row.attempts]
        if len({candidate.key for candidate in conditional}) == 1:
            return conditional[0] if conditional[0].key is not None else None
        attempts += [candidate._replace(key=None) for candidate in conditional]
        return None

    def _label(
        self, weak: Sequence[Mark], attempts: list[Candidate], introductions: list[Candidate]
    ) -> Candidate | None:
        """Return the first value after a label; attempts end the labels with their paragraph."""
        stop = _paragraph_end(self.solution, attempts[0].end) if attempts else self.solution.stop
        labels = (mark for mark in weak if mark.strength == LABEL)
        for mark in itertools.islice(labels, MOST_READ):
            if mark.place < stop:
                candidate = self._candidate(mark)
                if candidate is None or not candidate.attempts or candidate.text.endswith(":"):
                    continue
                if candidate.key is not None:
                    return candidate
                introductions.append(candidate)
                stop = min(stop, max(_paragraph_end(self.solution, candidate.end), candidate.end))
        return None

    def _last(self, from_end: Iterator[Mark], attempts: list[Candidate]) -> Candidate | None:
        """Return the last value; two boxes with "or" between them are an attempt."""
        for mark in itertools.islice(from_end, MOST_READ):
            candidate = self._candidate(mark)
            if candidate is None or not candidate.attempts:
                continue
            begin = max(self.solution.begin, candidate.place - 24)
            before = self.solution.text[begin : candidate.place]
            if candidate.key is not None and not _ALTERNATIVE.search(before):
                return candidate
            attempts.append(candidate._replace(key=None))
            if candidate.key is not None:
                return None
        return None

    def _solved(self, label: Candidate) -> Candidate | None:
        """Return what a paragraph concludes with that is a solution after a label, not an answer.

        "A: Janet has 16 eggs. She eats 3. So she sells 16 - 3 = 13." does not answer 16.
        """
        if not _TWO_WORDS.match(label.text):
            return None
        stop = _paragraph_end(self.solution, label.end)
        found = conclusion(self.solution.text, label.end, stop, "number", (), drawn=True)
        return self._concluded(found) if found else None

    def _conclusion(self, finished: bool, introductions: list[Candidate]) -> Candidate | None:
        """Apply line 5 of the rule."""
        solution = self.solution
        attempt = introductions[0] if introductions else None
        stop = solution.stop
        if attempt and (attempt.strength == BOX or attempt.mark == "####"):
            stop = _paragraph_end(solution, attempt.end)
        if not solution.concludes or (not finished and stop == len(solution.text)):
            return attempt
        drawn = attempt is not None and self.kind != "number"
        stop = self._before_remark(stop)
        found = conclusion(
            solution.text, solution.begin, stop, self.kind, self.options, drawn=drawn
        )
        return self._concluded(found) if found else attempt

    def _before_remark(self, stop: int) -> int:
        """Return where the solution ends without remarks about the answer in its last sentence.

        Of a last sentence that answers with another kind of thing nothing is left.
        """
        for candidate in reversed(self.candidates):
            if candidate.attempts or candidate.mark != "answer is" or candidate.end < stop - 4:
                continue
            if self.solution.text[candidate.end : stop].strip() or ", but " in candidate.text:
                continue
            if not _REMARK.match(candidate.text):
                return self.solution.begin
            window = self.solution.text[self.solution.begin : candidate.place]
            stop = self.solution.begin + marks.last_sentence(window + ".", self.kind)
        return stop

    def _concluded(self, found: tuple[str, str, int]) -> Candidate:
        text, found_key, end = found
        place = self.solution.text.rfind(text, 0, end)
        candidate = Candidate("conclusion", CONCLUSION, place, text, found_key, end, True)
        self.candidates.append(candidate)
        return candidate

    def _candidate(self, mark: Mark) -> Candidate | None:
        """Return the answer after a mark; None without one, and for a question."""
        name, place, start, strength = mark
        text, _, _, stop, _ = self.solution
        kind = self.kind
        if start > stop:
            return None
        limit = start + MAX_ANSWER
        window = text[start : limit if limit < stop else stop]
        if name == "answer field":
            field = _FIELD.match(window)
            if field is None:
                return None
            answer = (field["quoted"] or field["list"] or field["bare"] or "").strip()
            end = field.end()
        elif strength == BOX:
            answer, end = _boxed(window, kind)
        elif kind == "list" and (bullets := _BULLETS.match(text, _line_start(text, start), stop)):
            answer, end = bullets[0].strip()[:MAX_ANSWER], bullets.end() - start
        elif (
            kind == "choice"
            and "\n" in window
            and _OPTIONS.match(text, _line_start(text, start), stop)
        ):
            return None  # the options, gone through
        else:
            length, end = sentence_length(window, kind)
            if window[length : length + 1] == "?" and strength != CONDITIONAL:
                behind = end + len(window[end:]) - len(window[end:].lstrip(" "))
                again = name.endswith(":") and 1 < behind < len(window) and start + behind < stop
                return self._candidate(mark._replace(start=start + behind)) if again else None
            answer = window[:length].strip(" \n\t,*_|")
            if ("<" in answer or "[/" in answer) and (tag := _CLOSING_TAG.search(window)):
                answer, end = window[: tag.start()].strip(), tag.end()
        if not answer:
            return None
        found_key = self._key(mark, answer)
        attempts = found_key is not None or (
            may_answer(answer, kind, self.options)
            and not _REMARK.match(answer)
            and not _METHOD.match(answer)
        )
        end += start
        if end < stop and text[end] in _CLOSERS and (closing := _CLOSING.match(text, end, stop)):
            end = closing.end()  # so that kept text is whole
        candidate = Candidate(name, strength, place, answer, found_key, end, attempts)
        self.candidates.append(candidate)
        return candidate

    def _key(self, mark: Mark, answer: str) -> str | None:
        kind, options = self.kind, self.options
        if mark.strength == BOX:
            return key(_signed(self.solution.text, kind, mark, answer), kind, options)
        if answer[0].isalpha() and kind != "yes_no" and kind != "nli":
            remark = _REMARK.match(answer)
            if remark and not (
                options and key(remark[0].strip(" .,;:"), kind, options) is not None
            ):
                return None
        if (
            mark.name == "foreign"
            and kind == "number"
            and self.solution.lowered[mark.place] in _DECIMAL_COMMA
        ):
            answer = _english_notation(answer)
        return key(answer, kind, options)


def _boxed(window: str, kind: Kind) -> tuple[str, int]:
    """Return a box's answer, and the end of its sentence."""
    if window[0] == "{":
        width = closing_brace(window) + 1
    else:  # "\\boxed 18"
        width = len(re.split(r"[\s$\\]", window, maxsplit=1)[0].rstrip(".,;:"))
    length, end = sentence_length(window[width:], kind)
    return window[:width], width + (end if length < 200 else 0)


def _overrules(solution: Solution, candidate: Candidate, chosen: Candidate, paragraph: int) -> bool:
    """Return whether a FINAL value takes the place of a sentence's."""
    if candidate.strength <= chosen.strength:
        return False
    if candidate.place < paragraph:
        return True
    before = solution.text[solution.begin : chosen.place]
    return candidate.mark == "answer field" and ('{"' in before or "{\n" in before)


def _english_notation(answer: str) -> str:
    """Return a number of a language that writes 1.234,50 for 1,234.50 as English does."""
    answer = _POINTS.sub(lambda match: match[1].replace(".", ""), answer, count=1)
    return _COMMA.sub(r"\1.\2", answer, count=1)


def _paragraph_end(solution: Solution, begin: int) -> int:
    """Return the end of the paragraph that `begin` is in."""
    blank_line = solution.text.find(BLANK_LINE, begin, solution.stop)
    return solution.stop if blank_line < 0 else blank_line


def _signed(text: str, kind: Kind, mark: Mark, answer: str) -> str:
    """Return a box's content with the sign before the box."""
    before = text[max(0, mark.place - 3) : mark.place].rstrip(" $({")
    negative = (
        kind == "number"
        and before.endswith(("-", "−"))
        and (not before[:-1].strip() or before[:-1].endswith(("$", "=", "(", " ")))
    )
    return "-" + answer if negative else answer


def _line_start(text: str, start: int) -> int:
    """Return where the line begins whose bullet a mark's gap has taken."""
    return start - 2 if text[start - 2 : start] in ("- ", "• ", "* ") else start


# -- What may be taught.

# Words without marks, ends of sentences and typesetting.
_PLAIN_WORDS = re.compile(r"[-(]?\$?-?[0-9A-Za-z][0-9A-Za-z ,$%()/'-]*")
_CLAUSE = re.compile(
    r"[,;(]?\s(?:since|because|as|which|where|so|in total)\b|\$?[,;:]\s|\s[-=]\s|[$}]"
)


def surface(answer: str, kind: Kind, found_key: str, options: Sequence[str] = ()) -> str:
    """Return an answer in clean, balanced words that read back to its key.

    That is the answer as written if it is clean, else without its typesetting, else without what
    follows its first clause, else its key in words.
    """
    return _surface(answer, kind, found_key, tuple(options))


@functools.lru_cache(maxsize=1 << 16)  # a question's samples write few different answers
def _surface(answer: str, kind: Kind, found_key: str, options: tuple[str, ...]) -> str:
    for words in _shorter_and_shorter(answer):
        if (
            len(words) < MAX_ANSWER
            and clean(words)
            and _key_of_sentence(words, kind, options) == found_key
        ):
            return words
    if kind == "choice":
        return f"({found_key})"
    if kind == "number":
        return _decimal(found_key)
    return "it is not possible to tell" if kind == "nli" and found_key == "unknown" else found_key


def _key_of_sentence(words: str, kind: Kind, options: tuple[str, ...]) -> str | None:
    """Return the key of " The answer is WORDS."; of most words by the words alone."""
    if (
        _PLAIN_WORDS.fullmatch(words)
        and kind != "list"
        and "answer" not in words.lower()
        and sentence_length(words + ".", kind)[0] == len(words)
        and (kind in ("yes_no", "nli") or not _REMARK.match(words))
        and (words_key := key(words, kind, options)) is not None
    ):
        return words_key
    return path_key(f" The answer is {words}.", kind, options)


def _shorter_and_shorter(answer: str) -> Iterator[str]:
    """Yield an answer as written, without its typesetting, and its first clause."""
    yield answer.strip()
    unset = plain(answer).strip(" *_\"'`:;,.-")
    yield unset
    yield _CLAUSE.split(unset, maxsplit=1)[0].strip(" *_\"'`$:;,.-{}\\")


def _decimal(fraction: str) -> str:
    """Return a fraction as an exact decimal of at most four places if it is one."""
    value = Fraction(fraction)
    if (value * 10_000).denominator != 1:
        return fraction
    whole, places = divmod(abs(value) * 10_000, 10_000)
    digits = f"{whole}.{int(places):04}".rstrip("0").rstrip(".")
    return f"-{digits}" if value < 0 else digits
