"""What early stop saves, for the report: read off the paths that a run sampled."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from lmsi_jax.decoding.generate import read_paths
from lmsi_jax.evaluation.early_stop import replay
from lmsi_jax.files import read_json
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.generate import training_questions
from lmsi_jax.stages.sample import read_task
from lmsi_jax.stages.vote import cast_vote, read_votes
from lmsi_jax.store import ShardStore

_USUAL = 0.95
"""The threshold that is replayed where sampling had none (Aggarwal et al. 2023)."""
_Set = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Rule:
    """The rule to replay, and what the sample stage did."""

    threshold: float
    every: int
    paths: int
    on: bool


def early_stop(context: Context, evaluated: Sequence[int], voted: Sequence[int]) -> dict[str, Any]:
    """Replays the rule wherever all paths were sampled, and counts where it was on.

    Args:
      context: the run.
      evaluated: rounds with a finished evaluation, 0 for the base.
      voted: rounds with finished votes.

    Returns:
      `lmsi_jax.report.summary.EarlyStop` as a dictionary.
    """
    rule = _rule(context, voted[:1])
    tests = [row for r in evaluated for row in _tests(context, r, rule)]
    trains = [row for r in voted for row in _trains(context, r, _rule(context, [r]))]
    return {
        "threshold": rule.threshold,
        "every": rule.every,
        "on": rule.on,
        "sets": [*tests, *trains],
    }


def _rule(context: Context, voted: Sequence[int]) -> _Rule:
    """What the sample stage ran with, whatever is given now; before it ran, what is given."""
    given = dataclasses.asdict(context.run.sampling)
    if voted:
        record = read_json(context.folder(voted[0], "sample") / "stage.json")
        given |= {"early_stop": None} | record["config"]["Sampling"]
    on = given["early_stop"] is not None
    threshold = given["early_stop"] if on else _USUAL
    return _Rule(threshold, given["early_stop_every"], given["paths"], on)


def _tests(context: Context, round_index: int, rule: _Rule) -> Iterator[_Set]:
    """Test questions under self-consistency, which always samples all paths."""
    store = ShardStore(context.folder(round_index, "eval"))
    for task, questions in context.load_questions("test").items():
        paths = read_paths(store, f"{task}-self_consistency")
        asked = [question for question in questions if question.uid in paths]
        if not asked:
            continue
        votes = [cast_vote(context, question, paths[question.uid]) for question in asked]
        found = replay(asked, votes, paths, rule.threshold, rule.every)
        m = max(vote.total for vote in votes)
        yield _set("test", round_index, task, m, **dataclasses.asdict(found))


def _trains(context: Context, round_index: int, rule: _Rule) -> Iterator[_Set]:
    """Train questions; where the rule was on, only how many paths they really got."""
    by_task = read_votes(context, round_index)
    for task, questions in training_questions(context, round_index).items():
        votes = by_task[task]
        if rule.on:
            taken = [vote.total for vote in votes]
            yield _set("train", round_index, task, rule.paths, taken)
        else:
            paths = read_task(context, round_index, task)
            found = replay(questions, votes, paths, rule.threshold, rule.every)
            yield _set("train", round_index, task, rule.paths, **dataclasses.asdict(found))


def _set(
    source: str,
    round_index: int,
    task: str,
    paths: int,
    taken: Sequence[int],
    same: Sequence[int] = (),
    correct: Sequence[int] = (),
    correct_stopped: Sequence[int] = (),
) -> _Set:
    return {
        "source": source,
        "round": round_index,
        "task": task,
        "paths": paths,
        "taken": list(taken),
        "same": list(same),
        "correct": list(correct),
        "correct_stopped": list(correct_stopped),
    }
