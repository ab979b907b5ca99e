"""Scores of voted samples that filters in `Mixing.selection` ask for.

    loss-TASK-NNNNN-of-MMMMM     losses of solutions under the base model
    human-TASK                   the same of human solutions: a validation set
    rating-TASK-NNNNN-of-MMMMM   the sampling model's own rating of them
    rank-TASK-NNNNN-of-MMMMM     what scorers return

Equal solutions of a question, after the same prompt, are scored once; rows that score-free filters
drop are skipped. Several processes share the shards, each complete or absent.
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
    BASE_SHARES,
    FACTS,
    GOLD,
    HUMAN_LOSSES,
    LOSS,
    QUESTION_LOSS,
    RATING,
    SCORER,
    ExternalScore,
)
from lmsi_jax.config.value_checks import without_folder
from lmsi_jax.errors import LmsiError
from lmsi_jax.models import sharding
from lmsi_jax.models.tokenizers import Tokenizer, encode_text
from lmsi_jax.pipeline import scorers
from lmsi_jax.pipeline.context import Round, Voted, read_samples
from lmsi_jax.pipeline.questions import train_answers, worked_questions
from lmsi_jax.pipeline.sample import Job, draw_samples
from lmsi_jax.pipeline.step import DECODING, Fields, Step, settings_record
from lmsi_jax.prompts import PLAIN, PromptWriter, available_style, solution
from lmsi_jax.records import Exemplar, Question, Text
from lmsi_jax.runtime.progress import Progress
from lmsi_jax.runtime.store import ShardStore, Stage, shard_names
from lmsi_jax.selection.filters import rating_prompt, read_rating
from lmsi_jax.selection.rows import (
    LOGPROBS,
    Facts,
    Row,
    select,
    voted_rows,
)
from lmsi_jax.training import packing, scoring
from lmsi_jax.voting import as_asked

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
    """Computes and writes the missing shards.

    Args:
      store: the folder of the shards.
      names: of all shards.
      shards: the rows of each.
      load: loads the model, if a shard is missing; returns the function from rows to a shard.
      label: of the progress bar.

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


def score_losses(round: Round, rows: Mapping[str, Sequence[Row]], needs: frozenset[str]) -> None:
    """Writes this process' missing shards of losses.

    Args:
      round: the round.
      rows: different solutions, by task.
      needs: which losses, of `selection.rows`.

    Raises:
      LmsiError: the disk is full.
    """
    index, count = round.context.processes.share
    shards = list(_loss_shards(round, rows, needs))[index::count]

    def load() -> Callable[[Sequence[_Solved]], list[dict[str, Any]]]:
        """Loads the base model; returns the function that computes a shard's losses."""
        settings, context = round.settings, round.context
        scorer = scoring.TargetScorer.of(settings.model, context.params(0), settings.training)
        return functools.partial(
            _losses, context.tokenizer, context.prompts, scorer, LOGPROBS in needs
        )

    names, solved = [name for name, _ in shards], [some for _, some in shards]
    label = f"round {round.index}: scoring samples"
    write_missing(round.store(FilterScoresStep.name), names, solved, load, label)


class _Solved(NamedTuple):
    """A solution to score: its name in the store, its prompt and text, and its losses' names."""

    identity: dict[str, Any]
    exemplars: Sequence[Exemplar]
    question: Question
    text: str
    losses: tuple[str, ...]


def _loss_shards(
    round: Round, rows: Mapping[str, Sequence[Row]], needs: frozenset[str]
) -> Iterator[tuple[str, Sequence[_Solved]]]:
    """Yields (shard, solutions), the same in every process."""
    mean = needs | {LOSS} if LOGPROBS in needs else needs  # both are of the same tokens
    losses = tuple(name for name in LOSSES if name in mean)
    for task, solutions in rows.items():
        exemplars = round.context.exemplars(task)
        if losses:
            prompts = round.few_shots(task)
            solved = [_of_row(row, prompts, exemplars, losses) for row in solutions]
            yield from in_shards(f"loss-{task}", solved)
        if HUMAN_LOSSES in needs:
            yield (
                f"human-{task}",
                [
                    _Solved(
                        {"uid": question.uid},
                        exemplars,
                        question,
                        solution(worked.reasoning, worked.answer),
                        (LOSS,),
                    )
                    for question, worked in worked_questions(round, task)
                ],
            )


