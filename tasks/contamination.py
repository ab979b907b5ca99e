"""Finds training questions that an evaluation contains too. Pure.

Two questions overlap if their words are equal, or if they share an n-gram of `words` words (13 in
Brown et al. 2020, appendix C). Case, punctuation and whitespace are ignored.
"""

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


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _runs(text: str, words: int, content: Content) -> list[tuple[str, ...]]:
    if not words:
        return []
    parts = [_words(part) for part in content(text)]
    return [part[i : i + words] for part in parts for i in range(len(part) - words + 1)]
