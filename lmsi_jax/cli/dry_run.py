"""`--dry_run`: every parameter of a run, what is wrong or still to be set, and nothing is run.

Files on a bucket are not looked at; nor is what only the data, the weights or the devices can tell:
whether prompts fit (`lmsi sample` says so before it samples) and memory (`lmsi aot`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from lmsi_jax.config.run import Run
from lmsi_jax.config.schedule import scheduled_values
from lmsi_jax.config.stages import Pretraining
from lmsi_jax.errors import LmsiError

if TYPE_CHECKING:
    from lmsi_jax.pipeline.context import Context

_PLACEHOLDER = "BUCKET"
"""Stands in packaged configurations for what only the user knows."""


class Findings(NamedTuple):
    """What a look at a configuration gave, a line each.

    Attributes:
      to_set: placeholders that are left.
      wrong: what would end the run with an error.
      unseen: what lies elsewhere and was not looked at.
    """

    to_set: list[str]
    wrong: list[str]
    unseen: list[str]


def dry_run(run: Run, stages: tuple[str, ...]) -> None:
    """Prints a run's parameters and what was found about them.

    Args:
      run: the configuration.
      stages: what the command would run.

    Raises:
      LmsiError: something is wrong or still to be set.
    """
    for name, value in parameters(run).items():
        print(f"{name} = {value!r}")
    for index in range(1, run.rounds + 1) if run.schedule else ():
        own = ", ".join(
            f"{name} = {value!r}" for name, value in scheduled_values(run, index).items()
        )
        print(f"round {index}: {own}")
    count = run.model.parameter_count
    print(f"{count:,} weights; stages: {', '.join(stages)}; rounds: {run.rounds}")
    found = look(run, stages)
    for title, lines in zip(("to set", "wrong", "not looked at"), found, strict=True):
        for line in lines:
            print(f"{title}: {line}")
    if found.to_set or found.wrong:
        to_set, wrong = len(found.to_set), len(found.wrong)
        raise LmsiError(f"this would not run: {to_set} to set, {wrong} wrong; see above")
    print("nothing is wrong as far as it can be seen; nothing was run")


def parameters(run: Run) -> dict[str, Any]:
    """Returns every parameter by its gin name, defaults included.

    Parts that are built of others are not listed themselves, only what is within them. What
    `Pretraining` is built of stands behind "pretraining/": its classes come twice.
    """
    return dict(_parameters(run, ""))


def look(run: Run, stages: tuple[str, ...]) -> Findings:
    """Looks for what can be known before anything is read or computed."""
    to_set = [f"{name} = {value!r}" for name, value in parameters(run).items() if _open(value)]
    named = dict(_places(run, stages))
    unseen = [f"{name} = {place}" for name, place in named.items() if "://" in place]
    unseen += _through_tfds(run)
    here = {name: place for name, place in named.items() if "://" not in place}
    missing = [
        f"{name} = {place}: there is no such file or folder"
        for name, place in here.items()
        if place not in ("embedded", "fresh") and not epath.Path(place).exists()
    ]
    seen = not missing and not any("://" in named.get(f"Run.{one}", "") for one in _OF_MODEL)
    return Findings(to_set, [*missing, *_wrong(run, stages, check_model=seen)], unseen)


_OF_MODEL = ("tokenizer", "init_checkpoint")


def _parameters(part: Any, scope: str) -> Iterator[tuple[str, Any]]:
    within = "pretraining/" if isinstance(part, Pretraining) else scope
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        inner = value if isinstance(value, tuple) and value else (value,)
        if all(map(_is_part, inner)):
            for one in inner:
                yield from _parameters(one, within)
        else:
            yield f"{scope}{type(part).__name__}.{field.name}", value


def _is_part(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _open(value: Any) -> bool:
    """Whether a placeholder stands in a value."""
    if isinstance(value, (tuple, list)):
        return any(map(_open, value))
    return isinstance(value, str) and _PLACEHOLDER in value


def _places(run: Run, stages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Files and folders that the run reads, by parameter."""
    if "pretrain" not in stages:
        yield "Run.init_checkpoint", run.init_checkpoint
        yield "Run.tokenizer", run.tokenizer
    if run.questions is not None:
        if run.questions.data_dir is not None:
            yield "Questions.data_dir", run.questions.data_dir
        for task, folder in run.questions.data_dirs:
            yield f"Questions.data_dirs, {task}", folder
    if "distill" in stages and run.distillation is not None:
        yield "Distillation.teacher_dir", run.distillation.teacher_dir
    for number, folder in enumerate(run.reuse):
        yield f"Run.reuse[{number}]", folder
    for number, folder in enumerate(run.evaluation.checkpoints):
        yield f"Evaluation.checkpoints[{number}]", folder


