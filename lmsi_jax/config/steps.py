"""Set the other steps of a round: questions, augmentation, mixing, evaluation, and so on."""

import dataclasses
import re
from typing import Annotated, Literal

from lmsi_jax.config.model_config import ModelConfig
from lmsi_jax.config.row_filters import (
    HUMAN_LOSSES,
    Cap,
    ExternalScore,
    Filter,
    MinConfidence,
    judges_all_answers,
)
from lmsi_jax.config.training_config import Training
from lmsi_jax.config.value_checks import (
    CWD_PATH,
    OBJECT,
    PATH,
    SEED,
    at_least,
    below_one,
    check_fields,
    fraction,
    refuse,
    temperatures,
    without_folder,
)
from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import PROMPT_STYLES
from lmsi_jax.records import FORMATS, Format, Kind

_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*")


def is_task_name(name: str) -> bool:
    """Returns True if a task can have this name, which is part of the names of files."""
    return _TASK_NAME.fullmatch(name) is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileTask:
    """A task whose questions are in files of your own; `Questions.tasks` lists it.

    A file is JSON Lines, JSON, CSV, TSV or Parquet, plain or .gz, local or on a bucket (gs://). A
    column is named as it is, or as a path into nested values ("question.stem").
    """

    name: str
    """Name of the task in `Questions.train`, `Questions.test` and the report: letters, digits, _"""
    kind: Kind
    """What an answer is: it decides how answers are read and compared (docs/answers.md)."""
    train: Annotated[str | tuple[str, ...], PATH] = ()
    """Files of the training questions: a path, a pattern such as "parts/*.csv", or several. Also a
    folder that the library `datasets` has saved, or "hub:NAME", "hub:NAME:CONFIG" or
    "hub:NAME:CONFIG:SPLIT". A relative path is relative to the gin file, "~" is the home folder.
    Answers are optional: nothing is trained on them."""
    test: Annotated[str | tuple[str, ...], PATH] = ()
    """Files of the test questions, which need answers; () for none."""
    test_share: Annotated[float, below_one()] = 0.0
    """Without `test`: share of the answered rows of `train` that are test questions instead. A hash
    of the question decides, so that new rows move no other."""
    question: str = "question"
    """Column of the question, or a template of columns such as "{context}\\n{question}"."""
    options: str | tuple[str, ...] = ()
    """Column of the options: a list, a dictionary such as {"text": [...], "label": [...]}, or a
    list of {"label", "text"}; or several columns, one for each option. () for none."""
    first_option: Literal[0, 1] = 0
    """Number of the first option in answers that are numbers of options."""
    answer: str = "answer"
    """Column of the right answer, or a template. For options it is a letter, a label, a number or
    the option's text; of a list the first is shown and all count as right. Rows without it are
    unlabelled."""
    solution: str = ""
    """Column of a human solution, for exemplars and `Mixing.human_examples`; "" for none."""
    exemplars: Annotated[str, PATH] = ""
    """File of exemplars, in the format of `lmsi_jax.tasks.exemplars`; "" takes the first training
    rows with solutions, or asks zero-shot if there are none."""
    shots: Annotated[int, at_least(0, unit="exemplars", note="zero-shot")] = 4
    """Largest number of exemplars in a prompt."""
    contamination_ngram: Annotated[int, at_least(0, unit="words", note="equal questions only")] = 13
    """Training questions that share this many words in a row with a test question are contaminated.
    """
    reader: Annotated[str | None, OBJECT] = None
    """Function that reads answers, as "module:function": (text, question) -> the answer, candidates
    with the best first, or None. None reads them by `kind`."""
    equality: Annotated[str | None, OBJECT] = None
    """Function that compares answers, as "module:function": (answer, answer) -> True if they are
    the same. None compares them by `kind`."""
    prompt: Annotated[str | None, OBJECT] = None
    """Function that writes prompts, as "module:function": (question, exemplars, prompt style) ->
    the text to continue, or that text in two parts, of which all questions share the first."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not is_task_name(self.name):
            refuse(self, "name", "letters, digits and _, as in 'riddles'")
        if not (self.train or self.test):
            raise LmsiError(
                f"FileTask {self.name!r} has no files: set FileTask.train, FileTask.test or both"
            )
        if self.test and self.test_share:
            raise LmsiError(
                f"FileTask {self.name!r} has test files; set FileTask.test_share to 0, or "
                "FileTask.test to () to take test questions from FileTask.train"
            )
        if self.test_share and not self.train:
            raise LmsiError("FileTask.test_share is a share of the rows of FileTask.train; set it")

    def files(self, split: Literal["train", "test"]) -> tuple[str, ...]:
        """Returns the paths of a split's rows; with `test_share` both have the same."""
        paths = self.test if split == "test" and not self.test_share else self.train
        return (paths,) if isinstance(paths, str) else tuple(paths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
    """Questions of a run: the tasks, how many of each, and their files."""

    train: tuple[str, ...]
    """Tasks whose unlabelled train questions are sampled."""
    test: tuple[str, ...] = ()
    """Tasks whose labelled test questions are evaluated; () measures no accuracy."""
    tasks: Annotated[tuple[FileTask | str, ...], OBJECT] = ()
    """Tasks of your own, which `train` and `test` name beside the packaged ones: @FileTask(), or
    "module:object" for a task in Python (docs/tasks.md)."""
    level: Literal["easy", "hard"] = "hard"
    """Difficulty of the generated tasks."""
    train_count: Annotated[int, at_least(1, unit="questions")] = 1000
    """Train questions per task; of tasks of your own, the most."""
    test_count: Annotated[int, at_least(1, unit="questions")] = 200
    """Test questions per task; of tasks of your own, the most."""
    data_dir: str | None = None
    """Folder of local data files, for tasks that read files; it may begin with "~". None reads them
    through TFDS, which downloads what is missing."""
    data_dirs: tuple[tuple[str, str], ...] = ()
    """(task, folder) pairs, for tasks whose files are elsewhere."""
    exemplars: tuple[tuple[str, str], ...] = ()
    """(task, file) pairs that replace the packaged few-shot exemplars; `lmsi_jax.tasks.exemplars`
    describes the format."""
    contamination: Literal["refuse", "drop", "allow"] = "refuse"
    """Treatment of training questions and exemplars that also appear in the run's test questions,
    and of training questions whose own prompt shows them as an exemplar: "refuse" the run, "drop"
    such training questions, or "allow" them."""
    seed: Annotated[int, SEED] = 0
    """Fixes which questions are drawn."""

    def __post_init__(self) -> None:
        check_fields(self)

    def folder(self, task: str) -> str | None:
        """Returns the folder of a task's files, None if it has none."""
        return dict(self.data_dirs).get(task, self.data_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Questions and prompts that the model writes before each round's sampling (LMSI, 3.3)."""

    questions: Annotated[int, at_least(0, unit="questions", note="none")] = 0
    """Largest number of new questions per train task."""
    use: Literal["beside", "instead"] = "beside"
    """Sample the new questions "beside" the real ones or "instead" of them."""
    min_confidence: Annotated[float, fraction()] = 0.5
    """New questions with a less confident vote give no examples."""
    shown: Annotated[int, at_least(1, unit="questions")] = 5
    """Real questions in a prompt for new ones."""
    opening: bool = False
    """End such a prompt with the word that opens a question ("Q:", "Premise:"), for models that
    would rather answer than continue a list. The paper does not."""
    continuations: Annotated[int, at_least(1, unit="questions")] = 8
    """New questions sampled from each such prompt."""
    tries: Annotated[float, at_least(1)] = 3.0
    """Questions sampled for each one that is needed: most repeat others or are malformed."""
    temperature: Annotated[float, temperatures(note="so that questions differ")] = 0.7
    """Sampling temperature of the new questions."""
    max_new_tokens: Annotated[int, at_least(1, unit="tokens")] = 128
    """A new question is cut here, and dropped."""
    paraphrase: Literal["none", "harmonic", "cross"] = "none"
    """Label of a question from two phrasings: the model paraphrases each train question, and both
    are sampled and voted on. "harmonic" takes the answer with the largest harmonic mean of its
    shares (Self-Harmony), "cross" the paraphrase's vote (Co-rewarding); the samples of the question
    as it was asked are learnt. Without a usable paraphrase its own vote stays."""
    paraphrase_tries: Annotated[int, at_least(1, unit="texts")] = 4
    """Paraphrases sampled for each question; the first usable one is taken."""
    prompts: Annotated[int, at_least(0, unit="prompts", note="the task's own exemplars")] = 0
    """Few-shot prompts of each task, built from the model's own zero-shot answers; a question's
    samples are spread over them. 2 or more; the paper uses 20."""
    shots: Annotated[int, at_least(1, unit="exemplars")] = 4
    """Exemplars in each of these prompts."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.prompts == 1:
            raise LmsiError(
                "Augmentation.prompts = 1: a question is never asked with a prompt that shows it, "
                "so 2 or more are needed; or 0 for the task's own exemplars"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """Conversion of voted samples to training examples (LMSI, section 3.2)."""

    formats: tuple[Format, ...] = FORMATS
    """Formats to write each sample in; the paper mixes all four."""
    keep: Literal["majority", "parsed", "all"] = "majority"
    """Samples to learn, or for filters to choose from: those that agree with the "majority", all
    "parsed" ones, or "all" (SSD, 2604.01193: no vote at all) but those that the token limit cut
    before an answer. Samples without an answer make no direct examples."""
    end: Literal["blank_line", "end_token"] = "blank_line"
    """End of each target, unless `Run.chat` is set: the "blank_line" between the items of a
    document, or the model's "end_token", so that an exported model ends by itself elsewhere."""
    merge_equal: bool = True
    """Merge equal examples into one with the sum of their weights."""
    cap: Annotated[int | None, at_least(1, unit="samples")] = None
    """Largest number of distinct samples per question; None keeps all."""
    min_confidence: Annotated[float, fraction()] = 0.0
    """Questions with a less confident vote give no examples."""
    normalise: Literal["sample", "question"] = "sample"
    """Weigh each kept "sample" equally, or each "question"."""
    human_examples: Annotated[int, at_least(0, unit="questions", note="none, as in LMSI")] = 0
    """Training questions with human solutions to mix in, per train task. If
    `Training.human_rate` is 0 they serve filters as a validation set only."""
    selection: tuple[Filter, ...] = ()
    """Filters and weights of the voted samples, applied in order, such as (@DistributionShift(),);
    () keeps all of them (LMSI). `min_confidence` is applied before them, `cap` after them."""

    def __post_init__(self) -> None:
        check_fields(self)
        for form in self.formats:
            if form not in FORMATS:
                raise LmsiError(f"Mixing.formats has {form!r}; choose from {', '.join(FORMATS)}")
        for rule in self.selection:
            if self.keep == "majority" and judges_all_answers(rule):
                raise LmsiError(
                    f"{type(rule).__name__} judges all answers to a question; set Mixing.keep = "
                    "'parsed'"
                )
            if HUMAN_LOSSES in rule.needs and not self.human_examples:
                name = type(rule).__name__
                raise LmsiError(
                    f"{name}.validation = 'human' needs human solutions: set Mixing.human_examples "
                    f"(50 to 100 are enough), or {name}.validation = 'confident'"
                )
        asked = {rule.scorer for rule in self.selection if isinstance(rule, ExternalScore)}
        if len({without_folder(name) for name in asked}) < len(asked):
            raise LmsiError(
                f"the scorers {', '.join(sorted(asked))} have one name in different folders, and "
                "their scores would be taken for each other's; rename a module"
            )

    @property
    def filters(self) -> tuple[Filter, ...]:
        """All filters in the order of application, with those of `min_confidence` and `cap`."""
        first = [MinConfidence(confidence=self.min_confidence)] if self.min_confidence else []
        last = [Cap(num_samples=self.cap)] if self.cap is not None else []
        return (*first, *self.selection, *last)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measurement of accuracy, before and after training."""

    prompt_styles: tuple[str, ...] = ("standard", "cot", "zero_shot_cot", "self_consistency")
    """Prompt styles to measure: "standard" (direct answer), "cot" and "zero_shot_cot", one greedy
    sample each, and "self_consistency", the vote of `num_samples` samples."""
    num_samples: Annotated[int, at_least(1, unit="samples")] = 32
    """Samples per question for self-consistency."""
    temperature: Annotated[float, temperatures(greedy=True)] = 0.7
    """Sampling temperature of these samples, for the base model."""
    temperature_after: Annotated[float, temperatures(greedy=True)] = 1.2
    """The same for a fine-tuned model; the paper uses 1.2."""
    vote_count: Annotated[int | None, at_least(1, unit="questions")] = None
    """Test questions per task for self-consistency; None for all."""
    probe_shares: tuple[float, ...] = (0.6,)
    """For `lmsi probe` alone: shares of a test question's words that the model is shown and
    continues, such as (0.8, 0.6, 0.4)."""
    checkpoints: Annotated[tuple[str, ...], CWD_PATH] = ()
    """For `lmsi eval` alone: checkpoint folders to compare, the first one is "before"; () evaluates
    the run's own models."""

    def __post_init__(self) -> None:
        check_fields(self)
        shares = self.probe_shares
        if not shares or len(set(shares)) < len(shares) or not all(0 < one < 1 for one in shares):
            refuse(self, "probe_shares", "different shares between 0 and 1, as in (0.6,)")
        known = (*PROMPT_STYLES, "self_consistency")
        for name in self.prompt_styles:
            if name not in known:
                raise LmsiError(
                    f"Evaluation.prompt_styles has {name!r}; choose from {', '.join(known)}"
                )


ALARMS = (
    *("saturated", "no_diversity", "empty"),
    *("overconfident", "calibration_gap", "pass_at_m_drop", "entropy", "distinct"),
    *("shorter", "longer", "unparsed", "easy", "kept"),
)
"""All alarms. The first three look at one round alone; the next three need gold answers."""

_SHARES = at_least(0, note="off")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollapseMonitor:
    """Alarm thresholds of the collapse monitor, which looks at each round's samples and votes.

    0 turns an alarm off. Pairs from `entropy` on are thresholds against the first comparable round
    and against the round before.
    """

    saturated: tuple[float, float] = (0.95, 2.0)
    """The vote's mean confidence is at least the first number, and fewer distinct samples than the
    second agree with a question's vote."""
    no_diversity: Annotated[float, _SHARES] = 0.006
    """The entropy of the answers is below this."""
    empty: Annotated[float, _SHARES] = 0.9
    """More than this share of the questions has no parsed answer."""
    confidence_rise: Annotated[float, _SHARES] = 0.05
    """Alarm "overconfident": the vote's mean confidence rose by this ..."""
    accuracy_fall: Annotated[float, _SHARES] = 0.03
    """... while its accuracy fell by this, and by two of its standard errors."""
    calibration_gap: Annotated[float, _SHARES] = 0.25
    """The vote's mean confidence exceeds its accuracy by this."""
    pass_at_m_drop: Annotated[float, _SHARES] = 0.05
    """pass@m fell by this, and by two of its standard errors."""
    entropy: tuple[float, float] = (0.25, 0.5)
    """The entropy of the answers is below these shares of its earlier values."""
    distinct: tuple[float, float] = (0.4, 0.6)
    """Distinct-2 is below these shares of its earlier values."""
    shorter: tuple[float, float] = (0.5, 0.7)
    """The samples' mean length is below these shares of its earlier values."""
    longer: tuple[float, float] = (2.0, 1.5)
    """The samples' mean length is above these multiples of its earlier values."""
    unparsed: Annotated[float, _SHARES] = 0.1
    """The share of samples without a parsed answer rose by this."""
    easy: Annotated[float, _SHARES] = 0.8
    """Easy questions have more than this share of the training weight, and more than before."""
    kept: tuple[float, float] = (0.5, 0.7)
    """The share of questions that give training examples is below these shares of its earlier
    values."""
    least_questions: Annotated[int, at_least(0, unit="questions")] = 30
    """With fewer questions only "empty" can be raised."""
    stop: tuple[str, ...] = ("saturated", "no_diversity", "empty")
    """Alarms that end the run after the round; () only warns. "overconfident", "calibration_gap"
    and "pass_at_m_drop" use gold answers of the test questions, so a run that they end has seen
    labels. The default ends runs whose further rounds would learn from their own mistakes alone."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.stop:
            if name not in ALARMS:
                raise LmsiError(
                    f"CollapseMonitor.stop has {name!r}; choose from {', '.join(ALARMS)}"
                )
        pairs = {"saturated": "a confidence and a number of distinct samples"}
        against = "against the first round and against the round before"
        pairs |= dict.fromkeys(("entropy", "distinct", "shorter", "longer", "kept"), against)
        for name, meaning in pairs.items():
            pair = getattr(self, name)
            if len(pair) != 2 or min(pair) < 0:
                refuse(self, name, f"two numbers of 0 or more, {meaning}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Recipe of the embedded base model, trained from scratch by `lmsi pretrain`."""

    training: Training
    """Steps, batch shape and optimizer."""
    shares: tuple[tuple[str, float], ...]
    """(task, share) pairs: how often each task's documents are drawn."""
    hard: Annotated[float, fraction()] = 0.35
    """Share of hard questions."""
    most_questions: Annotated[int, at_least(1, unit="questions")] = 5
    """Largest number of questions in a document; the smallest is 1."""
    question_weight: Annotated[float, at_least(0)] = 0.1
    """Loss weight of question tokens; answer tokens weigh 1."""
    vocab_documents: Annotated[int, at_least(1, unit="documents")] = 20_000
    """Documents that the tokenizer is trained on."""
    teacher: Annotated[str | None, CWD_PATH] = None
    """Checkpoint folder of a finished model that teaches this one, or "embedded" (SALT): set
    Loss.distillation = 'model'. The tokenizer is then `Run.tokenizer`, which both have."""
    teacher_model: ModelConfig | None = None
    """Shape of the teacher."""
    seed: Annotated[int, SEED] = 0
    """Fixes the initial weights and the documents."""

    def __post_init__(self) -> None:
        check_fields(self)
        shares = [share for _, share in self.shares]
        if not (all(share >= 0 for share in shares) and sum(shares) > 0):
            refuse(self, "shares", "(task, share) pairs of 0 or more, one of them above 0")
        form = self.training.loss.distillation
        parts = (self.teacher is not None, self.teacher_model is not None, form == "model")
        if form == "top_k" or any(parts) and not all(parts):
            raise LmsiError(
                "pre-training with a teacher needs all three: Pretraining.teacher, its shape in "
                "Pretraining.teacher_model, and Loss.distillation = 'model'; set them, or none"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Source of a student's training examples (`lmsi distill`); the student is the run's model."""

    teacher_dir: Annotated[str, CWD_PATH]
    """`Run.output_dir` of the teacher's run."""
    round: Annotated[int, at_least(0, note="the last round with examples")] = 0
    """Round whose examples are learnt. If `Loss.distillation` needs a model, it is the one that
    this round ended with."""

    def __post_init__(self) -> None:
        check_fields(self)
