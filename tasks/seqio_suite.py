"""The tasks as SeqIO tasks in the four prompt styles, and the paper's mixtures, for any evaluator.

An explicit call registers tasks; calling it again has the same effect:

    seqio_suite.register(tokenizer="models/x/tokenizer.json", data_dirs={"svamp": "/data/svamp"})
    seqio.Evaluator("lmsi_svamp_cot", ...)         or lmsi_out_of_domain_zero_shot_cot, ...

| mixture                         | tasks (LMSI, section 4)                                |
|---------------------------------|--------------------------------------------------------|
| lmsi_in_domain_PROMPT_STYLE     | GSM8K, DROP, OpenBookQA, ARC-Challenge, ANLI R2 and R3 |
| lmsi_out_of_domain_PROMPT_STYLE | SVAMP, AQuA, StrategyQA, ANLI R1, RTE, MNLI            |

PROMPT_STYLE is cot, standard, zero_shot_cot or zero_shot_direct. A mixture has the splits that all
its tasks have; training questions carry no answer.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from lmsi_jax.config import FileTask
from lmsi_jax.prompts import PROMPT_STYLES, PromptStyle
from lmsi_jax.tasks import exemplars as exemplar_files
from lmsi_jax.tasks import registry, seqio_prompts, seqio_rounds
from lmsi_jax.tasks.custom_task import CustomTask
from lmsi_jax.tasks.dataset import Dataset
from lmsi_jax.tasks.seqio_prompts import Texts, check_prompts, prompt_columns
from lmsi_jax.tasks.task import Level, Split, Task

PUBLISHED = tuple(name for name in registry.NAMES if isinstance(registry.get(name), Dataset))
_MIXTURES = {"in": "in_domain", "out": "out_of_domain"}


def register(
    names: Sequence[str | FileTask] = PUBLISHED,
    prompt_styles: Sequence[PromptStyle] = PROMPT_STYLES,
    *,
    tokenizer: str = "embedded",
    max_new_tokens: int = 256,
    data_dirs: Mapping[str, str] | None = None,
    exemplars: Mapping[str, str] | None = None,
    level: Level = "hard",
    seed: int = 0,
) -> list[str]:
    """Registers tasks and mixtures; no question is read before a task is used.

    Args:
      names: tasks of `registry.NAMES`, or a user's as `registry.get` takes them.
      prompt_styles: the styles of the prompts.
      tokenizer: `Run.tokenizer`.
      max_new_tokens: most tokens that are read of an answer.
      data_dirs: task -> folder of its files; without one it comes through TFDS.
      exemplars: task -> file of exemplars, in place of this project's.
      level: for tasks that have levels.
      seed: draws the order of the questions.

    Returns:
      The names of all registered tasks and mixtures.

    Raises:
      LmsiError: an unknown task, or an exemplar file that cannot be read.
    """
    registered, parts = [], dict[str, list[tuple[str, float]]]()
    for given in names:
        folder = (data_dirs or {}).get(given) if isinstance(given, str) else None
        task = registry.get(given, folder)
        file = (exemplars or {}).get(task.name)
        shown = exemplar_files.load(file) if file else task.exemplars()
        for prompt_style in prompt_styles:
            texts: dict[str, _Columns] = {
                split: _columns(task, split, level, seed, shown, prompt_style)
                for split in _splits(task)
            }
            full = f"{registry.seqio_name(task, level)}_{prompt_style}"
            check = functools.partial(_whole, full, texts, tokenizer)
            pieces = seqio_rounds.vocabulary(tokenizer, max_new_tokens)
            seqio_prompts.add(full, texts, pieces, check, prompt_style=prompt_style)
            registered.append(full)
            if isinstance(task, Dataset):
                mixture = f"lmsi_{_MIXTURES[task.domain]}_{prompt_style}"
                parts.setdefault(mixture, []).append((full, 1.0))
    return registered + [seqio_prompts.mix(name, rates) for name, rates in parts.items()]


def mixture(domain: str = "in", prompt_style: PromptStyle = "cot", **settings: Any) -> str:
    """Registers as `register` does, and returns the name of a mixture, for T5X's gin files.

    Args:
      domain: "in" or "out".
      prompt_style: the style of the prompts.
      **settings: of `register`.
    """
    register(prompt_styles=(prompt_style,), **settings)
    return f"lmsi_{_MIXTURES[domain]}_{prompt_style}"


def _splits(task: Task) -> tuple[Split, ...]:
    """Returns the splits for which a task has a source."""
    if isinstance(task, CustomTask):
        return task.splits
    if not isinstance(task, Dataset):
        return registry.SPLITS
    known = {*task.file_names, *task.tfds}
    return tuple(split for split in registry.SPLITS if split in known)


class _Columns:
    """The questions of a split as prompts, read at the first call."""

    def __init__(self, read: Callable[[], Texts]):
        self._read = functools.cache(read)

    def __call__(self) -> Texts:
        return self._read()

    @property
    def is_read(self) -> bool:
        """True once they have been read."""
        return self._read.cache_info().currsize > 0


def _columns(
    task: Task, split: Split, level: Level, seed: int, shown: Any, prompt_style: PromptStyle
) -> _Columns:
    return _Columns(
        lambda: prompt_columns(list(task.stream(split, level, seed)), shown, prompt_style)
    )


def _whole(
    name: str,
    splits: Mapping[str, _Columns],
    tokenizer: str,
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
) -> tf.data.Dataset:
    """Refuses a prompt that is too long: truncated, it would lose its question."""
    if sequence_length:
        for columns in splits.values():
            if columns.is_read:  # the other split is not the one that is read
                remedy = "pass sequence_length=None"
                check_prompts(name, columns(), tokenizer, sequence_length, remedy)
    return dataset