def _of_row(
    row: Row, prompts: Sequence[FewShot], exemplars: Sequence[Exemplar], losses: tuple[str, ...]
) -> _Solved:
    """Returns a sample's solution, after the prompt that it was drawn with."""
    uid, index = row.name
    shown = prompts[prompt_of(uid, index, prompts)].exemplars if prompts else exemplars
    return _Solved({"uid": uid, "sample_index": index}, shown, row.question, row.solution, losses)


def _losses(
    tokenizer: Tokenizer,
    writer: PromptWriter,
    scorer: scoring.TargetScorer,
    logprobs: bool,
    solved: Sequence[_Solved],
) -> list[dict[str, Any]]:
    """Returns a shard's rows: each with the losses that there is room to compute."""
    rows, places = [], []
    for at, one in enumerate(solved):
        for name in one.losses:
            prompt = _prompt(writer, name, one.question, one.exemplars)
            rows.append(tokenize_solution(tokenizer, *prompt, one.text, writer))
            places.append((at, name))
    records: list[dict[str, Any]] = [dict(one.identity) for one in solved]
    for (at, name), losses in zip(places, scorer.losses(rows), strict=True):
        if losses is not None:
            records[at][name] = round(float(losses.mean()), 6)
            of_sample = "sample_index" in records[at]  # not of a human solution
            if logprobs and name == LOSS and of_sample:
                records[at][LOGPROBS] = (0.0 - losses).round(5).tolist()
    return records


def _prompt(
    writer: PromptWriter, name: str, question: Question, exemplars: Sequence[Exemplar]
) -> tuple[Text, Text]:
    """Returns (prefix, inputs) before a solution; see `selection.rows`."""
    if name == LOSS:
        return writer.prompt(question, exemplars, available_style("cot", exemplars))
    if name == QUESTION_LOSS:
        return "", writer.request(question.text)
    return "", writer.no_question()


def tokenize_solution(
    tokenizer: Tokenizer, prefix: Text, inputs: Text, text: str, writer: PromptWriter = PLAIN
) -> packing.Row:
    """Returns a prompt and a solution, of which the solution's tokens alone have weight.

    Texts are encoded one by one, as training and decoding do; no end of sequence follows.
    """
    return packing.weighted_row(
        encode_text(tokenizer, prefix),
        encode_text(tokenizer, inputs, prefix),
        encode_text(tokenizer, writer.target(text, ended=False), inputs),
        1.0,
    )


_RATE = Sampling(num_samples=1, temperature=0.0, max_new_tokens=8)


def all_needs(round: Round) -> frozenset[str]:
    """Returns all scores and facts that a round's filters read."""
    none = frozenset[str]()
    return none.union(*(one.needs for one in round.settings.mixing.selection))


def _needs(round: Round) -> frozenset[str]:
    """Returns all scores that a round's filters read."""
    return all_needs(round) - FACTS


def has_new_questions(round: Round) -> bool:
    """Returns True if the round samples questions that the model wrote."""
    return bool(round.settings.augmentation.questions)


