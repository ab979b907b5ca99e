"""The one loader: a round's examples as SeqIO tasks and a mixture, tokenised and endless.

The self-generated and the human examples of each task are a SeqIO task each, and so are its pairs;
the mixture draws them at given rates. The order is a pure function of the seed, so the number of
rows read says where the stream is. TensorFlow and SeqIO are imported when this is called.

A checkpoint has the state of a `BatchIterator`: the number of rows read, and those of them that are
in no batch yet. A resumed run need not pack again what it has trained on; a stream that has
`skip(count)` passes over those rows without making them (SeqIO's does, in tf.data).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import SEPARATOR
from lmsi_jax.records import FORMATS, Example, ExamplePair, Text
from lmsi_jax.training.packing import (
    Batch,
    DistillationRow,
    Packer,
    PairRow,
    Row,
    Shape,
    pair_row,
    stack_microbatches,
    weighted_row,
)

_SHUFFLE_BUFFER = 100_000
_REMEDY = {
    "self_generated": "no sample was kept, see `lmsi report`; or set Training.human_rate to 1",
    "human": "set Mixing.human_examples above 0, or Training.human_rate to 0",
    "pairs": "the votes gave none, see `lmsi report`; lower Preference.threshold",
}
_TEXTS = ("prefix", "inputs", "targets", "rejected")
_Columns = dict[str, list[Any]]


class Examples:
    """An endless, shuffled stream of tokenised examples or pairs.

    The weights in the examples were normalised within each question when they were mixed
    (`Mixing.normalise`). If several sources are mixed, those of each are also scaled to the mean 1
    here, because rates and sources are settings of the training: then a source's rate is also its
    share of the loss. (A weight is that of each of a row's target tokens, so longer targets have
    more of the loss.)

    Args:
      sources: examples by source, "self_generated" and "human"; or pairs, "pairs".
      rates: share of each source in the stream; sources at rate 0 are left out.
      tokenizer_path: `Run.tokenizer`'s file or folder.
      task_rates: how often each task is drawn within its source; unnamed tasks are left out. None:
        by the number of their examples.
      seed: fixes the order.

    Attributes:
      groups: meaning of a row's `group` number: its format, "few_shot_cot"; if several sources are
        mixed, source and format, "self_generated/few_shot_cot".
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
        self._tasks, self._mixture = _add_mixture(parts, tokenizer_path)

    def skip(self, count: int) -> None:
        """Starts after `count` rows; TensorFlow skips them without handing them to Python."""
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
    from lmsi_jax.interop.seqio_vocabularies import open_vocabulary

    columns = _columns(examples, 0, 0)
    task = _add_task("lmsi_in_order", columns, open_vocabulary(tokenizer_path))
    return map(_row, _read(task, shuffle=False, num_epochs=1).as_numpy_iterator())


def _read(source: Any, **order: Any) -> Any:
    return source.get_dataset(
        sequence_length=None,
        split="train",
        use_cached=False,
        trim_output_features=False,
        **order,
    )


def _row(columns: Mapping[str, Any]) -> Row:
    """Returns the row of an example, or of a pair if there is a rejected text."""

    def row(targets: str) -> Row:
        return weighted_row(
            columns["prefix"].tolist(),
            columns["inputs"].tolist(),
            columns[targets].tolist(),
            float(columns["weight"]),
            group=int(columns["group"]),
        )

    if "rejected" in columns:
        example: Row = pair_row(row("targets"), row("rejected"))
    else:
        example = row("targets")
    return dataclasses.replace(example, example=int(columns["example"]))


def _columns(
    examples: Sequence[Example] | Sequence[ExamplePair], first: int, group: int
) -> _Columns:
    """Returns the columns of a SeqIO task.

    Args:
      examples: the rows.
      first: number of the first one within the run.
      group: number of the first format.
    """
    columns: _Columns = {
        "prefix": [e.prefix for e in examples],
        "inputs": [e.inputs for e in examples],
        "weight": [e.weight for e in examples],
        "group": [group + FORMATS.index(e.format) for e in examples],
        "example": list(range(first, first + len(examples))),
    }
    # The separator ends a solution in the base model's documents; learning it ends the sample.
    # Texts with control tokens end in one.
    for e in examples:
        if isinstance(e, Example):
            texts: dict[str, Text] = {"targets": e.targets}
        else:
            texts = {"targets": e.chosen, "rejected": e.rejected}
        for name, text in texts.items():
            ended = text + SEPARATOR if isinstance(text, str) else text
            columns.setdefault(name, []).append(ended)
    return columns


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
    """Returns the expected weight of a drawn row, of (task, examples, share); 1 if all are 0."""
    means = [share * math.fsum(abs(e.weight) for e in own) / len(own) for _, own, share in tasks]
    return math.fsum(means) or 1.0


