"""Path scores: what filters want to know of the voted paths, where they ask for it.

    loss-TASK-NNNNN-of-MMMMM     losses of solutions under the base model
    human-TASK                  the same of given solutions: a validation set
    rating-TASK-NNNNN-of-MMMMM   what the model that sampled them says when it is asked to rate them
    rank-TASK-NNNNN-of-MMMMM     what scorers say

Equal solutions of a question, behind the same prompt, are scored once, and what filters drop that
need no score not at all. Shards are complete or absent, so this goes on where it was; several
processes share them.

Losses of solutions under the base model, in shards that several processes share.

What the stages share that score rows with a model: shards that are complete or absent.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from lmsi_jax.augmentation import FewShot, prompt_of
from lmsi_jax.config import Sampling
from lmsi_jax.config.row_filters import (
    ALONE_LOSS,
    HUMAN_LOSSES,
    LOSS,
    QUESTION_LOSS,
    RATING,
    SCORER,
)
from lmsi_jax.errors import LmsiError
from lmsi_jax.models import sharding
from lmsi_jax.models.tokenizers import Tokenizer, encode_first
from lmsi_jax.pipeline import scorers
from lmsi_jax.pipeline.augment import read_prompts
from lmsi_jax.pipeline.context import Context, settings_record
from lmsi_jax.pipeline.questions import read_exemplars, worked_questions
from lmsi_jax.pipeline.sample_shards import Job, draw_samples, read_samples
from lmsi_jax.pipeline.vote import Voted, read_voted
from lmsi_jax.prompts import build_prompt, question_prompt, solution
from lmsi_jax.records import Exemplar, Question
from lmsi_jax.runtime.progress import Progress
from lmsi_jax.runtime.store import ShardStore, shard_names
from lmsi_jax.selection.filters import rating_prompt, read_rating
from lmsi_jax.selection.rows import (
    LOGPROBS,
    Facts,
    Row,
    select,
    voted_rows,
)
from lmsi_jax.training import packing, scoring

ROWS = 256  # a shard's rows are packed together, so their number enters the bits of the sums
_Row = TypeVar("_Row")
_Rows = TypeVar("_Rows")


def in_shards(name: str, rows: Sequence[_Row]) -> list[tuple[str, Sequence[_Row]]]:
    """Returns (shard, rows), of `ROWS` rows each: NAME-NNNNN-of-MMMMM."""
    parts = [rows[at : at + ROWS] for at in range(0, len(rows), ROWS)]
    numbers = shard_names(len(parts))
    return [(f"{name}-{number}", part) for number, part in zip(numbers, parts, strict=True)]


def write_missing(
    store: ShardStore,
    names: Sequence[str],
    shards: Iterable[_Rows],
    load: Callable[[], Callable[[_Rows], Sequence[Mapping[str, Any]]]],
    label: str,
) -> None:
    """Makes and writes the shards that are not there.

    Args:
      store: where they go.
      names: of all shards.
      shards: the rows of each.
      load: loads the model, where something is missing; returns what makes a shard of rows.
      label: what the progress says.

    Raises:
      LmsiError: the disk is full.
    """
    missing = set(store.missing(names))
    if not missing:
        return
    make, done = load(), len(names) - len(missing)
    with Progress(label, len(names), unit="shards", initial=done) as bar:
        for name, rows in zip(names, shards, strict=True):
            if name in missing:
                store.write(name, make(rows))
                bar.advance()


LOSSES = (LOSS, QUESTION_LOSS, ALONE_LOSS)
OF_BASE = frozenset({*LOSSES, LOGPROBS, HUMAN_LOSSES})
"""The scores that the base model is loaded for."""


def score_losses(
    context: Context,
    round_index: int,
    rows: Mapping[str, Sequence[Row]],
    needs: frozenset[str],
) -> None:
    """Writes this process' missing shards of losses.

    Args:
      context: the run.
      round_index: the round.
      rows: different solutions, by task.
      needs: which losses, of `selection.rows`.

    Raises:
      LmsiError: the disk is full.
    """
    store = ShardStore(context.folder(round_index, "path_scores"))
    index, count = context.processes.share
    shards = list(_loss_shards(context, round_index, rows, needs))
    own = shards[index::count]

    def load() -> Callable[[Sequence[_Solved]], list[dict[str, Any]]]:
        """Loads the base model; returns what computes a shard's losses with it."""
        run = context.run
        scorer = scoring.TargetScorer.of(run.model, context.params(0), run.training)
        return functools.partial(_losses, context, scorer, LOGPROBS in needs)

    names, solved = [name for name, _ in own], [some for _, some in own]
    write_missing(store, names, solved, load, f"round {round_index}: scoring paths")


