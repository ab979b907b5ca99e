"""Finds training questions that an evaluation contains too, and what a model knows by heart. Pure.

Two questions overlap if their words are equal, or if they share an n-gram of `words` words (13 in
Brown et al. 2020, appendix C). Case, punctuation and whitespace are ignored.

A model that continues the first part of a question word by word has probably seen it (Wu et al.
2025, 2507.10532): `split_question` and `completion_overlap`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

_WORD = re.compile(r"\w+")
Content = Callable[[str], Sequence[str]]


class Contamination(NamedTuple):
    """A question that overlaps with one of an evaluation: the ids of both, and how."""

    uid: str
    evaluated: str
    how: str


def find_contaminated(
    questions: Mapping[str, str],
    evaluated: Mapping[str, str],
    words: int,
    content: Content = lambda text: (text,),
) -> list[Contamination]:
    """Returns the questions that overlap with an evaluated one, each with the first such one.

    Args:
      questions: id -> text.
      evaluated: id -> text.
      words: length of a shared n-gram; with 0 only equal questions overlap.
      content: text -> the parts that are compared; no n-gram spans two parts.
    """
    whole: dict[tuple[str, ...], str] = {}
    runs: dict[tuple[str, ...], str] = {}
    for uid, text in evaluated.items():
        whole.setdefault(_words(text), uid)
        for run in _runs(text, words, content):
            runs.setdefault(run, uid)
    contaminated = []
    for uid, text in questions.items():
        same = whole.get(_words(text))
        near = next((runs[run] for run in _runs(text, words, content) if run in runs), None)
        if same is not None:
            contaminated.append(Contamination(uid, same, "the same question"))
        elif near is not None:
            contaminated.append(Contamination(uid, near, f"{words} equal words in a row"))
    return contaminated


def deduplicate(
    questions: Mapping[str, str], words: int, content: Content = lambda text: (text,)
) -> list[str]:
    """Returns the ids of the questions that overlap with no returned one before them.

    Args:
      questions: id -> text, the preferred ones first.
      words: as in `find_contaminated`.
      content: as in `find_contaminated`.
    """
    whole: set[tuple[str, ...]] = set()
    runs: set[tuple[str, ...]] = set()
    kept = []
    for uid, text in questions.items():
        text_runs = _runs(text, words, content)
        if _words(text) not in whole and runs.isdisjoint(text_runs):
            whole.add(_words(text))
            runs.update(text_runs)
            kept.append(uid)
    return kept


def split_question(text: str, share: float) -> tuple[str, str] | None:
    """Returns the first words of a question as they are written, and the rest.

    Args:
      text: the question.
      share: of its words, between whitespace, that come first; rounded up, and one is left.

    Returns:
      None for a question of less than two words.
    """
    words = list(re.finditer(r"\S+", text))
    if len(words) < 2:
        return None
    count = min(len(words) - 1, max(1, math.ceil(share * len(words) - 1e-9)))
    end = words[count - 1].end()
    return text[:end], text[end:].strip()


class Overlap(NamedTuple):
    """A continuation against the text that it should be.

    Attributes:
      exact: True if it begins with all words of that text.
      rouge: ROUGE-L F1 (Lin 2004) of as many of its words as that text has.
    """

    exact: bool
    rouge: float


def completion_overlap(rest: str, completion: str) -> Overlap:
    """Compares a continuation with the rest of a question, word by word.

    A text without a word, such as "?", is compared with nothing: exact, and 1.
    """
    expected = _words(rest)
    written = _words(completion)[: len(expected)]
    if not expected:
        return Overlap(True, 1.0)
    common = _longest_common_subsequence(expected, written)
    total = len(expected) + len(written)
    return Overlap(expected == written, 2 * common / total)


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence, in time |first| * |second|."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _runs(text: str, words: int, content: Content) -> list[tuple[str, ...]]:
    if not words:
        return []
    parts = [_words(part) for part in content(text)]
    return [part[i : i + words] for part in parts for i in range(len(part) - words + 1)]
