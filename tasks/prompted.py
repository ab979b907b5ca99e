"""Questions as prompts, or examples, as SeqIO tasks: texts encoded as the engine and trainer do.

A task's columns are lists of like length, see `round_texts`. Prompts have our accuracy as metric,
so `seqio.Evaluator` and T5X's eval report what `lmsi eval` does.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from lmsi_jax.decoding.stops import first_stop
from lmsi_jax.evaluation.evaluate import score
from lmsi_jax.prompts import STOP_STRINGS, Prompting
from lmsi_jax.records import Path, Question
from lmsi_jax.tasks.round_texts import Texts
from lmsi_jax.tasks.vocabularies import Pieces, Tokens, encode_prompt

_LABELS = ("uid", "kind", "task", "question", "answer", "also")


def add(
    name: str,
    splits: Mapping[str, Callable[[], Texts]],
    pieces: Pieces | Tokens,
    checked: Callable[..., tf.data.Dataset],
    *,
    weighted: bool = False,
    asked: Prompting | None = None,
) -> None:
    """Registers a task anew; the last registration of a name holds.

    Args:
      name: the task's.
      splits: split -> what returns its columns; called when the split is read.
      pieces: the vocabulary.
      checked: a preprocessor that looks whether the encoded texts fit.
      weighted: whether there is a column `weight`.
      asked: for prompts, how they were asked; None for examples, which have no metric.
    """
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # all in memory; SeqIO shuffles it
        return tf.data.Dataset.from_tensor_slices(dict(splits[split]()))

    text = seqio.Feature(pieces, add_eos=False)
    features = {"inputs": text, "targets": text}
    if weighted:
        number = seqio.PassThroughVocabulary(size=0)
        features["weight"] = seqio.Feature(number, add_eos=False, dtype=tf.float32, rank=0)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=list(splits)),
        preprocessors=[_tokenize, checked],
        output_features=features,
        postprocess_fn=_answer if asked else None,
        metric_fns=[functools.partial(_accuracy, asked)] if asked else [],
    )


def mix(name: str, parts: Sequence[tuple[str, float]]) -> str:
    """Registers a mixture of (task, rate) anew; returns its name."""
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, list(parts))
    return name


def _tokenize(dataset: tf.data.Dataset, output_features: Mapping[str, Any]) -> tf.data.Dataset:
    """Encodes prefix, inputs and targets apart, as our trainer and engine do."""
    vocabulary = output_features["inputs"].vocabulary

    def one(row: dict[str, Any]) -> dict[str, Any]:
        """Encodes one example's texts."""
        own = {name: value for name, value in row.items() if name != "prefix"}
        inputs = tf.concat(encode_prompt(vocabulary, row["prefix"], row["inputs"]), axis=0)
        targets = vocabulary.encode_tf(row["targets"])
        return {**own, "inputs": inputs, "targets": targets, "answer": row["targets"]}

    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE)


def _answer(text: Any, example: Mapping[str, Any], is_target: bool = False) -> Question | Path:
    """The question with its gold answer, or the path that was decoded, cut at its stop."""
    uid, kind, task, question, gold, also = (_text(example[name]) for name in _LABELS)
    if is_target:
        row = {"uid": uid, "task": task, "text": question, "kind": kind, "gold": gold}
        return Question.from_json({**row, "also": also.splitlines()})
    stop = first_stop(text, STOP_STRINGS)
    return Path(uid=uid, index=0, text=text[:stop], tokens=0, logprob=0.0, finished=True)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _accuracy(
    prompting: str, targets: Sequence[Question], predictions: Sequence[Path]
) -> dict[str, float]:
    """What `lmsi eval` reports of a task: shares of right and of parsed answers."""
    paths = {path.uid: [path] for path in predictions}
    found = score(targets, paths, prompting, temperature=0.0)
    return {"accuracy": sum(found.correct) / len(found.correct), "parsed": found.parsed}
