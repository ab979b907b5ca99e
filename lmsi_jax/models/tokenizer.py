"""Text to token ids and back, for prompts and paths: SentencePiece models and tokenizer.json.

A text never yields a control token: "</s>" in a question is five characters, not the end. What a
model wants before its first token (Gemma's and Llama's <bos>) is `start_ids`; prompts are made of
several texts, so whoever begins one puts them there, with `encode_first`.
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import file_sha256, read_json

TOKENIZER_JSON, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"


class Tokenizer(Protocol):
    """What decoding and training need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids: one more than the highest."""

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""

    @property
    def end_ids(self) -> frozenset[int]:
        """All ids that end what a model writes, `eos_id` among them."""

    @property
    def start_ids(self) -> tuple[int, ...]:
        """What comes before the first token of a prompt; () for nothing."""

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without start and end."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids; control tokens and ids without a token give none."""


class FileTokenizer(Tokenizer, Protocol):
    """A tokenizer that was read from files.

    Attributes:
      path: the file.
    """

    path: str

    @property
    def fingerprint(self) -> str:
        """A sha256 of all that decides which ids a text gets."""

    @property
    def has_spare_ids(self) -> bool:
        """Whether models may have more ids than the tokenizer, as padding of their table."""

    @property
    def pad_id(self) -> int | None:
        """The id of padding, None without one."""

    @property
    def unk_id(self) -> int | None:
        """The id of what has no token, None where there is no such thing."""

    @property
    def writes_zero(self) -> bool:
        """Whether a text may yield the id 0."""


def encode_first(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of a text that begins a prompt, those of the start included."""
    return [*tokenizer.start_ids, *tokenizer.encode(text)]


def open_tokenizer(path: epath.PathLike) -> FileTokenizer:
    """Reads `Run.tokenizer`: a SentencePiece model, a tokenizer.json, or a folder of one of them.

    Raises:
      LmsiError: it is absent, damaged, or has no end token.
    """
    place = epath.Path(path)
    if place.is_dir():
        names = (TOKENIZER_JSON, SENTENCEPIECE)
        found = [place / name for name in names if (place / name).exists()]
        if not found:
            raise LmsiError(f"{path} is a folder without {' or '.join(names)}; name a tokenizer")
        place = found[0]
    if place.suffix == ".json":
        from lmsi_jax.models.tokenizer_json import TokenizerJson

        return TokenizerJson(str(place))
    return SentencePiece(str(place))


def settings_beside(path: epath.Path) -> dict[str, Any]:
    """Returns what tokenizer_config.json beside a tokenizer's file says; {} without one."""
    file = path.parent / "tokenizer_config.json"
    return dict(read_json(file)) if file.exists() else {}


class SentencePiece:
    """A SentencePiece model file, local or remote.

    Where a Hugging Face tokenizer_config.json beside it sets `add_bos_token`, prompts start so.

    Raises:
      LmsiError: the file is absent or is no SentencePiece model.
    """

    has_spare_ids = False

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

    @property
    def end_ids(self) -> frozenset[int]:
        """The one id that ends a text."""
        return frozenset({self.eos_id})

    @functools.cached_property
    def start_ids(self) -> tuple[int, ...]:
        """The start piece where tokenizer_config.json asks for it, else nothing."""
        wanted = settings_beside(epath.Path(self.path)).get("add_bos_token", False)
        start = self._processor.bos_id()
        if wanted and start < 0:
            raise LmsiError(
                f"{self.path} has no start piece, which add_bos_token in tokenizer_config.json "
                "asks for; set that to false, or name the model's own tokenizer"
            )
        return (start,) if wanted else ()

    @property
    def pad_id(self) -> int | None:
        """The id of padding, None without one."""
        pad = self._processor.pad_id()
        return pad if pad >= 0 else None

    @property
    def unk_id(self) -> int:
        """The id of what has no piece."""
        return self._processor.unk_id()

    @property
    def writes_zero(self) -> bool:
        """Whether a text may yield the id 0: it is a piece, or unknown characters become it."""
        pieces = self._processor
        if pieces.is_unknown(0):
            return not any(pieces.is_byte(i) for i in range(self.vocab_size))
        return not pieces.is_control(0)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The file's sha256."""
        return file_sha256(self.path)

    def encode(self, text: str) -> list[int]:
        """Returns the piece ids of a text, without an end token."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of piece ids."""
        return self._processor.decode([int(i) for i in ids])
