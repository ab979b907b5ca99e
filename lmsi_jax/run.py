"""A run, as a person configures it: frozen dataclasses, set by gin through `configurables`."""

import dataclasses
from typing import Literal

from lmsi_jax.by_round import Schedule, check_schedule, in_round
from lmsi_jax.decoding.layout import Decoding
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.generation.settings import Generation
from lmsi_jax.mixing import check_switches
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.prompts import PROMPTINGS
from lmsi_jax.records import FORMATS, Format
from lmsi_jax.selection.confidence import Cap, MinConfidence
from lmsi_jax.selection.rows import STRONG_LOSSES, Filter
from lmsi_jax.training.settings import Training
from lmsi_jax.voting import Voting
from lmsi_jax.watch import Watch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
    """Which questions.

    Attributes:
      train: tasks whose unlabelled train questions are sampled.
      test: tasks whose labelled test questions are evaluated.
      level: difficulty of procedural tasks, "easy" or "hard".
      train_count: train questions per task.
      test_count: test questions per task.
      data_dir: folder of local data files, for tasks that read them; None: through TFDS, which
        downloads what it does not have.
      data_dirs: (task, folder) pairs, where a task's files are elsewhere.
      exemplars: (task, file) pairs, in place of the exemplars of this project; the layout is that
        of `lmsi_jax.tasks.exemplars`.
      overlap: what to do about training questions and exemplars that also stand among the run's
        test questions (`lmsi_jax.tasks.overlap`): "refuse", "drop" such training questions, or
        "allow" them.
      seed: fixes which questions are drawn.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    level: Literal["easy", "hard"] = "hard"
    train_count: int = 1000
    test_count: int = 200
    data_dir: str | None = None
    data_dirs: tuple[tuple[str, str], ...] = ()
    exemplars: tuple[tuple[str, str], ...] = ()
    overlap: Literal["refuse", "drop", "allow"] = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.overlap not in ("refuse", "drop", "allow"):
            raise LmsiError(f"Questions.overlap = {self.overlap!r}; use refuse, drop or allow")

    def folder(self, task: str) -> str | None:
        """The folder of a task's files, None where it has none."""
        return dict(self.data_dirs).get(task, self.data_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """How kept paths become training rows (see `mixing.examples`).

    Attributes:
      formats: the formats to write.
      keep: paths that agree with the "majority", or all "parsed" ones (a control without a vote).
      merge_equal: equal rows become one with a weight.
      cap: most distinct paths kept per question; None for all.
      min_confidence: questions with a less sure vote are left out.
      normalise: "path" weighs each kept path equally, "question" each question.
      strong_count: labelled worked questions per train task to mix in (0: none, the paper). Where
        `Training.strong_rate` is 0 they only serve filters as a validation set.
      selection: filters and weights of `lmsi_jax.selection`, in their order; () for all voted
        paths (LMSI). `min_confidence` is looked at before them, `cap` after them.
    """

    formats: tuple[Format, ...] = FORMATS
    keep: Literal["majority", "parsed"] = "majority"
    merge_equal: bool = True
    cap: int | None = None
    min_confidence: float = 0.0
    normalise: Literal["path", "question"] = "path"
    strong_count: int = 0
    selection: tuple[Filter, ...] = ()

    @property
    def filters(self) -> tuple[Filter, ...]:
        """All filters, in their order."""
        first = [MinConfidence(confidence=self.min_confidence)] if self.min_confidence else []
        last = [Cap(paths=self.cap)] if self.cap is not None else []
        return (*first, *self.selection, *last)

    def __post_init__(self) -> None:
        check_switches(self.formats, self.keep, self.cap, self.normalise)
        if not 0 <= self.min_confidence <= 1:
            raise LmsiError(f"Mixing.min_confidence = {self.min_confidence}; use a share, 0 to 1")
        if self.strong_count < 0:
            raise LmsiError(f"Mixing.strong_count = {self.strong_count}; use 0 or more")
        for one in self.selection:
            if STRONG_LOSSES in one.needs and not self.strong_count:
                name = type(one).__name__
                raise LmsiError(
                    f"{name}.validation = 'strong' wants given solutions: set Mixing.strong_count "
                    f"(50 to 100 are enough), or {name}.validation = 'confident'"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How accuracy is measured, before and after.

    Attributes:
      promptings: which of standard, cot, zero_shot_cot (one greedy path each) and self_consistency.
      paths: sampled paths per question for self-consistency.
      temperature: theirs, for the base model.
      temperature_after: theirs, for a fine-tuned model (the paper: 1.2).
      vote_count: test questions per task that self-consistency is measured on; None for all.
      checkpoints: for `lmsi eval` alone: checkpoint folders to compare, the first one is "before";
        () for the run's own models.
    """

    promptings: tuple[str, ...] = ("standard", "cot", "zero_shot_cot", "self_consistency")
    paths: int = 32
    temperature: float = 0.7
    temperature_after: float = 1.2
    vote_count: int | None = None
    checkpoints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = (*PROMPTINGS, "self_consistency")
        for name in self.promptings:
            if name not in known:
                raise LmsiError(
                    f"Evaluation.promptings has {name!r}; choose from {', '.join(known)}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How the embedded base model is made from scratch (`lmsi pretrain`).

    Attributes:
      training: steps and batch shape.
      shares: how often each task's documents are drawn, as (task, share) pairs.
      hard: share of hard questions.
      most_questions: documents hold 1 to this many questions.
      question_weight: loss weight of question tokens; answers weigh 1.
      vocab_documents: documents that the tokenizer is trained on.
      seed: fixes weights and documents.
    """

    training: Training
    shares: tuple[tuple[str, float], ...]
    hard: float = 0.35
    most_questions: int = 5
    question_weight: float = 0.1
    vocab_documents: int = 20_000
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Whose selected paths a student learns (`lmsi distill`); the student is the run's model.

    Attributes:
      teacher_dir: output_dir of the teacher's run.
      round: the round whose examples are learnt; 0: the last one that has some. Where
        `Loss.distillation` wants a model, it is the one that the round ended with.
    """

    teacher_dir: str
    round: int = 0

    def __post_init__(self) -> None:
        if self.round < 0:
            raise LmsiError(f"Distillation.round = {self.round}; use 1 or more, or 0 for the last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the loop; every attribute is a gin parameter `Run.NAME`.

    Attributes:
      output_dir: where everything is written; local or gs://.
      seed: fixes sampling noise and the order of training rows.
      rounds: rounds of self-improvement.
      by_round: (parameter, values) pairs, such as ('Mixing.min_confidence', (0.0, 0.5)): round r
        has the r-th value in place of the parameter's own, the last one holds on
        (`lmsi_jax.by_round.CHANGING` lists which may change).
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
      questions, generation, sampling, voting, mixing, training, evaluation, watch: one
        stage, or what looks at one, each.
      pretraining: only for `lmsi pretrain`.
      distillation: only for `lmsi distill`.
    """

    output_dir: str
    model: ModelConfig
    questions: Questions | None = None
    generation: Generation = Generation()
    sampling: Sampling = Sampling()
    voting: Voting = Voting()
    mixing: Mixing = Mixing()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    watch: Watch = Watch()
    pretraining: Pretraining | None = None
    distillation: Distillation | None = None
    name: str = "lmsi"
    seed: int = 0
    rounds: int = 1
    by_round: Schedule = ()
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
        if self.generation.prompts and self.sampling.early_stop is not None:
            raise LmsiError(
                "Sampling.early_stop judges a question by paths of one prompt; with "
                "Generation.prompts set it to None"
            )
        if self.reuse and any("://" in folder for folder in (self.output_dir, *self.reuse)):
            raise LmsiError("Run.reuse copies between local folders; set it to ()")
        if self.start_from not in ("base", "last"):
            raise LmsiError(f"Run.start_from = {self.start_from!r}; use 'base' or 'last'")
        self._check_preference()
        self._check_strong()
        check_schedule(self)

    def in_round(self, index: int) -> "Run":
        """Returns the run as a round (1, 2, ...) sees it: with the values of `by_round`."""
        return in_round(self, index)

    def _check_strong(self) -> None:
        """Where a round's examples are its own, strong ones must be there to be mixed in."""
        training = self.training
        own = self.distillation is None and self.pretraining is None and training.preference is None
        if own and training.strong_rate > 0 and not self.mixing.strong_count:
            raise LmsiError(
                f"Training.strong_rate = {training.strong_rate} mixes given solutions in: set "
                "Mixing.strong_count above 0, or Training.strong_rate to 0"
            )

    def _check_preference(self) -> None:
        preference, given = self.training.preference, self.mixing.strong_count
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
        if self.generation.prompts:
            raise LmsiError(
                "both members of a pair stand behind one prompt, and Generation.prompts spreads a "
                "question's paths over several; set Generation.prompts to 0, or bind "
                "Training.preference to None"
            )
        if preference.form == "spin" and self.generation.questions:
            raise LmsiError(
                "Preference.form = 'spin' learns from given solutions alone; set "
                "Generation.questions to 0"
            )
        if preference.form == "spin" and not given:
            raise LmsiError(
                "Preference.form = 'spin' sets given solutions against the model's own; set "
                "Mixing.strong_count to how many there are of each task"
            )
        if preference.form == "scpo" and given:
            raise LmsiError(
                "Preference.form = 'scpo' learns from votes alone; set Mixing.strong_count to 0"
            )
