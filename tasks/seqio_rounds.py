"""A finished run for T5X: a round's examples and the run's questions, as SeqIO tasks by gin.

T5X's gin files call `mixture` and `questions`, which register what they name and return the name:

    MIXTURE_OR_TASK_NAME = @seqio_rounds.mixture()
    seqio_rounds.mixture.run_dir = 'runs/quickstart'

T5X puts a start token before each text; our model has none. The adapter (`interop.t5x`) masks it,
so nothing predicts the first token of a text, which gets no weight here.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf
from etils import epath

from lmsi_jax.config import ModelConfig, Optimizer
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.seqio_vocabularies import Pieces, Tokens, id_shift, open_t5x_vocabulary
from lmsi_jax.models.tokenizers import open_tokenizer
from lmsi_jax.prompts import PromptStyle
from lmsi_jax.runtime.files import read_record
from lmsi_jax.tasks import seqio_prompts
from lmsi_jax.tasks.seqio_prompts import Texts, check_examples, check_prompts, has_controls
from lmsi_jax.training.optimizers import transformation

_Splits = dict[str, Callable[[], Texts]]


def model_config(run_dir: epath.PathLike) -> ModelConfig:
    """Returns the shape of a run's model, from its manifest.

    Raises:
      LmsiError: the folder holds no run.
    """
    manifest = epath.Path(run_dir) / "manifest.json"
    if not manifest.exists():
        raise LmsiError(f"{run_dir} holds no run; set RUN_DIR to the output_dir of `lmsi run`")
    return ModelConfig.from_json(read_record(manifest)["model"])


def vocabulary(tokenizer: str = "embedded", limit: int | None = None) -> Pieces | Tokens:
    """Returns the vocabulary of `Run.tokenizer`; `limit` is the most tokens of a decoded text."""
    return open_t5x_vocabulary(seqio_prompts.tokenizer_path(tokenizer), limit)


def first_id(tokenizer: str = "embedded") -> int:
    """Returns `T5XDecoder.first_id`, T5X's id of the model's id 0."""
    return id_shift(open_tokenizer(seqio_prompts.tokenizer_path(tokenizer)))


def optimizer(settings: Optimizer, steps: int) -> Any:
    """Returns the Optax optimiser of our trainer for `steps` steps, for T5X's wrapper."""
    return transformation(settings, steps)


def mixture(
    run_dir: epath.PathLike,
    round_index: int = 1,
    tokenizer: str = "embedded",
    human_rate: float = 0.0,
) -> str:
    """Registers a round's training examples, split "train", and returns the mixture's name.

    Args:
      run_dir: `Run.output_dir` of a run that has finished the stage `mix`.
      round_index: the round of the examples.
      tokenizer: `Run.tokenizer`.
      human_rate: share of human examples; the rest are self-generated ones.

    Raises:
      LmsiError: the round has no examples of a source whose rate is above 0.
    """
    parts = []
    for source, (texts, rate) in seqio_prompts.examples(run_dir, round_index, human_rate).items():
        name = f"lmsi_round_{source}"
        fitting = functools.partial(_fitting, name, texts, tokenizer)
        texts_of: _Splits = {"train": functools.partial(dict, texts)}
        seqio_prompts.add(
            name,
            texts_of,
            vocabulary(tokenizer),
            fitting,
            weighted=True,
            structured=has_controls(texts),
        )
        parts.append((name, rate))
    return seqio_prompts.mix("lmsi_round", parts)


