"""Distillation: a student learns from a finished run's selected paths, as in LMSI.

    student before -> the teacher's examples -> train -> student after -> the paper's table

The student is the run's model, of any size and with any tokenizer: examples are text. Its folder
has the shape of a run of one round, so each part is a stage of its own and can be interrupted.
"""

import dataclasses
import json
from typing import Any

from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import read_json, write_json
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import parameter_shapes
from lmsi_jax.run import Distillation
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.evaluate import evaluate, read_scores
from lmsi_jax.stages.finetune import finetune
from lmsi_jax.store import ShardStore
from lmsi_jax.training import checkpoints
from lmsi_jax.training.teacher import Teacher

RESULT = "distillation.json"
_SCORES = "round_0/eval/scores.json"


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
        self.round = config.round or self._last_round()
        if not (self.folder / "manifest.json").exists():
            raise LmsiError(f"{self.folder}/manifest.json is missing; repeat the teacher's run")
        self.manifest = read_json(self.folder / "manifest.json")
        self.mix = self._finished(f"round_{self.round}/mix", "mix")
        self._finished("round_0/eval", "eval")

    def _last_round(self) -> int:
        rounds = [int(child.name[6:]) for child in self.folder.iterdir() if _is_round(child.name)]
        done = [r for r in rounds if (self.folder / f"round_{r}/mix/stage.json").exists()]
        return max(done, default=1)

    def _finished(self, name: str, command: str) -> dict[str, Any]:
        """The record of a finished stage."""
        record = self.folder / name / "stage.json"
        if not record.exists():
            raise LmsiError(
                f"the teacher's {self.folder / name} is not finished; finish it with "
                f"`lmsi {command}`, or choose another Distillation.round"
            )
        return read_json(record)

    def check_same_questions(self, context: Context) -> None:
        """Raises LmsiError where the student would answer other questions than the teacher did."""
        theirs = dict(read_json(self.folder / "questions" / "stage.json")["config"]["Questions"])
        ours = json.loads(json.dumps(dataclasses.asdict(context.questions)))
        for name in ("test", "test_count", "level", "seed"):
            if ours[name] != theirs[name]:
                raise LmsiError(
                    f"Questions.{name} is {ours[name]!r}, the teacher's run has {theirs[name]!r}; "
                    "set it the same, so that both answer the same questions"
                )

    @property
    def config(self) -> ModelConfig:
        """The teacher's shape."""
        model = self.manifest["model"]
        return ModelConfig.from_json(model)

    @property
    def trained(self) -> str:
        """What identifies the model that the round ended with.

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
        params = checkpoints.load_params(folder, parameter_shapes(self.config))
        return Teacher(config=self.config, params=params)


def _is_round(name: str) -> bool:
    return name.startswith("round_") and name[6:].isdigit()


def distill(context: Context, questions: str) -> dict[str, Any]:
    """Trains and measures the student, or goes on where it was.

    Args:
      context: the student's run.
      questions: fingerprint of its questions.

    Returns:
      What it writes to `distillation.json`: a row per task and prompting, with percentages
      teacher_before, student_before and student_after.

    Raises:
      LmsiError: the teacher's run is absent, not finished, or of other questions.
    """
    teacher = open_teacher(context)
    base = context.base_fingerprint
    inputs = {"mix": _take_examples(context, teacher), "model": base}
    by_model = context.run.training.loss.distillation != "sequence"
    if by_model:
        inputs["teacher"] = teacher.trained
    evaluate(context, 0, {"model": base, "questions": questions})
    trained = finetune(context, 1, inputs, (lambda: teacher.model(context)) if by_model else None)
    evaluate(context, 1, {"model": trained, "questions": questions})
    result = {
        "teacher": {
            "folder": str(teacher.folder),
            "round": teacher.round,
            "parameters": teacher.config.parameter_count,
        },
        "student": {"parameters": context.run.model.parameter_count},
        "rows": _rows(context, teacher),
    }
    write_json(context.output / RESULT, result)
    return result


def open_teacher(context: Context) -> TeacherRun:
    """Opens the teacher's run, before anything is done.

    Raises:
      LmsiError: as `distill`.
    """
    config = context.run.distillation
    if config is None:
        raise LmsiError(
            "Run.distillation is not set; bind it to @Distillation() as distill_tiny.gin does"
        )
    teacher = TeacherRun(config)
    teacher.check_same_questions(context)
    return teacher


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


def _rows(context: Context, teacher: TeacherRun) -> list[dict[str, Any]]:
    """One row per task and prompting that all three were measured on."""
    sides = {
        "teacher_before": read_json(teacher.folder / _SCORES),
        "student_before": read_scores(context, 0),
        "student_after": read_scores(context, 1),
    }
    found = {
        side: {(row["task"], row["prompting"]): row["correct"] for row in rows}
        for side, rows in sides.items()
    }
    rows = []
    for task, prompting in found["student_after"]:
        key = (task, prompting)
        if not all(key in by_key for by_key in found.values()):
            continue
        corrects = {side: by_key[key] for side, by_key in found.items()}
        row: dict[str, Any] = {
            "task": task,
            "domain": "in" if task in context.questions.train else "out",
            "prompting": prompting,
        }
        for side, correct in corrects.items():
            row[side] = round(100 * sum(correct) / len(correct), 2)
            row["n"] = len(correct)
        rows.append(row)
    return rows


def print_table(result: dict[str, Any]) -> None:
    """Prints the paper's table: means over the tasks, inside and outside of training."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("tasks", "prompting", "teacher", "student", "student, distilled"):
        table.add_column(name)
    for domain, title in (("in", "trained"), ("out", "others")):
        rows = [row for row in result["rows"] if row["domain"] == domain]
        for prompting in dict.fromkeys(row["prompting"] for row in rows):
            same = [row for row in rows if row["prompting"] == prompting]
            means = [
                f"{sum(row[side] for row in same) / len(same):.1f}"
                for side in ("teacher_before", "student_before", "student_after")
            ]
            table.add_row(f"{title} ({len(same)})", prompting, *means)
    sizes = [f"{result[side]['parameters']:,} parameters" for side in ("teacher", "student")]
    console = Console()
    console.print(f"teacher {sizes[0]}, student {sizes[1]}; percent right", markup=False)
    console.print(table)
