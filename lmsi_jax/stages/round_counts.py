"""A round's counts for the report: paths, votes, training rows, speed."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmsi_jax.by_round import values_in
from lmsi_jax.files import read_json
from lmsi_jax.records import FORMATS, Example, ExamplePair, Path, Vote
from lmsi_jax.stages import generate
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.funnel import labelled_funnel
from lmsi_jax.stages.mix import read_examples, read_pairs
from lmsi_jax.stages.sample import read_round
from lmsi_jax.stages.vote import read_votes
from lmsi_jax.stages.watch import watch_alarms
from lmsi_jax.training.metrics import read_metrics
from lmsi_jax.watch import distinct_kept

_TIMED = (
    *("generate", "prompts", "sample", "vote", "path_scores"),
    *("mix", "score", "train", "eval"),
)


def round_counts(context: Context, index: int) -> dict[str, Any]:
    """Returns what the report says of one round, from its votes on (`report.summary.Round`)."""
    by_task = read_votes(context, index)
    votes = [vote for rows in by_task.values() for vote in rows]
    paths = read_round(context, index)
    metrics = read_metrics(context.folder(index, "train"))
    return {
        "round": index,
        "start_from": context.run.start_from,
        **_speed(context, index, paths, metrics),
        **_vote_counts(votes, paths),
        "votes_by_task": {task: _task_votes(rows, paths) for task, rows in by_task.items()},
        "generated": _generated(context, index, votes),
        "prompts": generate.read_counts(context, index, "prompts"),
        **_mixed(context, index),
        "train": metrics,
        "values": {name: repr(value) for name, value in values_in(context.run, index).items()},
        "alarms": [words for _, words in watch_alarms(context, index)],
    }


def finished(context: Context, round_index: int, stage: str) -> bool:
    """Whether a stage of a round has its record."""
    return (context.folder(round_index, stage) / "stage.json").exists()


def _speed(
    context: Context,
    index: int,
    paths: Mapping[str, Sequence[Path]],
    metrics: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """Seconds of a round's finished stages, and tokens a second of those that count tokens."""
    seconds = {
        stage: float(read_json(context.folder(index, stage) / "stage.json")["seconds"])
        for stage in _TIMED
        if finished(context, index, stage)
    }
    tokens = {
        "sample": sum(path.tokens for rows in paths.values() for path in rows),
        "train": sum(line.get("tokens", 0) for line in metrics),
    }
    rates = {stage: tokens[stage] / seconds[stage] for stage in tokens if seconds.get(stage)}
    return {"seconds": seconds, "tokens_per_second": rates}


def _vote_counts(votes: Sequence[Vote], paths: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """What became of a round's paths, over all of its tasks."""
    flat = [path for rows in paths.values() for path in rows]
    return {
        "questions": len(votes),
        "paths": len(flat),
        "parsed": sum(vote.parsed for vote in votes),
        "unfinished": sum(not path.finished for path in flat),
        "empty_votes": sum(vote.winner is None for vote in votes),
        "tied_votes": sum(bool(vote.tied) for vote in votes),
        "kept": sum(len(vote.kept) for vote in votes),
        "distinct_kept": sum(distinct_kept(vote, paths[vote.uid]) for vote in votes),
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
            "weak": len(examples.get("weak", [])) + len(pairs),
            "strong": len(examples.get("strong", [])),
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
    least = max(run.generation.min_confidence, own)
    found = {}
    new = generate.new_questions(context, index)
    for task, counts in generate.read_counts(context, index, "generate").items():
        sure = [by_uid[question.uid] for question in new[task]]
        found[task] = {
            **counts,
            "mean_confidence": sum(sure) / max(1, len(sure)),
            "confident": sum(one >= least for one in sure),
        }
    return found


def _task_votes(votes: Sequence[Vote], paths: dict[str, list[Path]]) -> dict[str, Any]:
    return {
        "questions": len(votes),
        "mean_confidence": _mean([vote.confidence for vote in votes]),
        "distinct_kept_per_question": _mean([distinct_kept(v, paths[v.uid]) for v in votes]),
        "empty": sum(vote.winner is None for vote in votes),
        "tied": sum(bool(vote.tied) for vote in votes),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
