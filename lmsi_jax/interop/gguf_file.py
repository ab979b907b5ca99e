"""Read a language model from GGUF files, single or split, under Hugging Face's names.

The format is little-endian (ggml's docs/gguf.md, versions 2 and 3): a magic number, the version,
counts, typed key-value pairs, tensor descriptions, padding, the tensors' bytes. The header is read
here: the reader of the package `gguf` builds an array object for every token of a vocabulary, which
takes half a minute and 700 MB for 262,144 of them; this one takes a second.

`GgufModel` has the attributes and methods of `hf_shards.Shards`, so the importer takes either.
Tensors are dequantised one by one, a slice of rows at a time, by the package `gguf` (extra
`[gguf]`); what the conversion to GGUF changed is undone: the order of rows within rotary heads of
the llama architecture, and the 1 in Gemma's norms.
"""

import dataclasses
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.gguf_metadata import architecture, config_json, tokenizer_files
from lmsi_jax.runtime.files import check_regular

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_AGAIN = "download or copy it again"
_STRING, _ARRAY = 8, 9
_SCALARS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4"},
    **{6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
}
_MOST_DIMENSIONS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor's description.

    Attributes:
      file: holds its bytes.
      offset: of its first byte in the file.
      type: ggml's number of its type.
      shape: rows first, as NumPy and Hugging Face write it.
    """

    file: Path
    offset: int
    type: int
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """The header of one file.

    Attributes:
      metadata: key -> value; arrays are lists, or NumPy arrays if they hold numbers.
      tensors: ggml's name -> description.
    """

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def is_gguf(path: Path) -> bool:
    """Returns True if a file begins as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> Header:
    """Reads a file's header.

    Raises:
      LmsiError: the file cannot be read, is no GGUF file, is truncated, or has another byte order
        or version.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            return _Parser(path, file, path.stat().st_size).header()
    except OSError as error:
        raise LmsiError(f"{path} cannot be read: {error}") from error
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise LmsiError(f"{path} is truncated or damaged: {error}; {_AGAIN}") from error


class _Parser:
    def __init__(self, path: Path, file: BinaryIO, size: int):
        self._path, self._file, self._left = path, file, size
        self._size = size

    def header(self) -> Header:
        if self._bytes(4) != MAGIC:
            raise LmsiError(f"{self._path} is not a GGUF file; {_AGAIN}")
        version = self._number("<I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            kind = "big-endian" if swapped else f"version {version}"
            raise LmsiError(
                f"{self._path} is a {kind} GGUF file; only little-endian files of versions 2 and 3 "
                "are read: convert the model again with a current llama.cpp"
            )
        tensor_count, pair_count = self._number("<Q"), self._number("<Q")
        metadata = {}
        for _ in range(pair_count):
            key = self._string()
            metadata[key] = self._value(self._number("<I"))
        described = [self._tensor() for _ in range(tensor_count)]
        alignment = int(metadata.get("general.alignment", 32))
        begin = -(-(self._size - self._left) // alignment) * alignment
        tensors = {
            name: StoredTensor(file=self._path, offset=begin + offset, type=kind, shape=shape)
            for name, kind, shape, offset in described
        }
        return Header(metadata=metadata, tensors=tensors)

    def _bytes(self, count: int) -> bytes:
        if count > self._left:
            raise ValueError(f"{count} bytes are missing")
        self._left -= count
        return self._file.read(count)

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _string(self) -> str:
        return self._bytes(self._number("<Q")).decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._number("<I"), self._number("<Q")
            if inner in _SCALARS:
                dtype = np.dtype(_SCALARS[inner])
                return np.frombuffer(self._bytes(count * dtype.itemsize), dtype)
            return [self._value(inner) for _ in range(count)]
        dtype = np.dtype(_SCALARS[kind])
        value = np.frombuffer(self._bytes(dtype.itemsize), dtype)[0]
        # The shortest decimal that is this float32: 1e-05, not 9.99999974e-06.
        return float(str(value)) if dtype == np.float32 else value.item()

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string()
        dimensions = self._number("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
        sizes = [self._number("<Q") for _ in range(dimensions)]
        return name, self._number("<I"), tuple(reversed(sizes)), self._number("<Q")


_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
_UNQUANTISED = {"F32", "F16", "BF16"}
_SLICE_BYTES = 1 << 26
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_ROPE_DIVISORS = "rope_freqs.weight"

_TABLES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
}
_MODULES = {
    **{"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"},
    **{"attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm"},
    **{"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    **{"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
}
_TWO_NORMS = {"ffn_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


class GgufModel:
    """A model in GGUF files.

    Args:
      path: the file; of a split model any of its files, which all are in one folder.

    Attributes:
      metadata: the key-value pairs of the (first) file.
      config: the config.json of the model.
      shapes: each tensor's shape, by its name in Hugging Face's model.
      dtypes: the type that a tensor is read in if it is kept as it is, the same for all: "BF16" or
        "F16" if all matrices are stored so, "F32" for quantised models.

    Raises:
      LmsiError: the package `gguf` is not installed, a file is missing or damaged, or something in
        it is not supported.
    """

    def __init__(self, path: Path):
        self._gguf = _library(path)
        self._name = str(path)
        stored: dict[str, StoredTensor] = {}
        files = split_files(path)
        for number, file in enumerate(files):
            header = read_header(file)
            if number == 0:
                self.metadata = header.metadata
                _check_count(file, header.metadata.get("split.count", 1), len(files))
            stored |= header.tensors
        self._types = {name: self._type(name, tensor) for name, tensor in stored.items()}
        _check_total(path, self.metadata.get("split.tensors.count"), len(stored))
        self._family = architecture(self._name, self.metadata)
        divisors = None
        if _ROPE_DIVISORS in stored:
            size = stored[_ROPE_DIVISORS].shape[0]
            divisors = self._rows(stored[_ROPE_DIVISORS], _ROPE_DIVISORS, 0, size)
        self.config = config_json(
            self._name, self.metadata, {name: t.shape for name, t in stored.items()}, divisors
        )
        self._sources = {self._hub_name(name): name for name in stored if name != _ROPE_DIVISORS}
        self._stored = stored
        self.shapes = {hub_name: stored[name].shape for hub_name, name in self._sources.items()}
        kind = self._widest()
        self.dtypes = dict.fromkeys(self.shapes, kind)

    @property
    def names(self) -> list[str]:
        """Returns all tensors, sorted."""
        return sorted(self.shapes)

    def tokenizer_files(self) -> dict[str, str]:
        """Returns the tokenizer's files, name -> text.

        Raises:
          LmsiError: the tokenizer is not supported.
        """
        return tokenizer_files(self._name, self.metadata)

    def slices(self, name: str) -> Iterator[np.ndarray]:
        """Yields a tensor's rows in float32, 64 MiB at a time."""
        source = self._sources[name]
        tensor, heads = self._stored[source], self._rotary_heads(source)
        count = tensor.shape[0]
        unit = count // heads if heads else 1
        row_bytes = 4 * math.prod(tensor.shape[1:])
        step = max(1, _SLICE_BYTES // row_bytes // unit) * unit
        for begin in range(0, count, step):
            rows = self._rows(tensor, source, begin, min(begin + step, count))
            if heads:
                rows = _halves(rows, unit)
            if self._family.norm_plus_one and source.endswith("norm.weight"):
                rows = rows - np.float32(1)
            yield rows

    def _type(self, name: str, tensor: StoredTensor) -> Any:
        """Returns ggml's type of a tensor.

        Raises:
          LmsiError: the type is not supported, or the file does not hold the tensor.
        """
        kind = {kind.value: kind for kind in self._gguf.GGMLQuantizationType}.get(tensor.type)
        if kind is None or kind.name not in _TYPES:
            raise LmsiError(
                f"{tensor.file}: {name} has the type {kind.name if kind else tensor.type}; "
                f"supported are {', '.join(_TYPES)}"
            )
        block, size = self._gguf.GGML_QUANT_SIZES[kind]
        vector = len(tensor.shape) < 2
        if (
            not tensor.shape
            or 0 in tensor.shape
            or tensor.shape[-1] % block
            or vector
            and block > 1
        ):
            raise LmsiError(
                f"{tensor.file}: {name} cannot have the shape {tensor.shape}; download it again"
            )
        end = tensor.offset + math.prod(tensor.shape) // block * size
        if end > tensor.file.stat().st_size:
            raise LmsiError(f"{tensor.file} ends before its tensor {name}; download it again")
        return kind

    def _rows(self, tensor: StoredTensor, name: str, begin: int, end: int) -> np.ndarray:
        """Returns rows of a tensor in float32; a vector counts as rows of one number."""
        kind = self._types[name]
        block, size = self._gguf.GGML_QUANT_SIZES[kind]
        count, row_bytes = end - begin, math.prod(tensor.shape[1:]) * size // block
        data = np.fromfile(
            tensor.file, np.uint8, count * row_bytes, offset=tensor.offset + begin * row_bytes
        )
        if data.size < count * row_bytes:
            raise LmsiError(f"{tensor.file} was changed while it was read; import it again")
        values = self._gguf.quants.dequantize(data.reshape(count, row_bytes), kind)
        return values.reshape(count, *tensor.shape[1:])

    def _hub_name(self, name: str) -> str:
        """Returns a tensor's name in Hugging Face's model."""
        modules = _MODULES | (_FOUR_NORMS if self._family.four_norms else _TWO_NORMS)
        first, _, kind = name.rpartition(".")
        if kind in ("weight", "bias"):
            if first in _TABLES:
                return f"{_TABLES[first]}.{kind}"
            if match := re.fullmatch(r"blk\.(\d+)\.(\w+)", first):
                layer, module = match.groups()
                if module in modules:
                    return f"model.layers.{layer}.{modules[module]}.{kind}"
        raise LmsiError(
            f"{self._name} has a tensor {name!r}, which is not supported for the architecture "
            f"{self.metadata['general.architecture']!r}"
        )

    def _rotary_heads(self, source: str) -> int:
        """Returns the number of heads whose rows are permuted; 0 for none."""
        if not self._family.permuted:
            return 0
        if ".attn_q." in source:
            return self.config["num_attention_heads"]
        return self.config["num_key_value_heads"] if ".attn_k." in source else 0

    def _widest(self) -> str:
        kinds = {
            self._types[name].name
            for name in self._sources.values()
            if len(self._stored[name].shape) > 1
        }
        return kinds.pop() if len(kinds) == 1 and kinds <= _UNQUANTISED else "F32"


def split_files(path: Path) -> list[Path]:
    """Returns all files of a model, in order, given any of them.

    Raises:
      LmsiError: one is missing.
    """
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    files = [
        path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        raise LmsiError(
            f"{path} is one of {count} files, and {', '.join(missing[:3])} is missing beside it; "
            "download all of them into one folder"
        )
    return files


def _library(path: Path) -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise LmsiError(
            f"{path} is read by the package gguf: pip install 'lmsi_jax[gguf]'"
        ) from None
    return gguf


def _check_count(file: Path, count: int, files: int) -> None:
    if count not in (0, files):
        raise LmsiError(
            f"{file} is one of {count} files; keep the names that they were published under "
            f"(MODEL-00001-of-{count:05d}.gguf), all in one folder"
        )


def _check_total(path: Path, total: int | None, tensors: int) -> None:
    if total is not None and total != tensors:
        raise LmsiError(
            f"the files of {path} hold {tensors} tensors instead of {total}; download them again"
        )


def _halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Returns rows of whole heads with rotary pairs (i, i + head_dim / 2) instead of neighbours."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
