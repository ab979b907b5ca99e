"""A run, as a person configures it: frozen dataclasses, set by gin through `configurables`."""

import dataclasses
from typing import Literal

from lmsi_jax.config.architecture import ModelConfig
from lmsi_jax.config.optimization import Training
from lmsi_jax.config.sampling import Decoding, Sampling
from lmsi_jax.config.schedule import Schedule, apply_schedule, check_schedule
from lmsi_jax.config.stages import (
    Augmentation,
    CollapseMonitor,
    Distillation,
    Evaluation,
    Mixing,
    Pretraining,
    Questions,
    Voting,
)
from lmsi_jax.errors import LmsiError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the loop; every attribute is a gin parameter `Run.NAME`.

    Attributes:
      output_dir: where everything is written; local or gs://.
      seed: fixes sampling noise and the order of training rows.
      rounds: rounds of self-improvement.
      schedule: (parameter, values) pairs, such as ('Mixing.min_confidence', (0.0, 0.5)): round r
        has the r-th value in place of the parameter's own, the last one holds on
        (`lmsi_jax.config.schedule.SCHEDULABLE` lists which may change).
      start_from: each round trains from the "base" model or from the "last" round's.
      model: the model's shape.
      init_checkpoint: a checkpoint folder, "embedded", or "fresh" for weights drawn from the seed.
      tokenizer: a SentencePiece model file, a tokenizer.json, a folder of one of them, or
        "embedded".
      decoding: the decode engine's layout.
      questions_per_shard: questions in one file of paths; a killed process samples its open files
        again.
      reuse: folders of other runs; a stage that one of them has finished with the same settings
        and inputs is copied, not computed again.
      questions, augmentation, sampling, voting, mixing, training, evaluation, monitor: one
        stage, or what looks at one, each.
      pretraining: only for `lmsi pretrain`.
      distillation: only for `lmsi distill`.
    """

    output_dir: str
    model: ModelConfig
    questions: Questions | None = None
    augmentation: Augmentation = Augmentation()
    sampling: Sampling = Sampling()
    voting: Voting = Voting()
    mixing: Mixing = Mixing()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    collapse_monitor: CollapseMonitor = CollapseMonitor()
    pretraining: Pretraining | None = None
    distillation: Distillation | None = None
    name: str = "lmsi"
    seed: int = 0
    rounds: int = 1
    schedule: Schedule = ()
    start_from: Literal["base", "last"] = "base"
    init_checkpoint: str = "embedded"
    tokenizer: str = "embedded"
    decoding: Decoding = Decoding()
    questions_per_shard: int = 64
    reuse: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise LmsiError(f"Run.seed = {self.seed}; use a number from 0 to 2147483647")
        if self.rounds < 1:
            raise LmsiError(f"Run.rounds = {self.rounds}; at least 1")
        if self.questions_per_shard < 1:
            raise LmsiError(f"Run.questions_per_shard = {self.questions_per_shard}; at least 1")
        if self.augmentation.prompts and self.sampling.adaptive_consistency is not None:
            raise LmsiError(
                "Sampling.adaptive_consistency judges a question by paths of one prompt; with "
                "Augmentation.prompts set it to None"
            )
        if self.reuse and any("://" in folder for folder in (self.output_dir, *self.reuse)):
            raise LmsiError("Run.reuse copies between local folders; set it to ()")
        if self.start_from not in ("base", "last"):
            raise LmsiError(f"Run.start_from = {self.start_from!r}; use 'base' or 'last'")
        self._check_preference()
        self._check_human_examples()
        check_schedule(self)

    def in_round(self, index: int) -> "Run":
        """Returns the run as a round (1, 2, ...) sees it: with the values of `schedule`."""
        return apply_schedule(self, index)

    def _check_human_examples(self) -> None:
        """Where a round's examples are its own, human ones must be there to be mixed in."""
        training = self.training
        own = self.distillation is None and self.pretraining is None and training.preference is None
        if own and training.human_rate > 0 and not self.mixing.human_examples:
            raise LmsiError(
                f"Training.human_rate = {training.human_rate} mixes given solutions in: set "
                "Mixing.human_examples above 0, or Training.human_rate to 0"
            )

    def _check_preference(self) -> None:
        preference, given = self.training.preference, self.mixing.human_examples
        if preference is None:
            return
        if self.mixing.selection:
            raise LmsiError(
                "Mixing.selection is about single paths, Training.preference about pairs; set "
                "Mixing.selection = ()"
            )
        unused = {"min_confidence": 0.0, "cap": None, "keep": "majority"}
        for name, off in unused.items():
            if getattr(self.mixing, name) != off:
                raise LmsiError(
                    f"Mixing.{name} is about single paths, Training.preference about pairs (of "
                    f"votes with Preference.threshold); set Mixing.{name} = {off!r}"
                )
        if self.rounds > 1 and self.start_from != "last":
            raise LmsiError(
                "a round's pairs are of the paths of the round before, whose model is what they "
                "are compared with (ScPO, SPIN); set Run.start_from = 'last', or Run.rounds = 1"
            )
        if self.distillation is not None:
            raise LmsiError("a student learns no pairs: bind Training.preference to None")
        if self.augmentation.prompts:
            raise LmsiError(
                "both members of a pair stand behind one prompt, and Augmentation.prompts spreads "
                "a "
                "question's paths over several; set Augmentation.prompts to 0, or bind "
                "Training.preference to None"
            )
        if preference.form == "spin" and self.augmentation.questions:
            raise LmsiError(
                "Preference.form = 'spin' learns from given solutions alone; set "
                "Augmentation.questions to 0"
            )
        if preference.form == "spin" and not given:
            raise LmsiError(
                "Preference.form = 'spin' sets given solutions against the model's own; set "
                "Mixing.human_examples to how many there are of each task"
            )
        if preference.form == "scpo" and given:
            raise LmsiError(
                "Preference.form = 'scpo' learns from votes alone; set Mixing.human_examples to 0"
            )
