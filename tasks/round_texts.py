"""A finished run's texts by column: a round's examples and the run's questions, as T5X learns them.

Columns are lists of like length: prefix, inputs and targets, and what else a row carries.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import SEPARATOR, Prompting, build_prompt
from lmsi_jax.records import Example, Exemplar, Question
from lmsi_jax.stages.context import embedded_path
from lmsi_jax.store import ShardStore
from lmsi_jax.tasks import registry

Texts = Mapping[str, Sequence[Any]]


def tokenizer_path(tokenizer: str) -> str:
    """Returns the file of `Run.tokenizer`."""
    return str(embedded_path("tokenizer.model")) if tokenizer == "embedded" else tokenizer


def examples(
    run_dir: epath.PathLike, round_index: int, strong_rate: float
) -> dict[str, tuple[Texts, float]]:
    """Returns a round's training examples and their rate, by source.

    Raises:
      LmsiError: the round has no examples of a source whose rate is above 0.
    """
    store = ShardStore(epath.Path(run_dir) / f"round_{round_index}" / "mix")
    found = {}
    for source, rate in {"weak": 1.0 - strong_rate, "strong": strong_rate}.items():
        if rate > 0:
            shards = [name for name in store.names() if name.startswith(f"{source}-")]
            rows = [Example.from_json(row) for name in shards for row in store.read(name)]
            if not rows:
                raise LmsiError(
                    f"{store.directory} holds no {source} examples; finish `lmsi mix`, or change "
                    "mixture.strong_rate or mixture.round_index"
                )
            found[source] = (_learnt(rows), rate)
    return found


def _learnt(rows: Sequence[Example]) -> Texts:
    return {
        "prefix": [row.prefix for row in rows],
        "inputs": [row.inputs for row in rows],
        # As in the trainer: learning the separator ends a path.
        "targets": [row.targets + SEPARATOR for row in rows],
        "weight": [row.weight for row in rows],
    }


def questions(run_dir: epath.PathLike, prompting: Prompting) -> dict[str, dict[str, Texts]]:
    """Returns a run's questions as prompts, by task and split.

    Raises:
      LmsiError: the folder has no questions.
    """
    store = ShardStore(epath.Path(run_dir) / "questions")
    found: dict[str, dict[str, Texts]] = {}
    for shard in store.names():
        split, _, task = shard.partition("-")
        if split in registry.SPLITS:
            rows = [Question.from_json(row) for row in store.read(shard)]
            exemplars = [Exemplar.from_json(row) for row in store.read(f"exemplars-{task}")]
            found.setdefault(task, {})[split] = asked(rows, exemplars, prompting)
    if not found:
        raise LmsiError(f"{store.directory} holds no questions; run `lmsi run` into {run_dir}")
    return found


def asked(rows: Sequence[Question], exemplars: Sequence[Exemplar], prompting: Prompting) -> Texts:
    """Returns the columns of questions as prompts."""
    prompts = [build_prompt(row, exemplars, prompting) for row in rows]
    return {
        "prefix": [prefix for prefix, _ in prompts],
        "inputs": [text for _, text in prompts],
        "targets": [row.gold or "" for row in rows],
        "also": ["\n".join(row.also) for row in rows],
        "question": [row.text for row in rows],
        "uid": [row.uid for row in rows],
        "kind": [row.kind for row in rows],
        "task": [row.task for row in rows],
    }
