"""Evaluation of a round's model on the test questions, and the collapse monitor.

round_R/eval/TASK-STYLE-00000-of-00002    samples
             votes-TASK-STYLE             the votes on them, one per question
             scores.json                  accuracies
round_R/collapse.json                     metrics of the round's votes, and of its model on the test
                                          questions, beside the fingerprints of the stages that they
                                          were measured on; written again if one of these changes
"""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

from etils import epath

from lmsi_jax.config import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.accuracy import score_votes
from lmsi_jax.evaluation.collapse import Alarm, CollapseMetrics, LabelledMetrics, alarms, measure
from lmsi_jax.pipeline.context import Context, Round, Samples, read_samples, test_job_name
from lmsi_jax.pipeline.mix import read_examples, read_pairs
from lmsi_jax.pipeline.sample import draw_samples, make_jobs
from lmsi_jax.pipeline.step import DECODING, Fields, Step, custom_code
from lmsi_jax.pipeline.vote import VOTING, cast_vote, scorer_record
from lmsi_jax.prompts import PromptStyle, new_tokens
from lmsi_jax.records import Example, ExamplePair, Question, Vote
from lmsi_jax.runtime.files import read_json, read_record, write_json, write_record
from lmsi_jax.runtime.store import ShardStore, check_output

_LOG = logging.getLogger(__name__)
_SCORES = "scores.json"
# Accuracy is of the vote on all samples; the report says what adaptive consistency would do to it.
_NEVER: dict[str, Any] = {"adaptive_consistency": None, "token_logprobs": False, "greedy": False}


class EvaluateStep(Step):
    """Evaluates the model that a round ended with."""

    name = "eval"
    settings = (
        # Of the checkpoints that are compared, the model's fingerprint is among the inputs.
        Fields(
            part="evaluation",
            without=("checkpoints", "probe_shares", "temperature", "temperature_after"),
        ),
        Fields(part="evaluation", names=("temperature",), when=lambda round: round.index == 0),
        Fields(part="evaluation", names=("temperature_after",), when=lambda round: round.index > 0),
        *VOTING,
        *DECODING,
        Fields(
            part="sampling",
            without=(  # evaluation sets these itself
                *("num_samples", "temperature", "token_logprobs", "greedy"),
                *("adaptive_consistency", "adaptive_consistency_every"),
            ),
        ),
    )
    inputs = ("model", "questions")
    writes_prompts = True

    def derived(self, round: Round) -> dict[str, Any]:
        return scorer_record(round) | custom_code(round, "read", "equal", "prompt")

    def share(self, round: Round) -> None:
        asked = list(_asked(round))
        jobs = [
            job
            for task, style, questions in asked
            for job in make_jobs(
                round,
                test_job_name(task, style),
                questions,
                round.context.exemplars(task),
                "cot" if style == "self_consistency" else cast(PromptStyle, style),
                _sampling(round, style),
            )
        ]
        label = f"round {round.index}" if round.index else "base model"
        draw_samples(
            round,
            jobs,
            {question.uid: question for _, _, questions in asked for question in questions},
            round.folder(self.name),
            model=round.index,
            label=f"{label}: evaluation",
        )

    def write(self, round: Round, store: ShardStore) -> None:
        scores = []
        for task, style, questions in _asked(round):
            name = test_job_name(task, style)
            # The collapse monitor reads those of the vote again, at once.
            kept = style == "self_consistency"
            samples = round.test_samples(task, style) if kept else read_samples(store, name)
            votes = [cast_vote(round, question, samples[question.uid]) for question in questions]
            store.write(f"votes-{name}", [vote.to_json() for vote in votes])
            temperature = _sampling(round, style).temperature
            scores.append(score_votes(questions, samples, votes, style, temperature))
        write_json(store.directory / _SCORES, [dataclasses.asdict(one) for one in scores])
        round.reader.clear()


def read_scores(run: epath.PathLike, round_index: int) -> list[dict[str, Any]]:
    """Reads the scores of a round's evaluation in a run's folder.

    Raises:
      LmsiError: they are missing or damaged.
    """
    path = epath.Path(run) / f"round_{round_index}" / "eval" / _SCORES
    try:
        check_output(path)
        return read_json(path)
    except LmsiError:
        raise LmsiError(
            f"{path} is missing or damaged; repeat `lmsi run`, or the other command that evaluated "
            "with the same configuration: it makes it anew of the samples that are there"
        ) from None


def _asked(round: Round) -> Iterator[tuple[str, str, list[Question]]]:
    """Yields (task, prompt style, its questions), in the order of the scores."""
    evaluation = round.settings.evaluation
    for task, questions in round.context.load_questions("test").items():
        styles = evaluation.prompt_styles
        if "zero_shot_cot" in styles and not round.context.exemplars(task):
            styles = tuple(style for style in styles if style != "cot")  # the same without any
        for style in styles:
            several = style == "self_consistency"
            yield task, style, questions[: evaluation.vote_count] if several else questions


