"""The one loader: a round's examples as SeqIO tasks and a mixture, tokenised and endless.

The self-generated and the human examples of each task are a SeqIO task each, and so are its
pairs; the mixture draws them at given rates. The order is a pure function of the seed, so the
number of rows read says where the stream stands. TensorFlow and SeqIO are imported when this is
called.

Where the data stands: how many rows were read, and which of them are in no batch yet.

With this in a checkpoint a run goes on without packing again what it has trained on. The stream
itself is a pure function of the seed, so the number of rows read says where it stands; a stream
that has `skip(count)` passes over them without making them (SeqIO's does, in tf.data).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import SEPARATOR
from lmsi_jax.records import FORMATS, Example, ExamplePair
from lmsi_jax.training.packing import (
    Batch,
    Packer,
    Row,
    Shape,
    pair_row,
    stack_microbatches,
    weighted_row,
)

_SHUFFLE_BUFFER = 100_000
_REMEDY = {
    "self_generated": "no path was kept, see `lmsi report`; or set Training.human_rate to 1",
    "human": "set Mixing.human_examples above 0, or Training.human_rate to 0",
    "pairs": "the votes gave none, see `lmsi report`; lower Preference.threshold",
}
_TEXTS = ("prefix", "inputs", "targets", "rejected")
_Columns = dict[str, list[Any]]


class Examples:
    """An endless, shuffled stream of tokenised examples or pairs.

    Args:
      sources: examples by source, "self_generated" and "human"; or pairs, "pairs".
      rates: share of each source in the stream and in the rows' weights: where several are mixed,
        the weights of each are scaled to the mean 1. (A weight is that of each of a row's target
        tokens, so longer targets have more of the loss.) Sources at rate 0 are left out.
      tokenizer_path: `Run.tokenizer`'s file or folder.
      task_rates: how often each task is drawn within its source; tasks that are not named are left
        out. None: by the number of their examples.
      seed: fixes the order.

    Attributes:
      groups: what a row's `group` number stands for: its format, "few_shot_cot"; where several
        sources are mixed, source and format, "self_generated/few_shot_cot".
      count: different rows; `Row.example` counts them.

    Raises:
      LmsiError: no examples, or a rate for a source or a task that has none.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Example] | Sequence[ExamplePair]],
        rates: Mapping[str, float],
        tokenizer_path: str,
        *,
        task_rates: Mapping[str, float] | None = None,
        seed: int,
    ):
        used = {name: rate for name, rate in rates.items() if rate > 0}
        for name in used:
            if not sources.get(name):
                raise LmsiError(f"there are no {name} examples to train on; {_REMEDY[name]}")
        several = len(used) > 1
        self.groups = [f"{s}/{f}" if several else f for s in used for f in FORMATS]
        self._seed = seed
        self._skipped = 0
        self.count = 0
        parts = []
        for number, (name, rate) in enumerate(used.items()):
            tasks = _by_task(name, sources[name], task_rates)
            unit = _mean_weight(tasks) if several else 1.0
            for task, examples, share in tasks:
                columns = _columns(examples, self.count, number * len(FORMATS))
                columns["weight"] = [weight / unit for weight in columns["weight"]]
                parts.append((f"lmsi_{name}_{task}", columns, rate * share))
                self.count += len(examples)
        self._tasks, self._mixture = _registered(parts, tokenizer_path)

    def skip(self, count: int) -> None:
        """Begins after `count` rows; TensorFlow passes over them without handing them to Python."""
        self._skipped = count

    def __iter__(self) -> Iterator[Row]:
        dataset = _read(self._mixture, shuffle=True, seed=self._seed, num_epochs=None)
        return map(_row, dataset.skip(self._skipped).as_numpy_iterator())

    def in_order(self) -> Iterator[Row]:
        """Yields every row once, by `Row.example`."""
        for task in self._tasks:
            for row in _read(task, shuffle=False, num_epochs=1).as_numpy_iterator():
                yield _row(row)


def in_order(examples: Sequence[Example], tokenizer_path: str) -> Iterator[Row]:
    """Returns tokenised examples once and in their order."""
    import seqio

    from lmsi_jax.interop.seqio_vocabularies import open_vocabulary

    name = "lmsi_in_order"
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    task = _add_task(name, _columns(examples, 0, 0), open_vocabulary(tokenizer_path))
    return map(_row, _read(task, shuffle=False, num_epochs=1).as_numpy_iterator())


