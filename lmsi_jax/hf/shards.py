"""safetensors files: one tensor at a time out of them, and into them. Never pickle.

A tensor is copied in slices of rows, each from a file that is opened for it and closed again: a
file is mapped into memory, and what was touched of it would otherwise stay there.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import read_json, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
Dtype = Literal["keep", "float32", "bfloat16"]
_CASTS = {"float32": DTYPES["F32"], "bfloat16": DTYPES["BF16"]}
_SLICE_BYTES = 1 << 26
_AGAIN = "download or copy it again"


def cast(own: np.dtype, dtype: Dtype) -> np.dtype:
    """Returns the type that a tensor of type `own` is converted to."""
    return _CASTS.get(dtype, own)


class Shards:
    """The tensors of a model's folder.

    Args:
      folder: holds model.safetensors, or several files and model.safetensors.index.json.

    Attributes:
      dtypes: each tensor's type; it may be one that is not read here.
      shapes: each tensor's shape.

    Raises:
      LmsiError: there are none, one is missing or damaged, or the index names tensors that are not
        there.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._files = _files(folder)
        self.dtypes: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in dict.fromkeys(self._files.values()):
            self._look_into(file)
        if INDEX in {path.name for path in folder.iterdir()}:
            lost = sorted(set(self._files) - set(self.shapes))
            if lost:
                raise LmsiError(
                    f"{folder / self._files[lost[0]]} has no tensor {lost[0]!r}, which {INDEX} "
                    f"places there; the two do not belong together, {_AGAIN}"
                )

    @property
    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted(self.shapes)

    def read(self, name: str, dtype: np.dtype, transposed: bool) -> np.ndarray:
        """Returns a tensor in a type, with its two axes exchanged where `transposed`.

        Peak memory is the result and 64 MiB.

        Raises:
          LmsiError: the file was changed or cannot be read.
        """
        made = np.empty(self.shapes[name], dtype, order="F" if transposed else "C")
        begin = 0
        for rows in self.slices(name):
            made[begin : begin + len(rows)] = rows
            begin += len(rows)
        return made.T if transposed else made

    def slices(self, name: str) -> Iterator[np.ndarray]:
        """Yields a tensor's rows as they are stored, 64 MiB at a time.

        Raises:
          LmsiError: the file was changed or cannot be read.
        """
        shape = self.shapes[name]
        wide = math.prod(shape[1:]) * DTYPES[self.dtypes[name]].itemsize
        step = max(1, _SLICE_BYTES // max(1, wide))
        for begin in range(0, shape[0], step):
            with self._opened(self._files[name]) as file:
                yield file.get_slice(name)[begin : min(begin + step, shape[0])]

    def _look_into(self, name: str) -> None:
        with self._opened(name) as file:
            for tensor in file.keys():  # noqa: SIM118  (it is no dictionary)
                part = file.get_slice(tensor)
                self._files.setdefault(tensor, name)
                if self._files[tensor] == name:
                    self.dtypes[tensor] = part.get_dtype()
                    self.shapes[tensor] = tuple(part.get_shape())

    def _opened(self, name: str) -> Any:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise LmsiError(
                "safetensors files want the library of that name; pip install -e '.[hf]' in the "
                "checkout"
            ) from None
        path = self._folder / name
        own = sorted(tensor for tensor, file in self._files.items() if file == name and tensor)
        holds = f" (it holds {own[0]!r} and {len(own) - 1} more)" if own else ""
        try:
            return safe_open(path, framework="np")
        except FileNotFoundError:
            raise LmsiError(f"{path} is missing{holds}; {_AGAIN}") from None
        except (SafetensorError, OSError) as error:
            raise LmsiError(f"{path} is truncated or damaged{holds}: {error}; {_AGAIN}") from error


def _files(folder: Path) -> dict[str, str]:
    """Returns tensor -> file by the index; the file alone, as {"": file}, without one."""
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
    raise LmsiError(f"{folder} has no {SINGLE} and no {INDEX}{_instead(folder)}")


def _instead(folder: Path) -> str:
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
    folder: Path, made: Sequence[tuple[str, tuple[int, ...], np.dtype, Make]], most: int
) -> None:
    """Writes tensors into model.safetensors, or into several files and their index.

    One tensor is in memory at a time.

    Args:
      folder: where to.
      made: each tensor's name, shape and type, and what makes its array.
      most: bytes of a file at most; a larger tensor has a file of its own.
    """
    groups = list(_groups(made, most))
    places: dict[str, str] = {}
    for number, group in enumerate(groups):
        name = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        name = name if len(groups) > 1 else SINGLE
        _write(folder / name, group)
        places |= {tensor: name for tensor, *_ in group}
    if len(groups) > 1:
        total = sum(_bytes(shape, dtype) for _, shape, dtype, _ in made)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _groups(made: Sequence[Any], most: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    size = 0
    for tensor in made:
        own = _bytes(tensor[1], tensor[2])
        if group and size + own > most:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += own
    yield group


def _write(path: Path, group: Sequence[Any]) -> None:
    """Writes one file: the length of the header, the header in JSON, the tensors' bytes.

    The library's own writer wants all tensors in memory at once.
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
