"""Finds tasks by name, and registers them with SeqIO for T5X and other users of it.

The loop reads its questions from the tasks themselves, without SeqIO and TensorFlow. `register()`
adds one SeqIO task per task and level, such as `lmsi_purchases_hard`, which yields the same
questions in the same order. Nothing is registered at import time.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import answer_sentence, question_prompt
from lmsi_jax.tasks.task import LEVELS, Level, Split, Task

# The tasks by the module that has them as its TASKS, in the order of their `NAMES`.
_MODULES = {
    "word_sums": ("purchases", "legs", "choices", "compare", "claims", "travel"),
    "reasoning_gym_families": ("chain_sum", "syllogism", "gsm_symbolic"),
    "math_word_problems": ("gsm8k", "svamp"),
    "multiple_choice": ("aqua", "openbookqa", "arc_challenge"),
    "drop": ("drop_football", "drop_nonfootball"),
    "language_inference": ("anli_r1", "anli_r2", "anli_r3", "rte", "mnli_m", "mnli_mm"),
    "strategyqa": ("strategyqa",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
NAMES: tuple[str, ...] = tuple(_MODULE_OF)
# The base model's documents are no SeqIO split: worked reasoning is for pre-training alone.
SPLITS: tuple[Split, ...] = ("train", "test")
# "also" has one further answer a line.
_FIELDS = ("uid", "question", "kind", "answer", "also")


def get(name: str, data_dir: str | None = None) -> Task:
    """Returns a task; its module is imported now.

    Args:
      name: one of `NAMES`.
      data_dir: the folder of the task's files; tasks without files ignore it.

    Raises:
      LmsiError: there is no such task.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(str(name), NAMES, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise LmsiError(f"there is no task {name!r}; {meant}the tasks are {', '.join(NAMES)}")
    module = importlib.import_module(f"lmsi_jax.tasks.{_MODULE_OF[name]}")
    tasks: Sequence[Task] = module.TASKS
    task = next(one for one in tasks if one.name == name)
    return task.from_folder(data_dir) if data_dir else task


def seqio_name(task: Task, level: Level) -> str:
    """Returns the name of the SeqIO task: `lmsi_legs_easy`, or `lmsi_gsm8k` without levels."""
    return f"lmsi_{task.name}_{level}" if task.levels else f"lmsi_{task.name}"


def register(names: Sequence[str] = NAMES, data_dir: str | None = None) -> None:
    """Adds tasks to SeqIO's registry, unless they are there already.

    Args:
      names: which.
      data_dir: the folder of the files for tasks that have some; these are added anew, so that the
        last folder given holds. Without it they come through TFDS, where TFDS has them.
    """
    import seqio

    for name in names:
        task = get(name, data_dir)
        for seqio_task, level in {seqio_name(task, level): level for level in LEVELS}.items():
            if seqio_task in seqio.TaskRegistry.names():
                if task == get(name):
                    continue
                seqio.TaskRegistry.remove(seqio_task)
            _add(seqio_task, task, level)


def _add(seqio_task: str, task: Task, level: Level) -> None:
    """Adds one SeqIO task; its features are the zero-shot direct format, in bytes."""
    import seqio

    def dataset(split: Split, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files  # the order is drawn by the seed
        return _dataset(task, split, level, seed or 0)

    vocabulary = seqio.ByteVocabulary()
    seqio.TaskRegistry.add(
        seqio_task,
        source=seqio.FunctionDataSource(dataset, splits=list(SPLITS)),
        preprocessors=[
            _zero_shot_direct,
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features={
            "inputs": seqio.Feature(vocabulary=vocabulary, add_eos=False),
            "targets": seqio.Feature(vocabulary=vocabulary, add_eos=True),
        },
    )


def _dataset(task: Task, split: Split, level: Level, seed: int) -> Any:
    """Returns a tf.data.Dataset of the task's questions as texts; "answer" is "" without gold."""
    import tensorflow as tf

    def rows() -> Iterator[dict[str, str]]:
        for question in task.stream(split, level, seed):
            labels = (question.gold or "", "\n".join(question.also))
            row = (question.uid, question.text, question.kind, *labels)
            yield dict(zip(_FIELDS, row, strict=True))

    task.stream(split, level, seed)  # an unreadable file is named here, not from within TensorFlow
    text = tf.TensorSpec(shape=(), dtype=tf.string)
    return tf.data.Dataset.from_generator(rows, output_signature=dict.fromkeys(_FIELDS, text))


def _zero_shot_direct(dataset: Any) -> Any:
    """Adds "inputs" (question and "A:") and "targets" (the answer sentence, "" without gold)."""
    import tensorflow as tf

    before, after = answer_sentence("|").split("|")

    def one(row: Mapping[str, Any]) -> dict[str, Any]:
        """Writes one question's prompt and target."""
        sentence = tf.strings.join([" " + before, row["answer"], after])
        return {
            **row,
            "inputs": tf.strings.join([row["question"], question_prompt("")]),
            "targets": tf.where(row["answer"] == "", "", sentence),
        }

    return dataset.map(one)