def _read(source: Any, **order: Any) -> Any:
    return source.get_dataset(
        sequence_length=None,
        split="train",
        use_cached=False,
        trim_output_features=False,
        **order,
    )


def _row(row: Mapping[str, Any]) -> Row:
    """Row of an example, or of a pair where it has a rejected text."""

    def made(targets: str) -> Row:
        """Row with one of its texts behind the question."""
        return weighted_row(
            row["prefix"].tolist(),
            row["inputs"].tolist(),
            row[targets].tolist(),
            float(row["weight"]),
            group=int(row["group"]),
        )

    own = pair_row(made("targets"), made("rejected")) if "rejected" in row else made("targets")
    return dataclasses.replace(own, example=int(row["example"]))


def _columns(
    examples: Sequence[Example] | Sequence[ExamplePair], first: int, group: int
) -> _Columns:
    """The columns of a SeqIO task; `first` numbers its first example, `group` its first format."""
    columns: _Columns = {
        "prefix": [e.prefix for e in examples],
        "inputs": [e.inputs for e in examples],
        "weight": [e.weight for e in examples],
        "group": [group + FORMATS.index(e.format) for e in examples],
        "example": list(range(first, first + len(examples))),
    }
    # The separator ends a solution in the base model's documents; learning it ends the path.
    for e in examples:
        texts = {"targets": e.targets} if isinstance(e, Example) else _both(e)
        for name, text in texts.items():
            columns.setdefault(name, []).append(text + SEPARATOR)
    return columns


def _both(pair: ExamplePair) -> dict[str, str]:
    return {"targets": pair.chosen, "rejected": pair.rejected}


def _by_task(
    source: str, examples: Sequence[Any], rates: Mapping[str, float] | None
) -> list[tuple[str, list[Any], float]]:
    """Returns (task, its examples, its share of the source) of the tasks that are drawn."""
    tasks: dict[str, list[Any]] = {}
    for example in examples:
        tasks.setdefault(example.task, []).append(example)
    if rates:
        for name, rate in rates.items():
            if rate > 0 and name not in tasks:
                raise LmsiError(
                    f"Training.task_rates names {name!r}, of which there are no {source} examples; "
                    f"the tasks with some are {', '.join(sorted(tasks))}"
                )
    shares = {name: (rates.get(name, 0.0) if rates else len(own)) for name, own in tasks.items()}
    total = sum(shares.values())
    if total <= 0:
        raise LmsiError("Training.task_rates are all 0; give a task a rate above 0, or name none")
    return [(name, own, shares[name] / total) for name, own in tasks.items() if shares[name] > 0]


def _mean_weight(tasks: Sequence[tuple[str, Sequence[Any], float]]) -> float:
    """The mean weight of a row as they are drawn, of (task, examples, share); 1 where all are 0."""
    means = [share * math.fsum(e.weight for e in own) / len(own) for _, own, share in tasks]
    return math.fsum(means) or 1.0


def _registered(
    parts: Sequence[tuple[str, _Columns, float]], tokenizer_path: str
) -> tuple[list[Any], Any]:
    """Registers (name, columns, rate) as tasks anew; returns them and their mixture."""
    import seqio

    from lmsi_jax.interop.seqio_vocabularies import open_vocabulary

    vocabulary = open_vocabulary(tokenizer_path)
    tasks = []
    for name, columns, _ in parts:
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
        tasks.append(_add_task(name, columns, vocabulary))
    if "lmsi_examples" in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove("lmsi_examples")
    rates = [(name, rate) for name, _, rate in parts]
    return tasks, seqio.MixtureRegistry.add("lmsi_examples", rates)


