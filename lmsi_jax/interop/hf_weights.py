"""Converts Hugging Face model folders to checkpoints of `lmsi` and back, one tensor at a time.

Our matrices are [in, out]; torch's `Linear.weight` is [out, in]. Heads have the same order and
rotary positions pair the same dimensions, so nothing else is rearranged. Tensors are read from and
written to safetensors files, never pickles. A tensor is copied in slices of rows, and the file is
closed after each: it is mapped into memory, where all pages read so far would otherwise stay.
GGUF files are imported in the same way, by `gguf_file`.

`import_model` writes:

    OUT/checkpoint_0/     the layout of lmsi and T5X
    OUT/tokenizer/        tokenizer.json or tokenizer.model with its settings
    OUT/model.gin         ModelConfig, Run.init_checkpoint and Run.tokenizer
    OUT/model.json        the same ModelConfig, for programs

`export_model` writes a folder that transformers' AutoModelForCausalLM and AutoTokenizer load.
Either folder appears only once it is complete.
"""

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
from etils import epath

from lmsi_jax.config import MATRICES, ModelConfig
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.gguf_file import GgufModel, is_gguf, split_files
from lmsi_jax.interop.hf_config import hf_config, ignored_keys, model_config
from lmsi_jax.models.tokenizers import (
    SENTENCEPIECE,
    TOKENIZER_JSON,
    FileTokenizer,
    adjacent_settings,
    open_tokenizer,
)
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.runtime.files import new_folder, read_json, write_json
from lmsi_jax.training import streaming
from lmsi_jax.training.streaming import Saved

