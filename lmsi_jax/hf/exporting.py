"""A checkpoint -> a folder that transformers' AutoModelForCausalLM and AutoTokenizer load.

One parameter is in memory at a time. The folder appears when all of it is there.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import new_folder, write_json
from lmsi_jax.hf.config_out import hf_config
from lmsi_jax.hf.importing import TOKENIZER_FILES
from lmsi_jax.hf.names import Tensor, tensors
from lmsi_jax.hf.shards import Dtype, cast, write_shards
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.tokenizer import FileTokenizer, open_tokenizer
from lmsi_jax.training.streaming import Saved


def export_model(
    checkpoint: epath.PathLike,
    config: ModelConfig,
    tokenizer: epath.PathLike,
    out: Path,
    *,
    dtype: Dtype = "keep",
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Converts a checkpoint.

    Args:
      checkpoint: a `checkpoint_N` folder, or a folder of which the newest is taken.
      config: its shape.
      tokenizer: `Run.tokenizer`.
      out: the folder to make.
      dtype: of the tensors; "keep": as they are in the checkpoint.
      max_shard_bytes: bytes of a file at most.

    Raises:
      LmsiError: no Hugging Face architecture computes what the model does, the checkpoint is
        damaged or of another shape, or there is no tokenizer; `out` is not made.
    """
    raw = hf_config(config)
    saved = Saved(checkpoint)
    wanted = tensors(config)
    _check(saved, wanted)
    opened = open_tokenizer(tokenizer)
    kinds = {cast(saved.dtypes[tensor.path], dtype) for tensor in wanted}
    widest = max(kinds, key=lambda kind: kind.itemsize)
    with new_folder(out) as made:
        write_json(made / "config.json", raw | _ids(opened) | {"torch_dtype": widest.name})
        _copy_tokenizer(opened, made, config)
        write_shards(made, [_part(saved, tensor, dtype) for tensor in wanted], max_shard_bytes)


def _check(saved: Saved, wanted: list[Tensor]) -> None:
    """Compares the checkpoint with the configuration.

    Raises:
      LmsiError: names the first parameter that does not fit.
    """
    remedy = "name the checkpoint of this configuration, or its run's folder with --run"
    for tensor in wanted:
        name = ".".join(tensor.path)
        shape = tensor.shape[::-1] if tensor.transposed else tensor.shape
        found = saved.shapes.get(tensor.path)
        if found is None:
            raise LmsiError(f"the checkpoint {saved.folder} has no {name!r}; {remedy}")
        if found != shape:
            raise LmsiError(
                f"the checkpoint {saved.folder}: {name} is {found}, ModelConfig wants {shape}; "
                f"{remedy}"
            )
    odd = sorted(set(saved.shapes) - {tensor.path for tensor in wanted})
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
    """config.json's special ids."""
    ends = sorted(tokenizer.end_ids, key=lambda i: (i != tokenizer.eos_id, i))
    return {
        "bos_token_id": tokenizer.start_ids[0] if tokenizer.start_ids else None,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.pad_id,
    }


def _copy_tokenizer(tokenizer: FileTokenizer, folder: Path, config: ModelConfig) -> None:
    """Copies the tokenizer's files, and says in generation_config.json where texts end.

    Raises:
      LmsiError: it has more ids than the model.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise LmsiError(
            f"the tokenizer {tokenizer.path} has {tokenizer.vocab_size} ids, the model "
            f"{config.vocab_size}; name the one that the checkpoint was trained with"
        )
    own = epath.Path(tokenizer.path)
    for name in TOKENIZER_FILES:
        if (own.parent / name).exists():
            (folder / name).write_bytes((own.parent / name).read_bytes())
    if not (folder / own.name).exists():
        (folder / own.name).write_bytes(own.read_bytes())
    settings = folder / "generation_config.json"
    if not settings.exists():
        write_json(settings, {k: v for k, v in _ids(tokenizer).items() if v is not None})
