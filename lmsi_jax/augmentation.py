"""The model's own questions and its own few-shot prompts (LMSI, section 3.3). PURE.

Prompt generation: a model's own zero-shot answers become few-shot prompts (LMSI, section 3.3).

"Let's think step by step." and a greedy answer make a worked question; `shots` of them make a
prompt. The paths of a question are spread over the prompts: path k is sampled with prompt k modulo
their number. A prompt that shows the question itself would give its answer away: there the next one
stands in.

Question generation: a model goes on with a list of questions (LMSI, section 3.3).

    Q: Ann buys 34 pens and 27 cups. How many things does Ann buy?

    Q: There are 12 hats and 31 bags on a table. How many things are on the table?

    | Q: Ben has 18 pens, 40 hats and 22 cups. How many things does Ben have in all?

No instruction and no answers; what stands behind the bar is the model's. Only its first item is
read, and it has to look like a question of the task, as the real ones show it.
"""

import collections
import dataclasses
import hashlib
import random
import re
from collections.abc import Sequence

from lmsi_jax import prompts
from lmsi_jax.records import Exemplar, Kind, Question, Sample
from lmsi_jax.voting import Reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
    """A generated few-shot prompt: its exemplars, and the uids of their questions."""

    uids: tuple[str, ...]
    exemplars: tuple[Exemplar, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Paths of a task that are sampled together.

    Attributes:
      prompt: number of their prompt.
      standing_in: whether it stands in for the one before, which shows these questions.
      uids: the questions.
      numbers: the numbers of their paths.
    """

    prompt: int
    standing_in: bool
    uids: tuple[str, ...]
    numbers: tuple[int, ...]


def choose_asked(uids: Sequence[str], count: int, place: tuple[int, int, str]) -> list[str]:
    """Returns the questions that are asked for exemplars, in the order in which they are taken.

    Args:
      uids: the task's training questions; their order does not matter.
      count: how many; all, where there are not so many.
      place: (seed, round, task), which fixes the choice.
    """
    order = sorted(uids)
    random.Random("prompts/" + "/".join(map(str, place))).shuffle(order)
    return order[:count]


def exemplar(question: Question, sample: Sample, reading: Reading) -> Exemplar | None:
    """Returns a zero-shot answer as an exemplar; None if it has not the layout of a prompt.

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
    made = min(count, len(worked) // shots)
    groups = [worked[n * shots : (n + 1) * shots] for n in range(made)]
    return tuple(
        FewShot(uids=tuple(uid for uid, _ in group), exemplars=tuple(row for _, row in group))
        for group in groups
    )


def prompt_of(uid: str, number: int, made: Sequence[FewShot]) -> int:
    """Returns which of the prompts path `number` of a question is sampled with."""
    own = number % len(made)
    return (own + 1) % len(made) if uid in made[own].uids else own


def groups(uids: Sequence[str], paths: int, made: Sequence[FewShot]) -> list[Group]:
    """Returns the paths of a task's questions by prompt, as `prompt_of` spreads them.

    Args:
      uids: the questions.
      paths: how many paths each has.
      made: the prompts, two or more.
    """
    found = []
    for prompt in range(len(made)):
        for own in (prompt, (prompt - 1) % len(made)):
            numbers = tuple(range(own, paths, len(made)))
            some = tuple(uid for uid in uids if (uid in made[own].uids) == (own != prompt))
            if some and numbers:
                found.append(
                    Group(prompt=prompt, standing_in=own != prompt, uids=some, numbers=numbers)
                )
    return found


_OPENING = re.compile(r"\w+:")
_OPTION = re.compile(r"\(([a-z])\)")
# A new question may be this much shorter or longer than the shortest and longest real one.
_SLACK = 1.5


def choose_shown(texts: Sequence[str], count: int, place: tuple[int, int, str, int]) -> list[str]:
    """Returns the real questions that one prompt shows, in random order.

    Args:
      texts: the task's real questions; their order does not matter.
      count: how many are shown; all, where there are not so many.
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
      ends: their last characters where all end in punctuation, such as {"?"}; empty otherwise.
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
    found = collections.Counter(_opening(text) for text in texts)
    return min(found, key=lambda word: (-found[word], word))


def first_item(text: str, finished: bool) -> str | None:
    """Returns the first question that a model wrote, None if it is cut or empty.

    Args:
      text: what it wrote behind the list.
      finished: whether it came to an end by itself.
    """
    written = text.lstrip()
    ends = [at for stop in prompts.QUESTION_STOPS if (at := written.find(stop)) >= 0]
    if not (ends or finished):
        return None
    return written[: min(ends, default=len(written))].rstrip() or None


def parse(text: str, finished: bool, shape: Shape, opening: str = "") -> str | None:
    """Returns the new question, None where what the model wrote is malformed.

    Args:
      text: what it wrote.
      finished: whether it came to an end by itself.
      shape: the task's.
      opening: the question's first characters, where they stood in the prompt.
    """
    item = first_item(f"{opening} {text.lstrip()}" if opening else text, finished)
    return item if item is not None and shape.fits(item) else None


def question(task: str, kind: Kind, text: str) -> Question:
    """Returns the record of a new question; its uid is a function of task and text."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Question(uid=f"{task}-generated-{digest}", task=task, text=text, kind=kind)


def _opening(text: str) -> str:
    found = _OPENING.match(text)
    return found.group() if found else ""


def _options(text: str) -> tuple[str, ...]:
    return tuple(_OPTION.findall(text))
