"""Path scores: what filters want to know of the voted paths, where they ask for it.

    loss-TASK-NNNNN-of-MMMMM     mean losses of solutions under the base model
    strong-TASK                  the same of given solutions: a validation set
    rating-TASK-NNNNN-of-MMMMM   what the model that sampled them says when it is asked to rate them
    rank-TASK                    what rankers say

Equal solutions of a question are scored once, and what filters drop that need no score not at all.
Shards are complete or absent, so this goes on where it was; several processes share them.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from lmsi_jax import mixing
from lmsi_jax.decoding.generate import Job, read_paths
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Question
from lmsi_jax.selection.funnel import select
from lmsi_jax.selection.rating import rating_prompt, read_rating
from lmsi_jax.selection.rows import (
    LOSS,
    RANK,
    RATING,
    STRONG_LOSSES,
    Facts,
    Row,
)
from lmsi_jax.stages import rankers
from lmsi_jax.stages.context import Context, named
from lmsi_jax.stages.path_losses import LOSSES, score_losses
from lmsi_jax.stages.paths import draw_paths
from lmsi_jax.stages.vote import read_votes
from lmsi_jax.store import ShardStore
from lmsi_jax.training import placement

NAME = "path_scores"
_RATE = Sampling(paths=1, temperature=0.0, max_new_tokens=8)


def path_scores(context: Context, round_index: int, inputs: dict[str, str]) -> dict[str, str]:
    """Scores a round's voted paths.

    Returns:
      The stage's fingerprint as an input of the mix stage; {} where no filter asks for scores.

    Raises:
      LmsiError: the training mesh is larger than a process, which scores its own shards alone.
    """
    needs = _needs(context)
    if not needs:
        return {}
    if needs & {*LOSSES, STRONG_LOSSES}:
        inputs = inputs | {"base": context.base_fingerprint}
    stage = context.stage(round_index, NAME, _settings(context), inputs)
    if not context.done(stage):
        if placement.spans(context.run.training):
            raise LmsiError(
                "each process scores paths by itself; choose Training.data and Training.model that "
                "its own devices suffice for"
            )
        with context.processes.together(NAME, round_index):
            score_shards(context, round_index)
        _rank(context, round_index)
        stage.finish()
    return {NAME: stage.fingerprint}


def score_shards(context: Context, round_index: int) -> None:
    """Scores this process' shards of a round."""
    needs = _needs(context)
    if needs & {*LOSSES, STRONG_LOSSES}:
        folder, label = context.folder(round_index, NAME), f"round {round_index}: scoring paths"
        tasks = context.load_questions("train")
        rows = {task: _to_score(context, round_index, task) for task in tasks}
        score_losses(context, folder, rows, needs, label)
    if RATING in needs:
        _rate(context, round_index)


def read_scored_rows(context: Context, round_index: int, task: str) -> tuple[list[Row], Facts]:
    """Returns a task's voted paths with their scores, and what filters know beside."""
    store, needs = ShardStore(context.folder(round_index, NAME)), _needs(context)
    rows = _rows(context, round_index, task)
    known: dict[tuple[str, int], dict[str, float]] = {}
    for row in _stored(store, task, needs):
        scores = {name: value for name, value in row.items() if name not in ("uid", "index")}
        known.setdefault((row["uid"], row["index"]), {}).update(scores)
    first = _first(rows)
    rows = [
        dataclasses.replace(row, scores=known.get(first[row.question.uid, row.solution].name, {}))
        for row in rows
    ]
    if STRONG_LOSSES not in needs:
        return rows, Facts()
    given = [row[LOSS] for row in store.read(f"strong-{task}") if LOSS in row]
    return rows, Facts(strong_losses=tuple(given))


def _stored(store: ShardStore, task: str, needs: frozenset[str]) -> Iterator[dict[str, Any]]:
    """What is stored of a task's solutions: uid, index and scores."""
    for name in store.names():
        if name.startswith(f"loss-{task}-") or name == f"rank-{task}":
            yield from store.read(name)
    if RATING in needs:
        for name, (path,) in read_paths(store, f"rating-{task}").items():
            uid, _, index = name.rpartition("/")
            rating = read_rating(path.text)
            if rating is not None:
                yield {"uid": uid, "index": int(index), RATING: rating}


def _needs(context: Context) -> frozenset[str]:
    """All scores that the run's filters read."""
    none = frozenset[str]()
    return none.union(*(one.needs for one in context.run.mixing.selection))


def _settings(context: Context) -> dict[str, Any]:
    """What the scores, and of which paths there are some, depend on."""
    run = context.run
    names = ("rows", "length", "prefix_length", "data", "model")
    settings: dict[str, Any] = {
        "needs": sorted(_needs(context)),
        "before": [named(one) for one in _unscored(context)],
        "Mixing": {"keep": run.mixing.keep},
        "Training": {name: getattr(run.training, name) for name in names},
    }
    if STRONG_LOSSES in _needs(context):
        settings["Mixing"]["strong_count"] = run.mixing.strong_count
    if RATING in _needs(context):
        settings |= context.decoding_settings
    return settings


def _unscored(context: Context) -> list[Any]:
    """The filters before the first one that reads a score."""
    return list(itertools.takewhile(lambda one: not one.needs, context.run.mixing.filters))


def _rows(context: Context, round_index: int, task: str) -> list[Row]:
    """A task's voted paths, without scores."""
    paths = read_paths(ShardStore(context.folder(round_index, "sample")), task)
    votes = {vote.uid: vote for vote in read_votes(context, round_index)[task]}
    return [
        row
        for question in context.load_questions("train")[task]
        for row in mixing.rows(
            question, paths[question.uid], votes[question.uid], context.run.mixing.keep
        )
    ]


def _first(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """The first of each question's equal solutions."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        first.setdefault((row.question.uid, row.solution), row)
    return first


def _to_score(context: Context, round_index: int, task: str) -> list[Row]:
    """Different solutions that the filters without scores leave."""
    chosen = select(_rows(context, round_index, task), _unscored(context)).rows
    names = {(row.question.uid, row.solution) for row in chosen}
    every = _first(_rows(context, round_index, task))
    return [row for name, row in every.items() if name in names]


def _rate(context: Context, round_index: int) -> None:
    jobs: list[Job] = []
    questions: dict[str, Question] = {}
    for task in context.load_questions("train"):
        asked = {
            f"{row.path.uid}/{row.path.index}": row for row in _to_score(context, round_index, task)
        }
        texts = {n: rating_prompt(row.question.text, row.solution) for n, row in asked.items()}
        questions |= {n: dataclasses.replace(row.question, uid=n) for n, row in asked.items()}
        if texts:
            jobs.append(Job(name=f"rating-{task}", prefix="", questions=texts, sampling=_RATE))
    draw_paths(
        context,
        jobs,
        questions,
        context.folder(round_index, NAME),
        model=round_index - 1,
        round_index=round_index,
        label=f"round {round_index}: rating",
    )


def _rank(context: Context, round_index: int) -> None:
    """Asks the rankers, in the leading process alone: they are not ours to divide."""
    names = sorted(n.removeprefix(RANK) for n in _needs(context) if n.startswith(RANK))
    store = ShardStore(context.folder(round_index, NAME))
    tasks = list(context.load_questions("train")) if names else []
    for task in tasks:
        if store.missing([f"rank-{task}"]):
            store.write(
                f"rank-{task}",
                [
                    {"uid": row.path.uid, "index": row.path.index}
                    | {RANK + name: rankers.rank(name, row.question, row.path) for name in names}
                    for row in _to_score(context, round_index, task)
                ],
            )