class _Solved(NamedTuple):
    """What identifies a solution in the store, its prompt and text, and which losses it gets."""

    identity: dict[str, Any]
    exemplars: Sequence[Exemplar]
    question: Question
    text: str
    wanted: tuple[str, ...]


def _loss_shards(
    context: Context, round_index: int, rows: Mapping[str, Sequence[Row]], needs: frozenset[str]
) -> Iterator[tuple[str, Sequence[_Solved]]]:
    """Yields (shard, solutions), the same in every process."""
    mean = needs | {LOSS} if LOGPROBS in needs else needs  # both are of the same tokens
    wanted = tuple(name for name in LOSSES if name in mean)
    for task, own in rows.items():
        exemplars = read_exemplars(context, task)
        if wanted:
            made = read_prompts(context, round_index, task)
            solved = [_of_row(row, made, exemplars, wanted) for row in own]
            yield from in_shards(f"loss-{task}", solved)
        if HUMAN_LOSSES in needs:
            given = worked_questions(context, task)
            yield f"human-{task}", [_of_given(*one, exemplars) for one in given]


def _of_row(
    row: Row, made: Sequence[FewShot], exemplars: Sequence[Exemplar], wanted: tuple[str, ...]
) -> _Solved:
    """A path's solution, behind the prompt that it was sampled with."""
    uid, index = row.name
    own = made[prompt_of(uid, index, made)].exemplars if made else exemplars
    return _Solved({"uid": uid, "sample_index": index}, own, row.question, row.solution, wanted)


def _of_given(question: Question, worked: Exemplar, exemplars: Sequence[Exemplar]) -> _Solved:
    text = solution(worked.reasoning, worked.answer)
    return _Solved({"uid": question.uid}, exemplars, question, text, (LOSS,))


def _losses(
    context: Context, scorer: scoring.TargetScorer, logprobs: bool, solved: Sequence[_Solved]
) -> list[dict[str, Any]]:
    """A shard's rows: each with the losses that there is room to compute."""
    rows, places = [], []
    for at, one in enumerate(solved):
        for name in one.wanted:
            prompt = _prompt(name, one.question, one.exemplars)
            rows.append(tokenize_solution(context.tokenizer, *prompt, one.text))
            places.append((at, name))
    made: list[dict[str, Any]] = [dict(one.identity) for one in solved]
    for (at, name), losses in zip(places, scorer.losses(rows), strict=True):
        if losses is not None:
            made[at][name] = round(float(losses.mean()), 6)
            of_path = "sample_index" in made[at]  # not of a given solution
            if logprobs and name == LOSS and of_path:
                made[at][LOGPROBS] = (0.0 - losses).round(5).tolist()
    return made


def _prompt(name: str, question: Question, exemplars: Sequence[Exemplar]) -> tuple[str, str]:
    """(prefix, inputs) before a solution; see `selection.rows`."""
    if name == LOSS:
        return build_prompt(question, exemplars, "cot")
    return "", question_prompt(question.text) if name == QUESTION_LOSS else "A:"


def tokenize_solution(tokenizer: Tokenizer, prefix: str, inputs: str, text: str) -> packing.Row:
    """Returns a prompt and a solution, of which the solution's tokens alone have weight.

    Nothing stands before it or follows it. Texts are encoded apart, as training and decoding do.
    """
    before = encode_first(tokenizer, prefix) if prefix else []
    asked = tokenizer.encode(inputs) if prefix else encode_first(tokenizer, inputs)
    return packing.weighted_row(before, asked, tokenizer.encode(f" {text}"), 1.0)


