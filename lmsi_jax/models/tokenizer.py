"""Text to token ids and back, for prompts and paths."""

from collections.abc import Sequence
from typing import Protocol

from etils import epath

from lmsi_jax.errors import LmsiError


class Tokenizer(Protocol):
    """What decoding and training need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without an end token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids."""


class SentencePiece:
    """A SentencePiece model file, local or remote.

    Raises:
      LmsiError: the file is absent or is no SentencePiece model.
    """

    def __init__(self, path: str):
        import sentencepiece

        self.path = path
        try:
            proto = epath.Path(path).read_bytes()
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except (OSError, RuntimeError) as error:
            raise LmsiError(f"{path} is not a readable SentencePiece model: {error}") from error
        if self._processor.eos_id() < 0:
            raise LmsiError(f"{path} has no end token; train it with eos_id=1")

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._processor.get_piece_size()

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""
        return self._processor.eos_id()

    def encode(self, text: str) -> list[int]:
        """Returns the piece ids of a text, without an end token."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of piece ids."""
        return self._processor.decode([int(i) for i in ids])
