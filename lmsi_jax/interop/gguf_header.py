"""Read the header of a GGUF file: its metadata, and where each tensor is stored.

The format is little-endian (ggml's docs/gguf.md, versions 2 and 3): a magic number, the version,
counts, typed key-value pairs, tensor descriptions, padding, the tensors' bytes. The reader of the
package `gguf` builds an array object for every token of a vocabulary, which takes half a minute and
700 MB for 262,144 of them; this one takes a second.
"""

import dataclasses
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lmsi_jax.errors import LmsiError

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
