"""Set a run of the loop, with the rules across its parts, and a study of several runs."""

import dataclasses
import re
import typing
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Literal

from lmsi_jax.config.gin_errors import renamed
from lmsi_jax.config.model_config import ModelConfig
from lmsi_jax.config.row_filters import punishes
from lmsi_jax.config.sampling import Chat, Decoding, Sampling, Voting
from lmsi_jax.config.steps import (
    Augmentation,
    CollapseMonitor,
    Distillation,
    Evaluation,
    FileTask,
    Mixing,
    Pretraining,
    Questions,
)
from lmsi_jax.config.tracking import TensorBoard, Tracker
from lmsi_jax.config.training_config import Training
from lmsi_jax.config.value_checks import CWD_PATH, SEED, at_least, check_fields, fits, remedy
from lmsi_jax.errors import LmsiError

_REASONING = ("few_shot_cot", "zero_shot_cot")
Schedule = tuple[tuple[str, tuple[Any, ...]], ...]
"""(parameter, its values by round) pairs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the loop: its output folder, its model, and the settings of each step."""

    output_dir: Annotated[str, CWD_PATH]
    """Folder of everything that the run writes; local or gs://. In a gin file "~" is the home
    folder in this and all other paths."""
    model: ModelConfig
    """Shape of the model."""
    questions: Questions | None = None
    """Tasks and their questions; only `lmsi pretrain` needs none."""
    augmentation: Augmentation = Augmentation()
    """Questions and prompts that the model writes itself."""
    chat: Chat | None = None
    """Prompting in the model's chat template, @Chat(); None prompts as base models are."""
    sampling: Sampling = Sampling()
    """Sampling: how many samples, how long, at which temperature."""
    voting: Voting = Voting()
    """Weight of each sample in the vote."""
    mixing: Mixing = Mixing()
    """Conversion of voted samples to training examples."""
    training: Training = Training()
    """Fine-tuning of each round."""
    evaluation: Evaluation = Evaluation()
    """Measurement of accuracy."""
    collapse_monitor: CollapseMonitor = CollapseMonitor()
    """Alarm thresholds after each round."""
    pretraining: Pretraining | None = None
    """Recipe of a base model, for `lmsi pretrain` alone."""
    distillation: Distillation | None = None
    """Teacher of a student, for `lmsi distill` alone."""
    name: str = "lmsi"
    """Title of the run in its report."""
    seed: Annotated[int, SEED] = 0
    """Fixes sampling noise and the order of training examples."""
    rounds: Annotated[int, at_least(1, unit="rounds")] = 1
    """Rounds of self-improvement."""
    schedule: Schedule = ()
    """(parameter, values) pairs, such as ('Mixing.min_confidence', (0.0, 0.5)): round r uses the
    r-th value instead of the parameter's own, and the last value holds for all later rounds.
    `lmsi_jax.config.run.SCHEDULABLE` lists the parameters that may change."""
    start_from: Literal["base", "last"] = "base"
    """Model that each round trains from: the "base" model, or the "last" round's."""
    init_checkpoint: Annotated[str, CWD_PATH] = "embedded"
    """Base model: a checkpoint folder, "embedded" for the packaged one, or "fresh" for random
    weights drawn from the seed."""
    tokenizer: Annotated[str, CWD_PATH] = "embedded"
    """A SentencePiece model file, a tokenizer.json, a folder with one of them, or "embedded"."""
    decoding: Decoding = Decoding()
    """Layout of the decode engine."""
    trackers: tuple[Tracker, ...] = (TensorBoard(),)
    """Experiment trackers that get the run's metrics, such as (@TensorBoard(), @WandB()); () for
    none."""
    questions_per_shard: Annotated[int, at_least(1, unit="questions")] = 64
    """Questions in one file of samples. A killed process draws its unfinished files again."""
    reuse: Annotated[tuple[str, ...], CWD_PATH] = ()
    """Folders of other runs, local ones. A stage that one of them has finished with the same
    settings and inputs is copied instead of computed again."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.augmentation.prompts and self.sampling.adaptive_consistency is not None:
            raise LmsiError(
                "Sampling.adaptive_consistency judges a question by samples of one prompt; with "
                "Augmentation.prompts set it to None"
            )
        if self.reuse and any("://" in folder for folder in (self.output_dir, *self.reuse)):
            raise LmsiError("Run.reuse copies between local folders; set it to ()")
        names = [type(tracker).__name__ for tracker in self.trackers]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise LmsiError(f"Run.trackers has {twice} twice; name each tracker once")
        self._check_preference()
        self._check_human_examples()
        self._check_negatives()
        self._check_rotations()
        self._check_paraphrases()
        check_schedule(self)

    def in_round(self, index: int) -> "Run":
        """Returns the run with the scheduled values of a round (1, 2, ...)."""
        return apply_schedule(self, index)

    def check_questions(self, stages: Collection[str]) -> None:
        """Raises LmsiError if a stage that is to run has no questions."""
        if self.questions is None:
            raise LmsiError("Run.questions is not set; bind it to @Questions() in the gin file")
        train, test = self.questions.train, self.questions.test
        sampled = {"generate", "prompts", "sample"} & {*stages}
        evaluated = "eval" in stages and not sampled  # a run goes on without test questions
        if (sampled and not train) or (evaluated and not test) or not (train or test):
            raise LmsiError("there are no questions: set Questions.train and Questions.test")

    def _check_paraphrases(self) -> None:
        if self.augmentation.paraphrase == "none":
            return
        others = {
            "Augmentation.prompts": (self.augmentation.prompts, 0),
            "Voting.rotate_options": (self.voting.rotate_options, False),
            "Training.preference": (self.training.preference, None),
        }
        for name, (value, off) in others.items():
            if value != off:
                raise LmsiError(
                    "Augmentation.paraphrase compares a question's samples with those of one "
                    f"paraphrase, which {name} does not do; set it to {off}, or "
                    "Augmentation.paraphrase to 'none'"
                )

    def _check_rotations(self) -> None:
        if not self.voting.rotate_options:
            return
        several = "Voting.rotate_options asks a question's samples in several prompts"
        if self.augmentation.prompts:
            raise LmsiError(
                f"{several}, and so does Augmentation.prompts; set one of them to False and 0"
            )
        if self.sampling.adaptive_consistency is not None:
            raise LmsiError(
                f"{several}, and Sampling.adaptive_consistency judges samples of one; set it to "
                "None, or Voting.rotate_options to False"
            )
        if self.training.preference is not None:
            raise LmsiError(
                f"{several}, and both members of a pair follow one; set Voting.rotate_options to "
                "False, or bind Training.preference to None"
            )

    def _check_negatives(self) -> None:
        rule = next(filter(punishes, self.mixing.selection), None)
        if rule is None:
            return
        name, penalty = type(rule).__name__, getattr(rule, "penalty", 0.0)
        if self.training.loss.negatives == "refuse":
            raise LmsiError(
                f"{name}.penalty = {penalty} punishes rows; set Training.loss = @Loss() and "
                f"Loss.negatives = 'unlikelihood' or 'advantage', or {name}.penalty = 0"
            )
        if not any(form in _REASONING for form in self.mixing.formats):
            raise LmsiError(
                f"{name} punishes reasoning, which Mixing.formats = {self.mixing.formats} do not "
                "show; add 'few_shot_cot' or 'zero_shot_cot'"
            )
        self.training.check_nothing_held_out(f"punishing rows ({name})")

    def _check_human_examples(self) -> None:
        training = self.training
        others = (self.distillation, self.pretraining, training.preference)
        mixes_own_examples = all(part is None for part in others)
        if mixes_own_examples and training.human_rate > 0 and not self.mixing.human_examples:
            raise LmsiError(
                f"Training.human_rate = {training.human_rate} mixes human solutions in: set "
                "Mixing.human_examples above 0, or Training.human_rate to 0"
            )

    def _check_preference(self) -> None:
        preference, given = self.training.preference, self.mixing.human_examples
        if preference is None:
            return
        if self.mixing.selection:
            raise LmsiError(
                "Mixing.selection filters single samples, Training.preference learns from pairs; "
                "set Mixing.selection = ()"
            )
        unused = {"min_confidence": 0.0, "cap": None, "keep": "majority"}
        for name, off in unused.items():
            if getattr(self.mixing, name) != off:
                raise LmsiError(
                    f"Mixing.{name} filters single samples, Training.preference learns from pairs "
                    f"(see Preference.threshold); set Mixing.{name} = {off!r}"
                )
        if self.rounds > 1 and self.start_from != "last":
            raise LmsiError(
                "a round's pairs are samples of the round before, whose model is their reference "
                "(ScPO, SPIN); set Run.start_from = 'last', or Run.rounds = 1"
            )
        if self.distillation is not None:
            raise LmsiError("a student learns no pairs: bind Training.preference to None")
        if self.augmentation.prompts:
            raise LmsiError(
                "both members of a pair follow one prompt, and Augmentation.prompts spreads a "
                "question's samples over several; set Augmentation.prompts to 0, or bind "
                "Training.preference to None"
            )
        if preference.form == "spin" and self.augmentation.questions:
            raise LmsiError(
                "Preference.form = 'spin' learns from human solutions alone; set "
                "Augmentation.questions to 0"
            )
        if preference.form == "spin" and not given:
            raise LmsiError(
                "Preference.form = 'spin' sets human solutions against the model's own; set "
                "Mixing.human_examples to how many there are of each task"
            )
        if preference.form == "scpo" and given:
            raise LmsiError(
                "Preference.form = 'scpo' learns from votes alone; set Mixing.human_examples to 0"
            )


def comparison_run(run: Run, stages: tuple[str, ...]) -> Run:
    """Returns the run whose "rounds" are `Evaluation.checkpoints`, the first of them the base.

    Raises:
      LmsiError: checkpoints are named, and the command does more than evaluate.
    """
    if not run.evaluation.checkpoints:
        return run
    first, *others = run.evaluation.checkpoints
    if stages != ("eval",):
        raise LmsiError(
            "Evaluation.checkpoints is for `lmsi eval` alone; set it to () for other commands"
        )
    return dataclasses.replace(run, init_checkpoint=first, rounds=max(1, len(others)))


def parameters(run: Run) -> dict[str, Any]:
    """Returns every parameter by its gin name, defaults included.

    Parts that hold other parts are not listed themselves, only the parameters within them. Those of
    `Pretraining` have the prefix "pretraining/", because its classes appear twice, and those of a
    `FileTask` its name.
    """
    return dict(_parameters(run, ""))


def _parameters(part: Any, scope: str) -> Iterator[tuple[str, Any]]:
    inner_scope = "pretraining/" if isinstance(part, Pretraining) else scope
    scope = f"{part.name}/" if isinstance(part, FileTask) else scope
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        items = value if isinstance(value, tuple) and value else (value,)
        if all(dataclasses.is_dataclass(item) for item in items):
            for item in items:
                yield from _parameters(item, inner_scope)
        else:
            yield f"{scope}{type(part).__name__}.{field.name}", value


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Command = Literal["run", "mix", "pretrain", "distill"]
Measure = Literal["accuracy", "rounds", "sizes", "samples", "shift"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One variant of a study's run; a gin file binds it in a scope, `x/Variant.NAME`."""

    name: str
    """Name of the variant's folder: letters, digits and . _ -"""
    label: str = ""
    """Name in tables and plots; "" for `name`."""
    bindings: tuple[str, ...] = ()
    """Gin bindings such as "Mixing.formats = ('few_shot_cot',)", applied after those of the file
    and the command line. "{study}" is replaced by the study's folder, "{seed}" by the seed."""
    command: Command = "run"
    """Stages to run: "run" all of them, "mix" up to the training examples, "pretrain" a base model,
    "distill" a student."""
    each_seed: bool = True
    """Run once for each seed, or once for all."""
    shown: bool = True
    """Show the variant in the study's table; variants that only prepare others are not shown."""
    seconds: Annotated[float, at_least(0, unit="seconds")] = 0.0
    """Expected time of one run on two idle cores, without the stages that it shares with runs
    before it. The study estimates the remaining time from these and from the pace so far."""
    paper: tuple[tuple[str, str], ...] = ()
    """A paper's figures for the table, as (prompt style, text) pairs."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not _NAME.fullmatch(self.name):
            raise LmsiError(f"Variant.name = {self.name!r}; use letters, digits and . _ -")
        for binding in self.bindings:
            if "=" not in binding:
                raise LmsiError(f"variant {self.name!r}: {binding!r} has no value; NAME = VALUE")

    @property
    def title(self) -> str:
        """Name in tables and plots."""
        return self.label or self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Variants of a run, compared over several seeds (`lmsi study`)."""

    name: str
    """Name of the study's folder."""
    question: str
    """Question that the study answers, a sentence; title of the table and the page."""
    variants: tuple[Variant, ...]
    """Variants in the table's order; each may use the results of those before it."""
    source: str = ""
    """Paper of the figures in `Variant.paper`."""
    reference: str = ""
    """Variant that the others are compared with; "" for none."""
    upper_bound: str = ""
    """Variant that learns with gold labels (`GoldLabels`): the table says which share of its gain
    each other variant reaches; "" for none."""
    against: Literal["before", "after"] = "after"
    """Compare with the reference "after" its rounds or "before" them."""
    measure: Measure = "accuracy"
    """Contents of the table: "accuracy", accuracy by "rounds" or by "sizes" of the base model, the
    vote's accuracy by number of "samples", or the share of correct rows by distribution "shift"."""
    by_task: bool = False
    """Show each task, besides the means over tasks."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each fixes questions, noise and training order."""
    seconds: Annotated[float, at_least(0, unit="seconds")] = 0.0
    """Expected time of the stages that the runs of a seed share, and that the first of them does;
    see `Variant.seconds`."""
    output_dir: Annotated[str, CWD_PATH] = "runs/studies"
    """Local folder of all studies; a run is in OUTPUT_DIR/STUDY/VARIANT/seedN."""

    def __post_init__(self) -> None:
        check_fields(self)
        names = [variant.name for variant in self.variants]
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise LmsiError(f"Study.seeds = {self.seeds}; name one or more different seeds")
        if len(set(names)) < len(names) or not any(variant.shown for variant in self.variants):
            raise LmsiError("Study.variants needs different names, and at least one that is shown")
        for field in ("reference", "upper_bound"):
            if (name := getattr(self, field)) and name not in names:
                raise LmsiError(
                    f"Study.{field} = {name!r} is none of its variants: {', '.join(names)}"
                )
        measured = ("mix",) if self.measure == "shift" else ("run", "distill")
        for variant in self.variants:
            if variant.shown and variant.command not in measured:
                raise LmsiError(
                    f"variant {variant.name!r} leaves nothing for a table of {self.measure!r}: set "
                    f"its command to {' or '.join(measured)}, or shown to False"
                )
        if "://" in self.output_dir:
            raise LmsiError("a study shares stages by copying local folders; choose a local one")

    @property
    def folder(self) -> str:
        """Folder of the study's runs and results."""
        return f"{self.output_dir.rstrip('/')}/{self.name}"


