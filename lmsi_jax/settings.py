"""What a person sets of questions, mixing, evaluation, pre-training and distillation.

The other stages have theirs beside what they set.
"""

import dataclasses
from typing import Literal

from lmsi_jax.errors import LmsiError, check_ranges
from lmsi_jax.mixing import check_switches
from lmsi_jax.prompts import PROMPTINGS
from lmsi_jax.records import FORMATS, Format
from lmsi_jax.selection.confidence import Cap, MinConfidence
from lmsi_jax.selection.rows import STRONG_LOSSES, Filter
from lmsi_jax.training.settings import Training


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
        ways = ("refuse", "drop", "allow")
        ranges = {
            "level": (self.level in ("easy", "hard"), "'easy' or 'hard'"),
            "train_count": (self.train_count >= 1, "1 or more"),
            "test_count": (self.test_count >= 1, "1 or more"),
            "overlap": (self.overlap in ways, "'refuse', 'drop' or 'allow'"),
        }
        check_ranges(self, ranges)

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
        ranges = {
            "min_confidence": (0 <= self.min_confidence <= 1, "a share, 0 to 1"),
            "strong_count": (self.strong_count >= 0, "0 or more"),
        }
        check_ranges(self, ranges)
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
        count = self.vote_count
        ranges = {
            "paths": (self.paths >= 1, "1 or more"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "temperature_after": (self.temperature_after >= 0, "0 (greedy) or more"),
            "vote_count": (count is None or count >= 1, "1 or more, or None for all"),
        }
        check_ranges(self, ranges)
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

    def __post_init__(self) -> None:
        shares = [share for _, share in self.shares]
        drawn = all(share >= 0 for share in shares) and sum(shares) > 0
        ranges = {
            "shares": (drawn, "(task, share) pairs of 0 or more, one of them above 0"),
            "hard": (0 <= self.hard <= 1, "a share, 0 to 1"),
            "most_questions": (self.most_questions >= 1, "1 or more"),
            "question_weight": (self.question_weight >= 0, "0 or more"),
            "vocab_documents": (self.vocab_documents >= 1, "1 or more"),
            "seed": (0 <= self.seed < 2**31, "a number from 0 to 2147483647"),
        }
        check_ranges(self, ranges)


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
