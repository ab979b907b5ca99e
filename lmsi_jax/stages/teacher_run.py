"""A finished run whose selected paths, or whose model, a student learns from."""

import dataclasses
import json
from typing import Any

from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import read_json
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import parameter_shapes
from lmsi_jax.settings import Distillation
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.finetune import LoadTeacher
from lmsi_jax.training import checkpoints
from lmsi_jax.training.placement import weights_on_mesh
from lmsi_jax.training.teacher import Teacher


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
        training, where = context.run.training, None
        if training.loss.distillation == "model":  # "top_k" is scored by each process for itself
            where = weights_on_mesh(self.config, training)
        params = checkpoints.load_params(folder, parameter_shapes(self.config), where)
        return Teacher(config=self.config, params=params)


def _is_round(name: str) -> bool:
    return name.startswith("round_") and name[6:].isdigit()


def teacher_loader(context: Context) -> LoadTeacher | None:
    """Returns what loads the teacher's model, where the student's loss wants one."""
    sequence = context.run.training.loss.distillation == "sequence"
    if sequence or "distill" not in context.stages:
        return None
    return lambda: open_teacher(context).model(context)


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
