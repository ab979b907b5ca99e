"""What a run hands to its report: one dictionary of plain JSON, checked before anything is drawn.

Accuracies are never stored, only 0/1 per question: intervals and paired tests need the questions.

A summary, checked before anything is drawn: names, types, and that its parts fit together.
"""

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NotRequired, TypedDict, cast, get_args, get_origin

from lmsi_jax.errors import LmsiError

PromptStyle = Literal["standard", "cot", "zero_shot_cot", "self_consistency"]
Domain = Literal["in", "out"]

PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)


class Model(TypedDict):
    """The base model. `source` says where it came from (embedded, a path, a hub name)."""

    name: str
    parameters: int
    source: str


class Task(TypedDict):
    """A family of questions. `kind` is its answers'; `domain` "in" when the loop trained on it.

    `level` is "" where a task has only one.
    """

    name: str
    kind: str
    domain: Domain
    level: str
    test_questions: int


class CurvePoint(TypedDict):
    """Accuracy of k paths, from all that were sampled, with 95 % bootstrap intervals."""

    k: int
    majority: float
    majority_low: float
    majority_high: float
    majority_error: float
    """Standard error that random subsets leave in `majority`; 0 where all were looked at."""
    passed: float
    """Pass@k: one of the k paths is right."""
    passed_low: float
    passed_high: float


class Evaluation(TypedDict):
    """One model, task and prompt style; at most one for each (round, task, prompt style)."""

    round: int
    """0 is the base model, r the model after round r."""
    task: str
    prompt_style: PromptStyle
    correct: list[int]
    """0 or 1 for each question, in the same order of questions in every round."""
    parsed: float
    """Share of the paths with a readable answer, in [0, 1]."""
    tied: int
    """Questions whose vote was tied; 0 for single paths."""
    paths: int
    """Sampled for each question; 1 for greedy decoding."""
    temperature: float
    mean_tokens: float
    """Mean length of a path."""
    confidence: list[float]
    """Of each question's vote, in [0, 1], in the order of `correct`; empty without a vote."""
    curve: NotRequired[list[CurvePoint]]
    """Majority@k and pass@k of a vote, k rising."""


class TaskVotes(TypedDict):
    """The training votes of one task in one round."""

    questions: int
    mean_confidence: float
    distinct_kept_per_question: float
    empty: int
    """Questions on which no path was parsed."""
    tied: int


class FormatRows(TypedDict):
    """The training rows of one format, and the sum of their weights."""

    rows: int
    weight: float


class Sources(TypedDict):
    """Training rows by origin: the model's own samples (self-generated) and human ones."""

    self_generated: int
    human: int


class NewQuestions(TypedDict):
    """What became of the new questions that the model wrote for one task in one round."""

    written: int
    """All; each is of one of the next five."""
    malformed: int
    duplicates: int
    """Of each other, or of real training questions."""
    contaminated: int
    """With a test question of the run."""
    surplus: int
    new: int
    mean_confidence: float
    """Of the votes on them; 0 for none."""
    confident: int
    """Those with a vote sure enough to give training rows."""


class NewPrompts(TypedDict):
    """The few-shot prompts that were made of zero-shot answers for one task in one round."""

    asked: int
    usable: int
    """Answers that can be exemplars."""
    prompts: int


class FilterStep(TypedDict):
    """What a filter of `Mixing.selection` left of a task's voted paths."""

    task: str
    filter: str
    rows: int
    """That came in."""
    kept: int
    questions: int
    """That still have rows."""
    weight: float
    """Sum of the weights that are left."""
    dropped: dict[str, int]
    """Rows by reason."""
    right: int
    wrong: int
    """Kept rows whose answer is known to be right, or wrong; 0 without gold answers."""


class Round(TypedDict):
    """One round of sampling, voting and fine-tuning. Counts are of the whole round."""

    round: int
    """1, 2, ..."""
    start_from: Literal["base", "last"]
    """The model that was fine-tuned: the base, or that of the round before."""
    seconds: dict[str, float]
    """Wall time of each stage, in order."""
    tokens_per_second: dict[str, float]
    """Of the stages that have one."""
    questions: int
    paths: int
    """Sampled paths over all questions."""
    parsed: int
    """Paths with a readable answer."""
    unfinished: int
    """Paths cut by the token limit."""
    empty_votes: int
    """Questions on which no path was parsed."""
    tied_votes: int
    kept: int
    """Paths that agree with their question's vote and passed the filters."""
    distinct_kept: int
    """The same, equal texts on one question counted once."""
    mean_confidence: float
    mean_entropy: float
    """Of the parsed answers on a question, in nats."""
    votes_by_task: dict[str, TaskVotes]
    generated: dict[str, NewQuestions]
    """By task; empty where all questions are real."""
    prompts: dict[str, NewPrompts]
    """By task; empty where the tasks' own exemplars were used."""
    examples: dict[str, FormatRows]
    """Training rows by format."""
    sources: Sources
    funnel: NotRequired[list[FilterStep]]
    """By task: the vote, then the filters in their order."""
    train: list[dict[str, float]]
    """One dictionary for each logged step: step, loss, learning_rate, grad_norm,
    tokens_per_second, and loss/<format>."""
    values: NotRequired[dict[str, str]]
    """What `Run.schedule` gave this round, by parameter."""
    alarms: list[str]
    """Warnings of the stop rules and of the collapse monitor, in words."""


