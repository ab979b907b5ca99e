"""Where a path ends: the end token, the first stop string, or the limit. Plain Python.

Stop strings are looked for in the text, not in the tokens: a tokenizer may write one string in many
ways, and a stop may begin in the middle of a token.
"""

import dataclasses
from collections.abc import Sequence

from lmsi_jax.models.tokenizers import Tokenizer

# A stop string of these alone may stand inside a number: "3.5", "1,200".
_IN_NUMBERS = frozenset(".,")
_REPLACEMENT = "\ufffd"  # what a part of a character decodes to


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a path ends.

    Attributes:
      text: what comes before the stop.
      used: tokens that it took, the end or the stop included (and the one that shows a full stop
        behind a digit to be no part of a number).
      finished: False where the limit cut it.
    """

    text: str
    used: int
    finished: bool


def first_stop(text: str, stops: Sequence[str], closed: bool = True) -> int | None:
    """Returns where the first stop string begins, None without any.

    A stop of full stops and commas between two digits is part of a number, not a stop.

    Args:
      text: where to look.
      stops: the strings.
      closed: whether nothing follows the text; if more may follow, a stop at its end that could
        turn out to be inside a number is left for later.
    """
    found = [at for stop in stops if (at := _first(text, stop, closed)) is not None]
    return min(found, default=None)


def _first(text: str, stop: str, closed: bool) -> int | None:
    at = text.find(stop)
    while at >= 0 and _IN_NUMBERS.issuperset(stop) and _in_number(text, at, stop, closed):
        at = text.find(stop, at + 1)
    return at if at >= 0 else None


def _in_number(text: str, at: int, stop: str, closed: bool) -> bool:
    if not text[:at][-1:].isdigit():
        return False
    after = text[at + len(stop) :][:1]
    return after.isdigit() if after else not closed


class Stops:
    """Finds where paths end.

    Args:
      tokenizer: turns tokens into text.
      strings: a path ends before the first of them.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]):
        self._tokenizer = tokenizer
        self._strings = tuple(strings)
        # A stop is complete with a token that holds its last character, or a byte of it; a stop
        # that may stand in a number only once its follower is known.
        self._looks = frozenset(self._triggers()) if self._strings else frozenset()
        self._always = any(_IN_NUMBERS.issuperset(stop) for stop in self._strings)
        # The stop may have begun earlier, one byte a token at worst.
        self._back = max((len(s.encode()) for s in self._strings), default=0) + 1

    def _triggers(self) -> list[int]:
        last = {stop[-1] for stop in self._strings} | {_REPLACEMENT}
        ids = range(self._tokenizer.vocab_size)
        # Behind another token: some tokenizers drop a space that begins a text.
        before = self._tokenizer.encode("a")[-1:]
        skip = len(self._tokenizer.decode(before))
        texts = (self._tokenizer.decode([*before, i])[skip:] for i in ids)
        return [i for i, text in zip(ids, texts, strict=True) if not last.isdisjoint(text)]

    def ending(self, tokens: Sequence[int], new: int, limit: int) -> Ending | None:
        """Returns how a path ends, None where it goes on.

        Args:
          tokens: all tokens drawn so far; those after an end are looked at no more.
          new: how many of them were not there at the last call.
          limit: most tokens of the path.
        """
        ends = self._tokenizer.end_ids
        recent = tokens[len(tokens) - new :]
        end = next((i for i, token in enumerate(recent) if token in ends), None)
        over = end is not None
        if end is not None:
            tokens = tokens[: len(tokens) - new + end]
        cut = len(tokens) >= limit
        if cut:
            tokens = tokens[:limit]
        closed = over or cut
        if self._may_stop(tokens, recent, new):
            ending = self._at_stop(tokens, closed)
            if ending is not None:
                return ending
        if not closed:
            return None
        over = over and len(tokens) < limit
        return Ending(self._tokenizer.decode(tokens), len(tokens) + over, over)

    def _may_stop(self, tokens: Sequence[int], recent: Sequence[int], new: int) -> bool:
        if not (self._always or any(token in self._looks for token in recent)):
            return False
        tail = self._tokenizer.decode(tokens[max(0, len(tokens) - new - self._back) :])
        return any(stop in tail for stop in self._strings)

    def _at_stop(self, tokens: Sequence[int], closed: bool) -> Ending | None:
        """The ending at the first stop, by the fewest tokens that hold it."""
        text = self._tokenizer.decode(tokens)
        at = first_stop(text, self._strings, closed)
        if at is None:
            return None
        fewest, most = 1, len(tokens)
        while fewest < most:  # once a stop is in, more tokens do not take it out
            middle = (fewest + most) // 2
            if self._holds_stop(tokens[:middle]):
                most = middle
            else:
                fewest = middle + 1
        return Ending(text[:at], most, True)

    def _holds_stop(self, tokens: Sequence[int]) -> bool:
        return first_stop(self._tokenizer.decode(tokens), self._strings, False) is not None
