"""Whether a question also stands among the questions of an evaluation. PURE.

Two questions overlap when their words are equal, or when one run of `words` of them stands in both
(13 words: Brown et al. 2020, appendix C). Capitals, punctuation and spaces do not count.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

_WORD = re.compile(r"\w+")
Content = Callable[[str], Sequence[str]]


class Contamination(NamedTuple):
    """A question that an evaluation also has: the ids of both, and how they overlap."""

    uid: str
    evaluated: str
    how: str


def find_contaminated(
    questions: Mapping[str, str],
    evaluated: Mapping[str, str],
    words: int,
    content: Content = lambda text: (text,),
) -> list[Contamination]:
    """Returns which questions overlap with which evaluated one (the first of them).

    Args:
      questions: id -> text.
      evaluated: id -> text.
      words: how long a run of equal words has to be; 0: only whole questions count.
      content: text -> the parts whose words are compared; a run does not go over their ends.
    """
    whole: dict[tuple[str, ...], str] = {}
    runs: dict[tuple[str, ...], str] = {}
    for uid, text in evaluated.items():
        whole.setdefault(_words(text), uid)
        for run in _runs(text, words, content):
            runs.setdefault(run, uid)
    found = []
    for uid, text in questions.items():
        same = whole.get(_words(text))
        near = next((runs[run] for run in _runs(text, words, content) if run in runs), None)
        if same is not None:
            found.append(Contamination(uid, same, "the same question"))
        elif near is not None:
            found.append(Contamination(uid, near, f"{words} equal words in a row"))
    return found


def deduplicate(
    questions: Mapping[str, str], words: int, content: Content = lambda text: (text,)
) -> list[str]:
    """Returns the ids of those that overlap with none before them that was returned.

    Args:
      questions: id -> text, in the order in which they are preferred.
      words: as in `find`.
      content: as in `find`.
    """
    whole: set[tuple[str, ...]] = set()
    runs: set[tuple[str, ...]] = set()
    kept = []
    for uid, text in questions.items():
        own = _runs(text, words, content)
        if _words(text) not in whole and runs.isdisjoint(own):
            whole.add(_words(text))
            runs.update(own)
            kept.append(uid)
    return kept


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _runs(text: str, words: int, content: Content) -> list[tuple[str, ...]]:
    if not words:
        return []
    parts = [_words(part) for part in content(text)]
    return [part[i : i + words] for part in parts for i in range(len(part) - words + 1)]
