"""A model's folder of Hugging Face's -> a checkpoint that `lmsi` runs, its gin file, its tokenizer.

    OUT/checkpoint_0/     the layout of lmsi and T5X
    OUT/tokenizer/        tokenizer.json or tokenizer.model, and the settings beside it
    OUT/model.gin         ModelConfig, Run.init_checkpoint and Run.tokenizer
    OUT/model.json        ModelConfig again, for programs

One tensor is in memory at a time. OUT appears when all of it is there.
"""

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import new_folder, read_json, write_json
from lmsi_jax.hf.config_in import model_config
from lmsi_jax.hf.names import Tensor, tensors
from lmsi_jax.hf.shards import DTYPES, Dtype, Shards, cast
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.tokenizer import SENTENCEPIECE, TOKENIZER_JSON, open_tokenizer
from lmsi_jax.training import streaming

# What transformers reads beside a tokenizer; generation_config.json says where texts end.
TOKENIZER_FILES = (
    *(TOKENIZER_JSON, SENTENCEPIECE, "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
    "generation_config.json",
)
# Computed anew by whoever needs it; older files hold it.
_DERIVED = ("rotary_emb.inv_freq",)


def import_model(source: Path, out: Path, dtype: Dtype = "keep") -> ModelConfig:
    """Converts a model.

    Args:
      source: holds config.json, safetensors files and the tokenizer's.
      out: the folder to make.
      dtype: of the parameters in the checkpoint; "keep": as they are.

    Returns:
      the model's shape.

    Raises:
      LmsiError: something is missing, damaged, not supported or does not fit; `out` is not made.
    """
    if not source.is_dir():
        raise LmsiError(f"{source} is no folder; name the folder of a downloaded model")
    if not (source / "config.json").exists():
        raise LmsiError(f"{source} has no config.json; name the folder of a downloaded model")
    raw = read_json(source / "config.json")
    if not isinstance(raw, dict):
        raise LmsiError(f"{source / 'config.json'} is no object; download it again")
    config = model_config(raw)
    shards = Shards(source)
    wanted = tensors(config)
    _check(source, shards, wanted, config)
    with new_folder(out) as made:
        _copy_tokenizer(source, made / "tokenizer", config)
        streaming.save(made, 0, _tree(shards, wanted, dtype))
        (made / "model.gin").write_text(gin_text(config, source, out))
        write_json(made / "model.json", dataclasses.asdict(config))
    return config


def _check(source: Path, shards: Shards, wanted: list[Tensor], config: ModelConfig) -> None:
    """Compares names, shapes and types with what the configuration asks for.

    Raises:
      LmsiError: names the first tensor that does not fit.
    """
    names = {tensor.name for tensor in wanted}
    missing = [tensor.name for tensor in wanted if tensor.name not in shards.shapes]
    if missing:
        raise LmsiError(
            f"{source} has no tensor {missing[0]!r} ({len(missing)} are missing), which "
            f"config.json asks for; {_remedy(missing[0])}"
        )
    for name in shards.names:
        if name in names or name.endswith(_DERIVED):
            continue
        if name == "lm_head.weight" and config.tied_embeddings:
            _check_tied(source, shards)
            continue
        raise LmsiError(
            f"{source} has a tensor {name!r} that config.json does not ask for; "
            "take the config.json that belongs to the checkpoint"
        )
    for tensor in wanted:
        if shards.shapes[tensor.name] != tensor.shape:
            raise LmsiError(
                f"{source}: {tensor.name} is {shards.shapes[tensor.name]}, config.json wants "
                f"{tensor.shape}; take the config.json that belongs to the checkpoint"
            )
        if shards.dtypes[tensor.name] not in DTYPES:
            raise LmsiError(
                f"{source}: {tensor.name} has the type {shards.dtypes[tensor.name]}; only "
                f"{', '.join(DTYPES)} are read: take the model that is not quantised"
            )


def _remedy(name: str) -> str:
    if name == "lm_head.weight":
        return "set tie_word_embeddings to true if it scores tokens with its embeddings"
    return "take the config.json and all files that belong to the checkpoint"


def _check_tied(source: Path, shards: Shards) -> None:
    """A copy of the embeddings is left out; another table is not.

    Raises:
      LmsiError: it is another one.
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


def _tree(shards: Shards, wanted: list[Tensor], dtype: Dtype) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for tensor in wanted:
        kind = cast(DTYPES[shards.dtypes[tensor.name]], dtype)
        level = tree
        for key in tensor.path[:-1]:
            level = level.setdefault(key, {})
        level[tensor.path[-1]] = streaming.Later(
            shape=tensor.shape[::-1] if tensor.transposed else tensor.shape,
            dtype=kind,
            make=functools.partial(shards.read, tensor.name, kind, tensor.transposed),
        )
    return tree


def _copy_tokenizer(source: Path, folder: Path, config: ModelConfig) -> None:
    """Copies the tokenizer's files, and reads them.

    Raises:
      LmsiError: there are none, or they are of another model.
    """
    folder.mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    if not any((folder / name).exists() for name in (TOKENIZER_JSON, SENTENCEPIECE)):
        raise LmsiError(
            f"{source} has no {TOKENIZER_JSON} and no {SENTENCEPIECE}; put the model's tokenizer "
            "there"
        )
    ids = open_tokenizer(str(folder)).vocab_size
    if ids > config.vocab_size:
        raise LmsiError(
            f"the tokenizer of {source} has {ids} ids, config.json's vocab_size is "
            f"{config.vocab_size}; take the tokenizer that belongs to the checkpoint"
        )


def gin_text(config: ModelConfig, source: Path, out: Path) -> str:
    """Returns the gin file that names a model: `include` it, or give it as --gin_file."""
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