def questions(
    run_dir: epath.PathLike,
    tokenizer: str = "embedded",
    prompt_style: PromptStyle = "cot",
    max_new_tokens: int = 256,
) -> str:
    """Registers a run's questions as prompts, and returns the name of the mixture of their tasks.

    Split "test" has the gold answers and our accuracy as its metric; split "train" has neither.

    Args:
      run_dir: `Run.output_dir` of a run that has finished the stage `questions`.
      tokenizer: `Run.tokenizer`.
      prompt_style: the style of the prompts.
      max_new_tokens: most tokens that are read of an answer, as `Sampling.max_new_tokens`.

    Raises:
      LmsiError: the folder has no questions.
    """
    by_task = seqio_prompts.question_texts(run_dir, prompt_style, tokenizer)
    pieces = vocabulary(tokenizer, max_new_tokens)
    names = {task: f"lmsi_run_{task}_{prompt_style}" for task in by_task}
    for task, splits in by_task.items():
        whole = functools.partial(_whole, names[task], tuple(splits.values()), tokenizer)
        texts_of: _Splits = {s: functools.partial(dict, texts) for s, texts in splits.items()}
        structured = any(map(has_controls, splits.values()))
        seqio_prompts.add(
            names[task],
            texts_of,
            pieces,
            whole,
            prompt_style=prompt_style,
            structured=structured,
        )
    # A mixture has the splits that all its tasks have.
    tested = [(name, 1.0) for task, name in names.items() if "test" in by_task[task]]
    trained = [(name, 1.0) for task, name in names.items() if "train" in by_task[task]]
    if trained:
        seqio_prompts.mix(f"lmsi_run_train_{prompt_style}", trained)
    return seqio_prompts.mix(f"lmsi_run_test_{prompt_style}", tested)


def train_questions(**settings: Any) -> str:
    """Registers as `questions` does; returns the mixture of the tasks with a split "train"."""
    return questions(**settings).replace("lmsi_run_test_", "lmsi_run_train_")


def _fitting(
    name: str,
    texts: Texts,
    tokenizer: str,
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
) -> tf.data.Dataset:
    """Drops examples that are too long, as our trainer does; SeqIO would truncate them."""
    if sequence_length is None:
        return dataset
    check_examples(name, texts, tokenizer, sequence_length)
    limits = {key: sequence_length[key] for key in ("inputs", "targets")}

    def fits(row: Mapping[str, Any]) -> tf.Tensor:
        return tf.reduce_all([tf.size(row[key]) <= limit for key, limit in limits.items()])

    return dataset.filter(fits)


def _whole(
    name: str,
    splits: Sequence[Texts],
    tokenizer: str,
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
) -> tf.data.Dataset:
    """Refuses a prompt that is too long: truncated, it would lose its question."""
    if sequence_length:
        for texts in splits:
            remedy = "leave TASK_FEATURE_LENGTHS unset, then it follows from the run"
            check_prompts(name, texts, tokenizer, sequence_length, remedy)
    return dataset


class WeightedConverter(seqio.PrefixLMFeatureConverter):
    """Converts examples to the features of a decoder, with each example's weight on its targets.

    A float `weight` of an example becomes `decoder_loss_weights` of its target tokens, packed or
    not; 1 where a task has none. The first token of an example has the weight 0.
    """

    MODEL_FEATURES = {
        **seqio.PrefixLMFeatureConverter.MODEL_FEATURES,
        "decoder_loss_weights": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32),
    }

    def _concat_and_add_masks(self, features: Mapping[str, Any]) -> Mapping[str, Any]:
        joined = super()._concat_and_add_masks(features)
        weight = tf.cast(features.get("weight", 1.0), tf.float32)
        # SeqIO packs int32 alone and takes an element of 0 for padding: it gets the bits of the
        # negated number, which are never those of 0.
        bits = tf.bitcast(-weight, tf.int32)
        return {**joined, "weights": tf.fill(tf.shape(joined["targets"]), bits)}

    def _concat_task_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Any:
        texts = {k: task_feature_lengths[k] for k in ("inputs", "targets")}
        lengths = super()._concat_task_feature_lengths(texts)
        return {**lengths, "weights": lengths["targets"]}

    def _convert_example(self, features: Mapping[str, Any]) -> Mapping[str, Any]:
        converted = super()._convert_example(features)
        length = tf.size(features["targets"])
        places = converted.get("decoder_positions", tf.range(length))
        weights = tf.abs(tf.bitcast(features["weights"], tf.float32))
        learnt = tf.cast(converted["decoder_loss_weights"], tf.float32)
        weights *= learnt * tf.cast(places > 0, tf.float32)
        return {**converted, "decoder_loss_weights": weights}

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Any:
        """Returns the lengths of the model's features: inputs and targets together."""
        texts = {k: task_feature_lengths[k] for k in ("inputs", "targets")}
        return super().get_model_feature_lengths(texts)
