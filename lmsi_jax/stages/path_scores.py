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
from lmsi_jax.models.tokenizer import FileTokenizer, encode_first
from lmsi_jax.progress import Progress
from lmsi_jax.prompts import build_prompt, question_prompt, solution
from lmsi_jax.records import Exemplar, Question
from lmsi_jax.selection.funnel import select
from lmsi_jax.selection.rating import rating_prompt, read_rating
from lmsi_jax.selection.rows import (
    ALONE_LOSS,
    LOSS,
    QUESTION_LOSS,
    RANK,
    RATING,
    STRONG_LOSSES,
    Facts,
    Row,
)
from lmsi_jax.stages import rankers
from lmsi_jax.stages.context import Context, named
from lmsi_jax.stages.paths import draw_paths
from lmsi_jax.stages.questions import read_exemplars, worked_questions
from lmsi_jax.stages.vote import read_votes
from lmsi_jax.store import ShardStore, shard_names
from lmsi_jax.training import packing, placement, scoring

NAME = "path_scores"
_ROWS = 256  # a shard's rows are packed together, so their number enters the bits of the sums
_LOSSES = (LOSS, QUESTION_LOSS, ALONE_LOSS)
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
    if needs & {*_LOSSES, STRONG_LOSSES}:
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
    if needs & {*_LOSSES, STRONG_LOSSES}:
        _score_losses(context, round_index)
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


def _score_losses(context: Context, round_index: int) -> None:
    store = ShardStore(context.folder(round_index, NAME))
    index, count = context.processes.share
    shards = list(_loss_shards(context, round_index))
    own = [shard for number, shard in enumerate(shards) if number % count == index]
    missing = set(store.missing(name for name, _, _ in own))
    if not missing:
        return
    run = context.run
    params = placement.spread(run.model, run.training, context.params(0))
    scorer = scoring.Scorer(config=run.model, params=params, training=run.training)
    label = f"round {round_index}: scoring paths"
    with Progress(label, len(own), unit="shards", initial=len(own) - len(missing)) as bar:
        for name, task, rows in own:
            if name in missing:
                store.write(name, _losses(context, scorer, task, rows))
                bar.advance()


_Solved = tuple[dict[str, Any], Question, str, tuple[str, ...]]
"""What identifies a solution in the store, its question, its text, and which losses it gets."""


def _loss_shards(context: Context, round_index: int) -> Iterator[tuple[str, str, list[_Solved]]]:
    """Yields (shard, task, solutions), the same in every process."""
    needs = _needs(context)
    wanted = tuple(name for name in _LOSSES if name in needs)
    for task in context.load_questions("train"):
        rows: list[_Solved] = [
            ({"uid": row.path.uid, "index": row.path.index}, row.question, row.solution, wanted)
            for row in _to_score(context, round_index, task)
        ]
        parts = [rows[at : at + _ROWS] for at in range(0, len(rows), _ROWS)]
        for number, part in zip(shard_names(len(parts)), parts, strict=True):
            if wanted:
                yield f"loss-{task}-{number}", task, part
        if STRONG_LOSSES in needs:
            given = worked_questions(context, task)
            yield (
                f"strong-{task}",
                task,
                [
                    ({"uid": question.uid}, question, _solved(worked), (LOSS,))
                    for question, worked in given
                ],
            )


def _solved(worked: Exemplar) -> str:
    return solution(worked.reasoning, worked.answer)


def _losses(
    context: Context, scorer: scoring.Scorer, task: str, solved: Sequence[_Solved]
) -> list[dict[str, Any]]:
    """A shard's rows: each with the losses that there is room to compute."""
    exemplars = read_exemplars(context, task)
    rows, places = [], []
    for at, (_, question, text, wanted) in enumerate(solved):
        for name in wanted:
            prompt = _prompt(name, question, exemplars)
            rows.append(_tokenised(context.tokenizer, *prompt, text))
            places.append((at, name))
    made: list[dict[str, Any]] = [dict(identity) for identity, _, _, _ in solved]
    for (at, name), loss in zip(places, scorer.losses(rows), strict=True):
        if loss is not None:
            made[at][name] = loss
    return made


def _prompt(name: str, question: Question, exemplars: Sequence[Exemplar]) -> tuple[str, str]:
    """(prefix, inputs) before a solution; see `selection.rows`."""
    if name == LOSS:
        return build_prompt(question, exemplars, "cot")
    return "", question_prompt(question.text) if name == QUESTION_LOSS else "A:"


def _tokenised(tokenizer: FileTokenizer, prefix: str, inputs: str, text: str) -> packing.Row:
    """The solution's tokens alone have weight, and nothing follows them.

    Texts are encoded apart, as training and decoding do.
    """
    before = encode_first(tokenizer, prefix) if prefix else []
    asked = tokenizer.encode(inputs) if prefix else encode_first(tokenizer, inputs)
    return packing.weighted_row(before, asked, tokenizer.encode(f" {text}"), 1.0)


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
