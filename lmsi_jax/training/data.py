"""The one loader: a round's examples as SeqIO tasks and a mixture, tokenised and endless.

The weak (own) and the strong (human) examples of each task are a SeqIO task each; the mixture draws
them at given rates. The order is a pure function of the seed, so the number of rows read says where
the stream stands. TensorFlow and SeqIO are imported when this is called.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import SEPARATOR
from lmsi_jax.records import FORMATS, Example
from lmsi_jax.training.packing import Row, weighted_row

_SHUFFLE_BUFFER = 100_000
_REMEDY = {
    "weak": "no path was kept, see `lmsi report`; or set Training.strong_rate to 1",
    "strong": "set Mixing.strong_count above 0, or Training.strong_rate to 0",
}


class Examples:
    """An endless, shuffled stream of tokenised examples.

    Args:
      sources: examples by source, "weak" and "strong".
      rates: share of each source in the stream; sources at rate 0 are left out.
      tokenizer_path: `Run.tokenizer`'s file or folder.
      task_rates: how often each task is drawn within its source; tasks that are not named are left
        out. None: by the number of their examples.
      seed: fixes the order.

    Attributes:
      groups: what a row's `group` number stands for: its format, "few_shot_cot"; where several
        sources are mixed, source and format, "weak/few_shot_cot".

    Raises:
      LmsiError: no examples, or a rate for a source or a task that has none.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Example]],
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
        self._mixture = _mixture(
            [
                (f"lmsi_{name}_{task}", examples, rate * share, number * len(FORMATS))
                for number, (name, rate) in enumerate(used.items())
                for task, examples, share in _by_task(name, sources[name], task_rates)
            ],
            tokenizer_path,
        )

    def skip(self, count: int) -> None:
        """Begins after `count` rows; TensorFlow passes over them without handing them to Python."""
        self._skipped = count

    def __iter__(self) -> Iterator[Row]:
        dataset = self._mixture.get_dataset(
            sequence_length=None,
            split="train",
            shuffle=True,
            seed=self._seed,
            num_epochs=None,
            use_cached=False,
            trim_output_features=False,
        )
        for row in dataset.skip(self._skipped).as_numpy_iterator():
            yield weighted_row(
                row["prefix"].tolist(),
                row["inputs"].tolist(),
                row["targets"].tolist(),
                float(row["weight"]),
                group=int(row["group"]),
            )


_Part = tuple[str, Sequence[Example], float, int]
"""A SeqIO task: its name, its examples, its rate, the group number of its first format."""


def _by_task(
    source: str, examples: Sequence[Example], rates: Mapping[str, float] | None
) -> list[tuple[str, Sequence[Example], float]]:
    """Returns (task, its examples, its share of the source) of the tasks that are drawn."""
    tasks: dict[str, list[Example]] = {}
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


def _mixture(parts: Sequence[_Part], tokenizer_path: str) -> Any:
    """Registers the tasks and their mixture anew, and returns the mixture."""
    import seqio

    from lmsi_jax.tasks.vocabularies import open_vocabulary

    vocabulary = open_vocabulary(tokenizer_path)
    for name, examples, _, group in parts:
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
        _add_task(name, examples, vocabulary, group)
    if "lmsi_examples" in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove("lmsi_examples")
    return seqio.MixtureRegistry.add("lmsi_examples", [(name, rate) for name, _, rate, _ in parts])


def _add_task(name: str, examples: Sequence[Example], vocabulary: Any, group: int) -> None:
    import seqio
    import tensorflow as tf

    columns = {
        "prefix": [e.prefix for e in examples],
        "inputs": [e.inputs for e in examples],
        # The separator ends a solution in the base model's documents; learning it ends the path.
        "targets": [e.targets + SEPARATOR for e in examples],
        "weight": [e.weight for e in examples],
        "group": [group + FORMATS.index(e.format) for e in examples],
    }

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del split, shuffle_files, seed  # one split, already in memory; SeqIO shuffles it
        return tf.data.Dataset.from_tensor_slices(columns)

    text = seqio.Feature(vocabulary=vocabulary, add_eos=False)
    number = seqio.PassThroughVocabulary(size=0)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            dataset, splits=["train"], num_input_examples={"train": len(examples)}
        ),
        preprocessors=[_tokenize],
        output_features={
            "prefix": text,
            "inputs": text,
            "targets": text,
            "weight": seqio.Feature(number, add_eos=False, dtype=tf.float32, rank=0),
            "group": seqio.Feature(number, add_eos=False, dtype=tf.int32, rank=0),
        },
        # SeqIO repeats before it shuffles: a larger buffer than the data would be filled with
        # copies, all tokenised before the first step.
        shuffle_buffer_size=min(_SHUFFLE_BUFFER, len(examples)),
    )


def _tokenize(dataset: Any, output_features: Mapping[str, Any]) -> Any:
    import tensorflow as tf

    from lmsi_jax.tasks.vocabularies import encode_prompt

    def one(row: dict[str, Any]) -> dict[str, Any]:
        """Encodes one example's texts."""
        vocabulary = output_features["targets"].vocabulary
        prefix, inputs = encode_prompt(vocabulary, row["prefix"], row["inputs"])
        texts = {
            "prefix": prefix,
            "inputs": inputs,
            "targets": vocabulary.encode_tf(row["targets"]),
        }
        return {**row, **texts, "weight": tf.cast(row["weight"], tf.float32)}

    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE)