_TABLES = {
    "embedding": "model.embed_tokens.weight",
    "lm_head": "lm_head.weight",
    "final_norm.scale": "model.norm.weight",
}
_MODULES = {
    **{"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"},
    "attention_out": "self_attn.o_proj",
    **{"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"},
    **{"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"},
    "attention_norm": "input_layernorm",
}
_TWO_NORMS = {"mlp_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a Hugging Face model and the parameter with the same values.

    Attributes:
      name: the name in the safetensors file.
      path: the keys of our parameter in the tree.
      shape: the shape in the file.
      transposed: True if the two axes of our parameter are exchanged.
    """

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool


def tensors(config: ModelConfig) -> list[Tensor]:
    """Returns all tensors of a model, in the order of its parameters."""
    flat, _ = jax.tree_util.tree_flatten_with_path(parameter_shapes(config))
    return [_tensor(config, tuple(key.key for key in path), leaf.shape) for path, leaf in flat]


def _tensor(config: ModelConfig, path: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
    *first, last = path
    if first and first[0].startswith("layer_"):
        matrix = last.removesuffix("_bias")
        modules = _MODULES | (_FOUR_NORMS if config.post_norms else _TWO_NORMS)
        kind = "bias" if last.endswith("_bias") else "weight"
        layer = first[0].removeprefix("layer_")
        name = f"model.layers.{layer}.{modules[matrix]}.{kind}"
        transposed = last in MATRICES
    else:
        name, transposed = _TABLES[".".join(path)], False
    return Tensor(
        name=name, path=path, shape=shape[::-1] if transposed else shape, transposed=transposed
    )


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
        step = max(1, _SLICE_BYTES // max(1, wide))
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


# Files that transformers reads with a tokenizer; generation_config.json has the end of texts.
TOKENIZER_FILES = (
    *(TOKENIZER_JSON, SENTENCEPIECE, "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
    "generation_config.json",
)
# Computed when needed; older files store it.
_DERIVED = ("rotary_emb.inv_freq",)


def has_chat_template(folder: Path) -> bool:
    """Returns True if a folder with a tokenizer has a template for chats."""
    settings = adjacent_settings(epath.Path(folder) / TOKENIZER_JSON)
    return (folder / "chat_template.jinja").exists() or "chat_template" in settings


def import_model(
    source: Path,
    out: Path,
    dtype: Dtype = "keep",
    note: Callable[[str], object] = lambda line: None,
) -> ModelConfig:
    """Converts a Hugging Face model or a GGUF file to a checkpoint.

    Args:
      source: a folder with config.json, safetensors files and the tokenizer; or a GGUF file, any
        one of the files of a split GGUF model, or a folder whose only model is in such files.
      out: the folder to create.
      dtype: the type of the parameters in the checkpoint; "keep" for that of the files.
      note: called with a line on each thing that is left out: keys of config.json, tokens.

    Returns:
      The shape of the model.

    Raises:
      LmsiError: something is missing, damaged, unsupported or does not fit; `out` is not created.
    """
    shards: Shards | GgufModel
    if file := _gguf_file_of(source):
        shards = GgufModel(file)
        try:
            config = model_config(shards.config)
        except LmsiError as error:
            raise LmsiError(f"{file}, its metadata written as config.json: {error}") from None
    else:
        config = _read_config(source, note)
        shards = Shards(source)
    expected = tensors(config)
    _check_source(source, shards, expected, config)
    with new_folder(out) as folder:
        _import_tokenizer(source, shards, folder / "tokenizer", config, note)
        streaming.save(folder, 0, _tree(source, shards, expected, dtype))
        (folder / "model.gin").write_text(gin_text(config, source, out))
        write_json(folder / "model.json", dataclasses.asdict(config))
    return config


def _gguf_file_of(source: Path) -> Path | None:
    """Returns the (first) GGUF file of a source, None for a folder of another format.

    Raises:
      LmsiError: the source is another file, or a folder with several GGUF models.
    """
    if source.is_file():
        if source.suffix == ".gguf" or is_gguf(source):
            return source
        raise LmsiError(f"{source} is no folder and no GGUF file; name one of a downloaded model")
    if not source.is_dir():
        raise LmsiError(f"{source} is no folder and no file; name those of a downloaded model")
    if any((source / name).exists() for name in (SINGLE, INDEX)):
        return None
    models = {split_files(file)[0] for file in sorted(source.glob("*.gguf"))}
    if len(models) > 1:
        names = ", ".join(sorted(file.name for file in models))
        raise LmsiError(f"{source} has several GGUF models, {names}; name the file of one")
    return models.pop() if models else None


def _read_config(source: Path, note: Callable[[str], object]) -> ModelConfig:
    if not (source / "config.json").exists():
        raise LmsiError(f"{source} has no config.json; name the folder of a downloaded model")
    raw = read_json(source / "config.json")
    if not isinstance(raw, dict):
        raise LmsiError(f"{source / 'config.json'} is no object; download it again")
    config = model_config(raw)
    if ignored := ignored_keys(raw):
        note(f"ignored in config.json, they change no score: {', '.join(ignored)}")
    return config


def _check_source(
    source: Path, shards: Shards | GgufModel, expected: list[Tensor], config: ModelConfig
) -> None:
    """Compares names, shapes and types of a model's tensors with its configuration.

    Raises:
      LmsiError: names the first tensor that does not fit.
    """
    described, remedy = "config.json", "take the config.json that belongs to the checkpoint"
    if isinstance(shards, GgufModel):
        described, remedy = "its metadata", "take a file that a current llama.cpp converted"
    names = {tensor.name for tensor in expected}
    missing = [tensor.name for tensor in expected if tensor.name not in shards.shapes]
    if missing:
        raise LmsiError(
            f"{source} has no tensor {missing[0]!r} ({len(missing)} are missing), which "
            f"{described} asks for; {_remedy(missing[0], remedy)}"
        )
    for name in shards.names:
        if name in names or name.endswith(_DERIVED):
            continue
        if name == "lm_head.weight" and config.tied_embeddings:
            _check_tied(source, shards)
            continue
        raise LmsiError(
            f"{source} has a tensor {name!r} that {described} does not ask for; {remedy}"
        )
    for tensor in expected:
        if shards.shapes[tensor.name] != tensor.shape:
            raise LmsiError(
                f"{source}: {tensor.name} is {shards.shapes[tensor.name]}, {described} has "
                f"{tensor.shape}; {remedy}"
            )
        if shards.dtypes[tensor.name] not in DTYPES:
            raise LmsiError(
                f"{source}: {tensor.name} has the type {shards.dtypes[tensor.name]}; only "
                f"{', '.join(DTYPES)} are read: take the model that is not quantised"
            )


def _remedy(name: str, remedy: str) -> str:
    if name == "lm_head.weight":
        return "set tie_word_embeddings to true if it scores tokens with its embeddings"
    return remedy


def _check_tied(source: Path, shards: Shards | GgufModel) -> None:
    """Checks that the output table is a copy of the embeddings, which is not imported.

    Raises:
      LmsiError: the tables differ.
    """
    same, table = "model.embed_tokens.weight", "lm_head.weight"
    alike = shards.shapes[table] == shards.shapes[same] and all(
        np.array_equal(a, b) for a, b in zip(shards.slices(table), shards.slices(same), strict=True)
    )
    if not alike:
        raise LmsiError(
            f"{source}: {table} is not {same}, though config.json has tie_word_embeddings = true; "
            "set it to false to keep the table"
        )


def _tree(
    source: Path, shards: Shards | GgufModel, expected: list[Tensor], dtype: Dtype
) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for tensor in expected:
        kind = cast(DTYPES[shards.dtypes[tensor.name]], dtype)
        level = tree
        for key in tensor.path[:-1]:
            level = level.setdefault(key, {})
        level[tensor.path[-1]] = streaming.Later(
            shape=tensor.shape[::-1] if tensor.transposed else tensor.shape,
            dtype=kind,
            make=functools.partial(_read_finite, source, shards, tensor, kind),
        )
    return tree


def _read_finite(
    source: Path, shards: Shards | GgufModel, tensor: Tensor, dtype: np.dtype
) -> np.ndarray:
    """Returns the values of a parameter.

    Raises:
      LmsiError: one is NaN or infinite.
    """
    values = shards.read(tensor.name, dtype, tensor.transposed)
    rows = max(1, _SLICE_BYTES // max(1, values.nbytes // len(values)))
    for begin in range(0, len(values), rows):
        if not np.isfinite(values[begin : begin + rows]).all():
            raise LmsiError(
                f"{source}: {tensor.name} has NaN or infinite values in {dtype}; "
                "download it again, and if they are there again, take another model"
            )
    return values


def _import_tokenizer(
    source: Path,
    shards: Shards | GgufModel,
    folder: Path,
    config: ModelConfig,
    note: Callable[[str], object],
) -> None:
    """Writes the files of a tokenizer and checks that it can be opened.

    Raises:
      LmsiError: there are no such files, or they belong to another model.
    """
    folder.mkdir()
    if isinstance(shards, GgufModel):
        for name, text in shards.tokenizer_files().items():
            (folder / name).write_text(text, encoding="utf-8")
    else:
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, folder / name)
    if not any((folder / name).exists() for name in (TOKENIZER_JSON, SENTENCEPIECE)):
        raise LmsiError(
            f"{source} has no {TOKENIZER_JSON} and no {SENTENCEPIECE}; put the model's tokenizer "
            "there"
        )
    if dropped := _drop_tokens_beyond(folder / TOKENIZER_JSON, config.vocab_size):
        note(
            f"left out of the tokenizer, the model has no row for them: {', '.join(dropped)} "
            "(control tokens that no text contains)"
        )
    ids = open_tokenizer(str(folder)).vocab_size
    if ids > config.vocab_size:
        gguf = isinstance(shards, GgufModel)
        rows = "token_embd.weight's number of rows" if gguf else "config.json's vocab_size"
        raise LmsiError(
            f"the tokenizer of {source} has {ids} ids, {rows} is "
            f"{config.vocab_size}; take the tokenizer that belongs to the checkpoint"
        )


def _drop_tokens_beyond(file: Path, rows: int) -> list[str]:
    """Removes control tokens without a row in the table from a tokenizer.json.

    Gemma 3's text models have one for images, for example. Starts and ends of texts are kept.

    Returns:
      Their texts.
    """
    if not file.exists():
        return []
    tokenizer = open_tokenizer(str(file))
    if tokenizer.vocab_size <= rows:
        return []
    used = {*tokenizer.start_ids, *tokenizer.end_ids}
    spec = json.loads(file.read_bytes())
    beyond = [
        token
        for token in spec["added_tokens"]
        if token["special"] and token["id"] >= rows and token["id"] not in used
    ]
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token not in beyond]
    file.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    return [token["content"] for token in beyond]


def gin_text(config: ModelConfig, source: Path, out: Path) -> str:
    """Returns the text of a model's gin file, to be included or passed as --gin_file."""
    lines = [
        f"# {source.name}, by `lmsi import-hf`: {config.parameter_count:,} parameters.",
        "#",
        "#   lmsi run CONFIG --gin_file=OUT/model.gin",
        "",
    ]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            kind = type(value).__name__
            lines += [
                f"{kind}.{part.name} = {getattr(value, part.name)!r}"
                for part in dataclasses.fields(value)
                if part.init
            ]
            lines.append(f"ModelConfig.{field.name} = @{kind}()")
        else:
            lines.append(f"ModelConfig.{field.name} = {value!r}")
    lines += [
        "",
        "Run.model = @ModelConfig()",
        f"Run.init_checkpoint = {str(out.resolve())!r}",
        f"Run.tokenizer = {str(out.resolve() / 'tokenizer')!r}",
    ]
    return "\n".join(lines) + "\n"


def export_model(
    checkpoint: epath.PathLike,
    config: ModelConfig,
    tokenizer: epath.PathLike,
    out: Path,
    *,
    dtype: Dtype = "keep",
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Converts a checkpoint to a Hugging Face model.

    Args:
      checkpoint: a `checkpoint_N` folder, or a folder with several, of which the newest is taken.
      config: the shape of the model.
      tokenizer: `Run.tokenizer`.
      out: the folder to create.
      dtype: the type of the tensors; "keep" for that of the checkpoint.
      max_shard_bytes: limit of a file.

    Raises:
      LmsiError: no Hugging Face architecture computes what the model does, the checkpoint is
        damaged or of another shape, or there is no tokenizer; `out` is not created.
    """
    raw = hf_config(config)
    saved = Saved(checkpoint)
    expected = tensors(config)
    _check_checkpoint(saved, expected)
    opened = open_tokenizer(tokenizer)
    kinds = {cast(saved.dtypes[tensor.path], dtype) for tensor in expected}
    widest = max(kinds, key=lambda kind: kind.itemsize)
    with new_folder(out) as folder:
        write_json(folder / "config.json", raw | _ids(opened) | {"torch_dtype": widest.name})
        _export_tokenizer(opened, folder, config)
        write_shards(folder, [_part(saved, tensor, dtype) for tensor in expected], max_shard_bytes)


def _check_checkpoint(saved: Saved, expected: list[Tensor]) -> None:
    """Compares the parameters of a checkpoint with its configuration.

    Raises:
      LmsiError: names the first parameter that does not fit.
    """
    remedy = "name the checkpoint of this configuration, or its run's folder with --run"
    for tensor in expected:
        name = ".".join(tensor.path)
        shape = tensor.shape[::-1] if tensor.transposed else tensor.shape
        stored = saved.shapes.get(tensor.path)
        if stored is None:
            raise LmsiError(f"the checkpoint {saved.folder} has no {name!r}; {remedy}")
        if stored != shape:
            raise LmsiError(
                f"the checkpoint {saved.folder}: {name} is {stored}, ModelConfig has {shape}; "
                f"{remedy}"
            )
    odd = sorted(set(saved.shapes) - {tensor.path for tensor in expected})
    if odd:
        raise LmsiError(
            f"the checkpoint {saved.folder} has {'.'.join(odd[0])!r}, which ModelConfig does not "
            f"know; {remedy}"
        )


def _part(saved: Saved, tensor: Tensor, dtype: Dtype) -> Any:
    kind = cast(saved.dtypes[tensor.path], dtype)
    return tensor.name, tensor.shape, kind, functools.partial(_read, saved, tensor, kind)


def _read(saved: Saved, tensor: Tensor, kind: np.dtype) -> np.ndarray:
    array = saved.read(tensor.path).astype(kind, copy=False)
    return array.T if tensor.transposed else array


def _ids(tokenizer: FileTokenizer) -> dict[str, Any]:
    """Returns the special ids of config.json."""
    ends = sorted(tokenizer.end_ids, key=lambda i: (i != tokenizer.eos_id, i))
    return {
        "bos_token_id": tokenizer.start_ids[0] if tokenizer.start_ids else None,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.pad_id,
    }


def _export_tokenizer(tokenizer: FileTokenizer, folder: Path, config: ModelConfig) -> None:
    """Copies the files of a tokenizer; writes the end of texts to generation_config.json.

    Raises:
      LmsiError: the tokenizer has more ids than the model.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise LmsiError(
            f"the tokenizer {tokenizer.path} has {tokenizer.vocab_size} ids, the model "
            f"{config.vocab_size}; name the one that the checkpoint was trained with"
        )
    file = epath.Path(tokenizer.path)
    for name in TOKENIZER_FILES:
        if (file.parent / name).exists():
            (folder / name).write_bytes((file.parent / name).read_bytes())
    if not (folder / file.name).exists():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = folder / "generation_config.json"
    if not settings.exists():
        write_json(settings, {k: v for k, v in _ids(tokenizer).items() if v is not None})
