"""`--dry_run`: print every parameter of a run, check what can be checked at once, run nothing.

All local data files are read and parsed. Files on a bucket are not checked, nor what only the
weights or the devices can tell: whether prompts fit (`lmsi sample` reports it before it samples)
and memory (`lmsi aot`).
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from etils import epath

from lmsi_jax.config import Questions, Run
from lmsi_jax.config.run import comparison_run, parameters, scheduled_values
from lmsi_jax.errors import LmsiError

_PLACEHOLDER = "BUCKET"
"""Part of the values in packaged configurations that only the user knows."""
_MODEL_FILES = ("Run.tokenizer", "Run.init_checkpoint")


class Findings(NamedTuple):
    """Results of checking a configuration, one line each."""

    to_set: list[str]
    """Placeholders that are left."""
    wrong: list[str]
    """Mistakes that would end the run with an error."""
    unchecked: list[str]
    """Files elsewhere, which were not checked."""


def dry_run(run: Run, stages: tuple[str, ...]) -> None:
    """Prints a run's parameters and the findings about them.

    Args:
      run: the configuration.
      stages: the stages that the command would run.

    Raises:
      LmsiError: something is wrong or still to be set.
    """
    for name, value in parameters(run).items():
        print(f"{name} = {value!r}")
    for index in range(1, run.rounds + 1) if run.schedule else ():
        values = scheduled_values(run, index).items()
        print(f"round {index}: {', '.join(f'{name} = {value!r}' for name, value in values)}")
    count = run.model.parameter_count
    print(f"{count:,} weights; stages: {', '.join(stages)}; rounds: {run.rounds}")
    findings = check(run, stages)
    for title, lines in zip(("to set", "wrong", "not checked"), findings, strict=True):
        for line in lines:
            print(f"{title}: {line}")
    if findings.to_set or findings.wrong:
        to_set, wrong = len(findings.to_set), len(findings.wrong)
        raise LmsiError(f"this would not run: {to_set} to set, {wrong} wrong; see above")
    print("no mistake found; nothing was run")


def check(run: Run, stages: tuple[str, ...]) -> Findings:
    """Checks what can be known before any weights are read."""
    to_set = [
        f"{name} = {value!r}" for name, value in parameters(run).items() if _has_placeholder(value)
    ]
    places = dict(_places(run, stages))
    remote = {name for name, place in places.items() if "://" in place}
    missing = {
        name: f"{name} = {place}: there is no such file or folder"
        for name, place in places.items()
        if name not in remote
        and place not in ("embedded", "fresh")
        and not epath.Path(place).exists()
    }
    unchecked = [f"{name} = {places[name]}" for name in places if name in remote]
    check_model = "pretrain" not in stages and not {*remote, *missing} & {*_MODEL_FILES}
    return Findings(
        to_set,
        [*missing.values(), *_mistakes(run, stages, check_model)],
        [*unchecked, *_tasks_through_tfds(run)],
    )


def _has_placeholder(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_has_placeholder, value))
    return isinstance(value, str) and _PLACEHOLDER in value


def _places(run: Run, stages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yields the files and folders that the run reads, by parameter."""
    if "pretrain" not in stages:
        yield "Run.init_checkpoint", run.init_checkpoint
        yield "Run.tokenizer", run.tokenizer
    elif run.pretraining is not None and run.pretraining.teacher is not None:
        yield "Pretraining.teacher", run.pretraining.teacher
        yield "Run.tokenizer", run.tokenizer
    if run.questions is not None:
        if run.questions.data_dir is not None:
            yield "Questions.data_dir", os.path.expanduser(run.questions.data_dir)
        for task, folder in run.questions.data_dirs:
            yield f"Questions.data_dirs, {task}", os.path.expanduser(folder)
    if "distill" in stages and run.distillation is not None:
        yield "Distillation.teacher_dir", run.distillation.teacher_dir
    for number, folder in enumerate(run.reuse):
        yield f"Run.reuse[{number}]", folder
    for number, folder in enumerate(run.evaluation.checkpoints):
        yield f"Evaluation.checkpoints[{number}]", folder


def _tasks_through_tfds(run: Run) -> Iterator[str]:
    from lmsi_jax.tasks import registry
    from lmsi_jax.tasks.dataset import Dataset

    questions = run.questions
    if questions is None:
        return
    for name in sorted({*questions.train, *questions.test} & {*registry.NAMES}):
        if isinstance(registry.get(name), Dataset) and not questions.folder(name):
            yield f"{name}: Questions.data_dir is not set, so its files come through TFDS"


