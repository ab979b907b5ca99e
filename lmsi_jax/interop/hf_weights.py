"""Convert a Hugging Face model folder or a GGUF file to a checkpoint of `lmsi`.

Our matrices are [in, out]; torch's `Linear.weight` is [out, in]. Heads have the same order and
rotary positions pair the same dimensions, so nothing else is rearranged. One tensor at a time is in
memory. `import_model` writes:

    OUT/checkpoint_0/     the layout of lmsi and T5X
    OUT/tokenizer/        tokenizer.json or tokenizer.model with its settings
    OUT/model.gin         ModelConfig, Run.init_checkpoint, Run.tokenizer and how it is prompted
    OUT/model.json        the same ModelConfig, for programs

The folder appears only once it is complete. `hf_export` is the way back.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lmsi_jax.config import ModelConfig
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.chat_prompts import choose_prompting
from lmsi_jax.interop.gguf_file import GgufModel, is_gguf, split_files
from lmsi_jax.interop.hf_config import ignored_keys, model_config
from lmsi_jax.interop.hf_families import Tensor, tensors
from lmsi_jax.interop.hf_shards import DTYPES, INDEX, SINGLE, SLICE_BYTES, Dtype, Shards, cast
from lmsi_jax.models.tokenizers import (
    SENTENCEPIECE,
    TOKENIZER_JSON,
    open_tokenizer,
)
from lmsi_jax.runtime.files import new_folder, read_json, write_json
from lmsi_jax.training import streaming

# Files that transformers reads with a tokenizer; generation_config.json has the end of texts.
TOKENIZER_FILES = (
    *(TOKENIZER_JSON, SENTENCEPIECE, "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
    "generation_config.json",
)
# Computed when needed; older files store it.
_DERIVED = ("rotary_emb.inv_freq",)


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
        raw = shards.config if isinstance(shards, GgufModel) else read_json(source / "config.json")
        ends = raw.get("eos_token_id")
        _import_tokenizer(source, shards, folder / "tokenizer", config, ends, note)
        streaming.save(folder, 0, _tree(source, shards, expected, dtype))
        prompting = choose_prompting(folder / "tokenizer", note)
        (folder / "model.gin").write_text(gin_text(config, source, out, prompting))
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
    rows = max(1, SLICE_BYTES // max(1, values.nbytes // len(values)))
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
    ends: int | list[int] | None,
    note: Callable[[str], object],
) -> None:
    """Writes the files of a tokenizer and checks that it can be opened.

    Args:
      source: the model.
      shards: its tensors.
      folder: the folder to create.
      config: the model's shape.
      ends: `eos_token_id` of config.json, which holds if there is no generation_config.json.
      note: called with a line on what is left out.

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
    settings = folder / "generation_config.json"
    if ends is not None and not settings.exists():
        write_json(settings, {"eos_token_id": ends})
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


def gin_text(config: ModelConfig, source: Path, out: Path, prompting: str = "") -> str:
    """Returns the text of a model's gin file, to be included or passed as --gin_file.

    Args:
      config: its shape.
      source: where it comes from.
      out: where it is.
      prompting: the packaged gin file that says how it is prompted, "" for none.
    """
    lines = [
        f"# {source.name}, by `lmsi import-hf`: {config.parameter_count:,} parameters.",
        "#",
        "#   lmsi run CONFIG --gin_file=OUT/model.gin",
        "",
        *([f"include {prompting!r}", ""] if prompting else []),
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