NAME = "path_scores"
_RATE = Sampling(num_samples=1, temperature=0.0, max_new_tokens=8)


def path_scores(context: Context, round_index: int, inputs: dict[str, str]) -> dict[str, str]:
    """Scores a round's voted paths.

    Returns:
      The stage's fingerprint as an input of the mix stage; {} where no filter asks for scores.

    Raises:
      LmsiError: losses are asked for and the training mesh is larger than a process, which scores
        its own shards alone.
    """
    needs = _needs(context, round_index)
    if not needs:
        return {}
    if needs & OF_BASE:
        inputs = inputs | {"base": context.base_fingerprint}
    stage = context.stage(round_index, NAME, _settings(context, round_index), inputs)
    if not context.done(stage):
        if needs & OF_BASE and sharding.make_training_mesh(context.run.training).is_multiprocess:
            raise LmsiError(
                "each process computes paths' losses with a whole model of its own; choose "
                "Training.data and Training.model that its own devices suffice for, or leave "
                "filters that ask for losses out of Mixing.selection"
            )
        with context.processes.together(NAME, round_index):
            score_shards(context, round_index)
        stage.finish()
    return {NAME: stage.fingerprint}


def score_shards(context: Context, round_index: int) -> None:
    """Scores this process' shards of a round."""
    needs, rows = _needs(context, round_index), _to_score(context, round_index)
    if needs & OF_BASE:
        score_losses(context, round_index, rows, needs)
    if RATING in needs:
        _rate(context, round_index, rows)
    if names := _scorers(context, round_index):
        _apply_scorers(context, round_index, rows, names)


def read_scored_rows(
    context: Context, round_index: int, task: str, voted: Sequence[Voted]
) -> tuple[list[Row], Facts]:
    """Returns a task's voted paths with their scores, and what filters know beside."""
    store, needs = ShardStore(context.folder(round_index, NAME)), _needs(context, round_index)
    rows = _rows(context, voted)
    made = read_prompts(context, round_index, task)
    known: dict[tuple[str, int], dict[str, Any]] = {}
    for row in _stored(store, task, needs):
        scores = {name: value for name, value in row.items() if name not in ("uid", "sample_index")}
        known.setdefault((row["uid"], row["sample_index"]), {}).update(scores)
    first = _first(rows, made)
    rows = [_with(row, known.get(first[_scored_as(row, made)].name, {})) for row in rows]
    if HUMAN_LOSSES not in needs:
        return rows, Facts()
    given = [row[LOSS] for row in store.read(f"human-{task}") if LOSS in row]
    return rows, Facts(human_losses=tuple(given))


def _with(row: Row, known: dict[str, Any]) -> Row:
    """A row with what is stored of it."""
    scores = {name: value for name, value in known.items() if name != LOGPROBS}
    return dataclasses.replace(row, scores=scores, logprobs=tuple(known.get(LOGPROBS, ())))


def _stored(store: ShardStore, task: str, needs: frozenset[str]) -> Iterator[dict[str, Any]]:
    """What is stored of a task's solutions: uid, index and scores."""
    for name in store.names():
        if name.startswith((f"loss-{task}-", f"rank-{task}-")):
            yield from store.read(name)
    if RATING in needs:
        for name, (sample,) in read_samples(store, f"rating-{task}").items():
            uid, _, index = name.rpartition("/")
            rating = read_rating(sample.text)
            if rating is not None:
                yield {"uid": uid, "sample_index": int(index), RATING: rating}


def _needs(context: Context, round_index: int) -> frozenset[str]:
    """All scores that a round's filters read."""
    none = frozenset[str]()
    return none.union(*(one.needs for one in context.run_in(round_index).mixing.selection))


