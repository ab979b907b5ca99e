"""Voting: paths -> votes, one shard per task."""

from collections.abc import Sequence

from lmsi_jax import voting
from lmsi_jax.records import Path, Question, Vote
from lmsi_jax.stages import rankers
from lmsi_jax.stages.context import Context, named
from lmsi_jax.stages.sample import read_paths
from lmsi_jax.store import ShardStore


def vote(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Votes on every train question of a round; returns the stage's fingerprint."""
    stage = context.stage(round_index, "vote", named(context.run.voting), inputs)
    if context.done(stage):
        return stage.fingerprint
    source = ShardStore(context.folder(round_index, "sample"))
    store = ShardStore(stage.directory)
    for task, questions in context.load_questions("train").items():
        paths = read_paths(source, task)
        votes = [cast_vote(context, question, paths[question.uid]) for question in questions]
        store.write(task, [row.to_json() for row in votes])
    stage.finish()
    return stage.fingerprint


def cast_vote(context: Context, question: Question, paths: Sequence[Path]) -> Vote:
    """Votes as the run's `Voting` says."""
    rule = context.run.voting
    return voting.cast(question, paths, rule, rank_paths(rule, question, paths))


def rank_paths(
    rule: voting.Voting, question: Question, paths: Sequence[Path]
) -> list[float] | None:
    """Asks a rule's ranker about each path; None where the rule has no use for one."""
    if not rule.ranks or rule.ranker is None:
        return None
    return [rankers.rank(rule.ranker, question, path) for path in paths]


def read_votes(context: Context, round_index: int) -> dict[str, list[Vote]]:
    """Reads a round's votes by task."""
    store = ShardStore(context.folder(round_index, "vote"))
    return {name: [Vote.from_json(row) for row in store.read(name)] for name in store.names()}
