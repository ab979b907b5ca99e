"""Pairs of continuations, of which training learns to prefer one, in the formats of `mixing`.

From votes: a sample of the most voted answer against one of the least voted (ScPO). From given
solutions: each against the model's own sample (SPIN).
"""

import dataclasses
from collections.abc import Sequence

from lmsi_jax import prompts, voting
from lmsi_jax.prompts import PLAIN, PromptWriter
from lmsi_jax.records import FORMATS, ExamplePair, Exemplar, Format, Question, Sample, Vote
from lmsi_jax.selection.rows import solution_text, voted_rows
from lmsi_jax.voting import Reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two samples of one question.

    Attributes:
      uid: the question.
      chosen: index of a sample of the most voted answer.
      rejected: index of a sample of the least voted one.
      weight: (V+ - V-) / k, above 0: how many more of the k samples agree with the chosen one; of a
        weighted vote its weights take the place of numbers.
    """

    uid: str
    chosen: int
    rejected: int
    weight: float


def pair(vote: Vote, samples: Sequence[Sample], threshold: float = 0.5) -> Pair | None:
    """Returns a question's pair (Prasad et al. 2024, section 2), or None.

    Of an answer's samples the most probable one is taken, of equals the first. Of equally rare
    answers the one is rejected whose best sample is the most probable: the mistake that the model
    is the most inclined to make; then the smaller key. Unparsed samples are in no pair, and count
    in k.

    Args:
      vote: the vote over all of `samples`.
      samples: the question's samples, in any order.
      threshold: tau, as a share of k (or of all weights): least votes of the chosen answer.

    Raises:
      ValueError: the vote is over other samples, or the threshold is no share.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold = {threshold}; use a share of the samples, 0 to 1")
    if len(samples) != vote.total or any(sample.uid != vote.uid for sample in samples):
        raise ValueError(f"{vote.uid!r}: a vote over {vote.total} samples, others are given")
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
    writer: PromptWriter = PLAIN,
) -> list[ExamplePair]:
    """Writes a sample of the most voted answer against one of the least voted (ScPO), by format.

    Args:
      question: what was asked.
      samples: its samples, in any order.
      vote: the vote over all of them.
      exemplars: the task's few-shot exemplars.
      formats: which formats to write, in this order.
      threshold: least share of the samples that agree with the chosen one.
      writer: how a question is asked and a solution written.

    Returns:
      The pairs; none if the votes give none, see `pair`.
    """
    indices = pair(vote, samples, threshold)
    if indices is None:
        return []
    rows = voted_rows(question, samples, vote, "parsed")
    learnt = {row.sample.sample_index: (row.solution, row.answer or "") for row in rows}
    chosen, rejected = learnt[indices.chosen], learnt[indices.rejected]
    return _pairs(question, exemplars, formats, chosen, rejected, indices.weight, writer)


def given_pairs(
    question: Question,
    worked: Exemplar,
    sample: Sample,
    reading: Reading,
    exemplars: Sequence[Exemplar],
    formats: Sequence[Format] = FORMATS,
    writer: PromptWriter = PLAIN,
) -> list[ExamplePair]:
    """Writes a human solution against the model's own sample (SPIN), by format.

    Args:
      question: what was asked.
      worked: its given reasoning and answer.
      sample: the model's.
      reading: its answer.
      exemplars: the task's few-shot exemplars.
      formats: which formats to write, in this order.
      writer: how a question is asked and a solution written.

    Returns:
      The pairs; none of a sample that the token limit cut before its answer, and none in a direct
      format of a sample without an answer.
    """
    given = (prompts.solution(worked.reasoning, worked.answer), worked.answer)
    if reading.surface is not None:
        text = solution_text(sample.text, reading.surface, reading.end, reading.marked)
    elif sample.finished:
        text = sample.text.strip()
    else:
        return []
    return _pairs(question, exemplars, formats, given, (text, reading.surface), 1.0, writer)


def _pairs(
    question: Question,
    exemplars: Sequence[Exemplar],
    formats: Sequence[Format],
    chosen: tuple[str, str],
    rejected: tuple[str, str | None],
    weight: float,
    writer: PromptWriter,
) -> list[ExamplePair]:
    """Writes two (solution, answer) by format; equal targets have nothing to teach."""
    pairs = []
    for name in prompts.available_formats(formats, exemplars):
        preferred, other = (_target(name, *side) for side in (chosen, rejected))
        if preferred is None or other is None or preferred == other:
            continue
        style = prompts.PROMPT_STYLE_OF_FORMAT[name]
        prefix, inputs = writer.prompt(question, exemplars, style)
        pairs.append(
            ExamplePair(
                uid=question.uid,
                task=question.task,
                format=name,
                prefix=prefix,
                inputs=inputs,
                chosen=writer.target(preferred),
                rejected=writer.target(other),
                weight=weight,
            )
        )
    return pairs


def _target(name: Format, solution: str, surface: str | None) -> str | None:
    """Returns the target of a solution in a format; None if it has no answer to give directly."""
    if not prompts.is_direct(prompts.PROMPT_STYLE_OF_FORMAT[name]):
        return solution
    return None if surface is None else prompts.answer_sentence(surface)