# --- schedules ------------------------------------------------------------------------------------
# Parameters that change from one round to the next:
#
#     Run.schedule = (('Training.human_rate', (0.5, 0.2)), ('Sampling.temperature', (0.7, 1.2)))
#
# Round r uses the r-th value; the last one holds for all later rounds. A stage's record has the
# values of its own round alone, so later rounds may be changed during a run.


SCHEDULABLE: dict[str, tuple[str, ...]] = {
    "Sampling": ("num_samples", "temperature"),
    "Augmentation": ("min_confidence",),
    "Mixing": ("min_confidence", "cap"),
    "Preference": ("threshold", "beta"),
    "Training": ("steps", "human_rate"),
    "Optimizer": ("learning_rate",),
}
"""Parameters that may change, by class; parameters of filters in `Mixing.selection` may too."""
_PARTS = ("augmentation", "sampling", "mixing", "training")


def apply_schedule(run: Run, index: int) -> Run:
    """Returns the run with the values of round `index` (1, 2, ...) and without a schedule."""
    if not run.schedule:
        return run
    changes: dict[str, dict[str, Any]] = {}
    for name, value in scheduled_values(run, index).items():
        part, _, field = name.partition(".")
        changes.setdefault(part, {})[field] = value
    parts = {name: _changed(getattr(run, name), changes) for name in _PARTS}
    return dataclasses.replace(run, schedule=(), **parts)


