"""The report: what a run left behind -> a summary -> report.html and a table in the terminal.

A round's counts for the report: paths, votes, training rows, speed.

What adaptive consistency saves, for the report: read off the paths that a run sampled.
"""

import collections
import dataclasses
import datetime
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmsi_jax.config.schedule import scheduled_values
from lmsi_jax.evaluation.accuracy import replay
from lmsi_jax.evaluation.collapse import CollapseMetrics, distinct_kept
from lmsi_jax.pipeline import augment
from lmsi_jax.pipeline.augment import training_questions
from lmsi_jax.pipeline.context import Context, NotReady
from lmsi_jax.pipeline.evaluate import read_scores
from lmsi_jax.pipeline.mix import labelled_funnel, read_examples, read_pairs
from lmsi_jax.pipeline.monitor import collapse_alarms, read_collapse_metrics
from lmsi_jax.pipeline.sample import read_round, read_task
from lmsi_jax.pipeline.sample_shards import read_samples
from lmsi_jax.pipeline.vote import cast_vote, read_votes
from lmsi_jax.records import FORMATS, Example, ExamplePair, Question, Sample, Vote
from lmsi_jax.report.training_sections import RESULT, sentences
from lmsi_jax.runtime.files import read_json, write_bytes, write_json
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.training.metrics import read_metrics

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


def adaptive_consistency(
    context: Context, evaluated: Sequence[int], voted: Sequence[int]
) -> dict[str, Any]:
    """Replays the rule wherever all paths were sampled, and counts where it was on.

    Args:
      context: the run.
      evaluated: rounds with a finished evaluation, 0 for the base.
      voted: rounds with finished votes.

    Returns:
      `lmsi_jax.report.summary.AdaptiveConsistency` as a dictionary.
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
        given |= {"adaptive_consistency": None} | record["config"]["Sampling"]
    on = given["adaptive_consistency"] is not None
    threshold = given["adaptive_consistency"] if on else _USUAL
    return _Rule(threshold, given["adaptive_consistency_every"], given["num_samples"], on)


def _tests(context: Context, round_index: int, rule: _Rule) -> Iterator[_Set]:
    """Test questions under self-consistency, which always samples all paths."""
    store = ShardStore(context.folder(round_index, "eval"))
    for task, questions in context.load_questions("test").items():
        samples = read_samples(store, f"{task}-self_consistency")
        asked = [question for question in questions if question.uid in samples]
        if not asked:
            continue
        votes = [cast_vote(context, question, samples[question.uid]) for question in asked]
        found = replay(asked, votes, samples, rule.threshold, rule.every)
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
            samples = read_task(context, round_index, task)
            found = replay(questions, votes, samples, rule.threshold, rule.every)
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


_TIMED = (
    *("generate", "prompts", "sample", "vote", "path_scores"),
    *("mix", "score", "train", "eval"),
)


def round_counts(context: Context, index: int) -> dict[str, Any]:
    """Returns what the report says of one round, from its votes on (`report.summary.Round`)."""
    by_task = read_votes(context, index)
    votes = [vote for rows in by_task.values() for vote in rows]
    samples = read_round(context, index)
    metrics = read_metrics(context.folder(index, "train"))
    return {
        "round": index,
        "start_from": context.run.start_from,
        **_speed(context, index, samples, metrics),
        **_vote_counts(votes, samples),
        "votes_by_task": {task: _task_votes(rows, samples) for task, rows in by_task.items()},
        "generated": _generated(context, index, votes),
        "prompts": augment.read_counts(context, index, "prompts"),
        **_mixed(context, index),
        "train": metrics,
        "values": {
            name: repr(value) for name, value in scheduled_values(context.run, index).items()
        },
        "alarms": [words for _, words in collapse_alarms(context, index)],
    }


def finished(context: Context, round_index: int, stage: str) -> bool:
    """Whether a stage of a round has its record."""
    return (context.folder(round_index, stage) / "stage.json").exists()


def _speed(
    context: Context,
    index: int,
    samples: Mapping[str, Sequence[Sample]],
    metrics: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """Seconds of a round's finished stages, and tokens a second of those that count tokens."""
    seconds = {
        stage: float(read_json(context.folder(index, stage) / "stage.json")["seconds"])
        for stage in _TIMED
        if finished(context, index, stage)
    }
    tokens = {
        "sample": sum(sample.tokens for rows in samples.values() for sample in rows),
        "train": sum(line.get("tokens", 0) for line in metrics),
    }
    rates = {stage: tokens[stage] / seconds[stage] for stage in tokens if seconds.get(stage)}
    return {"seconds": seconds, "tokens_per_second": rates}