def _add_task(name: str, columns: _Columns, vocabulary: Any) -> Any:
    import seqio
    import tensorflow as tf

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del split, shuffle_files, seed  # one split, already in memory; SeqIO shuffles it
        return tf.data.Dataset.from_tensor_slices(columns)

    count = len(columns["inputs"])
    text = seqio.Feature(vocabulary=vocabulary, add_eos=False)
    number = seqio.PassThroughVocabulary(size=0)
    whole = seqio.Feature(number, add_eos=False, dtype=tf.int32, rank=0)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            dataset, splits=["train"], num_input_examples={"train": count}
        ),
        preprocessors=[_tokenize],
        output_features={
            **{column: text for column in _TEXTS if column in columns},
            "weight": seqio.Feature(number, add_eos=False, dtype=tf.float32, rank=0),
            "group": whole,
            "example": whole,
        },
        # SeqIO repeats before it shuffles: a larger buffer than the data would be filled with
        # copies, all tokenised before the first step.
        shuffle_buffer_size=min(_SHUFFLE_BUFFER, count),
    )


def _tokenize(dataset: Any, output_features: Mapping[str, Any]) -> Any:
    import tensorflow as tf

    from lmsi_jax.interop.seqio_vocabularies import encode_prompt

    def one(row: dict[str, Any]) -> dict[str, Any]:
        """Encodes one example's texts."""
        vocabulary = output_features["targets"].vocabulary
        prefix, inputs = encode_prompt(vocabulary, row["prefix"], row["inputs"])
        learnt = [name for name in ("targets", "rejected") if name in row]
        texts: dict[str, Any] = {name: vocabulary.encode_tf(row[name]) for name in learnt}
        texts |= {"prefix": prefix, "inputs": inputs}
        return {**row, **texts, "weight": tf.cast(row["weight"], tf.float32)}

    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE)


class RowReader:
    """A stream of rows that counts what is read of it, and leaves out what does not fit.

    Args:
      source: the rows; may offer `skip(count)`.
      fits: which rows to give out.
    """

    def __init__(self, source: Iterable[Row], fits: Callable[[Row], bool] = lambda row: True):
        self._source, self._fits = source, fits
        self._iterator: Iterator[Row] | None = None
        self.read = 0

    def skip(self, count: int) -> None:
        """Passes over `count` rows of the source, before anything is read."""
        skip = getattr(self._source, "skip", None)
        if skip is not None:
            skip(count)
        else:
            self._iterator = iter(self._source)
            for _ in zip(range(count), self._iterator, strict=False):
                pass
        self.read = count

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Row:
        if self._iterator is None:
            self._iterator = iter(self._source)
        while True:
            row = next(self._iterator)
            self.read += 1
            if self._fits(row):
                return row


class BatchIterator:
    """The batches of a run's steps, from a position on.

    Args:
      rows: the stream, from its beginning.
      shape: of a step's batch.
      state: as `state` was; None begins at the beginning.
    """

    def __init__(
        self, rows: Iterable[Row], shape: Shape, position: Mapping[str, Any] | None = None
    ):
        self._rows = rows if isinstance(rows, RowReader) else RowReader(rows)
        open_rows: list[Row] = []
        if position is not None:
            open_rows = _unpacked(position)
            self._rows.skip(int(position["rows"]))
        self._packer = Packer(self._rows, shape, open_rows)
        self._steps = stack_microbatches(self._packer, shape.microbatches)

    @property
    def state(self) -> dict[str, Any]:
        """Where the data stands between two steps, as JSON values."""
        return {"rows": self._rows.read, "open": [_json(row) for row in self._packer.open_rows]}

    def next(self) -> Batch | None:
        """Returns the next step's batch; None where the stream has ended."""
        return next(self._steps, None)


def _json(row: Row) -> dict[str, Any]:
    plain = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return {
        k: {"dtype": str(v.dtype), "array": v.tolist()} if isinstance(v, np.ndarray) else v
        for k, v in plain.items()
    }


def _row_reading(plain: Mapping[str, Any]) -> Row:
    found: dict[str, Any] = {
        k: np.array(v["array"], v["dtype"]) if isinstance(v, dict) else v for k, v in plain.items()
    }
    return Row(**{**found, "prefix": tuple(found["prefix"])})


def _unpacked(position: Mapping[str, Any]) -> list[Row]:
    try:
        return [_row_reading(row) for row in position["open"]]
    except (KeyError, TypeError) as error:
        raise LmsiError(
            f"the checkpoint's reading position cannot be understood ({error}); it is of another "
            "version: delete the run's checkpoints and train again"
        ) from error
