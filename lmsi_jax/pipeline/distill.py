"""Distillation: a student learns from a finished run's selected samples, as in LMSI.

    student before -> the teacher's examples -> train -> student after -> the paper's table

The student is the run's model, of any size and with any tokenizer: examples are text. Its folder
has the shape of a run of one round, so each part is a stage of its own and can be interrupted.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from lmsi_jax.config import Distillation, ModelConfig
from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.statistics import Difference, macro_difference, wilson
from lmsi_jax.models.sharding import make_training_mesh, param_shardings
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.pipeline.context import Context, Round
from lmsi_jax.pipeline.evaluate import EvaluateStep, read_scores
from lmsi_jax.pipeline.step import Step
from lmsi_jax.pipeline.train import LoadTeacher, TrainStep
from lmsi_jax.report.comparison import compare_outcomes
from lmsi_jax.runtime.files import read_record, write_record
from lmsi_jax.runtime.store import ShardStore, read_finished
from lmsi_jax.training import checkpoints
from lmsi_jax.training.losses import Teacher

RESULT = "distillation.json"
"""The file of a student's folder that holds its result."""
SIDES = ("teacher_before", "student_before", "student_after")


class TeacherRun:
    """A finished run, as the student's run reads it.

    Args:
      config: which run and round.

    Raises:
      LmsiError: there is no such run, or what is needed of it is not finished.
    """

    def __init__(self, config: Distillation):
        self.folder = epath.Path(config.teacher_dir)
        if not (self.folder / "questions" / "stage.json").exists():
            raise LmsiError(
                f"{self.folder} holds no run; set Distillation.teacher_dir to the output_dir of a "
                "finished `lmsi run`"
            )
        rounds = [
            int(child.name[6:])
            for child in self.folder.iterdir()
            if child.name.startswith("round_") and child.name[6:].isdigit()
        ]
        mixed = [r for r in rounds if (self.folder / f"round_{r}/mix/stage.json").exists()]
        self.round = config.round or max(mixed, default=1)
        if not (self.folder / "manifest.json").exists():
            raise LmsiError(f"{self.folder}/manifest.json is missing; repeat the teacher's run")
        self.manifest = read_record(self.folder / "manifest.json")
        self.mix = self._finished(f"round_{self.round}/mix", "mix")
        self._finished("round_0/eval", "eval")

    def _finished(self, name: str, command: str) -> dict[str, Any]:
        """Returns the record of a finished stage."""
        record = self.folder / name / "stage.json"
        if not record.exists():
            raise LmsiError(
                f"the teacher's {self.folder / name} is not finished; finish it with "
                f"`lmsi {command}`, or choose another Distillation.round"
            )
        return read_finished(record.parent)

    def check_same_questions(self, context: Context) -> None:
        """Raises LmsiError if the student would answer other questions than the teacher did."""
        theirs = dict(read_record(self.folder / "questions" / "stage.json")["config"]["Questions"])
        ours = json.loads(json.dumps(dataclasses.asdict(context.questions)))
        for name in ("test", "test_count", "level", "seed"):
            if ours[name] != theirs[name]:
                raise LmsiError(
                    f"Questions.{name} is {ours[name]!r}, the teacher's run has {theirs[name]!r}; "
                    "set it the same, so that both answer the same questions"
                )

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprint of its examples, as an input of the student's."""
        return {"teacher": self.mix["fingerprint"]}

    @property
    def config(self) -> ModelConfig:
        """The teacher's shape."""
        model = self.manifest["model"]
        return ModelConfig.from_json(model)

    @property
    def trained(self) -> str:
        """Fingerprint of the model that the round ended with.

        Raises:
          LmsiError: its training is not finished.
        """
        return self._finished(f"round_{self.round}/train", "train")["fingerprint"]

    def model(self, context: Context) -> Teacher:
        """Loads the model that the round ended with.

        Raises:
          LmsiError: the student has another tokenizer, or the checkpoint is missing.
        """
        if self.manifest["hashes"]["base"][32:] != context.tokenizer.fingerprint[:32]:
            raise LmsiError(
                "the student has another tokenizer than the teacher: their probabilities cannot be "
                "compared; use Loss.distillation = 'sequence'"
            )
        folder = checkpoints.find(self.folder / f"round_{self.round}" / "train")
        training, shardings = context.round(1).settings.training, None
        if training.loss.distillation == "model":  # "top_k" is scored by each process for itself
            shardings = param_shardings(self.config, make_training_mesh(training))
        params = checkpoints.load_params(folder, parameter_shapes(self.config), shardings)
        return Teacher(config=self.config, params=params)


def teacher_loader(context: Context) -> LoadTeacher | None:
    """Returns the function that loads the teacher's model; None if the loss needs none."""
    sequence = context.round(1).settings.training.loss.distillation == "sequence"
    if sequence or "distill" not in context.stages:
        return None
    return lambda: open_teacher(context).model(context)


def open_teacher(context: Context) -> TeacherRun:
    """Opens the teacher's run, before anything is done.

    Raises:
      LmsiError: as `distill`.
    """
    config = context.round(1).settings.distillation
    if config is None:
        raise LmsiError(
            "Run.distillation is not set; bind it to @Distillation() as distill_tiny.gin does"
        )
    teacher = TeacherRun(config)
    teacher.check_same_questions(context)
    return teacher


