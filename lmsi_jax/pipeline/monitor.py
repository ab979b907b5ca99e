"""The collapse monitor: metrics of a round's votes and of its model on the test questions.

`round_R/collapse.json` keeps them beside the fingerprints of the stages that they were measured on,
and is written again if one of these has changed.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

from lmsi_jax.evaluation.collapse import Alarm, CollapseMetrics, LabelledMetrics, alarms, measure
from lmsi_jax.pipeline.context import Context, Round, Samples
from lmsi_jax.pipeline.mix import read_examples, read_pairs
from lmsi_jax.records import Example, ExamplePair, Question, Vote
from lmsi_jax.runtime.files import read_json, write_json

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
    of = {stage: round.fingerprint(stage) for stage in _READ}
    of["fields"] = ",".join(_FIELDS)  # another version has other metrics
    stored = read_json(path) if path.exists() else {}
    if stored.get("of") != of:
        stored = {"of": of, "metrics": _measured(round, of)}
        if stored["metrics"]:
            write_json(path, stored)
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
