"""Read and write a folder of safetensors files, one tensor at a time.

Files are read in slices of rows and closed after each: a file is mapped into memory, where all
pages read so far would otherwise stay. Pickles are never read.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime.files import read_json, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
Dtype = Literal["keep", "float32", "bfloat16"]
_CASTS = {"float32": DTYPES["F32"], "bfloat16": DTYPES["BF16"]}
SLICE_BYTES = 1 << 26
_AGAIN = "download or copy it again"


def cast(stored: np.dtype, dtype: Dtype) -> np.dtype:
    """Returns the type that a tensor of type `stored` is converted to."""
    return _CASTS.get(dtype, stored)


class Shards:
    """The tensors of a model folder.

    Args:
      folder: contains model.safetensors, or several files and model.safetensors.index.json.

    Attributes:
      dtypes: each tensor's type, possibly one that cannot be read here.
      shapes: each tensor's shape.

    Raises:
      LmsiError: there are no files, one is missing or damaged, or the index names missing tensors.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._files = _files(folder)
        self.dtypes: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in dict.fromkeys(self._files.values()):
            self._read_header(file)
        if INDEX in {path.name for path in folder.iterdir()}:
            lost = sorted(set(self._files) - set(self.shapes))
            if lost:
                raise LmsiError(
                    f"{folder / self._files[lost[0]]} has no tensor {lost[0]!r}, which {INDEX} "
                    f"places there; the two do not belong together, {_AGAIN}"
                )

    @property
    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self.shapes)

    def read(self, name: str, dtype: np.dtype, transposed: bool) -> np.ndarray:
        """Returns a tensor in a type, with its two axes exchanged if `transposed`.

        Peak memory is the result and 64 MiB.

        Raises:
          LmsiError: the file was changed or cannot be read.
        """
        array = np.empty(self.shapes[name], dtype, order="F" if transposed else "C")
        begin = 0
        for rows in self.slices(name):
            array[begin : begin + len(rows)] = rows
            begin += len(rows)
        return array.T if transposed else array

    def slices(self, name: str) -> Iterator[np.ndarray]:
        """Yields a tensor's rows as they are stored, 64 MiB at a time.

        Raises:
          LmsiError: the file was changed or cannot be read.
        """
        shape = self.shapes[name]
        wide = math.prod(shape[1:]) * DTYPES[self.dtypes[name]].itemsize
        step = max(1, SLICE_BYTES // max(1, wide))
        for begin in range(0, shape[0], step):
            with self._open(self._files[name]) as file:
                yield file.get_slice(name)[begin : min(begin + step, shape[0])]

    def _read_header(self, name: str) -> None:
        with self._open(name) as file:
            for tensor in file.keys():  # noqa: SIM118  (it is no dictionary)
                part = file.get_slice(tensor)
                self._files.setdefault(tensor, name)
                if self._files[tensor] == name:
                    self.dtypes[tensor] = part.get_dtype()
                    self.shapes[tensor] = tuple(part.get_shape())

    def _open(self, name: str) -> Any:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise LmsiError(
                "safetensors files need the library of that name; pip install -e '.[hf]' in the "
                "checkout"
            ) from None
        path = self._folder / name
        inside = sorted(tensor for tensor, file in self._files.items() if file == name and tensor)
        holds = f" (it holds {inside[0]!r} and {len(inside) - 1} more)" if inside else ""
        try:
            return safe_open(path, framework="np")
        except FileNotFoundError:
            raise LmsiError(f"{path} is missing{holds}; {_AGAIN}") from None
        except (SafetensorError, OSError) as error:
            raise LmsiError(f"{path} is truncated or damaged{holds}: {error}; {_AGAIN}") from error


def _files(folder: Path) -> dict[str, str]:
    """Returns tensor -> file from the index, or {"": file} for a single file without one."""
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not places:
            raise LmsiError(f"{folder / INDEX} has no 'weight_map'; {_AGAIN}")
        for name, file in places.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise LmsiError(
                    f"{folder / INDEX} places {name!r} outside of its folder, in {file!r}; {_AGAIN}"
                )
        return dict(places)
    if (folder / SINGLE).exists():
        return {"": SINGLE}
    raise LmsiError(f"{folder} has no {SINGLE} and no {INDEX}{_remedy_without_tensors(folder)}")


def _remedy_without_tensors(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    loose = [name for name in names if name.endswith(".safetensors")]
    if loose:
        return f"; it has {loose[0]}: put the index that belongs to it beside it"
    if pickled:
        return (
            f"; it has {pickled[0]}, a pickle, which may run any code and is never read: save the "
            "model as safetensors (save_pretrained of a current transformers does)"
        )
    return "; name the folder of a downloaded model"


Make = Callable[[], np.ndarray]


def write_shards(
    folder: Path, parts: Sequence[tuple[str, tuple[int, ...], np.dtype, Make]], max_bytes: int
) -> None:
    """Writes tensors into model.safetensors, or into several files and their index.

    One tensor is in memory at a time.

    Args:
      folder: the folder to write to.
      parts: each tensor's name, shape, type and the function that makes its array.
      max_bytes: limit of a file; a larger tensor gets a file of its own.
    """
    groups = list(_groups(parts, max_bytes))
    places: dict[str, str] = {}
    for number, group in enumerate(groups):
        name = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        name = name if len(groups) > 1 else SINGLE
        _write(folder / name, group)
        places |= {tensor: name for tensor, *_ in group}
    if len(groups) > 1:
        total = sum(_bytes(shape, dtype) for _, shape, dtype, _ in parts)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _groups(parts: Sequence[Any], max_bytes: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    size = 0
    for tensor in parts:
        tensor_bytes = _bytes(tensor[1], tensor[2])
        if group and size + tensor_bytes > max_bytes:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor_bytes
    yield group


def _write(path: Path, group: Sequence[Any]) -> None:
    """Writes one file: the length of the header, the header in JSON, the tensors' bytes.

    The writer of the library needs all tensors in memory at once.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Mapping[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, dtype, _ in group:
        begin, end = end, end + _bytes(shape, dtype)
        header[name] = {
            "dtype": names[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, _, make in group:
            file.write(np.ascontiguousarray(make()).view(np.uint8).data)
