"""Text to token ids and back, for prompts and samples: SentencePiece models and tokenizer.json.

A string never yields a control token: "</s>" in a question is five characters, not the end. Control
tokens arise from the odd places of a `records.Text` alone.

A prompt is several texts, each encoded apart so that the first can be shared. `encode_text` encodes
one after another: the tokens that a model expects before a prompt (Gemma's and Llama's <bos>) come
before the first, and the space that Llama 2's tokenizer puts before every text it is given does not
come between two of them.

tokenizer.json is the file of Hugging Face's library `tokenizers` (extra `[hf]`). Texts are joined
from the tokens' bytes here, not by the library: a sample may end within a character, and the text
of its first tokens must not change when more follow. The library's `ByteFallback` (Gemma) replaces
a whole run of bytes, complete characters included, until its last character is complete.
"""

import difflib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from etils import epath

from lmsi_jax.config import ModelConfig
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Text, join_texts
from lmsi_jax.runtime.files import check_regular, file_sha256, parse_json, read_bytes

TOKENIZER_JSON, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
_SETTINGS = (
    *("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"),
    "added_tokens.json",
)


class Tokenizer(Protocol):
    """The interface that decoding and training use."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids: one more than the highest."""

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""

    @property
    def end_ids(self) -> frozenset[int]:
        """All ids that end a model's output, `eos_id` among them."""

    @property
    def start_ids(self) -> tuple[int, ...]:
        """The ids before the first token of a prompt; () for none."""

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without start and end."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids; control tokens and ids without a token give none."""


class Control(NamedTuple):
    """A control token of a tokenizer.

    Attributes:
      id: its number.
      strips_left: it swallows white space before it (`lstrip` of the library tokenizers).
      strips_right: it swallows white space after it (`rstrip`).
    """

    id: int
    strips_left: bool = False
    strips_right: bool = False


class FileTokenizer(Tokenizer, Protocol):
    """A tokenizer that was read from files.

    Attributes:
      path: the file.
    """

    path: str

    @property
    def fingerprint(self) -> str:
        """A sha256 of everything that determines the ids of a text."""

    @property
    def has_spare_ids(self) -> bool:
        """True if a model's table may be padded to more ids than the tokenizer has."""

    @property
    def pad_id(self) -> int | None:
        """The id of padding, None without one."""

    @property
    def unk_id(self) -> int | None:
        """The id of unknown characters, None if every text has tokens."""

    @property
    def writes_zero(self) -> bool:
        """True if a text may yield the id 0."""

    @property
    def controls(self) -> Mapping[str, Control]:
        """The control tokens by their text."""

    @property
    def joins(self) -> bool:
        """True if the ids of two texts, one after the other, are read as one text."""

    def encode_next(self, text: str, before: str) -> list[int]:
        """Returns the ids of a text that follows another; see `_Parts`."""

    def encode_after_control(self, text: str) -> list[int]:
        """Returns the ids of a text that follows a control token."""