def _settings(context: Context, round_index: int) -> dict[str, Any]:
    """What the scores, and of which paths there are some, depend on."""
    run = context.run_in(round_index)
    names = ("sequences_per_prefix", "sequence_length", "max_prefix_length", "data", "model")
    settings: dict[str, Any] = {
        "needs": sorted(_needs(context, round_index)),
        "before": [settings_record(one) for one in _unscored(context, round_index)],
        "Mixing": {"keep": run.mixing.keep},
        "Training": {name: getattr(run.training, name) for name in names},
    }
    if HUMAN_LOSSES in _needs(context, round_index):
        settings["Mixing"]["human_examples"] = run.mixing.human_examples
    if run.augmentation.questions:
        settings["Augmentation"] = {"min_confidence": run.augmentation.min_confidence}
    if RATING in _needs(context, round_index):
        settings |= context.decoding_settings
    if asked := _scorers(context, round_index):
        settings["scorers"] = {name: scorers.fingerprint(name) for name in asked}
    return settings


def _scorers(context: Context, round_index: int) -> list[str]:
    """The scorers that a round's filters want to be asked."""
    needs = _needs(context, round_index)
    return sorted(name.removeprefix(SCORER) for name in needs if name.startswith(SCORER))


def _unscored(context: Context, round_index: int) -> list[Any]:
    """The filters before the first one that reads a score."""
    filters = context.run_in(round_index).mixing.filters
    return list(itertools.takewhile(lambda one: not one.needs, filters))


def _rows(context: Context, voted: Sequence[Voted]) -> list[Row]:
    """A task's voted paths, without scores."""
    return [row for one in voted for row in voted_rows(*one, context.run.mixing.keep)]


_Name = tuple[str, str, int]


def _scored_as(row: Row, made: Sequence[FewShot]) -> _Name:
    """What rows that are scored once have in common: question, solution, prompt."""
    uid = row.question.uid
    return uid, row.solution, prompt_of(uid, row.sample.sample_index, made) if made else 0


def _first(rows: Sequence[Row], made: Sequence[FewShot]) -> dict[_Name, Row]:
    """The first of each question's equal solutions behind one prompt."""
    first: dict[_Name, Row] = {}
    for row in rows:
        first.setdefault(_scored_as(row, made), row)
    return first


def _to_score(context: Context, round_index: int) -> dict[str, list[Row]]:
    """Different solutions that the filters without scores leave, by task."""
    found = {}
    for task, voted in read_voted(context, round_index).items():
        rows = _rows(context, voted)
        made = read_prompts(context, round_index, task)
        chosen = select(rows, _unscored(context, round_index)).rows
        names = {_scored_as(row, made) for row in chosen}
        found[task] = [row for name, row in _first(rows, made).items() if name in names]
    return found


_ByTask = Mapping[str, Sequence[Row]]


def _rate(context: Context, round_index: int, by_task: _ByTask) -> None:
    jobs: list[Job] = []
    questions: dict[str, Question] = {}
    for task, rows in by_task.items():
        asked = {f"{row.sample.uid}/{row.sample.sample_index}": row for row in rows}
        texts = {n: rating_prompt(row.question.text, row.solution) for n, row in asked.items()}
        questions |= {n: dataclasses.replace(row.question, uid=n) for n, row in asked.items()}
        if texts:
            jobs.append(Job(name=f"rating-{task}", prefix="", questions=texts, sampling=_RATE))
    draw_samples(
        context,
        jobs,
        questions,
        context.folder(round_index, NAME),
        model=round_index - 1,
        round_index=round_index,
        label=f"round {round_index}: rating",
    )


def _apply_scorers(
    context: Context, round_index: int, by_task: _ByTask, names: Sequence[str]
) -> None:
    """Asks the scorers about this process' missing shards."""
    store = ShardStore(context.folder(round_index, NAME))
    shards = [shard for task, rows in by_task.items() for shard in in_shards(f"rank-{task}", rows)]
    index, count = context.processes.share
    own = shards[index::count]
    label = f"round {round_index}: asking {', '.join(names)}"
    make = functools.partial(_scorer_scores, names)
    write_missing(store, [name for name, _ in own], [rows for _, rows in own], lambda: make, label)


def _scorer_scores(names: Sequence[str], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What scorers say of a shard's rows."""
    made: list[dict[str, Any]] = [
        {"uid": row.sample.uid, "sample_index": row.sample.sample_index} for row in rows
    ]
    asked = [(row.question, row.sample) for row in rows]
    for name in names:
        for one, score in zip(made, scorers.apply_scorer(name, asked), strict=True):
            one[SCORER + name] = score
    return made
