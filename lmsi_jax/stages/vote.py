"""Voting: paths -> votes, one shard per task."""

from lmsi_jax import voting
from lmsi_jax.records import Vote
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.generate import training_questions
from lmsi_jax.stages.sample import read_task
from lmsi_jax.store import ShardStore


def vote(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Votes on every train question of a round; returns the stage's fingerprint."""
    stage = context.stage(round_index, "vote", {}, inputs)
    if context.done(stage):
        return stage.fingerprint
    store = ShardStore(stage.directory)
    for task, questions in training_questions(context, round_index).items():
        paths = read_task(context, round_index, task)
        votes = [voting.vote(question, paths[question.uid]) for question in questions]
        store.write(task, [row.to_json() for row in votes])
    stage.finish()
    return stage.fingerprint


def read_votes(context: Context, round_index: int) -> dict[str, list[Vote]]:
    """Reads a round's votes by task."""
    store = ShardStore(context.folder(round_index, "vote"))
    return {name: [Vote.from_json(row) for row in store.read(name)] for name in store.names()}
