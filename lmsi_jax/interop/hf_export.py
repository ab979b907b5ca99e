"""Convert a checkpoint of `lmsi` to a Hugging Face model folder, one tensor at a time.

transformers' AutoModelForCausalLM and AutoTokenizer load the folder, which appears only once it is
complete.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from lmsi_jax.config import ModelConfig
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.hf_config import hf_config
from lmsi_jax.interop.hf_families import Tensor, tensors
from lmsi_jax.interop.hf_shards import Dtype, cast, write_shards
from lmsi_jax.interop.hf_weights import TOKENIZER_FILES
from lmsi_jax.models.tokenizers import FileTokenizer, open_tokenizer
from lmsi_jax.runtime.files import new_folder, write_json
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