def _through_tfds(run: Run) -> Iterator[str]:
    """Data sets that are not read from a folder."""
    from lmsi_jax.tasks import registry
    from lmsi_jax.tasks.dataset import Dataset

    questions = run.questions
    if questions is None:
        return
    for name in sorted({*questions.train, *questions.test} & {*registry.NAMES}):
        if isinstance(registry.get(name), Dataset) and not questions.folder(name):
            yield f"{name}: Questions.data_dir is not set, so its files come through TFDS"


def _scorers(run: Run) -> list[str]:
    """The scorers of the vote and of all rounds' filters."""
    rounds = [run.in_round(index) for index in range(1, run.rounds + 1)]
    parts = [run.voting, *(one for each in rounds for one in each.mixing.selection)]
    named = (getattr(part, "scorer", None) for part in parts)
    return list(dict.fromkeys(name for name in named if name is not None))


def _wrong(run: Run, stages: tuple[str, ...], check_model: bool) -> Iterator[str]:
    """What the stages would end with."""
    from lmsi_jax.pipeline import scorers
    from lmsi_jax.pipeline.context import Context
    from lmsi_jax.pipeline.evaluate import comparison_run

    context = Context(run, frozenset(stages))
    yield from _said(functools.partial(comparison_run, run, stages))
    yield from _wrong_questions(context)
    for scorer in _scorers(run):
        yield from _said(functools.partial(scorers.load, scorer))
    yield from _wrong_models(context, check_model)
    for stage, given in (("pretrain", run.pretraining), ("distill", run.distillation)):
        if stage in stages and given is None:
            part = "Pretraining" if stage == "pretrain" else "Distillation"
            yield f"Run.{part.lower()} is not set; bind it to @{part}()"
    most, new = run.model.max_length, run.sampling.max_new_tokens
    if run.questions is not None and new >= most:
        yield (
            f"Sampling.max_new_tokens = {new} leaves no room for a prompt in "
            f"ModelConfig.max_length = {most}; lower the first"
        )


def _wrong_questions(context: "Context") -> Iterator[str]:
    from lmsi_jax.pipeline.questions import check_asked
    from lmsi_jax.tasks import exemplars, registry

    if "pretrain" in context.stages:
        pretraining = context.run.pretraining
        for task, _ in pretraining.shares if pretraining is not None else ():
            yield from _said(functools.partial(registry.get, task))
        return
    yield from _said(functools.partial(check_asked, context))
    if (questions := context.run.questions) is None:
        return
    for task in dict.fromkeys((*questions.train, *questions.test)):
        yield from _said(functools.partial(registry.get, task))
    for _, name in questions.exemplars:
        if "://" not in name:
            yield from _said(functools.partial(exemplars.load, name))


def _wrong_models(context: "Context", check_model: bool) -> Iterator[str]:
    from lmsi_jax.training import checkpoints

    run = context.run
    if check_model and "pretrain" not in context.stages:
        yield from _said(lambda: context.tokenizer)
        if run.init_checkpoint != "fresh":
            yield from _said(lambda: context.base_folder)
    for folder in run.evaluation.checkpoints:
        if "://" not in folder and epath.Path(folder).exists():
            yield from _said(functools.partial(checkpoints.find, folder))


def _said(look_at: Callable[[], Any]) -> Iterator[str]:
    """The error that a look at something raises, if it does."""
    try:
        look_at()
    except LmsiError as error:
        yield str(error)
