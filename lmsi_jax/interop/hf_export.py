"""Convert a checkpoint of `lmsi` to a Hugging Face model folder, one tensor at a time.

transformers' AutoModelForCausalLM and AutoTokenizer load the folder, which appears only once it is
complete.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from lmsi_jax.config import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ModelConfig,
    YarnScaling,
)
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.hf_config import model_config
from lmsi_jax.interop.hf_families import (
    FAMILIES,
    GRANITE_FIELDS,
    Family,
    Tensor,
    fused_tensors,
    tensors,
)
from lmsi_jax.interop.hf_shards import Dtype, Make, Part, cast, write_shards
from lmsi_jax.interop.hf_weights import TOKENIZER_FILES
from lmsi_jax.models.tokenizers import FileTokenizer, open_tokenizer
from lmsi_jax.runtime.files import new_folder, read_bytes, write_json
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
        parts = [_part(saved, tensor, dtype) for tensor in expected]
        if family_for(config).fused:
            parts = _fuse(config, parts)
        write_shards(folder, parts, max_shard_bytes)


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


def _part(saved: Saved, tensor: Tensor, dtype: Dtype) -> Part:
    kind = cast(saved.dtypes[tensor.path], dtype)
    return tensor.name, tensor.shape, kind, functools.partial(_read, saved, tensor, kind)


def _fuse(config: ModelConfig, parts: Sequence[Part]) -> list[Part]:
    """Returns the tensors of a family whose projections of one input are one tensor."""
    by_name = {part[0]: part for part in parts}
    for name, members in fused_tensors(config):
        joined = [by_name.pop(member.name) for member in members]
        rows = sum(shape[0] for _, shape, _, _ in joined)
        make = functools.partial(_join, [make for *_, make in joined])
        by_name[name] = name, (rows, *joined[0][1][1:]), joined[0][2], make
    return list(by_name.values())


def _join(makes: Sequence[Make]) -> np.ndarray:
    return np.concatenate([make() for make in makes])


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
            (folder / name).write_bytes(read_bytes(file.parent / name))
    if not (folder / file.name).exists():
        (folder / file.name).write_bytes(read_bytes(file))
    settings = folder / "generation_config.json"
    if not settings.exists():
        write_json(settings, {k: v for k, v in _ids(tokenizer).items() if v is not None})


# Fields that change memory and time of training, not the model.
_TRAINING = {"remat": "none", "scan_layers": False, "query_block": 0}


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys of a model's config.json, without the weights' type and special ids.

    Raises:
      LmsiError: no Hugging Face architecture computes the same.
    """
    family = family_for(config)
    raw = (
        _common_keys(config, family)
        | _attention_keys(config, family)
        | _position_keys(config, family)
    )
    _check_same(config, family, raw)
    return raw


def family_for(config: ModelConfig) -> Family:
    """Returns the family that a model is exported as, which may lack some of its features.

    Raises:
      LmsiError: the model's block is of no family.
    """
    if config.block == "parallel":
        raise LmsiError(
            "a PaLM-style model (ModelConfig.block = 'parallel') has no architecture in Hugging "
            "Face's transformers; export one of the families of docs/models.md"
        )
    # The most specific first: Llama fixes no field and fits every model.
    last = FAMILIES[0]
    for family in sorted(FAMILIES, key=lambda family: (-len(family.fixed), family is last)):
        fixed = all(getattr(config, name) == value for name, value in family.fixed.items())
        if fixed and family.exports(config):
            return family
    raise AssertionError("Llama fits every model")


def _common_keys(config: ModelConfig, family: Family) -> dict[str, Any]:
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_dropout": 0.0,
    }


