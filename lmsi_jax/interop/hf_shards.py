"""Read and write a folder of safetensors files, one tensor at a time; merge LoRA adapters.

Files are read in slices of rows and closed after each: a file is mapped into memory, where all
pages read so far would otherwise stay. Pickles are never read.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime.files import check_regular, read_json, write_json

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


Rename = Callable[[str], str | None]
"""Returns the name here of a tensor in the files, or None to leave it out."""


def _same(name: str) -> str:
    return name


class _Place(NamedTuple):
    """The rows of a tensor: its name in the files, before it was split, and its first row there."""

    stored: str
    whole: str
    first: int


class SlicedTensors(Protocol):
    """Tensors of a file or a folder, read a few rows at a time.

    Attributes:
      shapes: of each tensor, by name.
    """

    shapes: dict[str, tuple[int, ...]]

    def slices(self, name: str) -> Iterator[np.ndarray]:
        """Yields a tensor's rows, at most 64 MiB at a time."""


def read_tensor(
    source: SlicedTensors, name: str, dtype: np.dtype, transposed: bool = False
) -> np.ndarray:
    """Returns a tensor in a type, with its two axes exchanged if `transposed`.

    Peak memory is the result and a slice of 64 MiB.

    Raises:
      LmsiError: the file was changed or cannot be read.
    """
    array = np.empty(source.shapes[name], dtype, order="F" if transposed else "C")
    begin = 0
    for rows in source.slices(name):
        array[begin : begin + len(rows)] = rows
        begin += len(rows)
    return array.T if transposed else array