def scheduled_values(run: Run, index: int) -> dict[str, Any]:
    """Returns the values that the schedule gives round `index`, by parameter."""
    return {name: values[min(index, len(values)) - 1] for name, values in run.schedule}


def check_schedule(run: Run) -> None:
    """Builds every round's configuration, so that a wrong value is found before the first one.

    Raises:
      LmsiError: a parameter is unknown, may not change or appears twice, or its class refuses a
        value.
    """
    names = [name for name, _ in run.schedule]
    for name, values in run.schedule:
        if names.count(name) > 1:
            raise LmsiError(f"Run.schedule has {name} twice; write all its values in one tuple")
        _check_values(name, values, _hint(run, name))
    for index in range(1, max((len(values) for _, values in run.schedule), default=0) + 1):
        try:
            apply_schedule(run, index)
        except LmsiError as error:
            raise LmsiError(f"Run.schedule, round {index}: {error}") from None


def _hint(run: Run, name: str) -> Any:
    """Returns the annotation of a schedulable parameter.

    Raises:
      LmsiError: it may not change, or the run has no such part.
    """
    if change := renamed(name):
        raise LmsiError(f"Run.schedule: {change}")
    part, _, field = name.partition(".")
    filters: dict[str, Any] = {type(rule).__name__: rule for rule in run.mixing.selection}
    filter_fields = dataclasses.fields(filters[part]) if part in filters else ()
    if field not in (*SCHEDULABLE.get(part, ()), *(one.name for one in filter_fields)):
        known = [f"{cls}.{one}" for cls, fields in SCHEDULABLE.items() for one in fields]
        raise LmsiError(
            f"Run.schedule cannot change {name!r}; choose from {', '.join(known)}, or a parameter "
            "of a filter in Mixing.selection"
        )
    classes = {type(one).__name__: type(one) for one in _nested_parts(run)}
    if part not in classes:
        raise LmsiError(f"Run.schedule has {name}, and this run has no {part}; bind it or drop it")
    return typing.get_type_hints(classes[part])[field]


