"""Voting: paths -> votes, one shard per task."""

from collections.abc import Sequence
from typing import Any

from lmsi_jax import voting
from lmsi_jax.config import Voting
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline import scorers
from lmsi_jax.pipeline.augment import new_questions, training_questions
from lmsi_jax.pipeline.context import Context, settings_record
from lmsi_jax.pipeline.sample import read_task
from lmsi_jax.records import Question, Sample, Vote
from lmsi_jax.runtime.store import ShardStore

Voted = tuple[Question, list[Sample], Vote]


def vote(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Votes on every train question of a round; returns the stage's fingerprint."""
    stage = context.stage(round_index, "vote", vote_settings(context.run.voting), inputs)
    if context.done(stage):
        return stage.fingerprint
    store = ShardStore(stage.directory)
    for task, questions in training_questions(context, round_index).items():
        samples = read_task(context, round_index, task)
        votes = [cast_vote(context, question, samples[question.uid]) for question in questions]
        store.write(task, [row.to_json() for row in votes])
    stage.finish()
    return stage.fingerprint


def vote_settings(rule: Voting) -> dict[str, Any]:
    """What votes depend on, for a stage's record: the scorer only where it is asked."""
    settings = settings_record(rule)
    if not rule.uses_scorer or rule.scorer is None:
        del settings["Voting"]["ties"], settings["Voting"]["scorer"]
    else:
        settings["scorers"] = {rule.scorer: scorers.fingerprint(rule.scorer)}
    return settings


def cast_vote(context: Context, question: Question, samples: Sequence[Sample]) -> Vote:
    """Votes as the run's `Voting` says."""
    scores = score_samples(context, question, samples)
    return voting.cast(question, samples, context.run.voting, scores)


def score_samples(
    context: Context, question: Question, samples: Sequence[Sample]
) -> list[float] | None:
    """Asks the voting's scorer about each path; None where it has no use for one.

    What it said once it is not asked again in this process: it may be a large model, and the
    collapse monitor and the report vote on the paths of the evaluation too.

    Raises:
      LmsiError: it gives no number, or one below 0 where it is to be a weight.
    """
    rule = context.run.voting
    if not rule.uses_scorer or rule.scorer is None:
        return None
    names = [(sample.uid, sample.sample_index, sample.text) for sample in samples]
    new = [
        sample
        for sample, name in zip(samples, names, strict=True)
        if name not in context.scorer_scores
    ]
    if new:
        found = scorers.apply_scorer(rule.scorer, [(question, sample) for sample in new])
        context.scorer_scores.update(
            {(p.uid, p.sample_index, p.text): n for p, n in zip(new, found, strict=True)}
        )
    scores = [context.scorer_scores[name] for name in names]
    if rule.weights == "scorer" and (low := min(scores, default=0.0)) < 0:
        raise LmsiError(
            f"the scorer {rule.scorer!r} gives {low:g} to a path of {question.uid!r}, and a vote "
            "weighs 0 or more; let it return exp(score), or use it for Voting.ties alone"
        )
    return scores


def read_votes(context: Context, round_index: int) -> dict[str, list[Vote]]:
    """Reads a round's votes by task."""
    store = ShardStore(context.folder(round_index, "vote"))
    return {name: [Vote.from_json(row) for row in store.read(name)] for name in store.names()}


def read_voted(context: Context, round_index: int) -> dict[str, list[Voted]]:
    """Reads what training may learn from, by task.

    Returns:
      Questions, paths and votes, without new questions whose vote is not sure enough.
    """
    votes, new = read_votes(context, round_index), new_questions(context, round_index)
    least = context.run_in(round_index).augmentation.min_confidence
    found = {}
    for task, questions in training_questions(context, round_index).items():
        uids, samples = {row.uid for row in new[task]}, read_task(context, round_index, task)
        found[task] = [
            (question, samples[question.uid], vote)
            for question, vote in zip(questions, votes[task], strict=True)
            if question.uid not in uids or vote.confidence >= least
        ]
    return found