def _sampling(round: Round, style: str) -> Sampling:
    evaluation, sampling = round.settings.evaluation, round.settings.sampling
    if style == "self_consistency":
        return dataclasses.replace(
            sampling,
            num_samples=evaluation.num_samples,
            temperature=evaluation.temperature_after if round.index else evaluation.temperature,
            **_NEVER,
        )
    tokens = new_tokens(style, sampling.max_new_tokens)
    return dataclasses.replace(
        sampling, num_samples=1, temperature=0.0, max_new_tokens=tokens, **_NEVER
    )


Source = Literal["train", "test"]
"""Train: the votes that the round learnt, of the model before it. Test: the round's own model."""

SOURCES: tuple[Source, ...] = ("train", "test")
_FILE = "collapse.json"
_READ = ("sample", "vote", "mix", "eval")
_FIELDS = sorted(
    field.name for one in (CollapseMetrics, LabelledMetrics) for field in dataclasses.fields(one)
)


class StoredMetrics(NamedTuple):
    """Metrics of a round, comparable if samples per question and temperature are equal."""

    metrics: CollapseMetrics
    sampled: tuple[int, float]


def read_collapse_metrics(round: Round) -> dict[Source, StoredMetrics]:
    """Returns a round's metrics by source, as far as its stages are finished."""
    path = round.folder(_FILE)
    of = {stage: round.stage_fingerprint(stage) for stage in _READ}
    of["fields"] = ",".join(_FIELDS)  # another version has other metrics
    stored: dict[str, Any] = {}
    if path.exists():
        try:
            stored = read_record(path)
        except LmsiError:
            _LOG.warning("%s was altered and is written anew", path)
    if stored.get("of") != of:
        stored = {"of": of, "metrics": _measured(round, of)}
        if stored["metrics"]:
            write_record(path, stored)
    metrics = stored["metrics"]
    return {source: _from_json(metrics[source]) for source in SOURCES if source in metrics}


def collapse_alarms(context: Context, round_index: int) -> list[Alarm]:
    """Returns what is alarming about a round, against the comparable ones before it."""
    rounds = {index: context.round(index) for index in range(round_index + 1)}
    metrics = {index: read_collapse_metrics(round) for index, round in rounds.items()}
    monitor = rounds[round_index].settings.collapse_monitor
    raised: list[Alarm] = []
    for source, where in (("train", ""), ("test", "test questions: ")):
        rows = {index: row[source] for index, row in metrics.items() if source in row}
        now = rows.get(round_index)
        if now is None:
            continue
        same = {i: row.metrics for i, row in rows.items() if row.sampled == now.sampled}
        raised += [Alarm(name, where + words) for name, words in alarms(same, monitor)]
    return raised


def _measured(round: Round, of: dict[str, str]) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    if of["vote"]:
        measured["train"] = _train(round, mixed=bool(of["mix"]))
    if of["eval"]:
        measured["test"] = _test(round)
    return {source: row for source, row in measured.items() if row is not None}


def _train(round: Round, mixed: bool) -> dict[str, Any]:
    asked, by_task = round.questions, round.votes()
    examples: list[Example | ExamplePair] | None = None
    if mixed:
        examples = [*read_examples(round)["self_generated"], *read_pairs(round)]
    metrics = measure(
        [question for rows in asked.values() for question in rows],
        round.all_samples(),
        [vote for task in asked for vote in by_task[task]],
        examples,
    )
    sampling = round.settings.sampling
    return _to_json(metrics, sampling.num_samples, sampling.temperature)


def _test(round: Round) -> dict[str, Any] | None:
    """Measures the votes on the test questions; None if there were none of several samples."""
    asked: list[Question] = []
    samples: Samples = {}
    votes: dict[str, Vote] = {}
    for task, questions in round.context.load_questions("test").items():
        votes |= round.test_votes(task, "self_consistency")
        samples |= round.test_samples(task, "self_consistency")
        asked += [question for question in questions if question.uid in votes]
    if not asked:
        return None
    evaluation = round.settings.evaluation
    temperature = evaluation.temperature_after if round.index else evaluation.temperature
    metrics = measure(asked, samples, [votes[question.uid] for question in asked])
    return _to_json(metrics, evaluation.num_samples, temperature)


def _to_json(metrics: CollapseMetrics, count: int, temperature: float) -> dict[str, Any]:
    return {"metrics": dataclasses.asdict(metrics), "sampled": [count, temperature]}


def _from_json(row: dict[str, Any]) -> StoredMetrics:
    fields, (count, temperature) = dict(row["metrics"]), row["sampled"]
    fields["distinct"] = tuple(fields["distinct"])
    fields["scored"] = LabelledMetrics(**fields["scored"]) if fields["scored"] else None
    return StoredMetrics(CollapseMetrics(**fields), (count, temperature))
