"""The one loader: a round's examples as SeqIO tasks and a mixture, tokenised and endless.

Weak (own) and strong (human) examples are two tasks; the mixture draws them at given rates. The
order is a pure function of the seed. TensorFlow and SeqIO are imported when this is called.
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


def example_rows(
    sources: Mapping[str, Sequence[Example]],
    rates: Mapping[str, float],
    tokenizer_path: str,
    *,
    seed: int,
) -> Iterator[Row]:
    """Yields an endless, shuffled stream of tokenised examples.

    Args:
      sources: examples by source, "weak" and "strong".
      rates: share of each source in the stream; sources at rate 0 are left out.
      tokenizer_path: a SentencePiece model file.
      seed: fixes the order.

    Raises:
      LmsiError: no examples, or a rate for a source that has none.
    """
    used = {name: rate for name, rate in rates.items() if rate > 0}
    for name in used:
        if not sources.get(name):
            raise LmsiError(f"there are no {name} examples to train on; {_REMEDY[name]}")
    dataset = _mixture(sources, used, tokenizer_path).get_dataset(
        sequence_length=None,
        split="train",
        shuffle=True,
        seed=seed,
        num_epochs=None,
        use_cached=False,
        trim_output_features=False,
    )
    for row in dataset.as_numpy_iterator():
        yield weighted_row(
            row["prefix"].tolist(),
            row["inputs"].tolist(),
            row["targets"].tolist(),
            float(row["weight"]),
            group=int(row["format"]),
        )


def _mixture(
    sources: Mapping[str, Sequence[Example]], rates: Mapping[str, float], tokenizer_path: str
) -> Any:
    """Registers the tasks and their mixture anew, and returns the mixture."""
    import seqio

    names = []
    for source, rate in rates.items():
        name = f"lmsi_examples_{source}"
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
        _add_task(name, sources[source], tokenizer_path)
        names.append((name, rate))
    if "lmsi_examples" in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove("lmsi_examples")
    return seqio.MixtureRegistry.add("lmsi_examples", names)


def _add_task(name: str, examples: Sequence[Example], tokenizer_path: str) -> None:
    import seqio
    import tensorflow as tf

    columns = {
        "prefix": [e.prefix for e in examples],
        "inputs": [e.inputs for e in examples],
        # The separator ends a solution in the base model's documents; learning it ends the path.
        "targets": [e.targets + SEPARATOR for e in examples],
        "weight": [e.weight for e in examples],
        "format": [FORMATS.index(e.format) for e in examples],
    }

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del split, shuffle_files, seed  # one split, already in memory; SeqIO shuffles it
        return tf.data.Dataset.from_tensor_slices(columns)

    vocabulary = seqio.SentencePieceVocabulary(tokenizer_path)
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
            "format": seqio.Feature(number, add_eos=False, dtype=tf.int32, rank=0),
        },
        # SeqIO repeats before it shuffles: a larger buffer than the data would be filled with
        # copies, all tokenised before the first step.
        shuffle_buffer_size=min(_SHUFFLE_BUFFER, len(examples)),
    )


def _tokenize(dataset: Any, output_features: Mapping[str, Any]) -> Any:
    import tensorflow as tf

    def one(row: dict[str, Any]) -> dict[str, Any]:
        """Encodes one example's texts."""
        texts = {
            k: output_features[k].vocabulary.encode_tf(row[k])
            for k in ("prefix", "inputs", "targets")
        }
        return {**row, **texts, "weight": tf.cast(row["weight"], tf.float32)}

    return dataset.map(one, num_parallel_calls=tf.data.AUTOTUNE)
