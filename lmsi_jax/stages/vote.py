"""Voting: paths -> votes, one shard per task."""

from collections.abc import Sequence

from lmsi_jax import voting
from lmsi_jax.records import Path, Question, Vote
from lmsi_jax.stages.context import Context, named
from lmsi_jax.stages.generate import training_questions
from lmsi_jax.stages.sample import read_task
from lmsi_jax.store import ShardStore


def vote(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Votes on every train question of a round; returns the stage's fingerprint."""
    stage = context.stage(round_index, "vote", named(context.run.voting), inputs)
    if context.done(stage):
        return stage.fingerprint
    store = ShardStore(stage.directory)
    for task, questions in training_questions(context, round_index).items():
        paths = read_task(context, round_index, task)
        votes = [cast_vote(context, question, paths[question.uid]) for question in questions]
        store.write(task, [row.to_json() for row in votes])
    stage.finish()
    return stage.fingerprint


def cast_vote(context: Context, question: Question, paths: Sequence[Path]) -> Vote:
    """Votes as the run's `Voting` says."""
    rule = context.run.voting
    weights = voting.weigh(paths, rule)
    return voting.vote(question, paths, weights, conclusions=rule.conclusions)


def read_votes(context: Context, round_index: int) -> dict[str, list[Vote]]:
    """Reads a round's votes by task."""
    store = ShardStore(context.folder(round_index, "vote"))
    return {name: [Vote.from_json(row) for row in store.read(name)] for name in store.names()}
