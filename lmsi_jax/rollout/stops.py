"""Find the end of a sample: an end token, the first stop string, or the limit. Plain Python.

Stop strings are searched in the text, not in the tokens: a tokenizer may write one string in many
ways, and a stop string may begin in the middle of a token.
"""

import dataclasses
import re
from collections.abc import Sequence

from lmsi_jax.models.tokenizers import Tokenizer
from lmsi_jax.records import End

# A stop string of these alone may be part of a number: "3.5", "1,200".
_IN_NUMBERS = frozenset(".,")
_REPLACEMENT = "\ufffd"  # the text of a part of a character
_END_TOKEN = re.compile(r"\s*<(?:/s|eos|end_of_turn|[|｜][^<>\s]{1,40}[|｜])>\s*")
# "\nQ:", "\n### Question", "Premise:": a line or a colon tells them from the mere word.
_NEXT_QUESTION = re.compile(
    r"(?=[^:]*[:\n])\W*(?:q|question|problem|premise|passage|exercise|user|human|instruction)\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Ending:
    """The end of a sample.

    Attributes:
      text: the text before the stop.
      used: tokens that the sample took, including the end token or the stop string (and the token
        that shows that a full stop after a digit is not part of a number).
      end: why it ended.
    """

    text: str
    used: int
    end: End


def end_at_stop(rest: str, stops: Sequence[str]) -> End:
    """Returns why a sample ended that a stop string cut.

    The model has come to the end of its solution if it began the next question, or wrote the end
    token of a chat template. Any other string, such as a blank line, may be in the middle of one.

    Args:
      rest: the text from the stop string on.
      stops: all stop strings; of those that begin `rest`, one that ends a solution decides.
    """
    begun = [stop for stop in stops if rest.startswith(stop)]
    if any(map(_END_TOKEN.fullmatch, begun)):
        return "end_token"
    return "next_question" if any(map(_NEXT_QUESTION.match, begun)) else "stop"


def first_stop(text: str, stops: Sequence[str], closed: bool = True) -> int | None:
    """Returns the index at which the first stop string begins, or None.

    A stop string of full stops and commas between two digits is part of a number and does not stop.

    Args:
      text: the text to search.
      stops: the strings.
      closed: whether nothing follows the text; if more may follow, a stop at its end that could
        turn out to be inside a number is left for later.
    """
    starts = [start for stop in stops if (start := _first(text, stop, closed)) is not None]
    return min(starts, default=None)


def _first(text: str, stop: str, closed: bool) -> int | None:
    start = text.find(stop)
    while start >= 0 and _IN_NUMBERS.issuperset(stop) and _in_number(text, start, stop, closed):
        start = text.find(stop, start + 1)
    return start if start >= 0 else None


def _in_number(text: str, start: int, stop: str, closed: bool) -> bool:
    if not text[:start][-1:].isdigit():
        return False
    after = text[start + len(stop) :][:1]
    return after.isdigit() if after else not closed


class Stops:
    """Finds the ends of samples.

    Args:
      tokenizer: turns tokens into text.
      strings: a sample ends before the first of them.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]):
        self._tokenizer = tokenizer
        self._strings = tuple(strings)
        # A stop is complete with a token that holds its last character, or a byte of it; a stop
        # that may be part of a number, only once the next character is known.
        self._triggers = frozenset(self._trigger_ids()) if self._strings else frozenset()
        self._always = any(_IN_NUMBERS.issuperset(stop) for stop in self._strings)
        # The stop may have begun earlier, one byte per token at worst.
        self._lookback = max((len(s.encode()) for s in self._strings), default=0) + 1

    def _trigger_ids(self) -> list[int]:
        last = {stop[-1] for stop in self._strings} | {_REPLACEMENT}
        ids = range(self._tokenizer.vocab_size)
        # After another token: some tokenizers drop a space that begins a text.
        before = self._tokenizer.encode("a")[-1:]
        skip = len(self._tokenizer.decode(before))
        texts = (self._tokenizer.decode([*before, i])[skip:] for i in ids)
        return [i for i, text in zip(ids, texts, strict=True) if not last.isdisjoint(text)]

    def ending(self, tokens: Sequence[int], new: int, limit: int) -> Ending | None:
        """Returns how a sample ends, None if it continues.

        Args:
          tokens: all tokens drawn so far; those after an end token are ignored.
          new: how many of them have been drawn since the last call.
          limit: most tokens of the sample.
        """
        end_ids = self._tokenizer.end_ids
        recent = tokens[len(tokens) - new :]
        end = next((i for i, token in enumerate(recent) if token in end_ids), None)
        ended = end is not None
        if end is not None:
            tokens = tokens[: len(tokens) - new + end]
        cut = len(tokens) >= limit
        if cut:
            tokens = tokens[:limit]
        closed = ended or cut
        if self._may_stop(tokens, recent, new):
            ending = self._at_stop(tokens, closed)
            if ending is not None:
                return ending
        if not closed:
            return None
        ended = ended and len(tokens) < limit
        end_of_text: End = "end_token" if ended else "limit"
        return Ending(self._tokenizer.decode(tokens), len(tokens) + ended, end_of_text)

    def _may_stop(self, tokens: Sequence[int], recent: Sequence[int], new: int) -> bool:
        if not (self._always or any(token in self._triggers for token in recent)):
            return False
        tail = self._tokenizer.decode(tokens[max(0, len(tokens) - new - self._lookback) :])
        return any(stop in tail for stop in self._strings)

    def _at_stop(self, tokens: Sequence[int], closed: bool) -> Ending | None:
        """Returns the ending at the first stop, with the fewest tokens that contain it."""
        text = self._tokenizer.decode(tokens)
        start = first_stop(text, self._strings, closed)
        if start is None:
            return None
        fewest, most = 1, len(tokens)
        while fewest < most:  # once a stop is in, more tokens do not take it out
            middle = (fewest + most) // 2
            if self._has_stop(tokens[:middle]):
                most = middle
            else:
                fewest = middle + 1
        # No further tokens: how many more have been drawn must not matter.
        rest = self._tokenizer.decode(tokens[:most])[start:]
        return Ending(text[:start], most, end_at_stop(rest, self._strings))

    def _has_stop(self, tokens: Sequence[int]) -> bool:
        return first_stop(self._tokenizer.decode(tokens), self._strings, False) is not None