class Shards:
    """The tensors of a model folder.

    Args:
      folder: contains model.safetensors, or several files and model.safetensors.index.json. The
        single file is read if both are there, as in transformers.
      rename: applied to the names in the files.
      adapters: merged into the tensors.
      single: the name of the single file.

    Attributes:
      dtypes: each tensor's type, possibly one that cannot be read here.
      shapes: each tensor's shape.

    Raises:
      LmsiError: there are no files, one is missing or damaged, the index names missing tensors,
        or adapters are of another model.
    """

    def __init__(
        self,
        folder: Path,
        rename: Rename = _same,
        adapters: "Adapters | None" = None,
        single: str = SINGLE,
    ):
        self._folder, self._rename, self._adapters = folder, rename, adapters
        self._files = _files(folder, single)
        self._places: dict[str, _Place] = {}
        self.dtypes: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        indexed = set(self._files) - {""}
        present: set[str] = set()
        for file in dict.fromkeys(self._files.values()):
            present |= self._read_header(file)
        if indexed:
            lost = sorted(indexed - present)
            if lost:
                raise LmsiError(
                    f"{folder / self._files[lost[0]]} has no tensor {lost[0]!r}, which {INDEX} "
                    f"places there; the two do not belong together, {_AGAIN}"
                )
        if adapters is not None:
            adapters.check_base(folder, self.shapes)

    @property
    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self.shapes)

    def split(self, name: str, parts: Mapping[str, int]) -> None:
        """Replaces a tensor by several that are its rows, in order.

        Args:
          name: the tensor.
          parts: the name of each and its number of rows.

        Raises:
          LmsiError: there is no such tensor, or it has another number of rows.
        """
        shape, total = self.shapes.get(name), sum(parts.values())
        if shape is None or shape[:1] != (total,):
            found = "is missing" if shape is None else f"is {shape}"
            raise LmsiError(
                f"{self._folder}: {name} {found}, config.json has {total:,} rows; take the "
                "config.json that belongs to the checkpoint"
            )
        stored, _, begin = self._places.pop(name)
        dtype = self.dtypes.pop(name)
        del self.shapes[name]
        for part, rows in parts.items():
            self._places[part] = _Place(stored, name, begin)
            self.shapes[part], self.dtypes[part] = (rows, *shape[1:]), dtype
            begin += rows

    def slices(self, name: str) -> Iterator[np.ndarray]:
        """Yields a tensor's rows as they are stored, or merged in float32, 64 MiB at a time.

        Raises:
          LmsiError: the file was changed or cannot be read.
        """
        shape, (stored, whole, first) = self.shapes[name], self._places[name]
        if self._adapters is not None and whole in self._adapters.replacements:
            yield from self._adapters.tensors.slices(whole)
            return
        factors = None if self._adapters is None else self._adapters.factors(whole)
        wide = math.prod(shape[1:]) * DTYPES[self.dtypes[name]].itemsize
        step = max(1, SLICE_BYTES // max(1, wide))
        for begin in range(0, shape[0], step):
            end = min(begin + step, shape[0])
            with self._open(self._files[stored]) as file:
                rows = file.get_slice(stored)[first + begin : first + end]
            if factors is not None:
                a, b = factors
                rows = rows.astype(np.float32) + b[first + begin : first + end] @ a
            yield rows

    def _read_header(self, file_name: str) -> set[str]:
        """Adds a file's tensors; returns the names of those that are read from this file."""
        read = set()
        with self._open(file_name) as file:
            for stored in file.keys():  # noqa: SIM118  (it is no dictionary)
                if self._files.setdefault(stored, file_name) != file_name:
                    continue
                read.add(stored)
                name = self._rename(stored)
                if name is None:
                    continue
                if name in self._places:
                    raise LmsiError(
                        f"{self._folder} has both {stored!r} and {self._places[name].stored!r}, "
                        f"which are one tensor of the text model; {_AGAIN}"
                    )
                part = file.get_slice(stored)
                self._places[name] = _Place(stored, name, 0)
                self.dtypes[name] = part.get_dtype()
                self.shapes[name] = tuple(part.get_shape())
        return read

    def _open(self, name: str) -> Any:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise LmsiError(
                "safetensors files need the library of that name: pip install 'lmsi_jax[hf]'"
            ) from None
        path = self._folder / name
        check_regular(path)
        inside = sorted(tensor for tensor, file in self._files.items() if file == name and tensor)
        holds = f" (it holds {inside[0]!r} and {len(inside) - 1} more)" if inside else ""
        try:
            return safe_open(path, framework="np")
        except FileNotFoundError:
            raise LmsiError(f"{path} is missing{holds}; {_AGAIN}") from None
        except (SafetensorError, OSError) as error:
            raise LmsiError(f"{path} is truncated or damaged{holds}: {error}; {_AGAIN}") from error


def _files(folder: Path, single: str) -> dict[str, str]:
    """Returns {"": file} for a single file, else tensor -> file from the index."""
    if (folder / single).exists():
        return {"": single}
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
    names = f"{single} and no {INDEX}" if single == SINGLE else single
    raise LmsiError(f"{folder} has no {names}{_remedy_without_tensors(folder)}")


def _remedy_without_tensors(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    broken = [path.name for path in folder.iterdir() if path.is_symlink() and not path.exists()]
    if broken:
        return f"; {sorted(broken)[0]} is a link to a file that is missing: {_AGAIN}"
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


_ADAPTER_CONFIG = "adapter_config.json"
_HALVES = (".lora_A.weight", ".lora_B.weight")
# Keys of adapter_config.json that are read, or that change nothing once adapters are trained.
_LORA_KEYS = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora"),
        *("init_lora_weights", "base_model_name_or_path", "bias", "modules_to_save"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode"),
        *("lora_dropout", "loftq_config", "eva_config", "megatron_core", "qalora_group_size"),
        *("ensure_weight_tying", "corda_config", "lora_ga_config", "megatron_config"),
    }
)
# With any other way to draw adapters PEFT changes the base model's weights, too.
_UNCHANGED_BASE = (None, True, False, "gaussian", "eva", "orthogonal")


class Adapters:
    """LoRA adapters in PEFT's layout (Hu et al. 2021): W + alpha / rank * B A in place of W.

    Args:
      folder: has adapter_config.json and adapter_model.safetensors.
      rename: as of `Shards`, for the base model's tensors.

    Attributes:
      tensors: those of the file, without PEFT's prefix.
      replacements: names of tensors that replace the base model's.

    Raises:
      LmsiError: a file is missing or damaged, or the adapters are not plain LoRA.
    """

    def __init__(self, folder: Path, rename: Rename = _same):
        self._file = folder / _ADAPTER_CONFIG
        self._config = read_adapter_config(folder)
        self.tensors = Shards(
            folder,
            lambda name: rename(name.removeprefix("base_model.model.")),
            single="adapter_model.safetensors",
        )
        names = set(self.tensors.names)
        self._modules = {n.removesuffix(_HALVES[0]) for n in names if n.endswith(_HALVES[0])}
        pairs = {module + half for module in self._modules for half in _HALVES}
        self.replacements = names - pairs
        odd = sorted({name for name in self.replacements if "lora_" in name} | pairs - names)
        if odd:
            raise LmsiError(
                f"{folder}: the tensor {odd[0]!r} is not one of a pair lora_A, lora_B of a weight; "
                "merge these adapters with PEFT's merge_and_unload, and import the result"
            )

    def check_base(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compares the adapters with a base model's tensors.

        Args:
          folder: that of the base model, for errors.
          shapes: of its tensors.

        Raises:
          LmsiError: the adapters are of another model.
        """
        expected = {name: self.tensors.shapes[name] for name in self.replacements}
        for module in self._modules:
            a, b = (self.tensors.shapes[module + half] for half in _HALVES)
            expected[f"{module}.weight"] = (*b[:1], *a[1:])
        for name, shape in sorted(expected.items()):
            if shapes.get(name) != shape:
                raise LmsiError(
                    f"{self._file.parent} is for a base model whose {name} is {shape}; {folder} "
                    f"{f'has {shapes[name]}' if name in shapes else 'has none'}: name the model "
                    "that the adapters were trained on with --base=MODEL"
                )

    def factors(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns A [rank, in] and the scaled B [out, rank] of a weight, None without adapters."""
        module = name.removesuffix(".weight")
        if module not in self._modules or module == name:
            return None
        a, b = (read_tensor(self.tensors, module + half, DTYPES["F32"]) for half in _HALVES)
        alpha = self._config.get("lora_alpha", 8)
        for pattern, value in (self._config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = value
        rank = len(a)
        return a, b * np.float32(alpha / (rank**0.5 if self._config.get("use_rslora") else rank))


def is_adapter_folder(folder: Path) -> bool:
    """Tells if a folder has PEFT's adapters and no model of its own."""
    own = any((folder / name).exists() for name in (SINGLE, INDEX))
    return (folder / _ADAPTER_CONFIG).exists() and not own


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Returns adapter_config.json.

    Raises:
      LmsiError: it is damaged, or not of plain LoRA; names all keys that are not supported.
    """
    file = folder / _ADAPTER_CONFIG
    config = read_json(file)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise LmsiError(f"{file}: peft_type = {kind!r} is not supported; only 'LORA' is")
    odd = [f"{key} = {config[key]!r}" for key in config if key not in _LORA_KEYS and config[key]]
    start = config.get("init_lora_weights")
    if start not in _UNCHANGED_BASE:
        odd.append(f"init_lora_weights = {start!r}")
    patterns = config.get("alpha_pattern") or {}
    alphas = [config.get("lora_alpha", 8)]
    if isinstance(patterns, dict) and all(map(_is_pattern, patterns)):
        alphas += patterns.values()
    else:
        odd.append(f"alpha_pattern = {patterns!r}")
    odd += [f"lora_alpha = {alpha!r}" for alpha in alphas if type(alpha) not in (int, float)]
    if odd:
        raise LmsiError(
            f"{file}: {', '.join(odd)} is not supported; merge these adapters with PEFT's "
            "merge_and_unload, and import the result"
        )
    return config


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


Make = Callable[[], np.ndarray]
Part = tuple[str, tuple[int, ...], np.dtype, Make]
"""A tensor's name, shape, type and the function that makes its array."""


def write_shards(folder: Path, parts: Sequence[Part], max_bytes: int) -> None:
    """Writes tensors into model.safetensors, or into several files and their index.

    One tensor is in memory at a time.

    Args:
      folder: the folder to write to.
      parts: the tensors.
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