class CollapseLabelled(TypedDict):
    """What gold answers say of the votes: `lmsi_jax.evaluation.collapse.Scored`."""

    questions: int
    confidence: float
    majority: float
    passed: float
    single: float


class CollapseRow(TypedDict):
    """A round's `lmsi_jax.evaluation.collapse.CollapseMetrics`."""

    round: int
    source: Literal["train", "test"]
    """Train: the votes that the round learnt. Test: the round's own model, 0 the base."""
    questions: int
    paths: int
    confidence: float
    entropy: float
    distinct: list[float]
    length: float
    unparsed: float
    easy: float
    distinct_kept: float
    empty: float
    kept: float | None
    rows: int | None
    easy_weight: float | None
    scored: CollapseLabelled | None


class AdaptiveConsistencySet(TypedDict):
    """The early-stop rule on one task's questions under one model; lists are in their order."""

    source: Literal["test", "train"]
    round: int
    """Test: that of the model, 0 for the base. Train: the round that sampled them."""
    task: str
    paths: int
    """Of a question without adaptive consistency (m)."""
    taken: list[int]
    """Paths of each question that the rule takes, or took where it was on."""
    same: list[int]
    """1 where the vote on these has the winner of the vote on all, else 0; empty where not all
    paths were sampled."""
    correct: list[int]
    """1 where the vote on all paths is right, else 0; empty without labels."""
    correct_stopped: list[int]
    """The same for the vote on the paths that the rule takes."""


class AdaptiveConsistency(TypedDict):
    """What adaptive consistency does to the number of paths and to the votes."""

    threshold: float
    """Wanted probability that the leading answer stays ahead."""
    every: int
    """Paths between two looks at the rule."""
    on: bool
    """Whether train questions were sampled with it."""
    sets: list[AdaptiveConsistencySet]
    """At most one for each (source, round, task)."""


class SampledPath(TypedDict):
    """One text that the model wrote; `count` equal ones are shown once."""

    text: str
    key: str | None
    """Its canonical answer; None when there is none."""
    kept: bool
    count: int


class ShownQuestion(TypedDict):
    """A question to show with its paths. `gold` is None where there is no label."""

    task: str
    question: str
    gold: str | None
    winner: str | None
    """The key with most votes; None when no path was parsed."""
    confidence: float
    tied: bool
    total: int
    """Paths that were sampled, more than are shown where many differ."""
    paths: list[SampledPath]


class Summary(TypedDict):
    """Everything that the report shows."""

    name: str
    seed: int
    created: str
    """ISO 8601."""
    versions: dict[str, str]
    """Package name -> version."""
    command: str
    """As it was typed."""
    config: str
    """The operative gin configuration."""
    model: Model
    tasks: list[Task]
    evals: list[Evaluation]
    rounds: list[Round]
    collapse: NotRequired[list[CollapseRow]]
    """At most one for each (source, round)."""
    adaptive_consistency: AdaptiveConsistency
    examples: list[ShownQuestion]
    notes: list[str]


REMEDY = "run `lmsi report` again with the version of lmsi_jax that made the run"


def validate(summary: Any) -> Summary:
    """Returns `summary` itself, checked: every field there, of its type, and consistent.

    Raises:
      LmsiError: the place of the first mistake, what stands there, and the remedy.
    """
    _check(summary, Summary, "summary")
    checked = cast(Summary, summary)
    _check_tasks(checked)
    _check_evals(checked)
    _check_adaptive_consistency(checked)
    _unique((row["round"] for row in checked["rounds"]), "summary.rounds", "round")
    watched = ((row["source"], row["round"]) for row in checked.get("collapse", []))
    _unique(watched, "summary.collapse", "(source, round)")
    for i, row in enumerate(checked["rounds"]):
        if row["round"] < 1:
            _fail(f"summary.rounds[{i}].round", "1 or more", row["round"])
        for j, step in enumerate(row["train"]):
            if "step" not in step:
                _fail(f"summary.rounds[{i}].train[{j}]", "a dictionary with a step", step)
    return checked


