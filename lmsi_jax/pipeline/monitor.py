"""The collapse monitor: figures of a round's votes and of its model on the test questions, measured
once.

`round_R/collapse.json` keeps them beside the fingerprints of what they were measured on; it is
written again where one of these has changed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from lmsi_jax.evaluation.collapse import Alarm, CollapseMetrics, LabelledMetrics, alarms, measure
from lmsi_jax.pipeline.augment import training_questions
from lmsi_jax.pipeline.context import Context
from lmsi_jax.pipeline.mix import read_examples, read_pairs
from lmsi_jax.pipeline.sample import read_round
from lmsi_jax.pipeline.sample_shards import read_samples
from lmsi_jax.pipeline.vote import cast_vote, read_votes
from lmsi_jax.records import Example, ExamplePair, Question, Sample
from lmsi_jax.runtime.files import read_json, write_json
from lmsi_jax.runtime.store import ShardStore

Source = Literal["train", "test"]
"""Train: the votes that the round learnt, of the model before it. Test: the round's own model."""

SOURCES: tuple[Source, ...] = ("train", "test")
_FILE = "collapse.json"
_READ = ("sample", "vote", "mix", "eval")
_FIELDS = sorted(
    field.name for one in (CollapseMetrics, LabelledMetrics) for field in dataclasses.fields(one)
)


class StoredMetrics(NamedTuple):
    """Figures of a round, with what they can be compared by: paths a question and temperature."""

    metrics: CollapseMetrics
    sampled: tuple[int, float]


def read_collapse_metrics(context: Context, round_index: int) -> dict[Source, StoredMetrics]:
    """Returns a round's figures by source, as far as its stages are finished."""
    path = context.output / f"round_{round_index}" / _FILE
    of = {stage: _fingerprint(context, round_index, stage) for stage in _READ}
    of["fields"] = ",".join(_FIELDS)  # another version has other figures
    stored = read_json(path) if path.exists() else {}
    if stored.get("of") != of:
        stored = {"of": of, "metrics": _measured(context, round_index, of)}
        if stored["metrics"]:
            write_json(path, stored)
    figures = stored["metrics"]
    return {source: _from_json(figures[source]) for source in SOURCES if source in figures}


def collapse_alarms(context: Context, round_index: int) -> list[Alarm]:
    """Returns what is alarming about a round, against the comparable ones before it."""
    seen = {index: read_collapse_metrics(context, index) for index in range(round_index + 1)}
    found: list[Alarm] = []
    for source, where in (("train", ""), ("test", "test questions: ")):
        rows = {index: row[source] for index, row in seen.items() if source in row}
        now = rows.get(round_index)
        if now is None:
            continue
        same = {i: row.metrics for i, row in rows.items() if row.sampled == now.sampled}
        for name, words in alarms(same, context.run.collapse_monitor):
            found.append(Alarm(name, where + words))
    return found


def _fingerprint(context: Context, round_index: int, stage: str) -> str:
    """A finished stage's fingerprint; "" where it is not."""
    record = context.folder(round_index, stage) / "stage.json"
    return str(read_json(record)["fingerprint"]) if record.exists() else ""


def _measured(context: Context, round_index: int, of: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if of["vote"]:
        found["train"] = _train(context, round_index, mixed=bool(of["mix"]))
    if of["eval"]:
        found["test"] = _test(context, round_index)
    return {source: row for source, row in found.items() if row is not None}


def _train(context: Context, round_index: int, mixed: bool) -> dict[str, Any]:
    asked = training_questions(context, round_index)
    by_task = read_votes(context, round_index)
    examples: list[Example | ExamplePair] | None = None
    if mixed:
        self_generated = read_examples(context, round_index)["self_generated"]
        examples = [*self_generated, *read_pairs(context, round_index)]
    metrics = measure(
        [question for rows in asked.values() for question in rows],
        read_round(context, round_index),
        [vote for task in asked for vote in by_task[task]],
        examples,
    )
    sampling = context.run_in(round_index).sampling
    return _to_json(metrics, sampling.num_samples, sampling.temperature)


def _test(context: Context, round_index: int) -> dict[str, Any] | None:
    """The vote of many paths on the test questions; None where evaluation had none."""
    store = ShardStore(context.folder(round_index, "eval"))
    asked: list[Question] = []
    samples: dict[str, Sequence[Sample]] = {}
    for task, questions in context.load_questions("test").items():
        own = read_samples(store, f"{task}-self_consistency")
        asked += [question for question in questions if question.uid in own]
        samples |= own
    if not asked:
        return None
    votes = [cast_vote(context, question, samples[question.uid]) for question in asked]
    evaluation = context.run.evaluation
    after = evaluation.temperature_after if round_index else evaluation.temperature
    return _to_json(measure(asked, samples, votes), evaluation.num_samples, after)


def _to_json(metrics: CollapseMetrics, paths: int, temperature: float) -> dict[str, Any]:
    return {"metrics": dataclasses.asdict(metrics), "sampled": [paths, temperature]}


def _from_json(row: dict[str, Any]) -> StoredMetrics:
    own, (paths, temperature) = dict(row["metrics"]), row["sampled"]
    own["distinct"] = tuple(own["distinct"])
    own["scored"] = LabelledMetrics(**own["scored"]) if own["scored"] else None
    return StoredMetrics(CollapseMetrics(**own), (paths, temperature))
