"""Finds tasks by name, and registers them with SeqIO for T5X and other users of it.

The loop reads its questions from the tasks themselves, without SeqIO and TensorFlow. `register()`
adds one SeqIO task per task and level, such as `lmsi_purchases_hard`, which yields the same
questions in the same order. Nothing is registered at import time.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmsi_jax.config import FileTask, Questions
from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import answer_sentence, question_prompt
from lmsi_jax.records import CustomRules
from lmsi_jax.runtime import user_code
from lmsi_jax.tasks.task import LEVELS, Level, Split, Task

# The tasks by the module that has them as its TASKS, in the order of their `NAMES`.
_MODULES = {
    "word_sums": ("purchases", "legs", "choices", "compare", "claims", "travel"),
    "reasoning_gym_families": ("chain_sum", "syllogism", "gsm_symbolic"),
    "math_word_problems": ("gsm8k", "svamp"),
    "multiple_choice": ("aqua", "openbookqa", "arc_challenge"),
    "drop": ("drop_football", "drop_nonfootball"),
    "closed_labels": ("anli_r1", "anli_r2", "anli_r3", "rte", "mnli_m", "mnli_mm", "strategyqa"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
NAMES: tuple[str, ...] = tuple(_MODULE_OF)
# The base model's documents are no SeqIO split: worked reasoning is for pre-training alone.
SPLITS: tuple[Split, ...] = ("train", "test")
# "also" has one further answer a line.
_FIELDS = ("uid", "question", "kind", "answer", "also")


def get(name: str | FileTask, data_dir: str | None = None) -> Task:
    """Returns a task; its module is imported now.

    Args:
      name: one of `NAMES`; or a user's task, as "module:object" or by its settings.
      data_dir: the folder of the task's files; tasks that name theirs, or have none, ignore it.

    Raises:
      LmsiError: there is no such task.
    """
    if isinstance(name, FileTask) or ":" in name:
        from lmsi_jax.tasks import custom_task

        custom = custom_task.from_code if isinstance(name, str) else custom_task.from_files
        return custom(name)  # type: ignore[arg-type]
    if name not in NAMES:
        raise _no_task(name, NAMES)
    module = importlib.import_module(f"lmsi_jax.tasks.{_MODULE_OF[name]}")
    tasks: Sequence[Task] = module.TASKS
    task = next(one for one in tasks if one.name == name)
    return task.from_folder(data_dir) if data_dir else task


def custom_tasks(questions: Questions) -> dict[str, Task]:
    """Returns the user's tasks of a run by name.

    Raises:
      LmsiError: one cannot be loaded, or two tasks have one name.
    """
    tasks: dict[str, Task] = {}
    for definition in questions.tasks:
        task = get(definition)
        if task.name in tasks or task.name in NAMES:
            other = "a packaged task" if task.name in NAMES else "another of Questions.tasks"
            raise LmsiError(f"Questions.tasks: {task.name!r} is the name of {other}; rename it")
        tasks[task.name] = task
    return tasks


def find(questions: Questions, name: str) -> Task:
    """Returns a task of a run with its files: one of `Questions.tasks`, or a packaged one.

    Raises:
      LmsiError: there is no such task.
    """
    if name in NAMES:
        return get(name, questions.folder(name))
    tasks = custom_tasks(questions)
    if name not in tasks:
        raise _no_task(name, (*tasks, *NAMES))
    return tasks[name]


def custom_digests(questions: Questions) -> dict[str, Any]:
    """Returns the digests of what shapes the questions of a run's custom tasks, by task.

    Raises:
      LmsiError: as `custom_tasks`, or a file is missing.
    """
    digests: dict[str, Any] = {}
    for definition in questions.tasks:
        task = get(definition)
        if task.name in (*questions.train, *questions.test):
            of_task = getattr(task, "digests", None)
            if of_task is not None:
                digests[task.name] = of_task()
            elif isinstance(definition, str):
                digests[task.name] = {"code": user_code.fingerprint(definition, "Questions.tasks")}
    return digests


def rules_of(questions: Questions, name: str) -> CustomRules | None:
    """Returns the functions of a user's task of a run; None for all other tasks."""
    return None if name in NAMES else getattr(find(questions, name), "rules", None)


def _no_task(name: str, names: Sequence[str]) -> LmsiError:
    if ":" in str(name):
        return LmsiError(
            f"{name!r} is Python code: list it in Questions.tasks, and name it in Questions.train "
            "and Questions.test by its `name`"
        )
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return LmsiError(f"there is no task {name!r}; {meant}the tasks are {', '.join(names)}")


def seqio_name(task: Task, level: Level) -> str:
    """Returns the name of the SeqIO task: `lmsi_legs_easy`, or `lmsi_gsm8k` without levels."""
    return f"lmsi_{task.name}_{level}" if task.levels else f"lmsi_{task.name}"


def register(names: Sequence[str | FileTask] = NAMES, data_dir: str | None = None) -> None:
    """Adds tasks to SeqIO's registry, unless they are there already.

    Args:
      names: which, as `get` takes them.
      data_dir: the folder of the files for tasks that have some; these are added anew, so that the
        last folder given holds. Without it they come through TFDS, where TFDS has them.
    """
    import seqio

    for name in names:
        task = get(name, data_dir)
        for seqio_task, level in {seqio_name(task, level): level for level in LEVELS}.items():
            if seqio_task in seqio.TaskRegistry.names():
                if name in NAMES and task == get(name):
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
