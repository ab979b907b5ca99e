"""Convert Hugging Face's config.json to `ModelConfig` and back.

Supported are Llama 3, Qwen 2.5, Qwen 3, Gemma 2 and Gemma 3.

Every key of a config.json is either read here or known to change nothing; any other key is refused
by name, for a network that is almost the right one writes almost right text.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from lmsi_jax.config import LinearScaling, Llama3Scaling, ModelConfig, RopeScaling, YarnScaling
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.hf_families import BIASED, COMMON, FAMILIES, GEMMA_GELU, Family

# Keys about a model's origin, storage or name, which do not change its computation.
IDLE = frozenset(
    {
        *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "initializer_range"),
        *("use_cache", "cache_implementation", "attention_dropout", "pretraining_tp"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unsloth_fixed", "_attn_implementation"),
        *("_sliding_window_pattern", "sliding_window_size", "use_bidirectional_attention"),
        *(
            "chunk_size_feed_forward",
            "is_encoder_decoder",
            "return_dict",
            "output_attentions",
            "output_hidden_states",
        ),
        *("id2label", "label2id", "problem_type", "add_cross_attention", "is_decoder"),
    }
)
# Settings of generation, tokenizers and training that transformers and others have written into
# config.json. They are ignored, and named to the user.
_SETTINGS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "do_sample", "num_beams"),
        *("num_beam_groups", "diversity_penalty", "length_penalty", "repetition_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "early_stopping"),
        *("min_length", "max_length", "max_new_tokens", "num_return_sequences", "bad_words_ids"),
        *("suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty"),
        *("remove_invalid_values", "renormalize_logits", "output_scores"),
        *("return_dict_in_generate", "task_specific_params", "finetuning_task", "prefix"),
        *("tokenizer_class", "model_max_length", "auto_map", "attn_implementation", "torchscript"),
        *("gradient_checkpointing", "neftune_noise_alpha", "is_llama_config", "tf_legacy_loss"),
        *("use_bfloat16", "tie_encoder_decoder"),
    }
)
# Private attributes, versions, special ids, settings of tokenizers and of tools by their names.
_HARMLESS = re.compile(r"_.+|.+_version|.+_token_ids?|(tokenizer|unsloth|transformers)[._].+")
# Values of keys of other families that are the same as no key.
_NEUTRAL = {"partial_rotary_factor": 1.0}
_QUANTISATION = ("quantization_config", "quantization", "compression_config")


def ignored_keys(raw: Mapping[str, Any]) -> list[str]:
    """Returns the unusual keys of a config.json that are ignored since they change no score."""
    used = set().union(COMMON, IDLE, *(family.reads for family in FAMILIES))
    return [key for key in raw if key not in used and _is_setting(key) and not _empty(raw[key])]


def _is_setting(key: str) -> bool:
    return key in _SETTINGS or _HARMLESS.fullmatch(key) is not None


def _empty(value: Any) -> bool:
    return value in (None, False, 0, "", [], {})


def family_of(raw: Mapping[str, Any]) -> Family:
    """Returns the family of a config.json.

    Raises:
      LmsiError: the family is not one of `FAMILIES`.
    """
    kind = raw.get("model_type")
    for family in FAMILIES:
        if family.model_type == kind:
            _check_architecture(family, raw)
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    more = ""
    if kind == "gemma3":
        more = "; of a Gemma 3 with images, import the text model (Gemma3ForCausalLM) alone"
    raise LmsiError(
        f"config.json: model_type = {kind!r} is not supported{more}; supported are {known}"
    )


def _check_architecture(family: Family, raw: Mapping[str, Any]) -> None:
    names = raw.get("architectures") or [family.architecture]
    if family.architecture not in names:
        raise LmsiError(
            f"config.json: architectures = {names!r}; only {family.architecture} of "
            f"{family.model_type} writes text and is supported"
        )


def model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Returns the `ModelConfig` of a config.json.

    Raises:
      LmsiError: an architecture, a feature or a key is not supported, or a number is missing or
        does not fit; names the key.
    """
    family = family_of(raw)
    _check_keys(family, raw)
    get = _Reader(family, raw)
    heads = get.number("num_attention_heads")
    windows = _windows(get)
    fields = {
        "vocab_size": get.number("vocab_size"),
        "num_layers": get.number("num_hidden_layers"),
        "embed_dim": get.number("hidden_size"),
        "num_heads": heads,
        "num_kv_heads": get.number("num_key_value_heads", heads),
        "head_dim": get.number("head_dim", get.number("hidden_size") // heads),
        "mlp_dim": get.number("intermediate_size"),
        "max_length": get.number("max_position_embeddings"),
        "block": "sequential",
        "norm_epsilon": float(get("rms_norm_eps", 1e-6)),
        "query_scalar": float(get("query_pre_attn_scalar", 0.0)),
        "windows": windows,
        "attention_softcap": float(get("attn_logit_softcapping", 0.0)),
        "logits_softcap": float(get("final_logit_softcapping", 0.0)),
        "tied_embeddings": bool(get("tie_word_embeddings", False)),
        "biases": _biases(get),
        **_positions(get),
        **family.fixed,
    }
    try:
        config = ModelConfig(**fields)
    except LmsiError as error:
        raise LmsiError(f"config.json does not describe a model: {error}") from None
    # 0.0 means head_dim: equal models get equal configurations.
    same = config.query_scalar == config.head_dim
    return dataclasses.replace(config, query_scalar=0.0) if same else config


class _Reader:
    """The values of a config.json, with transformers' defaults for missing keys and nulls."""

    def __init__(self, family: Family, raw: Mapping[str, Any]):
        # A null of Gemma 2's caps means none, not the default.
        uncapped = {key: 0.0 for key in _CAPS if key in raw and raw[key] is None}
        present = {key: value for key, value in raw.items() if value is not None}
        self.values = {**family.defaults, **uncapped, **present}

    def __call__(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def number(self, key: str, default: int | None = None) -> int:
        """Returns a whole number above 0.

        Raises:
          LmsiError: the value is missing or is not such a number.
        """
        value = self.values.get(key, default)
        if type(value) is not int or value < 1:
            raise LmsiError(
                f"config.json: {key} = {value!r}; it must be a whole number above 0. Take the "
                "config.json that belongs to the checkpoint"
            )
        return value


_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def _check_keys(family: Family, raw: Mapping[str, Any]) -> None:
    """Refuses unknown keys that are not empty, and values that are not supported.

    Raises:
      LmsiError: names the key and its value.
    """
    quantisation = [key for key in _QUANTISATION if not _empty(raw.get(key))]
    if quantisation:
        raise LmsiError(
            f"config.json has {quantisation[0]!r}: the weights are quantised, which is not "
            "supported; take the model that is not, or its GGUF file"
        )
    unknown = [
        f"{key} = {value!r}"
        for key, value in raw.items()
        if key not in COMMON | family.reads | IDLE
        and not _empty(value)
        and not _is_setting(key)
        and not _is_neutral(key, value)
    ]
    if len(unknown) == 1:
        raise LmsiError(
            f"config.json: {unknown[0]} is not supported for {family.model_type}; if it does not "
            "change what the model computes, delete it there"
        )
    if unknown:
        raise LmsiError(
            f"config.json: {', '.join(unknown)} are not supported for {family.model_type}; delete "
            "there those that do not change what the model computes"
        )
    theirs, _ = family.activation
    for key in ("hidden_act", "hidden_activation"):
        value = raw.get(key)
        older = {"gelu"} if family.activation is GEMMA_GELU and key == "hidden_act" else set()
        if value is not None and value not in {theirs, *older}:
            raise LmsiError(
                f"config.json: {key} = {value!r} is not supported; {family.model_type} has {theirs}"
            )
    for key in ("use_bidirectional_attention", "is_encoder_decoder", "add_cross_attention"):
        if raw.get(key):
            raise LmsiError(f"config.json: {key} = {raw[key]!r} is not supported; it must be false")


def _is_neutral(key: str, value: Any) -> bool:
    if key == "layer_types":
        return isinstance(value, list) and all(kind == "full_attention" for kind in value)
    return key in _NEUTRAL and value == _NEUTRAL[key]


def _biases(get: _Reader) -> tuple[str, ...]:
    attention = (*BIASED, "attention_out") if get("attention_bias") else ()
    return attention + (("gate", "up", "down") if get("mlp_bias") else ())


def _windows(get: _Reader) -> tuple[int, ...]:
    """Returns the sliding windows, as the shortest cycle that gives each layer its window."""
    layers = get.number("num_hidden_layers")
    kinds = get("layer_types")
    if kinds is None:
        kinds = [_kind(get, layer) for layer in range(layers)]
    if len(kinds) != layers:
        raise LmsiError(
            f"config.json: layer_types names {len(kinds)} layers, num_hidden_layers {layers}"
        )
    odd = set(kinds) - {"full_attention", "sliding_attention"}
    if odd:
        raise LmsiError(f"config.json: layer_types has {min(odd)!r}, which is not supported")
    sliding = "sliding_attention" in kinds
    window = get.number("sliding_window") if sliding else 0
    layer_windows = [window if kind == "sliding_attention" else 0 for kind in kinds]
    length = next(
        n for n in range(1, layers + 1) if layer_windows == (layer_windows[:n] * layers)[:layers]
    )
    return tuple(layer_windows[:length])


def _kind(get: _Reader, layer: int) -> str:
    """Returns a layer's kind of attention for an older config.json without `layer_types`."""
    if pattern := get("sliding_window_pattern"):
        return "sliding_attention" if (layer + 1) % pattern else "full_attention"
    if get("use_sliding_window", False) and layer >= get("max_window_layers"):
        return "sliding_attention"
    return "full_attention"


def _positions(get: _Reader) -> dict[str, Any]:
    """Returns the rotary fields, from the keys of transformers 4 or from `rope_parameters` of 5."""
    local = get("rope_local_base_freq")
    rope, scaling = get("rope_parameters"), get("rope_scaling") or {}
    for key, value in (("rope_parameters", rope or {}), ("rope_scaling", scaling)):
        if not isinstance(value, dict):
            raise LmsiError(f"config.json: {key} = {value!r} is not an object")
    if rope is None:
        rope = {"rope_theta": get("rope_theta"), **scaling}
    elif "full_attention" in rope:
        for kind in ("full_attention", "sliding_attention"):
            if not isinstance(rope.get(kind), dict):
                raise LmsiError(f"config.json: rope_parameters has no {kind!r}")
        local = _local_theta(rope["sliding_attention"], local)
        rope = rope["full_attention"]
    other = sorted(key for key, value in scaling.items() if rope.get(key) != value)
    if other:
        raise LmsiError(
            f"config.json: rope_scaling and rope_parameters have different values of {other[0]!r}; "
            "remove the one that does not belong to the checkpoint"
        )
    fields: dict[str, Any] = {
        "rope_theta": _rope_number({"rope_theta": get("rope_theta"), **rope}, "rope_theta"),
        "rope_scaling": _scaling(rope, get),
    }
    if local is not None:
        fields["local_rope_theta"] = float(local)
    return fields


def _local_theta(rope: Mapping[str, Any], default: float | None) -> float | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise LmsiError(
            f"config.json: rope_parameters' sliding_attention has rope_type {kind!r}, which is "
            "not supported; it must be 'default'"
        )
    return rope.get("rope_theta", default)


def _scaling(rope: Mapping[str, Any], get: _Reader) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    longest = get.number("max_position_embeddings")
    original = rope.get("original_max_position_embeddings", longest)
    if kind == "default":
        _check_rope(rope, kind, set())
        return None
    if "factor" not in rope:
        raise LmsiError(f"config.json: rope_scaling of type {kind!r} has no 'factor'")
    factor = _rope_number(rope, "factor")
    if kind == "linear":
        _check_rope(rope, kind, {"factor"})
        return LinearScaling(factor=factor)
    if kind == "llama3":
        bounds = ("low_freq_factor", "high_freq_factor")
        _check_rope(rope, kind, {"factor", "original_max_position_embeddings", *bounds})
        low, high = (_rope_number(rope, name) for name in bounds)
        return Llama3Scaling(
            factor=factor, low_freq_factor=low, high_freq_factor=high, original_length=original
        )
    if kind == "yarn":
        ramp = ("beta_fast", "beta_slow", "attention_factor", "truncate")
        _check_rope(rope, kind, {"factor", "original_max_position_embeddings", *ramp})
        settings = {name: rope[name] for name in ramp if rope.get(name) is not None}
        return YarnScaling(factor=factor, original_length=original, **settings)
    raise LmsiError(
        f"config.json: rope_scaling of type {kind!r} is not supported; supported are default, "
        "linear, llama3 and yarn"
    )


def _rope_number(rope: Mapping[str, Any], key: str) -> float:
    if type(rope.get(key)) not in (int, float):
        raise LmsiError(
            f"config.json: the rotary setting {key!r} is {rope.get(key)!r}; it must be a number. "
            "Take the config.json that belongs to the checkpoint"
        )
    return float(rope[key])


def _check_rope(rope: Mapping[str, Any], kind: str, reads: set[str]) -> None:
    odd = sorted(
        key
        for key, value in rope.items()
        if key not in reads | {"rope_type", "type", "rope_theta"} and value is not None
    )
    if odd:
        raise LmsiError(
            f"config.json: rope_scaling of type {kind!r} has {odd[0]!r}, which is not supported"
        )


# Fields that change memory and time of training, not the model.
_TRAINING = {"remat": "none", "scan_layers": False, "query_block": 0}


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys of a model's config.json, without the weights' type and special ids.

    Raises:
      LmsiError: no Hugging Face architecture computes the same.
    """
    family = _family(config)
    raw = (
        _common_keys(config, family)
        | _attention_keys(config, family)
        | _position_keys(config, family)
    )
    _check_same(config, family, raw)
    return raw


def _family(config: ModelConfig) -> Family:
    """Returns the family whose fixed fields agree with the model."""
    if config.block == "parallel":
        raise LmsiError(
            "a PaLM-style model (ModelConfig.block = 'parallel') has no architecture in Hugging "
            "Face's transformers; export one of the families of docs/models.md"
        )
    # The most specific first: Llama fixes no field and agrees with every model.
    for family in sorted(FAMILIES, key=lambda family: -len(family.fixed)):
        if all(getattr(config, name) == value for name, value in family.fixed.items()):
            return family
    raise AssertionError("Llama fixes nothing")


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
    theirs, _ = family.activation
    keys: dict[str, Any] = {"hidden_act": theirs}
    if "hidden_activation" in family.reads:
        keys = {
            "hidden_activation": theirs,
            "query_pre_attn_scalar": _whole(config.query_scalar or config.head_dim),
            "attn_logit_softcapping": config.attention_softcap or None,
            "final_logit_softcapping": config.logits_softcap or None,
        }
    for key, name in (("attention_bias", "query"), ("mlp_bias", "gate")):
        if key in family.reads:
            keys[key] = name in config.biases
    if "sliding_window" in family.reads:
        keys |= _window_keys(config, family)
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
    kinds = ["sliding_attention" if window else "full_attention" for window in windows]
    keys: dict[str, Any] = {"layer_types": kinds, "sliding_window": max(sizes, default=None)}
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
    if parsed.query_scalar == 0.0 and expected.query_scalar == expected.head_dim:
        expected = dataclasses.replace(expected, query_scalar=0.0)
    for field in dataclasses.fields(config):
        ours, theirs = getattr(expected, field.name), getattr(parsed, field.name)
        if field.name == "windows":
            layers = range(config.num_layers)
            ours, theirs = ([c.window(i) for i in layers] for c in (expected, parsed))
        if ours != theirs:
            raise LmsiError(
                f"{family.architecture} has ModelConfig.{field.name} = {theirs!r}, this model "
                f"{ours!r}: no architecture in Hugging Face's transformers computes what it does"
            )
