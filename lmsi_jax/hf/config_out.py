"""`ModelConfig` -> config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmsi_jax.errors import LmsiError
from lmsi_jax.hf.config_in import model_config
from lmsi_jax.hf.families import FAMILIES, Family
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.rope import LinearScaling, Llama3Scaling, YarnScaling

# They change memory and time of training, not the model.
_TRAINING = {"remat": "none", "scan_layers": False, "query_block": 0}


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Returns config.json's keys for a model, its weights' type and special ids left out.

    Raises:
      LmsiError: no architecture of Hugging Face's computes what this model does.
    """
    family = _family(config)
    raw = _common(config, family) | _attention(config, family) | _positions(config, family)
    _check_same(config, family, raw)
    return raw


def _family(config: ModelConfig) -> Family:
    """The family whose fixed fields are the model's."""
    if config.block == "parallel":
        raise LmsiError(
            "a PaLM-style model (ModelConfig.block = 'parallel') has no architecture in Hugging "
            "Face's transformers; export one of the families of docs/models.md"
        )
    # Those with most of their own come first: Llama's are all others'.
    for family in sorted(FAMILIES, key=lambda family: -len(family.fixed)):
        if all(getattr(config, name) == value for name, value in family.fixed.items()):
            return family
    raise AssertionError("Llama fixes nothing")


def _common(config: ModelConfig, family: Family) -> dict[str, Any]:
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


def _attention(config: ModelConfig, family: Family) -> dict[str, Any]:
    theirs, _ = family.activation
    made: dict[str, Any] = {"hidden_act": theirs}
    if "hidden_activation" in family.reads:
        made = {
            "hidden_activation": theirs,
            "query_pre_attn_scalar": _whole(config.query_scalar or config.head_dim),
            "attn_logit_softcapping": config.attention_softcap or None,
            "final_logit_softcapping": config.logits_softcap or None,
        }
    for key, name in (("attention_bias", "query"), ("mlp_bias", "gate")):
        if key in family.reads:
            made[key] = name in config.biases
    if "sliding_window" in family.reads:
        made |= _windows(config, family)
    return made


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _windows(config: ModelConfig, family: Family) -> dict[str, Any]:
    windows = [config.window(layer) for layer in range(config.num_layers)]
    sizes = set(windows) - {0}
    if len(sizes) > 1:
        raise LmsiError(
            f"ModelConfig.windows = {config.windows} has several widths; {family.architecture} "
            "has one sliding_window"
        )
    kinds = ["sliding_attention" if window else "full_attention" for window in windows]
    made: dict[str, Any] = {"layer_types": kinds, "sliding_window": max(sizes, default=None)}
    if "use_sliding_window" in family.reads:
        made["use_sliding_window"] = bool(sizes)
    return made


def _positions(config: ModelConfig, family: Family) -> dict[str, Any]:
    made: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": _scaling(config)}
    if "rope_local_base_freq" in family.reads:
        made["rope_local_base_freq"] = config.local_rope_theta
    return made


def _scaling(config: ModelConfig) -> dict[str, Any] | None:
    match config.rope_scaling:
        case None:
            return None
        case LinearScaling(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3Scaling() as scaling:
            made = _settings(scaling)
            made["original_max_position_embeddings"] = made.pop("original_length")
            return {"rope_type": "llama3", **made}
        case YarnScaling() as scaling:
            made = _settings(scaling)
            made["original_max_position_embeddings"] = made.pop("original_length")
            made["attention_factor"] = made["attention_factor"] or None
            return {"rope_type": "yarn", **made}


def _settings(scaling: Llama3Scaling | YarnScaling) -> dict[str, Any]:
    fields = dataclasses.fields(scaling)
    return {field.name: getattr(scaling, field.name) for field in fields if field.init}


def _check_same(config: ModelConfig, family: Family, raw: Mapping[str, Any]) -> None:
    """Reads config.json back: what it cannot say is not exported.

    Raises:
      LmsiError: names the fields that the architecture has no room for.
    """
    wanted = dataclasses.replace(config, **_TRAINING)  # type: ignore[arg-type]
    found = model_config(raw)
    if found.query_scalar == 0.0 and wanted.query_scalar == wanted.head_dim:
        wanted = dataclasses.replace(wanted, query_scalar=0.0)
    for field in dataclasses.fields(config):
        ours, theirs = getattr(wanted, field.name), getattr(found, field.name)
        if field.name == "windows":
            layers = range(config.num_layers)
            ours, theirs = ([c.window(i) for i in layers] for c in (wanted, found))
        if ours != theirs:
            raise LmsiError(
                f"{family.architecture} has ModelConfig.{field.name} = {theirs!r}, this model "
                f"{ours!r}: no architecture in Hugging Face's transformers computes what it does"
            )
