"""Distillation: a student learns from a finished run's selected paths, as in LMSI.

    student before -> the teacher's examples -> train -> student after -> the paper's table

The student is the run's model, of any size and with any tokenizer: examples are text. Its folder
has the shape of a run of one round, so each part is a stage of its own and can be interrupted.
"""

from collections.abc import Sequence
from typing import Any

from lmsi_jax.evaluation.statistics import Difference, macro_difference, wilson
from lmsi_jax.files import write_json
from lmsi_jax.report.compare import change
from lmsi_jax.report.distillation import RESULT, SIDES
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.evaluate import evaluate, read_scores
from lmsi_jax.stages.finetune import finetune
from lmsi_jax.stages.teacher_run import TeacherRun, open_teacher, teacher_loader
from lmsi_jax.store import ShardStore


def distill(context: Context, questions: str) -> dict[str, Any]:
    """Trains and measures the student, or goes on where it was.

    Args:
      context: the student's run.
      questions: fingerprint of its questions.

    Returns:
      What it writes to `distillation.json`: a row per task and prompting, and one per domain and
      prompting, with percentages teacher_before, student_before and student_after, their
      intervals, the gain, and the distance to the teacher.

    Raises:
      LmsiError: the teacher's run is absent, not finished, or of other questions.
    """
    teacher = open_teacher(context)
    base = context.base_fingerprint
    inputs = {"mix": _take_examples(context, teacher), "model": base}
    load_teacher = teacher_loader(context)
    if load_teacher is not None:
        inputs["teacher"] = teacher.trained
    evaluate(context, 0, {"model": base, "questions": questions})
    trained = finetune(context, 1, inputs, load_teacher)
    evaluate(context, 1, {"model": trained, "questions": questions})
    measured = _measured(context, teacher)
    result = {
        "teacher": {
            "folder": str(teacher.folder),
            "round": teacher.round,
            "parameters": teacher.config.parameter_count,
        },
        "student": {"parameters": context.run.model.parameter_count},
        "rows": _rows(context, measured),
        "means": _means(context, measured),
    }
    write_json(context.output / RESULT, result)
    return result


def _take_examples(context: Context, teacher: TeacherRun) -> str:
    """Copies the teacher's examples, text and weights, into the student's run."""
    settings = {"Distillation": {"round": teacher.round}}
    stage = context.stage(1, "mix", settings, {"teacher": teacher.mix["fingerprint"]})
    if context.done(stage):
        return stage.fingerprint
    source = ShardStore(teacher.folder / f"round_{teacher.round}" / "mix")
    store = ShardStore(stage.directory)
    for name in store.missing(source.names()):
        store.write(name, source.read(name))
    stage.finish()
    return stage.fingerprint


Outcomes = dict[str, list[int]]
"""Of one task and prompting: whether each question was right, by side."""


def _measured(context: Context, teacher: TeacherRun) -> dict[tuple[str, str], Outcomes]:
    """Outcomes by task and prompting that all three were measured on."""
    scores = {
        "teacher_before": read_scores(teacher.folder, 0),
        "student_before": read_scores(context.output, 0),
        "student_after": read_scores(context.output, 1),
    }
    found = {
        side: {(row["task"], row["prompting"]): row["correct"] for row in rows}
        for side, rows in scores.items()
    }
    return {
        key: {side: by_key[key] for side, by_key in found.items()}
        for key in found["student_after"]
        if all(key in by_key for by_key in found.values())
    }


def _domain(context: Context, task: str) -> str:
    return "in" if task in context.questions.train else "out"


def _rows(context: Context, measured: dict[tuple[str, str], Outcomes]) -> list[dict[str, Any]]:
    """One row per task and prompting."""
    return [
        {
            "task": task,
            "domain": _domain(context, task),
            "prompting": prompting,
            **_compared([outcomes]),
        }
        for (task, prompting), outcomes in measured.items()
    ]


def _means(context: Context, measured: dict[tuple[str, str], Outcomes]) -> list[dict[str, Any]]:
    """One row per domain and prompting: means over the tasks, each counting alike."""
    groups: dict[tuple[str, str], list[Outcomes]] = {}
    for (task, prompting), outcomes in measured.items():
        groups.setdefault((_domain(context, task), prompting), []).append(outcomes)
    return [
        {"domain": domain, "prompting": prompting, "tasks": len(tasks), **_compared(tasks)}
        for (domain, prompting), tasks in sorted(groups.items(), key=lambda one: one[0][0])
    ]


def _compared(tasks: Sequence[Outcomes]) -> dict[str, Any]:
    """Percentages with 95 % intervals, and two changes with McNemar's p (see `report.compare`)."""
    row: dict[str, Any] = {"intervals": {}}
    for side in SIDES:
        own = [outcomes[side] for outcomes in tasks]
        accuracy = _mean(own)
        row |= {side: _percent(accuracy.difference), "n": sum(map(len, own))}
        row["intervals"][side] = [_percent(accuracy.low), _percent(accuracy.high)]
    for name, before in (("gain", "student_before"), ("to_teacher", "teacher_before")):
        sides = [(one[before], one["student_after"]) for one in tasks]
        found = change([([*map(bool, old)], [*map(bool, new)]) for old, new in sides])
        assert found is not None
        points = {end: _percent(getattr(found, end)) for end in ("difference", "low", "high")}
        row[name] = points | {"p": found.p, "verdict": found.verdict}
    return row


def _mean(tasks: Sequence[Sequence[int]]) -> Difference:
    """Mean accuracy with its interval: of a mean of independent shares as of one of differences."""
    shares = [Difference(sum(own) / len(own), *wilson(sum(own), len(own))) for own in tasks]
    return shares[0] if len(shares) == 1 else macro_difference(shares)


def _percent(share: float) -> float:
    return round(100 * share, 2)
