"""Prompt generation: a model's own zero-shot answers become few-shot prompts (LMSI, section 3.3).

"Let's think step by step." and a greedy answer make a worked question; `shots` of them make a
prompt. The paths of a question are spread over the prompts: path k is sampled with prompt k modulo
their number. A prompt that shows the question itself would give its answer away: there the next one
stands in.
"""

import dataclasses
import random
from collections.abc import Sequence

from lmsi_jax import answers, prompts
from lmsi_jax.records import Exemplar, Path, Question


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


def asked(uids: Sequence[str], count: int, place: tuple[int, int, str]) -> list[str]:
    """Returns the questions that are asked for exemplars, in the order in which they are taken.

    Args:
      uids: the task's training questions; their order does not matter.
      count: how many; all, where there are not so many.
      place: (seed, round, task), which fixes the choice.
    """
    order = sorted(uids)
    random.Random("prompts/" + "/".join(map(str, place))).shuffle(order)
    return order[:count]


def exemplar(question: Question, path: Path) -> Exemplar | None:
    """Returns a zero-shot answer as an exemplar; None where it has not the layout of a prompt.

    It has to reason first, and to end in "The answer is ..." with an answer of the question's kind.
    """
    options = answers.options_of(question)
    found = answers.find(path.text, question.kind, options, finished=path.finished)
    if found is None or found.key is None:
        return None
    solution = path.text[: found.end].strip()
    sentence = prompts.answer_sentence(found.answer)
    reasoning = solution.removesuffix(sentence).strip()
    if not solution.endswith(sentence) or not reasoning or prompts.SEPARATOR in reasoning:
        return None
    return Exemplar(question=question.text, reasoning=reasoning, answer=found.answer)


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
