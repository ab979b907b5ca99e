"""`Run.tokenizer` as a SeqIO vocabulary, for our trainer's tasks and for T5X's.

SeqIO and T5X take the id 0 for padding, so no text may contain it. For tokenizers that use it
(Llama 3 and Qwen encode "!" as 0), `shift=1` adds one to all ids, and T5X's adapter subtracts it
again. Our own trainer and engine keep the lengths of texts instead and use `shift=0`.
"""

import functools
import json
from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.tokenizers import FileTokenizer, SentencePiece, encode_text, open_tokenizer
from lmsi_jax.records import Text


def open_vocabulary(path: str, limit: int | None = None) -> "Pieces | Tokens":
    """Returns the vocabulary of a tokenizer's file or folder; for `limit` see `Pieces`.

    Raises:
      LmsiError: there is no tokenizer.
    """
    tokenizer = open_tokenizer(path)
    if isinstance(tokenizer, SentencePiece):
        return Pieces(tokenizer, limit)
    return Tokens(tokenizer, limit)


def open_t5x_vocabulary(path: str, limit: int | None = None) -> "Pieces | Tokens":
    """Returns the same vocabulary without the id 0 in any text, for T5X.

    Raises:
      LmsiError: there is no tokenizer, or it is a SentencePiece model that encodes texts with 0.
    """
    tokenizer = open_tokenizer(path)
    if not isinstance(tokenizer, SentencePiece):
        return Tokens(tokenizer, limit, shift=id_shift(tokenizer))
    if tokenizer.writes_zero:
        raise LmsiError(
            f"{tokenizer.path} writes the id 0 in texts, which is padding in T5X; train it with "
            "pad_id=0, or use lmsi's own trainer and engine"
        )
    return Pieces(tokenizer, limit)


def id_shift(tokenizer: FileTokenizer) -> int:
    """Returns the number added to all ids for T5X: 1 if a text may contain the id 0."""
    return int(tokenizer.writes_zero)