def encode_first(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of a text that begins a prompt, with `start_ids`."""
    return [*tokenizer.start_ids, *tokenizer.encode(text)]


def end_text(tokenizer: FileTokenizer) -> str:
    """Returns the text of the token that ends a text."""
    return next(text for text, one in tokenizer.controls.items() if one.id == tokenizer.eos_id)


def encode_text(tokenizer: Tokenizer, text: Text, before: Text = "") -> list[int]:
    """Returns the ids of a part of a prompt, so that all parts' ids are read as their whole text.

    Args:
      tokenizer: one of this module; another one is taken to encode texts as they are.
      text: the part. A first part that is a string gets `start_ids`, one with control tokens has
        its own.
      before: the part before it, "" for none.

    Raises:
      LmsiError: the tokenizer does not have one of its control tokens.
    """
    if not text:
        return []
    if isinstance(text, str) and not before:
        return encode_first(tokenizer, text)
    parts = tokenizer if isinstance(tokenizer, _Parts) else None
    if parts is None and isinstance(text, str):
        return tokenizer.encode(text)
    controls = parts.controls if parts else {}
    *_, control, tail = ("", *((before,) if isinstance(before, str) else before))
    last = _control(tokenizer, controls, control) if control else None
    if last is not None and last.strips_right:
        tail = tail.lstrip()
    ids: list[int] = []
    pieces = (text,) if isinstance(text, str) else text
    for number, piece in enumerate(pieces):
        if number % 2:
            last, tail = _control(tokenizer, controls, piece), ""
            ids.append(last.id)
            continue
        if not tail and last is not None and last.strips_right:
            piece = piece.lstrip()
        following = pieces[number + 1 : number + 2]
        if following and _control(tokenizer, controls, following[0]).strips_left:
            piece = piece.rstrip()
        if not piece:
            continue
        if parts is not None and tail:
            ids += parts.encode_next(piece, tail)
        elif parts is not None and last is not None:
            ids += parts.encode_after_control(piece)
        else:
            ids += tokenizer.encode(piece)
        tail = piece
    return ids


def encode_parts(tokenizer: Tokenizer, texts: Sequence[Text]) -> list[int]:
    """Returns the ids of the parts of a row, each encoded apart, one after the other."""
    ids: list[int] = []
    before: Text = ""
    for text in texts:
        ids += encode_text(tokenizer, text, before)
        before = join_texts(before, text) if before else text
    return ids


class Borders(NamedTuple):
    """A comparison of rows encoded in parts with the same rows encoded as one text.

    Attributes:
      rows: their number.
      other_ids: rows whose ids differ.
      tokens: tokens of the whole texts.
      other_tokens: of those, tokens that the parts do not have.
      other_texts: rows that are read as another text than the whole is.
    """

    rows: int
    other_ids: int
    tokens: int
    other_tokens: int
    other_texts: int

    def __str__(self) -> str:
        parts = f"of {self.rows} rows of task prompt, question and solution"
        if self.other_texts:
            return (
                f"prompt parts: {self.other_texts} {parts} are read as another text than they are; "
                "this tokenizer is not fit for prompts in parts"
            )
        if not self.other_ids:
            return f"prompt parts: all {parts} have the ids of the whole text"
        share = 100 * self.other_tokens / self.tokens
        return (
            f"prompt parts: {self.other_ids} {parts} have other ids than the whole text, "
            f"{share:.2g} % of its tokens, and are read as the same text"
        )


def compare_borders(tokenizer: Tokenizer, rows: Sequence[Sequence[Text]]) -> Borders:
    """Compares the ids of parts with those of whole texts: tokens may span a border between parts.

    Args:
      tokenizer: the model's.
      rows: the parts of each.
    """
    other_ids = tokens = other_tokens = other_texts = 0
    for row in rows:
        whole = encode_text(tokenizer, join_texts(*row))
        parts = encode_parts(tokenizer, row)
        tokens += len(whole)
        if parts != whole:
            matcher = difflib.SequenceMatcher(None, whole, parts, autojunk=False)
            other_ids += 1
            other_tokens += len(whole) - sum(match.size for match in matcher.get_matching_blocks())
            other_texts += tokenizer.decode(parts) != tokenizer.decode(whole)
    return Borders(len(rows), other_ids, tokens, other_tokens, other_texts)


def _control(tokenizer: Tokenizer, controls: Mapping[str, Control], text: str) -> Control:
    if text not in controls:
        raise LmsiError(
            f"a text has the control token {text!r}, which the tokenizer "
            f"{getattr(tokenizer, 'path', '')} does not have; use the tokenizer that the chat "
            "template or the training rows were made with"
        )
    return controls[text]


# Each stays apart from most texts after it; of two, one does.
_ANCHORS = ("\n", "a", "1", ".", "=")
_LAST_WORD = re.compile(r"\S+\s*\Z")
_JOINTS = [(a, b) for a in ("a", "A:", "7.\n\n") for b in ("b", " b", "Q:", "\n", "7", " The 7.")]


class _Parts:
    """Encodes a text that follows another, also where a tokenizer changes the ends of a text.

    Llama 2's puts a space before every text, SentencePiece's default strips spaces on both sides
    as well. There a text is encoded after the last word of the one before it, or after a letter,
    whose ids are cut off again.
    """

    @property
    def controls(self) -> Mapping[str, Control]:
        """The control tokens by their text."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without start and end."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids."""
        raise NotImplementedError

    @functools.cached_property
    def joins(self) -> bool:
        """True if the ids of two texts, one after the other, are read as one text."""
        return all(
            self.decode([*self.encode(a), *self.encode(b)]) == self.decode(self.encode(a + b))
            for a, b in _JOINTS
        )

    def encode_next(self, text: str, before: str) -> list[int]:
        """Returns the ids of a text that follows another, to be read as one with it.

        Args:
          text: the text.
          before: the text before it, "" if only tokens are.
        """
        if self.joins or not text:
            return self.encode(text)
        last_word = _LAST_WORD.search(before[-64:])
        for anchor in (*([last_word.group()] if last_word else []), *self._anchors):
            head, whole = self.encode(anchor), self.encode(anchor + text)
            if head and whole[: len(head)] == head:
                return whole[len(head) :]
        return self.encode(text)

    def encode_after_control(self, text: str) -> list[int]:
        """Returns the ids of a text that follows a control token, as in the model's chats."""
        return self.encode(text) if self._begins_after_control else self.encode_next(text, "")

    @property
    def _begins_after_control(self) -> bool:
        """True if a text after a control token is encoded as if it began there."""
        return True

    @functools.cached_property
    def _anchors(self) -> list[str]:
        return [anchor for anchor in _ANCHORS if self.decode(self.encode(anchor)) == anchor]


def open_tokenizer(path: epath.PathLike) -> FileTokenizer:
    """Reads `Run.tokenizer`: a SentencePiece model, a tokenizer.json, or a folder of one of them.

    Raises:
      LmsiError: it is absent, damaged, or has no end token.
    """
    place = epath.Path(path)
    if not place.suffix and not place.exists():
        raise LmsiError(
            f"{path}: there is no such tokenizer, file or folder; name one that is there"
        )
    if place.is_dir():
        names = (TOKENIZER_JSON, SENTENCEPIECE)
        files = [place / name for name in names if (place / name).exists()]
        if not files:
            raise LmsiError(f"{path} is a folder without {' or '.join(names)}; name a tokenizer")
        place = files[0]
    check_regular(place)
    if place.suffix == ".json":
        return TokenizerJson(str(place))
    return SentencePiece(str(place))


def open_for_model(path: epath.PathLike, model: ModelConfig) -> FileTokenizer:
    """Reads a model's tokenizer, see `open_tokenizer`.

    Raises:
      LmsiError: the tokenizer has another number of ids than the model. Hugging Face's models often
        have more than their tokenizer, so that the table divides evenly; these are accepted.
    """
    tokenizer = open_tokenizer(path)
    ids, rows = tokenizer.vocab_size, model.vocab_size
    if ids > rows or (ids < rows and not tokenizer.has_spare_ids):
        raise LmsiError(
            f"the tokenizer {path} has {ids} ids, ModelConfig.vocab_size is {rows}; set "
            "Run.tokenizer to the one that the checkpoint was trained with"
        )
    return tokenizer


def read_settings(file: epath.Path) -> dict[str, Any]:
    """Returns the object in a settings file of a downloaded model; {} without the file.

    Raises:
      LmsiError: it is damaged.
    """
    if not file.exists():
        return {}
    try:
        settings = parse_json(read_bytes(file))
    except (OSError, ValueError) as error:
        raise LmsiError(f"{file} cannot be read: {error}; download it again") from None
    if not isinstance(settings, dict):
        raise LmsiError(f"{file} is no object; download it again")
    return settings


def adjacent_settings(path: epath.Path) -> dict[str, Any]:
    """Returns the tokenizer_config.json in the folder of a tokenizer's file; {} without one."""
    return read_settings(path.parent / "tokenizer_config.json")


def _generation_ends(path: epath.Path) -> set[int]:
    """Returns each `eos_token_id` of the generation_config.json in a tokenizer's folder."""
    value = read_settings(path.parent / "generation_config.json").get("eos_token_id")
    return set(value if isinstance(value, list) else [] if value is None else [value])


class SentencePiece(_Parts):
    """A SentencePiece model file, local or remote.

    Prompts start with <bos> if a Hugging Face tokenizer_config.json in its folder says so.

    Raises:
      LmsiError: the file is absent or is no SentencePiece model.
    """

    def __init__(self, path: str):
        import sentencepiece

        self.path = path
        try:
            proto = read_bytes(path)
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

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """The piece that ends a text, and each `eos_token_id` of generation_config.json."""
        return frozenset({self.eos_id} | _generation_ends(epath.Path(self.path)))

    @functools.cached_property
    def has_spare_ids(self) -> bool:
        """True beside the settings of a Hugging Face model: its table may have padding, and rows of
        added tokens, which no text has."""
        folder = epath.Path(self.path).parent
        return any((folder / name).exists() for name in _SETTINGS)

    @functools.cached_property
    def start_ids(self) -> tuple[int, ...]:
        """The start piece if tokenizer_config.json sets `add_bos_token`, else nothing."""
        adds_bos = adjacent_settings(epath.Path(self.path)).get("add_bos_token", False)
        start = self._processor.bos_id()
        if adds_bos and start < 0:
            raise LmsiError(
                f"{self.path} has no start piece, which add_bos_token in tokenizer_config.json "
                "asks for; set that to false, or name the model's own tokenizer"
            )
        return (start,) if adds_bos else ()

    @property
    def pad_id(self) -> int | None:
        """The id of padding, None without one."""
        pad = self._processor.pad_id()
        return pad if pad >= 0 else None

    @property
    def unk_id(self) -> int:
        """The id of characters without a piece."""
        return self._processor.unk_id()

    @property
    def writes_zero(self) -> bool:
        """True if a text may yield the id 0: as a piece, or for unknown characters."""
        pieces = self._processor
        if pieces.is_unknown(0):
            return not any(pieces.is_byte(i) for i in range(self.vocab_size))
        return not pieces.is_control(0)

    @functools.cached_property
    def controls(self) -> Mapping[str, Control]:
        """The control pieces by their text."""
        pieces, ids = self._processor, range(self.vocab_size)
        return {pieces.id_to_piece(i): Control(i) for i in ids if pieces.is_control(i)}

    @functools.cached_property
    def fingerprint(self) -> str:
        """The file's sha256, and the ends if there is more than one."""
        digest = file_sha256(self.path)
        if len(self.end_ids) == 1:
            return digest
        return hashlib.sha256(f"{digest} {sorted(self.end_ids)}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Returns the piece ids of a text, without an end token."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of piece ids; ids without a piece give none."""
        return self._processor.decode([int(i) for i in ids if i < self.vocab_size])


_SPACE = "\u2581"  # a space in SentencePiece and its relatives


class TokenizerJson(_Parts):
    """A tokenizer.json, with the Hugging Face settings files in its folder, if any.

    Prompts start with the tokens of the file's post-processor. Samples end at `eos_token` of
    tokenizer_config.json (or else of special_tokens_map.json), and at `eos_token_id` of
    generation_config.json.

    Args:
      path: the file, local or remote.

    Raises:
      LmsiError: the library is missing, the file is none of its files, or nothing ends a text.
    """

    has_spare_ids = True

    def __init__(self, path: str):
        self.path = path
        self._data = _read(path)
        self._tokenizer = _parsed(path, self._data)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # control tokens in a text are plain text
        self._settings = read_settings(epath.Path(path).parent / "special_tokens_map.json")
        self._settings |= adjacent_settings(epath.Path(path))
        added = self._tokenizer.get_added_tokens_decoder()
        self._controls = frozenset(i for i, token in added.items() if token.special)
        self._own_end = self._named("eos_token")
        self._ends = self._all_ends()
        spec = json.loads(self._data)
        self._bytes, self._stripped = (
            _bytes_of_tokens(self._tokenizer, spec),
            _stripped_spaces(spec),
        )

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the highest id, added tokens included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""
        return self._own_end if self._own_end is not None else min(self._ends)

    @property
    def end_ids(self) -> frozenset[int]:
        """All ids that end a model's output."""
        return self._ends

    @functools.cached_property
    def start_ids(self) -> tuple[int, ...]:
        """The control tokens that the post-processor puts before a text."""
        ids = self._tokenizer.encode("a", add_special_tokens=True).ids
        text = self._tokenizer.encode("a", add_special_tokens=False).ids
        return tuple(ids[: ids.index(text[0])])

    @property
    def pad_id(self) -> int | None:
        """The id of padding, None without one."""
        return self._named("pad_token")

    @property
    def unk_id(self) -> int | None:
        """The id of unknown characters, None if bytes are tokens."""
        return self._named("unk_token")

    @property
    def writes_zero(self) -> bool:
        """True if a text may yield the id 0."""
        return 0 not in self._controls

    @functools.cached_property
    def controls(self) -> Mapping[str, Control]:
        """The control tokens by their text, all ends among them."""
        added = self._tokenizer.get_added_tokens_decoder()
        controls = {
            token.content: Control(i, token.lstrip, token.rstrip)
            for i, token in added.items()
            if token.special or i in self.end_ids
        }
        ends = {self._tokenizer.id_to_token(i): Control(i) for i in sorted(self.end_ids)}
        return {text: one for text, one in (ends | controls).items() if text}

    @functools.cached_property
    def _begins_after_control(self) -> bool:
        text, control = next(iter(self.controls.items()))
        self._tokenizer.encode_special_tokens = False
        ids = self._tokenizer.encode(f"{text}a", add_special_tokens=False).ids
        self._tokenizer.encode_special_tokens = True
        return ids == [control.id, *self.encode("a")]

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of the file, the start and the ends."""
        rest = f"{self.start_ids} {sorted(self.end_ids)}"
        return hashlib.sha256(self._data + rest.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without start and end."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids; control tokens and ids without a token give none."""
        if self._bytes is None:
            known = [i for i in map(int, ids) if i < self.vocab_size]
            return self._tokenizer.decode(known, skip_special_tokens=True)
        joined = b"".join(self._bytes.get(int(i), b"") for i in ids)
        spaces = len(joined) - len(joined.lstrip(b" "))
        return joined[min(spaces, self._stripped) :].decode("utf-8", "replace")

    def _named(self, name: str) -> int | None:
        """Returns the id of a token that tokenizer_config.json names."""
        token = self._settings.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        return None if content is None else self._tokenizer.token_to_id(content)

    def _all_ends(self) -> frozenset[int]:
        ends = _generation_ends(epath.Path(self.path))
        ends |= set() if self._own_end is None else {self._own_end}
        if not ends:
            raise LmsiError(
                f"nothing says which token ends a text of {self.path}; put tokenizer_config.json "
                "with its eos_token beside it"
            )
        return frozenset(ends)


def _read(path: str) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise LmsiError(f"{path} is not a readable tokenizer.json: {error}") from error


def _parsed(path: str, data: bytes) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise LmsiError(
            f"{path} needs the library tokenizers: pip install 'lmsi_jax[hf]'"
        ) from None
    try:
        return tokenizers.Tokenizer.from_str(data.decode())
    # The library raises Exception itself, no subclass, for a file that it cannot parse.
    except Exception as error:
        raise LmsiError(f"{path} is not a readable tokenizer.json: {error}") from error


def _bytes_of_tokens(tokenizer: Any, spec: dict[str, Any]) -> dict[int, bytes] | None:
    """Returns the bytes of each token; None if they depend on the tokens around it.

    Control tokens have none. Supported are byte-level BPE (Llama 3, Qwen) and Gemma's decoder:
    spaces, then bytes; Llama 2's also strips the space that its encoder puts before a text.
    """
    decoder = spec.get("decoder") or {}
    parts = [part["type"] for part in decoder.get("decoders", [decoder]) if part]
    stripped = _stripped_spaces(spec)
    write: Callable[[str], bytes]
    if parts == ["ByteLevel"]:
        write = functools.partial(_from_letters, _byte_letters())
    elif parts[:3] == ["Replace", "ByteFallback", "Fuse"] and len(parts) == 3 + bool(stripped):
        write = _from_piece
    else:
        return None
    added = tokenizer.get_added_tokens_decoder()
    texts = {i: write(token) for token, i in tokenizer.get_vocab(with_added_tokens=False).items()}
    added_texts = {
        i: b"" if token.special else token.content.encode() for i, token in added.items()
    }
    return texts | added_texts


def _stripped_spaces(spec: dict[str, Any]) -> int:
    """Returns how many spaces at the start of a text the decoder's last step strips, at most."""
    steps: list[dict[str, Any]] = (spec.get("decoder") or {}).get("decoders") or [{}]
    last = steps[-1]
    if last.get("type") != "Strip" or last.get("content") != " " or last.get("stop") != 0:
        return 0
    return int(last["start"])


def _byte_letters() -> dict[str, int]:
    """Returns the byte of each letter in byte-level BPE (Radford et al. 2019): printable bytes are
    their own letters, the others follow, in order, from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(0x100 + number): byte for number, byte in enumerate(others)}


def _from_letters(table: dict[str, int], token: str) -> bytes:
    if all(letter in table for letter in token):
        return bytes(table[letter] for letter in token)
    return token.encode()


def _from_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(_SPACE, " ").encode()
