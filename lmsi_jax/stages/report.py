"""The report: what a run left behind -> a summary -> report.html and a table in the terminal."""

import collections
import dataclasses
import datetime
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Any

from lmsi_jax.decoding.generate import read_paths
from lmsi_jax.files import read_json, write_bytes, write_json
from lmsi_jax.records import Path, Question, Vote
from lmsi_jax.report.distillation import RESULT, sentences
from lmsi_jax.stages.context import Context, NotReady
from lmsi_jax.stages.early_stop import early_stop
from lmsi_jax.stages.evaluate import read_scores
from lmsi_jax.stages.round_counts import finished, round_counts
from lmsi_jax.stages.vote import cast_vote
from lmsi_jax.stages.watch import read_watched
from lmsi_jax.store import ShardStore
from lmsi_jax.watch import Figures

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

    from lmsi_jax.report.checking import validate
    from lmsi_jax.report.compare import as_rows
    from lmsi_jax.report.page import render
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

    from lmsi_jax.report.checking import validate
    from lmsi_jax.report.compare import as_rows
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
        "watch": _watched(context, sorted({*evaluated, *voted})),
        "early_stop": early_stop(context, evaluated, voted),
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


def _watched(context: Context, rounds: Sequence[int]) -> list[dict[str, Any]]:
    """The watch's figures, one row for each round and source."""
    return [
        {"round": index, "source": source, **_jsonable(row.figures)}
        for index in rounds
        for source, row in read_watched(context, index).items()
    ]


def _jsonable(figures: Figures) -> dict[str, Any]:
    row = dataclasses.asdict(figures)
    return row | {"distinct": list(figures.distinct)}


def _examples(context: Context, round_index: int) -> list[dict[str, Any]]:
    """A few labelled test questions of each task with their paths, votes and gold answers."""
    store = ShardStore(context.folder(round_index, "eval"))
    shown = []
    for task, questions in context.load_questions("test").items():
        name = f"{task}-self_consistency"
        paths = read_paths(store, name) or read_paths(store, f"{task}-cot")
        for question in [q for q in questions if q.uid in paths][:_SHOWN_PER_TASK]:
            vote = cast_vote(context, question, paths[question.uid])
            shown.append(_shown(question, vote, paths[question.uid]))
    return shown


def _shown(question: Question, vote: Vote, paths: Sequence[Path]) -> dict[str, Any]:
    counts = collections.Counter(path.text for path in paths)
    first = {path.text: path for path in reversed(paths)}
    order = sorted(counts, key=lambda text: (-counts[text], first[text].index))
    indices = sorted(path.index for path in paths)  # those that were sampled, in the keys' order
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
                "key": keys[first[text].index],
                "kept": first[text].index in vote.kept,
                "count": counts[text],
            }
            for text in order[:_SHOWN_PATHS]
        ],
    }