def distill(context: Context, questions: str) -> dict[str, Any]:
    """Trains and measures the student; resumes an interrupted one.

    Args:
      context: the student's run.
      questions: fingerprint of its questions.

    Returns:
      The contents of `distillation.json`: a row per task and prompt style, and one per domain and
      prompt style, with percentages teacher_before, student_before and student_after, their
      intervals, the gain, and the distance to the teacher.

    Raises:
      LmsiError: the teacher's run is absent, not finished, or of other questions.
    """
    teacher = open_teacher(context)
    before, after = context.round(0), context.round(1)
    base = context.base_fingerprint
    inputs = {"mix": _CopyExamples(teacher).execute(after, teacher.inputs), "model": base}
    load_teacher = teacher_loader(context)
    if load_teacher is not None:
        inputs["teacher"] = teacher.trained
    EvaluateStep().execute(before, {"model": base, "questions": questions})
    trained = TrainStep(load_teacher).execute(after, inputs)
    EvaluateStep().execute(after, {"model": trained, "questions": questions})
    outcomes = _outcomes(context, teacher)
    result = {
        "teacher": {
            "folder": str(teacher.folder),
            "round": teacher.round,
            "parameters": teacher.config.parameter_count,
        },
        "student": {"parameters": after.settings.model.parameter_count},
        "rows": _rows(context, outcomes),
        "means": _means(context, outcomes),
    }
    write_record(context.output / RESULT, result)
    return result


class _CopyExamples(Step):
    """Copies the teacher's examples, text and weights, into the student's run."""

    name = "mix"
    inputs = ("teacher",)

    def __init__(self, teacher: TeacherRun):
        self._teacher = teacher

    def derived(self, round: Round) -> dict[str, Any]:
        return {"Distillation": {"round": self._teacher.round}}

    def write(self, round: Round, store: ShardStore) -> None:
        source = ShardStore(self._teacher.folder / f"round_{self._teacher.round}" / "mix")
        for name in store.missing(source.names()):
            store.write(name, source.read(name))


Outcomes = dict[str, list[int]]
"""Outcomes of one task and prompt style: for each side, 1 for each question answered right."""


def _outcomes(context: Context, teacher: TeacherRun) -> dict[tuple[str, str], Outcomes]:
    """Returns outcomes by task and prompt style that all three were measured on."""
    scores = {
        "teacher_before": read_scores(teacher.folder, 0),
        "student_before": read_scores(context.output, 0),
        "student_after": read_scores(context.output, 1),
    }
    by_side = {
        side: {(row["task"], row["prompt_style"]): row["correct"] for row in rows}
        for side, rows in scores.items()
    }
    return {
        key: {side: by_key[key] for side, by_key in by_side.items()}
        for key in by_side["student_after"]
        if all(key in by_key for by_key in by_side.values())
    }


def _domain(context: Context, task: str) -> str:
    return "in" if task in context.questions.train else "out"


def _rows(context: Context, by_key: dict[tuple[str, str], Outcomes]) -> list[dict[str, Any]]:
    """Returns one row per task and prompt style."""
    return [
        {
            "task": task,
            "domain": _domain(context, task),
            "prompt_style": prompt_style,
            **_compared([outcomes]),
        }
        for (task, prompt_style), outcomes in by_key.items()
    ]


def _means(context: Context, by_key: dict[tuple[str, str], Outcomes]) -> list[dict[str, Any]]:
    """Returns one row per domain and prompt style: means over the tasks, each counting alike."""
    groups: dict[tuple[str, str], list[Outcomes]] = {}
    for (task, prompt_style), outcomes in by_key.items():
        groups.setdefault((_domain(context, task), prompt_style), []).append(outcomes)
    return [
        {"domain": domain, "prompt_style": prompt_style, "tasks": len(tasks), **_compared(tasks)}
        for (domain, prompt_style), tasks in sorted(groups.items(), key=lambda one: one[0][0])
    ]


def _compared(tasks: Sequence[Outcomes]) -> dict[str, Any]:
    """Returns percentages with 95 % intervals, and two changes with McNemar's p."""
    row: dict[str, Any] = {"intervals": {}}
    for side in SIDES:
        correct = [outcomes[side] for outcomes in tasks]
        # The interval of a mean of independent shares is that of a mean of differences.
        shares = [Difference(sum(c) / len(c), *wilson(sum(c), len(c))) for c in correct]
        accuracy = shares[0] if len(shares) == 1 else macro_difference(shares)
        row |= {side: _percent(accuracy.difference), "n": sum(map(len, correct))}
        row["intervals"][side] = [_percent(accuracy.low), _percent(accuracy.high)]
    for name, before in (("gain", "student_before"), ("to_teacher", "teacher_before")):
        sides = [(one[before], one["student_after"]) for one in tasks]
        change = compare_outcomes([([*map(bool, old)], [*map(bool, new)]) for old, new in sides])
        assert change is not None
        points = {end: _percent(getattr(change, end)) for end in ("difference", "low", "high")}
        row[name] = points | {"p": change.p, "verdict": change.verdict}
    return row


def _percent(share: float) -> float:
    return round(100 * share, 2)