class FilterScoresStep(Step):
    """Scores the round's voted samples, if filters ask for it.

    Raises:
      LmsiError: losses are asked for and the training mesh is larger than a process, which scores
        its own shards alone.
    """

    name = "filter_scores"
    settings = (
        Fields(part="mixing", names=("keep",)),
        Fields(
            part="mixing",
            names=("human_examples",),
            when=lambda round: HUMAN_LOSSES in _needs(round),
        ),
        Fields(
            part="training",
            names=(
                *("sequences_per_prefix", "sequence_length", "max_prefix_length"),
                *("data", "model"),
            ),
        ),
        Fields(part="augmentation", names=("min_confidence",), when=has_new_questions),
        *(
            dataclasses.replace(fields, when=lambda round: RATING in _needs(round))
            for fields in DECODING
        ),
    )
    inputs = ("vote", "model", "base")
    writes_prompts = True

    def applies(self, round: Round) -> bool:
        return bool(_needs(round))

    def inputs_of(self, round: Round) -> Iterable[str]:
        return self.inputs if _needs(round) & OF_BASE else ("vote", "model")

    def derived(self, round: Round) -> dict[str, Any]:
        record: dict[str, Any] = {
            "needs": sorted(_needs(round)),
            "before": [settings_record(one) for one in _score_free_filters(round)],
        }
        if names := _scorers(round):
            record["scorers"] = scorers.fingerprints(names)
        return record

    def run(self, round: Round, stage: Stage) -> None:
        if (
            _needs(round) & OF_BASE
            and sharding.make_training_mesh(round.settings.training).is_multiprocess
        ):
            raise LmsiError(
                "each process computes samples' losses with a whole model of its own; choose "
                "Training.data and Training.model that its own devices suffice for, or leave "
                "filters that ask for losses out of Mixing.selection"
            )
        super().run(round, stage)

    def share(self, round: Round) -> None:
        needs, rows = _needs(round), _rows_to_score(round)
        if needs & OF_BASE:
            score_losses(round, rows, needs)
        if RATING in needs:
            _rate(round, rows)
        if names := _scorers(round):
            _apply_scorers(round, rows, names)


def read_scored_rows(round: Round, task: str, voted: Sequence[Voted]) -> tuple[list[Row], Facts]:
    """Returns a task's voted samples with their scores, and the facts that filters know beside."""
    store, needs = round.store(FilterScoresStep.name), _needs(round)
    rows, prompts = _rows(round, voted), round.few_shots(task)
    scores: dict[tuple[str, int], dict[str, Any]] = {}
    for record in _stored(store, task, needs) if needs else ():
        name = record.pop("uid"), record.pop("sample_index")
        scores.setdefault(name, {}).update(record)
    first = _first(rows, prompts)
    rows = [_with(row, scores.get(first[_scored_as(row, prompts)].name, {})) for row in rows]
    facts = _known_facts(round, task, voted)
    if HUMAN_LOSSES in needs:
        human_losses = [row[LOSS] for row in store.read(f"human-{task}") if LOSS in row]
        facts = dataclasses.replace(facts, human_losses=tuple(human_losses))
    return rows, facts


def _known_facts(round: Round, task: str, voted: Sequence[Voted]) -> Facts:
    """Returns the facts that need no model, as far as a filter reads them."""
    needs = all_needs(round)
    base_shares: dict[str, float] = {}
    if BASE_SHARES in needs:
        # The first round samples the base model.
        votes = round.context.round(1).votes().get(task, [])
        base_shares = {vote.uid: vote.confidence for vote in votes}
    return Facts(
        base_shares=base_shares,
        right=train_answers(round.context.questions, task) if GOLD in needs else {},
        voted_rows=sum(len(vote.kept) for _, _, vote in voted),
    )


def _with(row: Row, stored: dict[str, Any]) -> Row:
    """Returns a row with its stored scores."""
    scores = {name: value for name, value in stored.items() if name != LOGPROBS}
    return dataclasses.replace(row, scores=scores, logprobs=tuple(stored.get(LOGPROBS, ())))