def encode_prompt(
    vocabulary: "Pieces | Tokens", prefix: tf.Tensor, inputs: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Encodes a task prompt and a question as ids [n] and [m], as the decode engine does.

    They are encoded separately; the first that is not empty begins with the start ids.
    """
    start = tf.constant(vocabulary.start_ids, tf.int32)
    has_prefix = tf.strings.length(prefix) > 0
    first = tf.cond(has_prefix, lambda: start, lambda: start[:0])
    second = tf.cond(has_prefix, lambda: start[:0], lambda: start)
    return (
        tf.concat([first, vocabulary.encode_tf(prefix)], axis=0),
        tf.concat([second, vocabulary.encode_tf(inputs)], axis=0),
    )


def to_columns(texts: Sequence[Text]) -> tuple[list[str], bool]:
    """Returns texts as strings for a dataset, and whether they are JSON as some have controls."""
    structured = not all(isinstance(text, str) for text in texts)
    return [json.dumps(text) if structured else str(text) for text in texts], structured


def encode_parts(
    vocabulary: "Pieces | Tokens", parts: Sequence[tf.Tensor], structured: bool = False
) -> list[tf.Tensor]:
    """Encodes the parts of a row as ids [n] each, as the decode engine does.

    Args:
      vocabulary: of the model.
      parts: the task prompt, the question, and one or more continuations of these, as of
        `to_columns`.
      structured: whether they are JSON.
    """
    tokenizer = vocabulary.file_tokenizer
    prefix, inputs, *continuations = parts
    if tokenizer.joins and not structured:
        prompt = encode_prompt(vocabulary, prefix, inputs)
        return [*prompt, *(vocabulary.encode_tf(text) for text in continuations)]

    def encode(*columns: bytes | np.ndarray) -> list[np.ndarray]:
        # TensorFlow passes arrays if it runs eagerly.
        strings = [np.asarray(column, object).item().decode() for column in columns]
        texts = [_from_column(text) if structured else text for text in strings]
        prefix, inputs, *rest = texts
        before = inputs or prefix
        ids = [
            encode_text(tokenizer, prefix),
            encode_text(tokenizer, inputs, prefix),
            *(encode_text(tokenizer, text, before) for text in rest),
        ]
        return [np.array(row, np.int32) + vocabulary.shift for row in ids]

    encoded = tf.numpy_function(encode, list(parts), [tf.int32] * len(parts), stateful=False)
    for ids in encoded:
        ids.set_shape([None])
    return encoded


def _from_column(column: str) -> Text:
    text = json.loads(column)
    return text if isinstance(text, str) else tuple(text)


class Pieces(seqio.SentencePieceVocabulary):
    """A SentencePiece vocabulary that reads at most `limit` tokens of a decoded text.

    T5X decodes every prompt of a batch to one length, so a short prompt gets more new tokens than
    the limit; our engine applies the limit to each path.
    """

    shift = 0

    def __init__(self, tokenizer: SentencePiece, limit: int | None = None):
        super().__init__(tokenizer.path)
        self.file_tokenizer = tokenizer
        self.start_ids = tokenizer.start_ids
        self._limit = limit

    def __eq__(self, other: object) -> bool:
        """Compares the pieces: T5X requires equal vocabularies of the model and the task."""
        return isinstance(other, Pieces) and self.sp_model == other.sp_model

    def __hash__(self) -> int:
        return hash(self.sp_model)

    def _decode(self, ids: Sequence[int]) -> str:
        return super()._decode(list(ids)[: self._limit])


class Tokens(seqio.Vocabulary):
    """A SeqIO vocabulary of any tokenizer of `models.tokenizers`.

    Args:
      tokenizer: encodes and decodes.
      limit: see `Pieces`.
      shift: added to every id; with 1, no token has the id 0.
      size: number of ids, if the model has more than the tokenizer.
    """

    def __init__(
        self,
        tokenizer: FileTokenizer,
        limit: int | None = None,
        shift: int = 0,
        size: int | None = None,
    ):
        super().__init__()
        self.file_tokenizer, self._limit, self.shift = tokenizer, limit, shift
        self._size = (tokenizer.vocab_size if size is None else size) + shift
        if self._size < tokenizer.vocab_size + shift:
            raise LmsiError(
                f"{tokenizer.path} has {tokenizer.vocab_size} ids, more than the {size} of the "
                "model; name the tokenizer that the checkpoint was trained with"
            )
        self.start_ids = tuple(i + shift for i in tokenizer.start_ids)

    def __eq__(self, other: object) -> bool:
        """Compares the ids of texts: T5X requires equal vocabularies of the model and the task."""
        return isinstance(other, Tokens) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @functools.cached_property
    def _identity(self) -> tuple[str, int, int]:
        return self.file_tokenizer.fingerprint, self.shift, self._size

    @property
    def bos_id(self) -> int | None:
        """The id that begins a prompt, or None."""
        return self.start_ids[0] if self.start_ids else None

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""
        return self.file_tokenizer.eos_id + self.shift

    @property
    def unk_id(self) -> int | None:
        """The id of text without a token; None if bytes are tokens."""
        unknown = self.file_tokenizer.unk_id
        return None if unknown is None else unknown + self.shift

    @property
    def _base_vocab_size(self) -> int:
        return self._size

    def _encode(self, s: str) -> list[int]:
        return [i + self.shift for i in self.file_tokenizer.encode(s)]

    def _decode(self, ids: Sequence[int]) -> str:
        originals = (i - self.shift for i in list(ids)[: self._limit])
        return self.file_tokenizer.decode([i for i in originals if i >= 0])

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: bytes | np.ndarray) -> np.ndarray:
            # TensorFlow passes an array if it runs eagerly.
            return np.array(self._encode(np.asarray(text, object).item().decode()), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Decodes ids [..., n] to texts [...] up to the first end; SeqIO would pad with 0."""
        return self._decode_tf(ids)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(rows: np.ndarray) -> np.ndarray:
            texts = [self.decode(row.tolist()).encode() for row in rows.reshape(-1, rows.shape[-1])]
            return np.array(texts, object).reshape(rows.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        texts.set_shape(ids.shape[:-1])
        return texts