def _mistakes(run: Run, stages: tuple[str, ...], check_model: bool) -> Iterator[str]:
    """Yields the errors that the stages would end with."""
    from lmsi_jax.pipeline import scorers

    yield from _error_of(functools.partial(comparison_run, run, stages))
    yield from _mistakes_in_questions(run, stages)
    for scorer in _scorers(run):
        yield from _error_of(functools.partial(scorers.load, scorer))
    if check_model:
        yield from _mistakes_in_model(run)
    for folder in run.evaluation.checkpoints:
        if "://" not in folder and epath.Path(folder).exists():
            yield from _checkpoint_error(folder)
    for stage, part in (("pretrain", run.pretraining), ("distill", run.distillation)):
        if stage in stages and part is None:
            name = "Pretraining" if stage == "pretrain" else "Distillation"
            yield f"Run.{name.lower()} is not set; bind it to @{name}()"
    longest, new = run.model.max_length, run.sampling.max_new_tokens
    if run.questions is not None and new >= longest:
        yield (
            f"Sampling.max_new_tokens = {new} leaves no room for a prompt in "
            f"ModelConfig.max_length = {longest}; lower the first"
        )


def _mistakes_in_questions(run: Run, stages: tuple[str, ...]) -> Iterator[str]:
    from lmsi_jax.tasks import exemplars, registry

    if "pretrain" in stages:
        for task, _ in run.pretraining.shares if run.pretraining is not None else ():
            yield from _error_of(functools.partial(registry.get, task))
        return
    yield from _error_of(functools.partial(run.check_questions, stages))
    if (questions := run.questions) is None:
        return
    tasks = dict.fromkeys((*questions.train, *questions.test))
    unknown = list(_error_of(functools.partial(registry.custom_tasks, questions))) or [
        error
        for task in tasks
        for error in _error_of(functools.partial(registry.find, questions, task))
    ]
    yield from unknown
    for task, file in questions.exemplars if not unknown else ():
        if "://" not in file and task in tasks:
            kind = registry.find(questions, task).kind
            yield from _error_of(functools.partial(exemplars.load_for_task, file, kind))
    if not unknown:
        yield from _mistakes_in_data(questions)


def _mistakes_in_data(questions: Questions) -> Iterator[str]:
    """Reads and parses all local data files; yields the first mistake in each."""
    from lmsi_jax.tasks import registry
    from lmsi_jax.tasks.custom_task import CustomTask
    from lmsi_jax.tasks.dataset import Dataset
    from lmsi_jax.tasks.task import Split

    asked: list[tuple[Split, str, int]]
    asked = [("train", name, questions.train_count) for name in dict.fromkeys(questions.train)]
    asked += [("test", name, questions.test_count) for name in dict.fromkeys(questions.test)]
    for split, name, count in asked:
        folder, task = questions.folder(name), registry.find(questions, name)
        draw = functools.partial(task.questions, split, questions.level, count, questions.seed)
        if isinstance(task, CustomTask):
            yield from _error_of(draw)
            if split == "train" or name not in questions.train:  # once
                yield from _error_of(task.exemplars)
        elif folder is None or "://" in folder or not isinstance(task, Dataset):
            continue
        elif epath.Path(folder).expanduser().exists():  # else it is missing, which is another line
            yield from _error_of(draw)


def _mistakes_in_model(run: Run) -> Iterator[str]:
    from lmsi_jax.models.tokenizers import open_for_model
    from lmsi_jax.runtime.files import embedded_path

    embedded = run.tokenizer == "embedded"
    path = str(embedded_path("tokenizer.model")) if embedded else run.tokenizer
    yield from _error_of(functools.partial(open_for_model, path, run.model))
    if run.init_checkpoint not in ("embedded", "fresh"):
        yield from _checkpoint_error(run.init_checkpoint)


def _checkpoint_error(folder: str) -> Iterator[str]:
    """Yields the error of a folder without a checkpoint. Only this check loads JAX."""
    from lmsi_jax.training import checkpoints

    yield from _error_of(functools.partial(checkpoints.find, folder))


def _scorers(run: Run) -> list[str]:
    """Returns the scorers of the vote and of all rounds' filters."""
    filters = (run.in_round(index).mixing.selection for index in range(1, run.rounds + 1))
    parts = [run.voting, *(rule for selection in filters for rule in selection)]
    names = (getattr(part, "scorer", None) for part in parts)
    return list(dict.fromkeys(name for name in names if name is not None))


def _error_of(checked: Callable[[], Any]) -> Iterator[str]:
    """Yields the error that a check raises, if it does."""
    try:
        checked()
    except LmsiError as error:
        yield str(error)
