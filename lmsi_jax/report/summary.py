"""The report's schema: dataclasses that a run writes to report.json, and the way back.

Accuracies are not stored, only 0 or 1 for each question: intervals and paired tests need them.
Measurements of a stage keep their dataclass and gain the round, task or source they belong to.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn, Self, TypeVar, get_args, get_origin

from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.accuracy import Replay, TaskScore
from lmsi_jax.evaluation.changes import Positions
from lmsi_jax.evaluation.collapse import CollapseMetrics
from lmsi_jax.selection.rows import FilterCounts

_Class = TypeVar("_Class")

PromptStyle = Literal["standard", "cot", "zero_shot_cot", "self_consistency"]
Domain = Literal["in", "out"]
"""In: a task that the run trains on."""

PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)
DOMAINS: tuple[Domain, ...] = get_args(Domain)
REMEDY = "run `lmsi report` again with the version of lmsi_jax that made the run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The base model."""

    name: str
    parameters: int
    source: str
    """"embedded", or the folder it was loaded from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A data set or a generated family of questions."""

    name: str
    kind: str
    """The kind of its answers, one of `records.KINDS`."""
    domain: Domain
    level: str
    """"" if the task has a single level."""
    test_questions: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(TaskScore):
    """One model's score on one task; at most one for each (round, task, prompt style)."""

    round: int
    """0 for the base model, r for the model after round r."""
    prompt_style: PromptStyle

    def __post_init__(self) -> None:
        """Checks the outcomes.

        Raises:
          ValueError: an outcome other than 0 and 1, confidences that do not match them, or a
            negative round.
        """
        if self.round < 0:
            raise ValueError(f"round {self.round}, expected 0 or more")
        _check_outcomes("correct", self.correct, len(self.correct))
        if len(self.confidence) not in (0, len(self.correct)):
            raise ValueError(
                f"{len(self.confidence)} confidences for {len(self.correct)} questions"
            )
        if bad := [share for share in self.confidence if not 0 <= share <= 1]:
            raise ValueError(f"confidence {bad[0]}, expected a share in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskVotes:
    """The votes on one task's training questions in one round."""

    questions: int
    mean_confidence: float
    distinct_kept_per_question: float
    empty: int
    """Questions without any parsed answer."""
    tied: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FormatRows:
    """The training rows of one format and the sum of their weights."""

    rows: int
    weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """Training rows by origin: the model's own samples and human solutions."""

    self_generated: int
    human: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewQuestions:
    """The questions that the model wrote for one task in one round."""

    written: int
    """All of them; each counts in exactly one of the next five."""
    malformed: int
    duplicates: int
    """Equal to each other or to a real training question."""
    contaminated: int
    """Overlapping a test question of the run."""
    surplus: int
    new: int
    mean_confidence: float
    """Of the votes on the new ones; 0 if there are none."""
    confident: int
    """New ones whose vote is confident enough to give training rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewPrompts:
    """The few-shot prompts made of the model's zero-shot answers for one task in one round."""

    asked: int
    usable: int
    """Answers that can serve as exemplars."""
    prompts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskFilterCounts(FilterCounts):
    """The effect of one filter of `Mixing.selection`, or of the vote, on a task's rows."""

    task: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One round of sampling, voting and fine-tuning; counts are over all of its tasks."""

    round: int
    """1, 2, ..."""
    start_from: Literal["base", "last"]
    """The model that was fine-tuned: the base, or the model after the previous round."""
    seconds: dict[str, float]
    """Wall time of each stage, in order."""
    tokens_per_second: dict[str, float]
    """Of the stages that count tokens."""
    questions: int
    samples: int
    """Samples over all questions."""
    parsed: int
    """Samples with a parsed answer."""
    unfinished: int
    """Samples cut by the token limit."""
    empty_votes: int
    """Questions without any parsed answer."""
    tied_votes: int
    kept: int
    """Samples that agree with their question's vote."""
    distinct_kept: int
    """The same, with equal texts on one question counted once."""
    mean_confidence: float
    mean_entropy: float
    """Of the parsed answers to a question, in nats."""
    votes_by_task: dict[str, TaskVotes]
    generated: dict[str, NewQuestions]
    """By task; {} if all questions are real."""
    prompts: dict[str, NewPrompts]
    """By task; {} if the tasks' own exemplars were used."""
    examples: dict[str, FormatRows]
    """Training rows by format."""
    sources: Sources
    funnel: tuple[TaskFilterCounts, ...] = ()
    """For each task the vote, then the filters in order."""
    train: tuple[dict[str, float], ...]
    """Logged metrics, each with its step: loss, learning_rate, grad_norm, loss/FORMAT, ..."""
    values: dict[str, str] = dataclasses.field(default_factory=dict)
    """The parameters that `Run.schedule` set for this round."""
    alarms: tuple[str, ...]
    """Warnings of the stop rules and the collapse monitor."""
    gold: bool = False
    """True if gold labels chose its training rows (`GoldLabels`): an upper bound."""

    def __post_init__(self) -> None:
        """Checks the round's number and the training metrics.

        Raises:
          ValueError: a round before the first one, or metrics without a step.
        """
        if self.round < 1:
            raise ValueError(f"round {self.round}, expected 1 or more")
        if bad := [i for i, metrics in enumerate(self.train) if "step" not in metrics]:
            raise ValueError(f"train[{bad[0]}] has no step")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollapseRow(CollapseMetrics):
    """The collapse metrics of one round; at most one row for each (source, round)."""

    round: int
    source: Literal["train", "test"]
    """Train: the votes that the round learned from. Test: the model after the round, 0 the base."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionRow(Positions):
    """The places that samples on one task's questions named; at most one for each (source, round,
    task)."""

    source: Literal["train", "test"]
    """Train: samples of the model before the round. Test: of the model after it, 0 the base."""
    round: int
    task: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbedTask:
    """The contamination probe of one task, as `pipeline.probe.ProbeRow` describes it."""

    task: str
    share: float
    questions: int
    exact: tuple[float, ...]
    rouge: tuple[float, ...]
    right: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveConsistencySet(Replay):
    """Adaptive consistency on one task's questions; one set for each (source, round, task)."""

    source: Literal["test", "train"]
    round: int
    """Test: the round of the model, 0 for the base. Train: the round that sampled them."""
    task: str
    samples: int
    """Samples of a question without early stopping, m."""

    def __post_init__(self) -> None:
        """Checks the outcomes.

        Raises:
          ValueError: lists of different lengths, or values that cannot be.
        """
        n = len(self.taken)
        if bad := [count for count in self.taken if not 0 <= count <= self.samples]:
            raise ValueError(f"taken {bad[0]} of {self.samples} samples")
        for name in ("same", "correct", "correct_stopped"):
            values = getattr(self, name)
            _check_outcomes(name, values, n if values else 0)
        if len(self.correct) != len(self.correct_stopped):
            raise ValueError("correct and correct_stopped differ in length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveConsistency:
    """The effect of adaptive consistency on the number of samples and on the votes."""

    threshold: float
    """Required probability that the leading answer stays ahead."""
    every: int
    """Samples between two checks of the rule."""
    on: bool
    """True if train questions were sampled with the rule."""
    sets: tuple[AdaptiveConsistencySet, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownSample:
    """A text that the model wrote; `count` equal ones are shown once."""

    text: str
    key: str | None
    """Its canonical answer; None if unparsed."""
    kept: bool
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownQuestion:
    """A test question to show, with its samples."""

    task: str
    question: str
    gold: str | None
    winner: str | None
    """The key with the most votes; None if nothing was parsed."""
    confidence: float
    tied: bool
    total: int
    """Number of samples; if many differ, only some of them are shown."""
    samples: tuple[ShownSample, ...]
    right: bool | None = None
    """If the winner is a right answer; None without a label."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that the report shows."""

    name: str
    seed: int
    created: str
    """ISO 8601."""
    versions: dict[str, str]
    """By package."""
    command: str
    config: str
    """The operative gin configuration."""
    model: Model
    tasks: tuple[Task, ...]
    evals: tuple[Evaluation, ...]
    rounds: tuple[Round, ...]
    collapse: tuple[CollapseRow, ...] = ()
    positions: tuple[PositionRow, ...] = ()
    probe: tuple[ProbedTask, ...] = ()
    adaptive_consistency: AdaptiveConsistency
    examples: tuple[ShownQuestion, ...]
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks that the parts fit together.

        Raises:
          ValueError: two entries for one thing, or an entry of an unknown task.
        """
        sets, tasks = self.adaptive_consistency.sets, [task.name for task in self.tasks]
        _check_unique("tasks", tasks)
        _check_unique("rounds", [row.round for row in self.rounds])
        _check_unique("evals", [(row.round, row.task, row.prompt_style) for row in self.evals])
        _check_unique("collapse", [(row.source, row.round) for row in self.collapse])
        _check_unique("positions", [(r.source, r.round, r.task) for r in self.positions])
        _check_unique(
            "adaptive_consistency.sets", [(row.source, row.round, row.task) for row in sets]
        )
        for name in (*(row.task for row in self.evals), *(row.task for row in sets)):
            if name not in tasks:
                raise ValueError(f"{name!r} is none of tasks ({', '.join(tasks)})")

    def to_json(self) -> dict[str, Any]:
        """Returns report.json's dictionary of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Builds the summary from what `to_json` gave, through JSON or not.

        Raises:
          LmsiError: the first place that differs from the schema, its value, and the remedy.
        """
        return decode(cls, value, "summary")


def decode(kind: type[_Class], value: Any, place: str) -> _Class:
    """Builds a dataclass of this module from plain JSON, checking every type on the way.

    Args:
      kind: the dataclass.
      value: a dictionary with its fields.
      place: the name of the value in messages.

    Raises:
      LmsiError: the first place that differs, its value, and the remedy.
    """
    decoded: _Class = _decode(kind, value, place)
    return decoded


def _decode(hint: Any, value: Any, place: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _decode_fields(hint, value, place)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _decode(arguments[0], value, place)
    if origin is Literal:
        if value in arguments:
            return value
        _fail(place, " or ".join(map(repr, arguments)), value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            _fail(place, "a list", value)
        return tuple(_decode(arguments[0], v, f"{place}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            _fail(place, "a dictionary", value)
        return {k: _decode(arguments[1], v, f"{place}[{k!r}]") for k, v in value.items()}
    # bool is a subclass of int, but True is no number here; a float without a fraction may be int.
    if type(value) is hint or (hint is float and type(value) is int):
        return value
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    _fail(place, names[hint], value)


def _decode_fields(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, Mapping):
        _fail(place, "a dictionary", value)
    hints = _hints(kind)
    if unknown := [name for name in value if name not in hints]:
        _fail(place, f"only the fields {', '.join(hints)}", unknown[0])
    optional = {
        field.name
        for field in dataclasses.fields(kind)
        if not (field.default is field.default_factory is dataclasses.MISSING)
    }
    if missing := [name for name in hints if name not in value and name not in optional]:
        _fail(place, f"a field {missing[0]!r}", sorted(value))
    fields = {name: _decode(hints[name], v, f"{place}.{name}") for name, v in value.items()}
    try:
        return kind(**fields)
    except ValueError as error:
        raise LmsiError(f"{place}: {error}; {REMEDY}") from None


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fail(place: str, expected: object, value: object) -> NoReturn:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    raise LmsiError(f"{place}: expected {expected}, found {text}; {REMEDY}")


def _check_outcomes(name: str, values: Iterable[int], count: int) -> None:
    values = list(values)
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} questions")
    if bad := [value for value in values if value not in (0, 1)]:
        raise ValueError(f"{name} holds {bad[0]}, expected 0 or 1 for each question")


def _check_unique(name: str, keys: Iterable[object]) -> None:
    seen: set[object] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{name} has two entries for {key}")
        seen.add(key)