def _add_mixture(
    parts: Sequence[tuple[str, _Columns, float]], tokenizer_path: str
) -> tuple[list[Any], Any]:
    """Registers (name, columns, rate) as tasks; returns them and their mixture."""
    import seqio

    from lmsi_jax.interop.seqio_vocabularies import open_vocabulary

    vocabulary = open_vocabulary(tokenizer_path)
    tasks = [_add_task(name, columns, vocabulary) for name, columns, _ in parts]
    if "lmsi_examples" in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove("lmsi_examples")
    rates = [(name, rate) for name, _, rate in parts]
    return tasks, seqio.MixtureRegistry.add("lmsi_examples", rates)


def _add_task(name: str, columns: _Columns, vocabulary: Any) -> Any:
    """Registers columns as a SeqIO task, in place of an earlier one of that name."""
    import seqio
    import tensorflow as tf

    from lmsi_jax.interop.seqio_vocabularies import to_columns

    names = [column for column in _TEXTS if column in columns]
    strings, structured = to_columns([text for column in names for text in columns[column]])
    count = len(columns["inputs"])
    texts = {
        column: strings[number * count : (number + 1) * count]
        for number, column in enumerate(names)
    }

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del split, shuffle_files, seed  # one split, already in memory; SeqIO shuffles it
        return tf.data.Dataset.from_tensor_slices(columns | texts)

    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    text = seqio.Feature(vocabulary=vocabulary, add_eos=False)
    number = seqio.PassThroughVocabulary(size=0)
    integer = seqio.Feature(number, add_eos=False, dtype=tf.int32, rank=0)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            dataset, splits=["train"], num_input_examples={"train": count}
        ),
        preprocessors=[functools.partial(_tokenize, structured=structured)],
        output_features={
            **dict.fromkeys(names, text),
            "weight": seqio.Feature(number, add_eos=False, dtype=tf.float32, rank=0),
            "group": integer,
            "example": integer,
        },
        # SeqIO repeats before it shuffles: a larger buffer than the data would be filled with
        # copies, all tokenised before the first step.
        shuffle_buffer_size=min(_SHUFFLE_BUFFER, count),
    )


def _tokenize(dataset: Any, output_features: Mapping[str, Any], structured: bool) -> Any:
    import tensorflow as tf

    from lmsi_jax.interop.seqio_vocabularies import encode_parts

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in _TEXTS if name in row]
        parts = [row[name] for name in names]
        ids = encode_parts(output_features["targets"].vocabulary, parts, structured)
        texts = dict(zip(names, ids, strict=True))
        return {**row, **texts, "weight": tf.cast(row["weight"], tf.float32)}

    return dataset.map(encode, num_parallel_calls=tf.data.AUTOTUNE)


class RowReader:
    """A stream of rows that counts how many were read, and leaves out those that do not fit.

    Args:
      source: the rows; may offer `skip(count)`.
      fits: whether a row is yielded.
    """

    def __init__(self, source: Iterable[Row], fits: Callable[[Row], bool] = lambda row: True):
        self._source, self._fits = source, fits
        self._iterator: Iterator[Row] | None = None
        self.read = 0

    def skip(self, count: int) -> None:
        """Skips `count` rows of the source, before anything is read."""
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
    """The batches of a run's steps, from a state on.

    Args:
      rows: the stream, from its beginning.
      shape: of a step's batch.
      state: an earlier iterator's `state`; None starts at the beginning.
    """

    def __init__(self, rows: Iterable[Row], shape: Shape, state: Mapping[str, Any] | None = None):
        self._rows = rows if isinstance(rows, RowReader) else RowReader(rows)
        open_rows: list[Row] = []
        if state is not None:
            open_rows = _open_rows(state)
            self._rows.skip(int(state["rows"]))
        self._packer = Packer(self._rows, shape, open_rows)
        self._steps = stack_microbatches(self._packer, shape.microbatches)

    @property
    def state(self) -> dict[str, Any]:
        """The state between two steps, as JSON values."""
        return {"rows": self._rows.read, "open": [_to_json(row) for row in self._packer.open_rows]}

    def next(self) -> Batch | None:
        """Returns the next step's batch; None after the end of the stream."""
        return next(self._steps, None)


_ROW_KINDS = {kind.__name__: kind for kind in (Row, DistillationRow, PairRow)}


def _to_json(row: Row) -> dict[str, Any]:
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    arrays = {
        name: {"dtype": str(value.dtype), "array": value.tolist()}
        for name, value in values.items()
        if isinstance(value, np.ndarray)
    }
    return {"kind": type(row).__name__, **values, **arrays}


def _from_json(values: Mapping[str, Any]) -> Row:
    fields: dict[str, Any] = {
        name: np.array(value["array"], value["dtype"]) if isinstance(value, dict) else value
        for name, value in values.items()
        if name != "kind"
    }
    return _ROW_KINDS[values["kind"]](**fields | {"prefix": tuple(fields["prefix"])})


def _open_rows(state: Mapping[str, Any]) -> list[Row]:
    try:
        return [_from_json(row) for row in state["open"]]
    except (KeyError, TypeError) as error:
        raise LmsiError(
            f"the checkpoint's reading position cannot be understood ({error}); it is of another "
            "version: delete the run's checkpoints and train again"
        ) from error