def _stored(store: ShardStore, task: str, needs: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Yields the stored records of a task's solutions: uid, index and scores."""
    for name in store.names():
        if name.startswith((f"loss-{task}-", f"rank-{task}-")):
            yield from store.read(name)
    if RATING in needs:
        for name, (sample,) in read_samples(store, f"rating-{task}").items():
            uid, _, index = name.rpartition("/")
            rating = read_rating(sample.text)
            if rating is not None:
                yield {"uid": uid, "sample_index": int(index), RATING: rating}


def _scorers(round: Round) -> list[str]:
    """Returns the scorers that a round's filters ask."""
    filters = round.settings.mixing.filters
    return sorted({rule.scorer for rule in filters if isinstance(rule, ExternalScore)})


def _score_free_filters(round: Round) -> list[Any]:
    """Returns the filters before the first one that reads a score."""
    filters = round.settings.mixing.filters
    return list(itertools.takewhile(lambda one: not one.needs - FACTS, filters))


def _rows(round: Round, voted: Sequence[Voted]) -> list[Row]:
    settings = round.settings
    rows = [row for one in voted for row in voted_rows(*one, settings.mixing.keep)]
    if not settings.voting.rotate_options:
        return rows
    return [
        dataclasses.replace(row, question=as_asked(row.question, row.sample, settings.voting))
        for row in rows
    ]


_Name = tuple[str, str, str, int]


def _scored_as(row: Row, prompts: Sequence[FewShot]) -> _Name:
    """Returns what rows that are scored once have in common: question, solution, prompt."""
    uid, text = row.question.uid, row.question.text
    number = prompt_of(uid, row.sample.sample_index, prompts) if prompts else 0
    return uid, text, row.solution, number


def _first(rows: Sequence[Row], prompts: Sequence[FewShot]) -> dict[_Name, Row]:
    """Returns the first of each question's equal solutions after one prompt."""
    first: dict[_Name, Row] = {}
    for row in rows:
        first.setdefault(_scored_as(row, prompts), row)
    return first


def _rows_to_score(round: Round) -> dict[str, list[Row]]:
    """Returns the different solutions that score-free filters keep, by task."""
    different = {}
    for task, voted in round.voted().items():
        rows, prompts = _rows(round, voted), round.few_shots(task)
        kept = select(rows, _score_free_filters(round), _known_facts(round, task, voted)).rows
        names = {_scored_as(row, prompts) for row in kept}
        different[task] = [row for name, row in _first(rows, prompts).items() if name in names]
    return different


_ByTask = Mapping[str, Sequence[Row]]


def _rate(round: Round, by_task: _ByTask) -> None:
    jobs: list[Job] = []
    for task, rows in by_task.items():
        texts = {
            f"{row.sample.uid}/{row.sample.sample_index}": rating_prompt(
                row.question.text, row.solution, round.context.prompts
            )
            for row in rows
        }
        if texts:
            jobs.append(Job(name=f"rating-{task}", prefix="", questions=texts, sampling=_RATE))
    draw_samples(
        round,
        jobs,
        {},  # a rating is no answer to the question
        round.folder(FilterScoresStep.name),
        model=round.index - 1,
        label=f"round {round.index}: rating",
    )


def _apply_scorers(round: Round, by_task: _ByTask, names: Sequence[str]) -> None:
    """Has the scorers score this process' missing shards."""
    shards = [shard for task, rows in by_task.items() for shard in in_shards(f"rank-{task}", rows)]
    index, count = round.context.processes.share
    shards = shards[index::count]
    write_missing(
        round.store(FilterScoresStep.name),
        [name for name, _ in shards],
        [rows for _, rows in shards],
        lambda: functools.partial(_scorer_scores, names),
        f"round {round.index}: asking {', '.join(names)}",
    )


def _scorer_scores(names: Sequence[str], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns a shard's records with the scorers' scores."""
    records: list[dict[str, Any]] = [
        {"uid": row.sample.uid, "sample_index": row.sample.sample_index} for row in rows
    ]
    samples = [(row.question, row.sample) for row in rows]
    for name in names:
        for record, score in zip(records, scorers.apply_scorer(name, samples), strict=True):
            record[SCORER + without_folder(name)] = score
    return records
