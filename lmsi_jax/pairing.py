"""Pairs, to prefer one continuation over another, in the four formats of `mixing`.

Pairs from votes: a path of the most voted answer against one of the least voted (ScPO).
"""

import dataclasses
from collections.abc import Sequence

from lmsi_jax import prompts, voting
from lmsi_jax.records import FORMATS, ExamplePair, Exemplar, Format, Question, Sample, Vote
from lmsi_jax.selection.rows import solutions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two paths of one question.

    Attributes:
      uid: the question.
      chosen: index of a path of the most voted answer.
      rejected: index of a path of the least voted one.
      weight: (V+ - V-) / k, above 0: how many more of the k paths agree with the chosen one; of a
        weighted vote its weights take the place of numbers.
    """

    uid: str
    chosen: int
    rejected: int
    weight: float


def pair(vote: Vote, samples: Sequence[Sample], threshold: float = 0.5) -> Pair | None:
    """Returns a question's pair (Prasad et al. 2024, section 2), None where there is none.

    Of an answer's paths the most probable one is taken, of equals the first. Of equally rare
    answers the one is rejected whose best path is the most probable: the mistake that the model is
    the most inclined to make; then the smaller key. Unparsed paths are in no pair, and count in k.

    Args:
      vote: the vote over all of `samples`.
      samples: the question's paths, in any order.
      threshold: tau, as a share of k (or of all weights): least votes of the chosen answer.

    Raises:
      ValueError: the vote is over other paths, or the threshold is no share.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold = {threshold}; use a share of the paths, 0 to 1")
    if len(samples) != vote.total or any(sample.uid != vote.uid for sample in samples):
        raise ValueError(f"{vote.uid!r}: a vote over {vote.total} paths, others are given")
    ordered = sorted(samples, key=lambda sample: sample.sample_index)
    best: dict[str, Sample] = {}
    for sample, key in zip(ordered, vote.keys, strict=True):
        if key is not None and (key not in best or sample.logprob > best[key].logprob):
            best[key] = sample
    votes, total = voting.tally(vote)
    if vote.winner is None or votes[vote.winner] < threshold * total:
        return None
    least = min(votes, key=lambda key: (votes[key], -best[key].logprob, key))
    ahead = votes[vote.winner] - votes[least]
    if ahead <= 0:  # one answer alone, or all equally frequent
        return None
    chosen, rejected = best[vote.winner].sample_index, best[least].sample_index
    return Pair(uid=vote.uid, chosen=chosen, rejected=rejected, weight=ahead / total)


def vote_pairs(
    question: Question,
    samples: Sequence[Sample],
    vote: Vote,
    exemplars: Sequence[Exemplar],
    *,
    formats: Sequence[Format] = FORMATS,
    threshold: float = 0.5,
) -> list[ExamplePair]:
    """Writes a path of the most voted answer against one of the least voted (ScPO), by format.

    Args:
      question: what was asked.
      samples: its paths, in any order.
      vote: the vote over all of them.
      exemplars: the task's few-shot exemplars.
      formats: which formats to write, in this order.
      threshold: least share of the paths that agree with the chosen one.

    Returns:
      The pairs, none where the votes give none; see `selection.pairs.pair`.
    """
    found = pair(vote, samples, threshold)
    if found is None:
        return []
    learnt = solutions(question, samples)
    chosen, rejected = (learnt[index][:2] for index in (found.chosen, found.rejected))
    return _pairs(question, exemplars, formats, chosen, rejected, found.weight)


def given_pairs(
    question: Question,
    worked: Exemplar,
    sample: Sample,
    exemplars: Sequence[Exemplar],
    formats: Sequence[Format] = FORMATS,
) -> list[ExamplePair]:
    """Writes a given solution against the model's own path (SPIN), by format.

    Args:
      question: what was asked.
      worked: its given reasoning and answer.
      sample: the model's.
      exemplars: the task's few-shot exemplars.
      formats: which formats to write, in this order.

    Returns:
      The pairs; none of a path that the token limit cut before its answer, and none in a direct
      format of a path without an answer.
    """
    given = (prompts.solution(worked.reasoning, worked.answer), worked.answer)
    own = solutions(question, [sample]).get(sample.sample_index)
    if own is None and not sample.finished:
        return []
    text, surface = (sample.text.strip(), None) if own is None else own[:2]
    return _pairs(question, exemplars, formats, given, (text, surface), 1.0)


def _pairs(
    question: Question,
    exemplars: Sequence[Exemplar],
    formats: Sequence[Format],
    chosen: tuple[str, str],
    rejected: tuple[str, str | None],
    weight: float,
) -> list[ExamplePair]:
    """Pairs of two (solution, answer) by format; equal targets have nothing to teach."""
    made = []
    for name in formats:
        targets = [_target(name, *side) for side in (chosen, rejected)]
        if None in targets or targets[0] == targets[1]:
            continue
        prefix, inputs = prompts.build_prompt(
            question, exemplars, prompts.PROMPT_STYLE_OF_FORMAT[name]
        )
        made.append(
            ExamplePair(
                uid=question.uid,
                task=question.task,
                format=name,
                prefix=prefix,
                inputs=inputs,
                chosen=f" {targets[0]}",
                rejected=f" {targets[1]}",
                weight=weight,
            )
        )
    return made


def _target(name: Format, solution: str, surface: str | None) -> str | None:
    """What is learnt of a solution in a format; None where it has no answer to give directly."""
    if not prompts.is_direct(prompts.PROMPT_STYLE_OF_FORMAT[name]):
        return solution
    return None if surface is None else prompts.answer_sentence(surface)