def _attention_keys(config: ModelConfig, family: Family) -> dict[str, Any]:
    keys: dict[str, Any] = {"hidden_act": family.activation}
    if "hidden_activation" in family.reads:
        keys["hidden_activation"] = family.activation
    if "query_pre_attn_scalar" in family.reads:
        keys = {
            "hidden_activation": family.activation,
            "query_pre_attn_scalar": _whole(config.query_scalar or config.head_dim),
            "attn_logit_softcapping": config.attention_softcap or None,
            "final_logit_softcapping": config.logits_softcap or None,
        }
    for key, name in (("attention_bias", "query"), ("mlp_bias", "gate")):
        if key in family.reads:
            keys[key] = name in config.biases
    if "sliding_window" in family.reads:
        keys |= _window_keys(config, family)
    if "no_rope_layers" in family.reads:
        keys["no_rope_layers"] = [int(config.is_rotary(i)) for i in range(config.num_layers)]
    if "attention_multiplier" in family.reads:
        keys["attention_multiplier"] = (config.query_scalar or config.head_dim) ** -0.5
        keys |= {key: getattr(config, field) for key, field in GRANITE_FIELDS.items()}
    return keys


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _window_keys(config: ModelConfig, family: Family) -> dict[str, Any]:
    windows = [config.window(layer) for layer in range(config.num_layers)]
    sizes = set(windows) - {0}
    if len(sizes) > 1:
        raise LmsiError(
            f"ModelConfig.windows = {config.windows} has several widths; {family.architecture} "
            "has one sliding_window"
        )
    keys: dict[str, Any] = {"sliding_window": max(sizes, default=None)}
    if "layer_types" in family.reads:
        keys["layer_types"] = [
            "sliding_attention" if window else "full_attention" for window in windows
        ]
    if "use_sliding_window" in family.reads:
        keys["use_sliding_window"] = bool(sizes)
    return keys


def _position_keys(config: ModelConfig, family: Family) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling_keys(config),
    }
    if "rope_local_base_freq" in family.reads:
        keys["rope_local_base_freq"] = config.local_rope_theta
    elif family.local_rope:  # transformers 5 would take its default of the base
        default = {"rope_type": "default"}
        keys["rope_parameters"] = {
            "full_attention": {
                **(keys["rope_scaling"] or default),
                "rope_theta": config.rope_theta,
            },
            "sliding_attention": {
                **default,
                "rope_theta": config.local_rope_theta or config.rope_theta,
            },
        }
    if family.fused:
        keys["partial_rotary_factor"] = (config.rotary_dim or config.head_dim) / config.head_dim
        keys["original_max_position_embeddings"] = config.max_length
    return keys


def _scaling_keys(config: ModelConfig) -> dict[str, Any] | None:
    match config.rope_scaling:
        case None:
            return None
        case LinearScaling(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3Scaling() as scaling:
            keys = _settings(scaling)
            keys["original_max_position_embeddings"] = keys.pop("original_length")
            return {"rope_type": "llama3", **keys}
        case YarnScaling() as scaling:
            keys = _settings(scaling)
            keys["original_max_position_embeddings"] = keys.pop("original_length")
            keys["attention_factor"] = keys["attention_factor"] or None
            return {"rope_type": "yarn", **keys}
        case LongRopeScaling(divisors=divisors, attention_factor=gain):
            both = {"short_factor": list(divisors), "long_factor": list(divisors)}
            return {"rope_type": "longrope", **both, "attention_factor": gain}


def _settings(scaling: Llama3Scaling | YarnScaling) -> dict[str, Any]:
    fields = dataclasses.fields(scaling)
    return {field.name: getattr(scaling, field.name) for field in fields if field.init}


def _check_same(config: ModelConfig, family: Family, raw: Mapping[str, Any]) -> None:
    """Reads config.json back and compares, so that no field is lost in an export.

    Raises:
      LmsiError: names a field that the architecture cannot express.
    """
    expected = dataclasses.replace(config, **_TRAINING)  # type: ignore[arg-type]
    parsed = model_config(raw)
    if math.isclose(
        parsed.query_scalar or parsed.head_dim, expected.query_scalar or expected.head_dim
    ):
        expected = dataclasses.replace(expected, query_scalar=parsed.query_scalar)
    for field in dataclasses.fields(config):
        ours, theirs = getattr(expected, field.name), getattr(parsed, field.name)
        layers = range(config.num_layers)
        if field.name == "windows":
            ours, theirs = ([c.window(i) for i in layers] for c in (expected, parsed))
        if field.name == "rotary_layers":
            ours, theirs = ([c.is_rotary(i) for i in layers] for c in (expected, parsed))
        if ours != theirs:
            raise LmsiError(
                f"{family.architecture} has ModelConfig.{field.name} = {theirs!r}, this model "
                f"{ours!r}: no architecture in Hugging Face's transformers computes what it does"
            )