def _check_values(name: str, values: Any, hint: Any) -> None:
    if not isinstance(values, (tuple, list)) or not values:
        raise LmsiError(
            f"Run.schedule needs a tuple of values for {name}, one for each round: "
            f"('{name}', (FIRST, SECOND))"
        )
    for value in values:
        if not fits(value, hint):
            raise LmsiError(f"Run.schedule: {name} = {value!r}; {remedy(value, hint)}")


def _changed(value: Any, changes: dict[str, dict[str, Any]]) -> Any:
    """Returns a part of the configuration with its own changes and those of its nested parts."""
    if isinstance(value, tuple):
        return tuple(_changed(one, changes) for one in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    nested = {
        field.name: _changed(getattr(value, field.name), changes)
        for field in dataclasses.fields(value)
        if field.init
    }
    return dataclasses.replace(value, **nested | changes.get(type(value).__name__, {}))


def _nested_parts(run: Run) -> Iterator[Any]:
    """Yields all parts of the configuration in which something may change."""
    queue: list[Any] = [getattr(run, name) for name in _PARTS]
    while queue:
        one = queue.pop()
        if isinstance(one, Sequence) and not isinstance(one, str):
            queue += one
        elif dataclasses.is_dataclass(one) and not isinstance(one, type):
            yield one
            queue += [getattr(one, field.name) for field in dataclasses.fields(one)]
