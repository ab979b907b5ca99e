"""A corrector's questions: a question with candidate solutions, from which it writes one (LMCor).

Vernikos et al. 2023 (arXiv 2305.13514): a model's greedy sample and a few random ones are the
candidates of a second, often smaller model, the corrector, which learns to write the right solution
from them. Here a corrector's question is an ordinary question whose text has the candidates, so all
that a run does with questions works on it.

    Q: Ann has 3 pens and buys 4. How many has she?
    Candidates:
    1. 3 + 4 = 7. The answer is 7.
    2. 4 - 3 = 1. The answer is 1.

Candidates are in the order of their keys, hashes of question and index, so that a position says
nothing about how one was drawn.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from lmsi_jax.records import Question, Sample

Shows = Literal["both", "question", "candidates"]
"""What a corrector reads; all but "both" are controls."""

_GREEDY = "greedy"


class Correction(NamedTuple):
    """A corrector's training row.

    Attributes:
      text: the question with its candidates.
      solution: the solution to write, with its answer sentence.
      answer: its answer.
    """

    text: str
    solution: str
    answer: str


class Target(NamedTuple):
    """A solution that a corrector may learn to write.

    Attributes:
      sample_index: of the sample that it is; None of a given solution.
      solution: its text, with its answer sentence.
      answer: its answer.
    """

    sample_index: int | None
    solution: str
    answer: str


def candidates(
    greedy: Sample, samples: Sequence[Sample], count: int, group: int = 0
) -> list[Sample]:
    """Returns the greedy sample and a group of random ones, in the order of their keys.

    Args:
      greedy: the question's greedy sample.
      samples: its random samples.
      count: how many of them a group has.
      group: which group, 0, 1, ...; groups have no sample in common.

    Raises:
      ValueError: there are too few samples for this group.
    """
    ordered = sorted(samples, key=lambda one: _key(one.uid, str(one.sample_index)))
    chosen = ordered[group * count : (group + 1) * count]
    if len(chosen) < count:
        raise ValueError(f"{greedy.uid!r} has {len(samples)} samples, group {group} ends later")
    keyed = [(_key(greedy.uid, _GREEDY), greedy)]
    keyed += [(_key(one.uid, str(one.sample_index)), one) for one in chosen]
    return [one for _, one in sorted(keyed, key=lambda pair: pair[0])]


def _key(uid: str, name: str) -> str:
    return hashlib.sha256(f"{uid}/{name}".encode()).hexdigest()


def question_text(
    question: Question, drawn: Sequence[Sample], shows: Shows = "both", longest: int = 80
) -> str:
    """Returns the text of a corrector's question.

    Args:
      question: what was asked.
      drawn: the candidates, in their order.
      shows: what the text has.
      longest: most words of a candidate; of a longer one the middle is left out.
    """
    if shows == "question":
        return question.text
    lines = [f"{n}. {shorten(sample.text, longest)}" for n, sample in enumerate(drawn, 1)]
    first = question.text if shows == "both" else "Q: What is right?"
    return "\n".join([first.rstrip(), "Candidates:", *lines])


def shorten(text: str, longest: int) -> str:
    """Returns a text in one line, its middle replaced by "..." if it has too many words."""
    words = text.split()
    if len(words) > longest:
        head = (longest + 1) // 2
        words = [*words[:head], "...", *words[len(words) - (longest - head) :]]
    return " ".join(words)


def corrections(
    question: Question,
    greedy: Sample,
    samples: Sequence[Sample],
    targets: Sequence[Target],
    *,
    count: int,
    rows: int,
    shows: Shows = "both",
    longest: int = 80,
) -> list[Correction]:
    """Returns a question's training rows, each with another group of candidates.

    A group's target is the next one that is none of its candidates, so that copying alone does not
    suffice; if all are, the next one.

    Args:
      question: what was asked.
      greedy: its greedy sample.
      samples: its random samples.
      targets: the solutions to write, in the order in which they are taken.
      count: random samples among the candidates.
      rows: most rows; there are no more than disjoint groups.
      shows: what the text has.
      longest: most words of a candidate.

    Returns:
      The rows; none without targets or samples enough.
    """
    made: list[Correction] = []
    for group in range(min(rows, len(samples) // count) if targets else 0):
        shown = candidates(greedy, samples, count, group)
        known = {one.sample_index for one in shown if one is not greedy}
        texts = {one.text.strip() for one in shown}
        turned = [*targets[group % len(targets) :], *targets[: group % len(targets)]]
        unseen = [
            one
            for one in turned
            if one.sample_index not in known and one.solution.strip() not in texts
        ]
        target = unseen[0] if unseen else turned[0]
        text = question_text(question, shown, shows, longest)
        made.append(Correction(text, target.solution, target.answer))
    return made
