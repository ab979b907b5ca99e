"""`Run.tokenizer` as a SeqIO vocabulary, for our trainer's tasks and for T5X's.

SeqIO and T5X take the id 0 for padding: it may not come from a text. Where it can (Llama 3 and
Qwen write "!" as 0), `shift=1` moves all ids up by one; T5X's adapter moves them back. Our own
trainer and engine keep lengths beside the ids and need no such rule, so they take `shift=0`.
"""

import functools
from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.tokenizers import FileTokenizer, SentencePiece, open_tokenizer


def open_vocabulary(path: str, limit: int | None = None) -> "Pieces | Tokens":
    """Returns the vocabulary of a tokenizer's file or folder; `limit`: see `Pieces`.

    Raises:
      LmsiError: there is no tokenizer.
    """
    tokenizer = open_tokenizer(path)
    if isinstance(tokenizer, SentencePiece):
        return Pieces(tokenizer, limit)
    return Tokens(tokenizer, limit)


def open_t5x_vocabulary(path: str, limit: int | None = None) -> "Pieces | Tokens":
    """Like `open_vocabulary`, and no text yields the id 0.

    Raises:
      LmsiError: there is no tokenizer; or a SentencePiece model writes 0.
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
    """How far a tokenizer's ids are moved up for T5X: 1 where a text may yield the id 0."""
    return int(tokenizer.writes_zero)


def encode_prompt(
    vocabulary: "Pieces | Tokens", prefix: tf.Tensor, inputs: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Ids [n], [m] of a task prompt and a question, as the decode engine encodes them.

    They are encoded apart, and the first one that is not empty begins with the model's start.
    """
    start = tf.constant(vocabulary.start_ids, tf.int32)
    has_prefix = tf.strings.length(prefix) > 0
    first = tf.cond(has_prefix, lambda: start, lambda: start[:0])
    second = tf.cond(has_prefix, lambda: start[:0], lambda: start)
    return (
        tf.concat([first, vocabulary.encode_tf(prefix)], axis=0),
        tf.concat([second, vocabulary.encode_tf(inputs)], axis=0),
    )


class Pieces(seqio.SentencePieceVocabulary):
    """A SentencePiece vocabulary that reads no more than `limit` tokens of what was decoded.

    T5X decodes every prompt of a batch to one length, so a short prompt gets more new tokens than
    the limit; our engine stops each path at its own.
    """

    def __init__(self, tokenizer: SentencePiece, limit: int | None = None):
        super().__init__(tokenizer.path)
        self.start_ids = tokenizer.start_ids
        self._limit = limit

    def __eq__(self, other: object) -> bool:
        """The same pieces are the same vocabulary: T5X compares the model's with the task's."""
        return isinstance(other, Pieces) and self.sp_model == other.sp_model

    def __hash__(self) -> int:
        return hash(self.sp_model)

    def _decode(self, ids: Sequence[int]) -> str:
        return super()._decode(list(ids)[: self._limit])


class Tokens(seqio.Vocabulary):
    """Any tokenizer of ours as a SeqIO vocabulary.

    Args:
      tokenizer: what encodes and decodes.
      limit: see `Pieces`.
      shift: added to every id; with 1, the id 0 is nobody's.
      size: number of ids, where the model has more than the tokenizer.
    """

    def __init__(
        self,
        tokenizer: FileTokenizer,
        limit: int | None = None,
        shift: int = 0,
        size: int | None = None,
    ):
        super().__init__()
        self._tokenizer, self._limit, self.shift = tokenizer, limit, shift
        self._size = (tokenizer.vocab_size if size is None else size) + shift
        if self._size < tokenizer.vocab_size + shift:
            raise LmsiError(
                f"{tokenizer.path} has {tokenizer.vocab_size} ids, more than the {size} of the "
                "model; name the tokenizer that the checkpoint was trained with"
            )
        self.start_ids = tuple(i + shift for i in tokenizer.start_ids)

    def __eq__(self, other: object) -> bool:
        """The same ids for the same texts: T5X compares the model's with the task's."""
        return isinstance(other, Tokens) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @functools.cached_property
    def _identity(self) -> tuple[str, int, int]:
        return self._tokenizer.fingerprint, self.shift, self._size

    @property
    def bos_id(self) -> int | None:
        """The id that begins a prompt, None without one."""
        return self.start_ids[0] if self.start_ids else None

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""
        return self._tokenizer.eos_id + self.shift

    @property
    def unk_id(self) -> int | None:
        """The id of what has no token, None where bytes are tokens."""
        unknown = self._tokenizer.unk_id
        return None if unknown is None else unknown + self.shift

    @property
    def _base_vocab_size(self) -> int:
        return self._size

    def _encode(self, s: str) -> list[int]:
        return [i + self.shift for i in self._tokenizer.encode(s)]

    def _decode(self, ids: Sequence[int]) -> str:
        own = (i - self.shift for i in list(ids)[: self._limit])
        return self._tokenizer.decode([i for i in own if i >= 0])

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: bytes | np.ndarray) -> np.ndarray:
            """UTF-8 bytes -> ids [n]; TensorFlow hands them as an array where it runs eagerly."""
            return np.array(self._encode(np.asarray(text, object).item().decode()), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids [..., n] -> texts [...], up to the first end; SeqIO's would write 0 behind it."""
        return self._decode_tf(ids)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(rows: np.ndarray) -> np.ndarray:
            """Ids [..., n] -> texts [...], in UTF-8."""
            texts = [self.decode(row.tolist()).encode() for row in rows.reshape(-1, rows.shape[-1])]
            return np.array(texts, object).reshape(rows.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        texts.set_shape(ids.shape[:-1])
        return texts