def _check_tasks(summary: Summary) -> None:
    _unique((task["name"] for task in summary["tasks"]), "summary.tasks", "task")


def _check_evals(summary: Summary) -> None:
    names = {task["name"] for task in summary["tasks"]}
    for i, row in enumerate(summary["evals"]):
        place = f"summary.evals[{i}]"
        if row["task"] not in names:
            _fail(
                f"{place}.task", f"one of summary.tasks ({', '.join(sorted(names))})", row["task"]
            )
        if row["round"] < 0:
            _fail(f"{place}.round", "0 or more", row["round"])
        if bad := [c for c in row["correct"] if c not in (0, 1)]:
            _fail(f"{place}.correct", "0 or 1 for each question", bad[0])
        n, confidence = len(row["correct"]), row["confidence"]
        if confidence and len(confidence) != n:
            _fail(f"{place}.confidence", f"one for each of {n} questions", confidence)
        if outside := [c for c in confidence if not 0 <= c <= 1]:
            _fail(f"{place}.confidence", "numbers in [0, 1]", outside[0])
    keys = ((e["round"], e["task"], e["prompt_style"]) for e in summary["evals"])
    _unique(keys, "summary.evals", "(round, task, prompt_style)")


def _check_adaptive_consistency(summary: Summary) -> None:
    names = {task["name"] for task in summary["tasks"]}
    rows = summary["adaptive_consistency"]["sets"]
    for i, row in enumerate(rows):
        place = f"summary.adaptive_consistency.sets[{i}]"
        if row["task"] not in names:
            _fail(f"{place}.task", "one of summary.tasks", row["task"])
        if outside := [n for n in row["taken"] if not 0 <= n <= row["paths"]]:
            _fail(f"{place}.taken", f"at most {row['paths']} paths a question", outside[0])
        n = len(row["taken"])
        correct, stopped = row["correct"], row["correct_stopped"]
        lists = {"same": row["same"], "correct": correct, "correct_stopped": stopped}
        for name, found in lists.items():
            if len(found) not in (0, n) or set(found) - {0, 1}:
                _fail(f"{place}.{name}", f"0 or 1 for each of {n} questions, or nothing", found)
        if len(correct) != len(stopped):
            _fail(f"{place}.correct_stopped", "as many as in correct", stopped)
    keys = ((row["source"], row["round"], row["task"]) for row in rows)
    _unique(keys, "summary.adaptive_consistency.sets", "(source, round, task)")


def _unique(values: Iterable[object], place: str, what: str) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            _fail(place, f"one entry for each {what}", value)
        seen.add(value)


def _check(value: Any, hint: Any, place: str) -> None:
    """Checks a JSON value against the type hints above, and names the first place that differs."""
    origin, arguments = get_origin(hint), get_args(hint)
    if typing.is_typeddict(hint):
        _check_fields(value, hint, place)
    elif origin in (types.UnionType, typing.Union):
        if value is not None:
            _check(value, next(a for a in arguments if a is not types.NoneType), place)
    elif origin is Literal:
        if value not in arguments:
            _fail(place, " or ".join(map(repr, arguments)), value)
    elif origin is list:
        if not isinstance(value, list):
            _fail(place, "a list", value)
        for i, item in enumerate(value):
            _check(item, arguments[0], f"{place}[{i}]")
    elif origin is dict:
        if not isinstance(value, Mapping):
            _fail(place, "a dictionary", value)
        for name, item in value.items():
            _check(item, arguments[1], f"{place}[{name!r}]")
    elif not _is(value, hint):
        _fail(place, {str: "text", int: "a whole number", float: "a number"}.get(hint, hint), value)


def _check_fields(value: Any, hint: Any, place: str) -> None:
    if not isinstance(value, Mapping):
        _fail(place, "a dictionary", value)
    hints = typing.get_type_hints(hint)
    for name in value:
        if name not in hints:
            _fail(place, f"only the fields {', '.join(hints)}", name)
    for name, kind in hints.items():
        if name not in value:
            if name in hint.__optional_keys__:
                continue
            _fail(place, f"a field {name!r}", sorted(value))
        _check(value[name], kind, f"{place}.{name}")


def _is(value: Any, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _fail(place: str, expected: object, found: object) -> typing.NoReturn:
    shown = repr(found)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    raise LmsiError(f"{place}: expected {expected}, found {shown}; {REMEDY}")
