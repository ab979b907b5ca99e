"""Voting: paths -> votes, one shard per task."""

from collections.abc import Sequence
from typing import Any

from lmsi_jax import voting
from lmsi_jax.config import stages
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline import scorers
from lmsi_jax.pipeline.augment import new_questions, training_questions
from lmsi_jax.pipeline.context import Context, named
from lmsi_jax.pipeline.sample import read_task
from lmsi_jax.records import Path, Question, Vote
from lmsi_jax.runtime.store import ShardStore

Voted = tuple[Question, list[Path], Vote]


def vote(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Votes on every train question of a round; returns the stage's fingerprint."""
    stage = context.stage(round_index, "vote", vote_settings(context.run.voting), inputs)
    if context.done(stage):
        return stage.fingerprint
    store = ShardStore(stage.directory)
    for task, questions in training_questions(context, round_index).items():
        paths = read_task(context, round_index, task)
        votes = [cast_vote(context, question, paths[question.uid]) for question in questions]
        store.write(task, [row.to_json() for row in votes])
    stage.finish()
    return stage.fingerprint


def vote_settings(rule: stages.Voting) -> dict[str, Any]:
    """What votes depend on, for a stage's record: the ranker only where it is asked."""
    settings = named(rule)
    if not rule.ranks or rule.ranker is None:
        del settings["Voting"]["ties"], settings["Voting"]["ranker"]
    else:
        settings["rankers"] = {rule.ranker: scorers.fingerprint(rule.ranker)}
    return settings


def cast_vote(context: Context, question: Question, paths: Sequence[Path]) -> Vote:
    """Votes as the run's `Voting` says."""
    ranks = rank_paths(context, question, paths)
    return voting.cast(question, paths, context.run.voting, ranks)


def rank_paths(context: Context, question: Question, paths: Sequence[Path]) -> list[float] | None:
    """Asks the voting's ranker about each path; None where it has no use for one.

    What it said once it is not asked again in this process: it may be a large model, and the watch
    and the report vote on the paths of the evaluation too.

    Raises:
      LmsiError: it gives no number, or one below 0 where it is to be a weight.
    """
    rule = context.run.voting
    if not rule.ranks or rule.ranker is None:
        return None
    names = [(path.uid, path.index, path.text) for path in paths]
    new = [path for path, name in zip(paths, names, strict=True) if name not in context.ranks]
    if new:
        found = scorers.rank(rule.ranker, [(question, path) for path in new])
        context.ranks.update({(p.uid, p.index, p.text): n for p, n in zip(new, found, strict=True)})
    ranks = [context.ranks[name] for name in names]
    if rule.weights == "ranker" and (low := min(ranks, default=0.0)) < 0:
        raise LmsiError(
            f"the ranker {rule.ranker!r} gives {low:g} to a path of {question.uid!r}, and a vote "
            "weighs 0 or more; let it return exp(score), or use it for Voting.ties alone"
        )
    return ranks


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
    least = context.run_in(round_index).generation.min_confidence
    found = {}
    for task, questions in training_questions(context, round_index).items():
        uids, paths = {row.uid for row in new[task]}, read_task(context, round_index, task)
        found[task] = [
            (question, paths[question.uid], vote)
            for question, vote in zip(questions, votes[task], strict=True)
            if question.uid not in uids or vote.confidence >= least
        ]
    return found
