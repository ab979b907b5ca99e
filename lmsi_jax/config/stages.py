"""What a person sets of questions, mixing, evaluation, pre-training and distillation.

The other stages have theirs beside what they set.

What a person sets of question and prompt generation.

What a person sets of the collapse monitor: from where on a figure is an alarm.
"""

import dataclasses
from typing import Literal, get_args

from lmsi_jax.config.optimization import Training
from lmsi_jax.errors import LmsiError, check_ranges, check_scorer
from lmsi_jax.mixing import check_switches
from lmsi_jax.prompts import PROMPT_STYLES
from lmsi_jax.records import FORMATS, Format
from lmsi_jax.selection.filters import Cap, MinConfidence
from lmsi_jax.selection.rows import HUMAN_LOSSES, Filter


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
      contamination: what to do about training questions and exemplars that also stand among the
        run's test questions (`lmsi_jax.tasks.overlap`): "refuse", "drop" such training questions,
        or "allow" them.
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
    contamination: Literal["refuse", "drop", "allow"] = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        ways = ("refuse", "drop", "allow")
        ranges = {
            "level": (self.level in ("easy", "hard"), "'easy' or 'hard'"),
            "train_count": (self.train_count >= 1, "1 or more"),
            "test_count": (self.test_count >= 1, "1 or more"),
            "contamination": (self.contamination in ways, "'refuse', 'drop' or 'allow'"),
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
      human_examples: labelled worked questions per train task to mix in (0: none, the paper). Where
        `Training.human_rate` is 0 they only serve filters as a validation set.
      selection: filters and weights of `lmsi_jax.selection`, in their order; () for all voted
        paths (LMSI). `min_confidence` is looked at before them, `cap` after them.
    """

    formats: tuple[Format, ...] = FORMATS
    keep: Literal["majority", "parsed"] = "majority"
    merge_equal: bool = True
    cap: int | None = None
    min_confidence: float = 0.0
    normalise: Literal["path", "question"] = "path"
    human_examples: int = 0
    selection: tuple[Filter, ...] = ()

    @property
    def filters(self) -> tuple[Filter, ...]:
        """All filters, in their order."""
        first = [MinConfidence(confidence=self.min_confidence)] if self.min_confidence else []
        last = [Cap(num_samples=self.cap)] if self.cap is not None else []
        return (*first, *self.selection, *last)

    def __post_init__(self) -> None:
        check_switches(self.formats, self.keep, self.cap, self.normalise)
        ranges = {
            "min_confidence": (0 <= self.min_confidence <= 1, "a share, 0 to 1"),
            "human_examples": (self.human_examples >= 0, "0 or more"),
        }
        check_ranges(self, ranges)
        for one in self.selection:
            if HUMAN_LOSSES in one.needs and not self.human_examples:
                name = type(one).__name__
                raise LmsiError(
                    f"{name}.validation = 'human' wants given solutions: set Mixing.human_examples "
                    f"(50 to 100 are enough), or {name}.validation = 'confident'"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How accuracy is measured, before and after.

    Attributes:
      prompt_styles: which of standard, cot, zero_shot_cot (one greedy path each) and
        self_consistency.
      num_samples: sampled paths per question for self-consistency.
      temperature: theirs, for the base model.
      temperature_after: theirs, for a fine-tuned model (the paper: 1.2).
      vote_count: test questions per task that self-consistency is measured on; None for all.
      checkpoints: for `lmsi eval` alone: checkpoint folders to compare, the first one is "before";
        () for the run's own models.
    """

    prompt_styles: tuple[str, ...] = ("standard", "cot", "zero_shot_cot", "self_consistency")
    num_samples: int = 32
    temperature: float = 0.7
    temperature_after: float = 1.2
    vote_count: int | None = None
    checkpoints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = self.vote_count
        ranges = {
            "num_samples": (self.num_samples >= 1, "1 or more"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "temperature_after": (self.temperature_after >= 0, "0 (greedy) or more"),
            "vote_count": (count is None or count >= 1, "1 or more, or None for all"),
        }
        check_ranges(self, ranges)
        known = (*PROMPT_STYLES, "self_consistency")
        for name in self.prompt_styles:
            if name not in known:
                raise LmsiError(
                    f"Evaluation.prompt_styles has {name!r}; choose from {', '.join(known)}"
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What the model makes itself before each round's sampling (LMSI, section 3.3).

    Attributes:
      questions: most new questions of each train task; 0 for none.
      use: whether they are sampled "beside" the real ones or "instead" of them.
      min_confidence: new questions with a less sure vote give no examples.
      shown: real questions that a prompt for new ones shows.
      opening: whether such a prompt ends in the word that begins a question ("Q:", "Premise:"), for
        models that would rather answer than go on with a list (the paper: no).
      continuations: new questions that are sampled behind each such prompt.
      tries: sampled questions for each one that is wanted: most repeat others or are malformed.
      temperature: theirs.
      max_new_tokens: a new question is cut, and dropped, after this many tokens.
      prompts: few-shot prompts of each task, made of the model's own zero-shot answers, over which
        a question's paths are spread; 2 or more (the paper: 20), or 0 for the task's exemplars.
      shots: exemplars in each of them.
    """

    questions: int = 0
    use: Literal["beside", "instead"] = "beside"
    min_confidence: float = 0.5
    shown: int = 5
    opening: bool = False
    continuations: int = 8
    tries: float = 3.0
    temperature: float = 0.7
    max_new_tokens: int = 128
    prompts: int = 0
    shots: int = 4

    def __post_init__(self) -> None:
        from_one = ("shown", "continuations", "tries", "shots", "max_new_tokens")
        ranges = {
            "questions": (self.questions >= 0, "0 (none) or more"),
            "use": (self.use in ("beside", "instead"), "'beside' or 'instead'"),
            "min_confidence": (0 <= self.min_confidence <= 1, "a share, 0 to 1"),
            **{name: (getattr(self, name) >= 1, "1 or more") for name in from_one},
            "temperature": (self.temperature > 0, "a number above 0, so that questions differ"),
            "prompts": (self.prompts >= 0, "2 or more, or 0 for the task's own exemplars"),
        }
        check_ranges(self, ranges)
        if self.prompts == 1:
            raise LmsiError(
                "Augmentation.prompts = 1: a question is never asked with a prompt that shows it, "
                "so "
                "2 or more are needed; or 0 for the task's own exemplars"
            )


NAMES = (
    *("saturated", "no_diversity", "empty"),
    *("overconfident", "calibration_gap", "pass_at_m_drop", "entropy", "distinct"),
    *("shorter", "longer", "unparsed", "easy", "kept"),
)
"""All alarms. The first line looks at a round alone; the first three of the second need gold."""

_SINGLE = (
    *("no_diversity", "empty", "confidence_rise", "accuracy_fall"),
    *("calibration_gap", "pass_at_m_drop", "unparsed", "easy"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollapseMonitor:
    """From where on a figure is an alarm. Each is a switch, and 0 turns it off.

    Pairs from `entropy` on are against the first comparable round and against the round before.

    Attributes:
      saturated: the vote's mean share is at least the first, while fewer different paths than the
        second agree with a question's vote.
      no_diversity: the answers' entropy is below this.
      empty: more than this share of the questions has no parsed answer.
      confidence_rise: the vote's share rose by this ...
      accuracy_fall: ... while its accuracy fell by this, and by two of its standard errors.
      calibration_gap: the vote's mean share is above its accuracy by this.
      pass_at_m_drop: pass@m fell by this, and by two of its standard errors.
      entropy: the answers' entropy is below these shares of what it was.
      distinct: likewise distinct-2.
      shorter: likewise the paths' length.
      longer: the paths' length is above these multiples of what it was.
      unparsed: the share of unparsed paths rose by this.
      easy: easy questions have more than this share of the training weight, and more than before.
      kept: the share of questions that give training rows is below these shares of what it was.
      least_questions: fewer questions say nothing but "empty".
      stop: names of alarms after which no further round follows; () only warns. "overconfident",
        "calibration_gap" and "pass_at_m_drop" look at gold answers of the test questions, so a run
        that they end has seen labels. The default ends runs whose further rounds would feed on
        themselves.
    """

    saturated: tuple[float, float] = (0.95, 2.0)
    no_diversity: float = 0.006
    empty: float = 0.9
    confidence_rise: float = 0.05
    accuracy_fall: float = 0.03
    calibration_gap: float = 0.25
    pass_at_m_drop: float = 0.05
    entropy: tuple[float, float] = (0.25, 0.5)
    distinct: tuple[float, float] = (0.4, 0.6)
    shorter: tuple[float, float] = (0.5, 0.7)
    longer: tuple[float, float] = (2.0, 1.5)
    unparsed: float = 0.1
    easy: float = 0.8
    kept: tuple[float, float] = (0.5, 0.7)
    least_questions: int = 30
    stop: tuple[str, ...] = ("saturated", "no_diversity", "empty")

    def __post_init__(self) -> None:
        for name in self.stop:
            if name not in NAMES:
                raise LmsiError(
                    f"CollapseMonitor.stop has {name!r}; choose from {', '.join(NAMES)}"
                )
        for name in _SINGLE:
            if getattr(self, name) < 0:
                raise LmsiError(f"CollapseMonitor.{name} = {getattr(self, name)}; 0 (off) or more")
        if len(self.saturated) != 2 or min(self.saturated) < 0:
            raise LmsiError(
                f"CollapseMonitor.saturated = {self.saturated}; two numbers of 0 or more: a "
                "share, and different paths"
            )
        for name in ("entropy", "distinct", "shorter", "longer", "kept"):
            pair = getattr(self, name)
            if len(pair) != 2 or min(pair) < 0:
                raise LmsiError(
                    f"CollapseMonitor.{name} = {pair}; two numbers of 0 or more: against the "
                    "first round, "
                    "and against the round before"
                )


Weights = Literal["none", "logprob", "normalised_logprob", "softmax", "scorer"]
Ties = Literal["logprob", "scorer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voting:
    """How much a path's vote counts. Log-probabilities are the model's own, at temperature 1.

    Attributes:
      weights: "none": each path counts 1 (LMSI). "logprob": its probability, relative to that of
        the question's likeliest path. "normalised_logprob": its probability per token, the
        geometric mean (both: Wang et al. 2022, table 1, weighted sums). "softmax": the softmax over
        the question's paths of the probability per token, over `temperature` (CISC, Taubenfeld et
        al. 2025, section 3, response probability). "scorer": what `scorer` says, 0 or more.
      temperature: of the softmax; near 0 the surest path decides, at infinity each path counts
        the same.
      conclusions: whether a path that marks no answer votes for what it concludes with
        (`answers.conclusions`). A strong model's conclusions are as good as its marked answers, a
        weak model's are worse: docs/answers.md has figures. The paper reads marked answers alone.
      ties: what a tie goes by: the summed "logprob" of the answer's paths, or the "scorer"'s best
        score of one of them, then the log-probability.
      scorer: "module:function" of a `Question` and a `Sample` that gives a number, the higher the
        better; None without one.
    """

    weights: Weights = "none"
    temperature: float = 1.0
    conclusions: bool = True
    ties: Ties = "logprob"
    scorer: str | None = None

    @property
    def uses_scorer(self) -> bool:
        """Whether the scorer is asked."""
        return "scorer" in (self.weights, self.ties)

    def __post_init__(self) -> None:
        if self.weights not in get_args(Weights):
            names = ", ".join(get_args(Weights))
            raise LmsiError(f"Voting.weights = {self.weights!r}; choose from {names}")
        if self.ties not in get_args(Ties):
            raise LmsiError(f"Voting.ties = {self.ties!r}; use 'logprob' or 'scorer'")
        if self.uses_scorer and not self.scorer:
            raise LmsiError("set Voting.scorer to 'module:function', or weigh without a scorer")
        if self.scorer is not None:
            check_scorer("Voting.scorer", self.scorer)
        if not self.temperature > 0:
            raise LmsiError(f"Voting.temperature = {self.temperature}; use a number above 0")