def _vote_counts(votes: Sequence[Vote], samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """What became of a round's paths, over all of its tasks."""
    flat = [sample for rows in samples.values() for sample in rows]
    return {
        "questions": len(votes),
        "paths": len(flat),
        "parsed": sum(vote.parsed for vote in votes),
        "unfinished": sum(not sample.finished for sample in flat),
        "empty_votes": sum(vote.winner is None for vote in votes),
        "tied_votes": sum(bool(vote.tied) for vote in votes),
        "kept": sum(len(vote.kept) for vote in votes),
        "distinct_kept": sum(distinct_kept(vote, samples[vote.uid]) for vote in votes),
        "mean_confidence": _mean([vote.confidence for vote in votes]),
        "mean_entropy": _mean([vote.entropy for vote in votes]),
    }


def _mixed(context: Context, index: int) -> dict[str, Any]:
    """A round's training rows by format and source, and what each filter left; zeros before mix."""
    mixed = finished(context, index, "mix")
    examples = read_examples(context, index) if mixed else {}
    pairs = read_pairs(context, index) if mixed else []
    rows: list[Example | ExamplePair] = [row for source in examples.values() for row in source]
    rows += pairs
    return {
        "examples": {name: _rows_of(name, rows) for name in FORMATS},
        "sources": {
            "self_generated": len(examples.get("self_generated", [])) + len(pairs),
            "human": len(examples.get("human", [])),
        },
        "funnel": labelled_funnel(context, index) if mixed else [],
    }


def _rows_of(format_name: str, rows: Sequence[Example | ExamplePair]) -> dict[str, float]:
    own = [row for row in rows if row.format == format_name]
    return {"rows": len(own), "weight": sum(row.weight for row in own)}


def _generated(context: Context, index: int, votes: Sequence[Vote]) -> dict[str, Any]:
    """What became of a round's new questions, and how sure the votes on them are."""
    by_uid = {vote.uid: vote.confidence for vote in votes}
    run = context.run_in(index)
    preference = run.training.preference
    own = run.mixing.min_confidence if preference is None else preference.threshold
    least = max(run.augmentation.min_confidence, own)
    found = {}
    new = augment.new_questions(context, index)
    for task, counts in augment.read_counts(context, index, "generate").items():
        sure = [by_uid[question.uid] for question in new[task]]
        found[task] = {
            **counts,
            "mean_confidence": sum(sure) / max(1, len(sure)),
            "confident": sum(one >= least for one in sure),
        }
    return found


def _task_votes(votes: Sequence[Vote], samples: dict[str, list[Sample]]) -> dict[str, Any]:
    return {
        "questions": len(votes),
        "mean_confidence": _mean([vote.confidence for vote in votes]),
        "distinct_kept_per_question": _mean([distinct_kept(v, samples[v.uid]) for v in votes]),
        "empty": sum(vote.winner is None for vote in votes),
        "tied": sum(bool(vote.tied) for vote in votes),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


_PACKAGES = ("lmsi_jax", "jax", "flax", "optax", "orbax-checkpoint", "seqio", "tensorflow", "numpy")
_EVALUATION = "eval.json"
_SHOWN_PER_TASK = 2
_SHOWN_PATHS = 8


def report(context: Context, command: str, config_text: str) -> None:
    """Writes report.json, report.html and eval.json, and prints the table.

    Raises:
      NotReady: nothing has been evaluated or voted on yet.
    """
    from rich.console import Console

    from lmsi_jax.report.accuracy_section import as_rows
    from lmsi_jax.report.page import render
    from lmsi_jax.report.summary import validate
    from lmsi_jax.report.terminal import print_summary

    written = context.output / "config.gin"
    if written.exists():
        config_text = written.read_text()  # what the stages ran with, whatever is given now
    summary = summarise(context, command, config_text)
    write_json(context.output / "report.json", summary)
    write_json(context.output / _EVALUATION, as_rows(validate(summary)))
    write_bytes(context.output / "report.html", render(summary).encode())
    print_summary(summary, Console(file=sys.stdout))
    print(f"report: {context.output / 'report.html'}")


def report_evaluation(context: Context, command: str, config_text: str) -> None:
    """Writes eval.json and prints the table of `lmsi eval`."""
    from rich.console import Console

    from lmsi_jax.report.accuracy_section import as_rows
    from lmsi_jax.report.summary import validate
    from lmsi_jax.report.terminal import print_evaluation

    summary = validate(summarise(context, command, config_text))
    given = context.run.evaluation.checkpoints
    write_json(context.output / _EVALUATION, as_rows(summary, given))
    width = None if sys.stdout.isatty() else 160
    names = ("before", "after") if given else None
    print_evaluation(dict(summary), Console(file=sys.stdout, width=width), names)
    for name, checkpoint in zip(names or (), given[:1] + given[-1:], strict=False):
        print(f"{name}: {checkpoint}")
    print(f"table: {context.output / _EVALUATION}")


def summarise(context: Context, command: str, config_text: str) -> dict[str, Any]:
    """Collects the report's summary from the run's folders."""
    from lmsi_jax.tasks import registry

    run, questions = context.run, context.questions
    evaluated = [r for r in range(run.rounds + 1) if finished(context, r, "eval")]
    voted = [r for r in range(1, run.rounds + 1) if finished(context, r, "vote")]
    if not (evaluated or voted):
        raise NotReady(f"{context.output} holds no evaluation and no votes; run `lmsi run` first")
    tasks = {
        name: {
            "name": name,
            "kind": registry.get(name).kind,
            "domain": "in" if name in questions.train else "out",
            "level": questions.level if registry.get(name).levels else "",
            "test_questions": questions.test_count if name in questions.test else 0,
        }
        for name in (*questions.train, *questions.test)
    }
    return {
        "name": run.name,
        "seed": run.seed,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in _PACKAGES},
        "command": command,
        "config": config_text,
        "model": {
            "name": run.init_checkpoint,
            "parameters": run.model.parameter_count,
            "source": context.base_folder.name,
        },
        "tasks": list(tasks.values()),
        "evals": [_evaluation(r, row) for r in evaluated for row in read_scores(context.output, r)],
        "rounds": [round_counts(context, r) for r in voted],
        "collapse": _collapse_rows(context, sorted({*evaluated, *voted})),
        "adaptive_consistency": adaptive_consistency(context, evaluated, voted),
        "examples": _examples(context, evaluated[-1]) if evaluated else [],
        "notes": _notes(context),
    }


def _notes(context: Context) -> list[str]:
    """What there is to say of a student's run; [] of other runs."""
    result = context.output / RESULT
    return sentences(read_json(result)) if result.exists() else []


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _evaluation(round_index: int, row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in row.items() if name != "single"}
    return {"round": round_index, **kept}


def _collapse_rows(context: Context, rounds: Sequence[int]) -> list[dict[str, Any]]:
    """The collapse monitor's figures, one row for each round and source."""
    return [
        {"round": index, "source": source, **_jsonable(row.metrics)}
        for index in rounds
        for source, row in read_collapse_metrics(context, index).items()
    ]


def _jsonable(metrics: CollapseMetrics) -> dict[str, Any]:
    row = dataclasses.asdict(metrics)
    return row | {"distinct": list(metrics.distinct)}


def _examples(context: Context, round_index: int) -> list[dict[str, Any]]:
    """A few labelled test questions of each task with their paths, votes and gold answers."""
    store = ShardStore(context.folder(round_index, "eval"))
    shown = []
    for task, questions in context.load_questions("test").items():
        name = f"{task}-self_consistency"
        samples = read_samples(store, name) or read_samples(store, f"{task}-cot")
        for question in [q for q in questions if q.uid in samples][:_SHOWN_PER_TASK]:
            vote = cast_vote(context, question, samples[question.uid])
            shown.append(_shown(question, vote, samples[question.uid]))
    return shown


def _shown(question: Question, vote: Vote, samples: Sequence[Sample]) -> dict[str, Any]:
    counts = collections.Counter(sample.text for sample in samples)
    first = {sample.text: sample for sample in reversed(samples)}
    order = sorted(counts, key=lambda text: (-counts[text], first[text].sample_index))
    indices = sorted(
        sample.sample_index for sample in samples
    )  # those that were sampled, in the keys' order
    keys = dict(zip(indices, vote.keys, strict=True))
    return {
        "task": question.task,
        "question": question.text,
        "gold": question.gold,
        "winner": vote.winner,
        "confidence": vote.confidence,
        "tied": bool(vote.tied),
        "total": vote.total,
        "paths": [
            {
                "text": text,
                "key": keys[first[text].sample_index],
                "kept": first[text].sample_index in vote.kept,
                "count": counts[text],
            }
            for text in order[:_SHOWN_PATHS]
        ],
    }
