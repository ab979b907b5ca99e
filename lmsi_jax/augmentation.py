"""The model's own few-shot prompts, questions (LMSI, section 3.3) and paraphrases.

Prompts: "Let's think step by step." and a greedy answer make a worked question; `shots` of them
make a prompt. The samples of a question are spread over the prompts: sample k is drawn with prompt
k modulo their number. A prompt that shows the question itself would give its answer away, so the
next prompt takes its place.

Questions: the model continues a list of real ones.

    Q: Ann buys 34 pens and 27 cups. How many things does Ann buy?

    Q: There are 12 hats and 31 bags on a table. How many things are on the table?

    | Q: Ben has 18 pens, 40 hats and 22 cups. How many things does Ben have in all?

The prompt has no instruction and no answers; the text after the bar is the model's. Only its first
item is read, and it has to look like a question of the task, judged by the real ones.
"""

import collections
import dataclasses
import hashlib
import random
import re
from collections.abc import Sequence

from lmsi_jax import prompts
from lmsi_jax.answers import options_in
from lmsi_jax.records import Exemplar, Kind, Question, Sample
from lmsi_jax.voting import Reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
    """A generated few-shot prompt: its exemplars, and the uids of their questions."""

    uids: tuple[str, ...]
    exemplars: tuple[Exemplar, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Samples of a task that are drawn together.

    Attributes:
      prompt: number of their prompt.
      standing_in: True if it takes the place of the one before, which shows these questions.
      uids: the questions.
      numbers: the indices of their samples.
    """

    prompt: int
    standing_in: bool
    uids: tuple[str, ...]
    numbers: tuple[int, ...]


def choose_asked(uids: Sequence[str], count: int, place: tuple[int, int, str]) -> list[str]:
    """Returns the questions that are asked for exemplars, in the order in which they are taken.

    Args:
      uids: the task's training questions; their order does not matter.
      count: number of questions; all of them if there are fewer.
      place: (seed, round, task), which fixes the choice.
    """
    order = sorted(uids)
    random.Random("prompts/" + "/".join(map(str, place))).shuffle(order)
    return order[:count]


def exemplar(question: Question, sample: Sample, reading: Reading) -> Exemplar | None:
    """Returns a zero-shot answer as an exemplar; None if it lacks the layout of a prompt.

    It has to reason first, and to end in "The answer is ..." with an answer of the question's kind.
    """
    if reading.surface is None:
        return None
    solution = sample.text[: reading.end].strip()
    sentence = prompts.answer_sentence(reading.surface)
    reasoning = solution.removesuffix(sentence).strip()
    if not solution.endswith(sentence) or not reasoning or prompts.SEPARATOR in reasoning:
        return None
    return Exemplar(question=question.text, reasoning=reasoning, answer=reading.surface)


def few_shots(
    worked: Sequence[tuple[str, Exemplar]], count: int, shots: int
) -> tuple[FewShot, ...]:
    """Returns `count` prompts of `shots` exemplars each, or as many as there are exemplars for.

    Args:
      worked: (uid, exemplar) pairs, taken in this order.
      count: most prompts.
      shots: exemplars in each.
    """
    number = min(count, len(worked) // shots)
    groups = [worked[n * shots : (n + 1) * shots] for n in range(number)]
    return tuple(
        FewShot(uids=tuple(uid for uid, _ in group), exemplars=tuple(row for _, row in group))
        for group in groups
    )


def prompt_of(uid: str, index: int, generated: Sequence[FewShot]) -> int:
    """Returns the number of the prompt that sample `index` of a question is drawn with."""
    number = index % len(generated)
    return (number + 1) % len(generated) if uid in generated[number].uids else number


def groups(uids: Sequence[str], num_samples: int, generated: Sequence[FewShot]) -> list[Group]:
    """Returns the samples of a task's questions by prompt, as `prompt_of` spreads them.

    Args:
      uids: the questions.
      num_samples: samples of each.
      generated: the prompts, two or more.
    """
    by_prompt = []
    for prompt in range(len(generated)):
        for first in (prompt, (prompt - 1) % len(generated)):
            stands_in = first != prompt
            numbers = tuple(range(first, num_samples, len(generated)))
            asked = tuple(uid for uid in uids if (uid in generated[first].uids) == stands_in)
            if asked and numbers:
                by_prompt.append(
                    Group(prompt=prompt, standing_in=stands_in, uids=asked, numbers=numbers)
                )
    return by_prompt


_OPENING = re.compile(r"\w+:")
_OPTION = re.compile(r"\(([a-z])\)")
# A new question may be this much shorter or longer than the shortest and longest real one.
_SLACK = 1.5


def choose_shown(texts: Sequence[str], count: int, place: tuple[int, int, str, int]) -> list[str]:
    """Returns the real questions that one prompt shows, in random order.

    Args:
      texts: the task's real questions; their order does not matter.
      count: number of questions; all of them if there are fewer.
      place: (seed, round, task, number of the prompt), which fixes the choice.
    """
    pool = sorted(texts)
    draw = random.Random("questions/" + "/".join(map(str, place)))
    return draw.sample(pool, min(count, len(pool)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The traits that the real questions of a task share.

    Attributes:
      openings: their first words, "Q:" or "Premise:".
      options: the lists of "(a) (b) ..." that they offer, () for none.
      lines: numbers of lines.
      ends: their last characters if all end in punctuation, such as {"?"}; empty otherwise.
      shortest: characters of the shortest.
      longest: and of the longest.
    """

    openings: frozenset[str]
    options: frozenset[tuple[str, ...]]
    lines: frozenset[int]
    ends: frozenset[str]
    shortest: int
    longest: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Shape":
        """Reads the shape off a task's real questions, at least one."""
        ends = frozenset(text[-1] for text in texts)
        return cls(
            openings=frozenset(_opening(text) for text in texts),
            options=frozenset(_options(text) for text in texts),
            lines=frozenset(len(text.splitlines()) for text in texts),
            ends=ends if all(not end.isalnum() for end in ends) else frozenset(),
            shortest=min(map(len, texts)),
            longest=max(map(len, texts)),
        )

    def fits(self, text: str) -> bool:
        """Returns True if a text has these traits."""
        return (
            self.shortest / _SLACK <= len(text) <= self.longest * _SLACK
            and _opening(text) in self.openings
            and _options(text) in self.options
            and len(text.splitlines()) in self.lines
            and (not self.ends or text[-1] in self.ends)
        )


def opening(texts: Sequence[str]) -> str:
    """Returns the word that begins most of the questions, "Q:" or "Premise:"."""
    counts = collections.Counter(_opening(text) for text in texts)
    return min(counts, key=lambda word: (-counts[word], word))


def first_item(text: str, finished: bool) -> str | None:
    """Returns the first question of a model's continuation, None if it is cut or empty.

    Args:
      text: the continuation of the list.
      finished: True if the model ended it by itself.
    """
    text = text.lstrip()
    ends = [at for stop in prompts.QUESTION_STOPS if (at := text.find(stop)) >= 0]
    if not (ends or finished):
        return None
    return text[: min(ends, default=len(text))].rstrip() or None


def parse(text: str, finished: bool, shape: Shape, opening: str = "") -> str | None:
    """Returns the new question, None if the model's text is malformed.

    Args:
      text: the model's continuation of the list.
      finished: True if the model ended it by itself.
      shape: the task's.
      opening: the question's first characters, if the prompt ended with them.
    """
    item = first_item(f"{opening} {text.lstrip()}" if opening else text, finished)
    return item if item is not None and shape.fits(item) else None


PARAPHRASED = "-paraphrase"
"""Ends the uid of a paraphrase."""
_PARAPHRASE = (
    "Rewrite the question below in other words. Keep every number, name and option as it is, and "
    "do not answer it. Write the new question alone."
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def paraphrase_request(text: str) -> str:
    """Returns the request for a paraphrase of a question."""
    return f"{_PARAPHRASE}\n\n{text.rstrip()}"


def parse_paraphrase(text: str, finished: bool, original: str) -> str | None:
    """Returns a paraphrase as a question of its own; None if it cannot be asked for the original.

    It has to be another text of similar length, with the same numbers, options and opening word; an
    opening word that is missing is added.

    Args:
      text: what the model wrote.
      finished: True if the model ended it by itself.
      original: the question's text.
    """
    item = first_item(text, finished)
    if item is None:
        return None
    word = _opening(original)
    if word and not item.startswith(word):
        item = f"{word} {item}"
    same_numbers = sorted(_NUMBER.findall(item)) == sorted(_NUMBER.findall(original))
    same_options = options_in(item) == options_in(original)
    length = len(original) / 2 <= len(item) <= len(original) * 2
    other = item.casefold().split() != original.casefold().split()
    return item if same_numbers and same_options and length and other else None


def paraphrased(original: Question, text: str) -> Question:
    """Returns the record of a paraphrase, which has no label; its uid is the original's, marked."""
    uid = original.uid + PARAPHRASED
    return dataclasses.replace(original, uid=uid, text=text, gold=None, also=(), spans=())


def question(task: str, kind: Kind, text: str) -> Question:
    """Returns the record of a new question; its uid is a function of task and text."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Question(uid=f"{task}-generated-{digest}", task=task, text=text, kind=kind)


def _opening(text: str) -> str:
    match = _OPENING.match(text)
    return match.group() if match else ""


def _options(text: str) -> tuple[str, ...]:
    return tuple(_OPTION.findall(text))
