"""Read Hugging Face's config.json as a `ModelConfig`.

Every key of a config.json is either read here or known to change nothing; all others are refused by
name, all at once, for a network that is almost the right one writes almost right text.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmsi_jax.config import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ModelConfig,
    RopeScaling,
    YarnScaling,
)
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.hf_families import (
    BIASED,
    COMMON,
    FAMILIES,
    GELU,
    GRANITE_FIELDS,
    REASONS,
    Family,
)

Note = Callable[[str], object]
"""Takes a line for the user."""
_AGAIN = "Take the config.json that belongs to the checkpoint"

# Keys about a model's origin, storage or name, which do not change its computation.
IDLE = frozenset(
    {
        *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "initializer_range"),
        *("use_cache", "cache_implementation", "attention_dropout", "pretraining_tp"),
        *("resid_pdrop", "embd_pdrop", "hidden_dropout", "hidden_dropout_prob"),
        *("classifier_dropout", "bos_token_id", "eos_token_id", "pad_token_id"),
        *("unsloth_fixed", "_attn_implementation"),
        *("_sliding_window_pattern", "sliding_window_size", "use_bidirectional_attention"),
        *("chunk_size_feed_forward", "is_encoder_decoder", "return_dict", "output_attentions"),
        *("output_hidden_states", "id2label", "label2id", "problem_type", "add_cross_attention"),
        "is_decoder",
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
        *("use_bfloat16", "tie_encoder_decoder", "max_sequence_length", "max_seq_length"),
        *(
            "max_seq_len",
            "seq_length",
            "model_name",
            "license",
            "custom_pipelines",
            "use_flash_attn",
        ),
    }
)
# Private attributes, versions, special ids, settings of tokenizers and of tools by their names.
_HARMLESS = re.compile(r"_.+|.+_version|.+_token_ids?|(tokenizer|unsloth|transformers)[._].+")
# Values of keys of other families that are the same as no key.
_NEUTRAL = {"partial_rotary_factor": 1.0, "full_attn_mod": 1, "interpolate_factor": 1}
_QUANTISATION = ("quantization_config", "quantization", "compression_config")
# Keys of a Gemma 3 with images that concern the images alone.
_OF_IMAGES = frozenset(
    {
        *("text_config", "vision_config", "mm_tokens_per_image", "boi_token_index"),
        *("eoi_token_index", "image_token_index", "architectures", "model_type"),
    }
)


def is_multimodal(raw: Mapping[str, Any]) -> bool:
    """Tells if a config.json is of a Gemma 3 with images, of which the text model is imported."""
    return raw.get("model_type") == "gemma3" and isinstance(raw.get("text_config"), dict)


def _text_keys(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    if not is_multimodal(raw):
        return raw
    outer = {key: value for key, value in raw.items() if key not in _OF_IMAGES}
    tied = {key: outer[key] for key in ("tie_word_embeddings",) if key in outer}
    return {**outer, **raw["text_config"], **tied, "model_type": "gemma3_text"}


def ignored_keys(raw: Mapping[str, Any]) -> list[str]:
    """Returns the unusual keys of a config.json that are ignored since they change no score."""
    raw = _text_keys(raw)
    used = set().union(COMMON, IDLE, *(family.reads for family in FAMILIES))
    return [key for key in raw if key not in used and _is_setting(key) and not _empty(raw[key])]


def _is_setting(key: str) -> bool:
    return key in _SETTINGS or _HARMLESS.fullmatch(key) is not None


def _empty(value: Any) -> bool:
    return value in (None, False, 0, "", [], {})


def family_of(raw: Mapping[str, Any]) -> Family:
    """Returns the family of a config.json.

    Raises:
      LmsiError: the family is not one of `FAMILIES`; says why if it is well known.
    """
    raw = _text_keys(raw)
    kind = raw.get("model_type")
    for family in FAMILIES:
        if family.model_type == kind:
            _check_architecture(family, raw)
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    reason = REASONS.get(kind, "") if isinstance(kind, str) else ""
    if kind == "gemma3":
        reason = "it has no 'text_config'; import the text model (Gemma3ForCausalLM) alone"
    raise LmsiError(
        f"config.json: model_type = {kind!r} is not supported{': ' * bool(reason)}{reason}; "
        f"supported are {known}, and the text model of gemma3"
    )


def _check_architecture(family: Family, raw: Mapping[str, Any]) -> None:
    names = raw.get("architectures") or [family.architecture]
    if not isinstance(names, list) or family.architecture not in names:
        raise LmsiError(
            f"config.json: architectures = {names!r}; only {family.architecture} of "
            f"{family.model_type} writes text and is supported"
        )


def model_config(raw: Mapping[str, Any], note: Note = lambda line: None) -> ModelConfig:
    """Returns the `ModelConfig` of a config.json; of a Gemma 3 with images, of its text model.

    Args:
      raw: the keys.
      note: called with a line on each thing that is not imported or that two keys disagree on.

    Raises:
      LmsiError: an architecture, a feature or a key is not supported, or a number is missing or
        does not fit; names the key.
    """
    raw = _text_keys(raw)
    family = family_of(raw)
    _check_keys(family, raw)
    get = _Reader(family, raw)
    heads = get.number("num_attention_heads")
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
        "norm_epsilon": get.real("rms_norm_eps", 1e-6),
        "query_scalar": _query_scalar(get),
        "windows": _windows(get),
        "rotary_layers": _rotary_layers(get),
        "attention_softcap": get.real("attn_logit_softcapping", 0.0),
        "logits_softcap": get.real("final_logit_softcapping", 0.0),
        "tied_embeddings": get.flag("tie_word_embeddings"),
        "biases": _biases(get),
        **{field: get.real(key, 1.0) for key, field in GRANITE_FIELDS.items()},
        **_positions(get, note),
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
        # A null of these means none, not the default.
        none = {key: 0.0 for key in _CAPS if key in raw and raw[key] is None}
        none |= {"sliding_window": 0} if raw.get("sliding_window", 0) is None else {}
        present = {key: value for key, value in raw.items() if value is not None}
        self.family = family
        self.values = {**family.defaults, **none, **present}

    def __call__(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def number(self, key: str, default: int | None = None) -> int:
        """Returns a whole number above 0.

        Raises:
          LmsiError: the value is missing or is not such a number.
        """
        value = self.values.get(key, default)
        most = _MOST_LAYERS if key == "num_hidden_layers" else 2**31
        if type(value) is not int or not 0 < value <= most:
            raise LmsiError(
                f"config.json: {key} = {_shown(value)}; it must be a whole number above 0"
                f"{f' and at most {most:,}' if type(value) is int and value > 0 else ''}. {_AGAIN}"
            )
        return value

    def real(self, key: str, default: float) -> float:
        """Returns a number, whole or not.

        Raises:
          LmsiError: the value is none.
        """
        return _real(key, self.values.get(key, default))

    def flag(self, key: str) -> bool:
        """Returns True or False; False without the key.

        Raises:
          LmsiError: the value is neither.
        """
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise LmsiError(f"config.json: {key} = {_shown(value)}; it must be true or false")
        return value


_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_MOST_LAYERS = 1000


def _real(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise LmsiError(f"config.json: {key!r} is {_shown(value)}; it must be a number. {_AGAIN}")
    return float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else text[:97] + "..."


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
        f"{key} = {_shown(value)}"
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
    for key in ("hidden_act", "hidden_activation"):
        value = raw.get(key)
        # The first Gemma files say "gelu" and mean the approximation.
        older = family.activation == GELU and key == "hidden_act" and value == "gelu"
        if value is not None and value != family.activation and not older:
            raise LmsiError(
                f"config.json: {key} = {_shown(value)} is not supported; {family.model_type} has "
                f"{family.activation}"
            )
    for key in ("use_bidirectional_attention", "is_encoder_decoder", "add_cross_attention"):
        if raw.get(key):
            raise LmsiError(f"config.json: {key} = {raw[key]!r} is not supported; it must be false")


def _is_neutral(key: str, value: Any) -> bool:
    if key == "layer_types":
        return isinstance(value, list) and all(kind == "full_attention" for kind in value)
    return key in _NEUTRAL and value == _NEUTRAL[key]


def _biases(get: _Reader) -> tuple[str, ...]:
    attention = (*BIASED, "attention_out") if get.flag("attention_bias") else ()
    return attention + (("gate", "up", "down") if get.flag("mlp_bias") else ())


def _query_scalar(get: _Reader) -> float:
    if "attention_multiplier" not in get.family.reads:
        return get.real("query_pre_attn_scalar", 0.0)
    multiplier = get.real("attention_multiplier", 1.0)
    if not 1e-9 < multiplier < 1e9:
        raise LmsiError(f"config.json: attention_multiplier = {multiplier}; it must be above 0")
    return multiplier**-2


def _windows(get: _Reader) -> tuple[int, ...]:
    """Returns the sliding windows, as the shortest cycle that gives each layer its window."""
    layers = get.number("num_hidden_layers")
    if "sliding_window" in get.family.reads and "layer_types" not in get.family.reads:
        window = 0 if get("sliding_window") in (None, 0) else get.number("sliding_window")
        return (window if window < get.number("max_position_embeddings") else 0,)
    kinds = get("layer_types")
    if kinds is None:
        kinds = [_kind(get, layer) for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        count = len(kinds) if isinstance(kinds, list) else _shown(kinds)
        raise LmsiError(
            f"config.json: layer_types names {count} layers, num_hidden_layers {layers}"
        )
    odd = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if odd:
        raise LmsiError(f"config.json: layer_types has {odd[0]!r}, which is not supported")
    sliding = "sliding_attention" in kinds
    if sliding and "use_sliding_window" in get.family.reads and not get.flag("use_sliding_window"):
        raise LmsiError(
            "config.json: layer_types has 'sliding_attention', but use_sliding_window is false; "
            f"transformers refuses that, too. {_AGAIN}"
        )
    window = get.number("sliding_window") if sliding else 0
    return _cycle([window if kind == "sliding_attention" else 0 for kind in kinds])


def _cycle(by_layer: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the shortest sequence whose repetition begins with all layers' values."""
    count = len(by_layer)
    return next(
        tuple(by_layer[:n])
        for n in range(1, count + 1)
        if all(by_layer[i] == by_layer[i - n] for i in range(n, count))
    )


def _kind(get: _Reader, layer: int) -> str:
    """Returns a layer's kind of attention for a config.json without `layer_types`."""
    if "sliding_window_pattern" in get.values:
        pattern = get.number("sliding_window_pattern")
        return "sliding_attention" if (layer + 1) % pattern else "full_attention"
    if not get.flag("use_sliding_window") or not get("sliding_window"):
        return "full_attention"
    if get.family.model_type == "smollm3":
        rotary = _rotary_layers(get)
        return "full_attention" if rotary[layer % len(rotary)] else "sliding_attention"
    first = get("max_window_layers")
    if type(first) is not int:
        raise LmsiError(f"config.json: max_window_layers = {_shown(first)}; it must be a number")
    return "sliding_attention" if layer >= first else "full_attention"


def _rotary_layers(get: _Reader) -> tuple[bool, ...]:
    if "no_rope_layers" not in get.family.reads:
        return (True,)
    layers = get.number("num_hidden_layers")
    flags = get("no_rope_layers")
    if flags is None:
        interval = get.number("no_rope_layer_interval")
        flags = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(flags, list) or len(flags) < layers or not all(f in (0, 1) for f in flags):
        raise LmsiError(
            f"config.json: no_rope_layers = {_shown(flags)}; it must have a 0 or 1 for each of "
            f"{layers} layers"
        )
    return _cycle([bool(flag) for flag in flags[:layers]])


def _positions(get: _Reader, note: Note) -> dict[str, Any]:
    """Returns the rotary fields, from the keys of transformers 4 or from `rope_parameters` of 5."""
    rope, local = _rope(get, note)
    theta = _real("rope_theta", {"rope_theta": get("rope_theta"), **rope}["rope_theta"])
    fields: dict[str, Any] = {"rope_theta": theta}
    head_dim = get.number(
        "head_dim", get.number("hidden_size") // get.number("num_attention_heads")
    )
    width = head_dim
    if "partial_rotary_factor" in get.family.reads:
        partial = {"partial_rotary_factor": get("partial_rotary_factor", 1.0), **rope}
        share = _real("partial_rotary_factor", partial["partial_rotary_factor"])
        if not 0 < share <= 1:
            raise LmsiError(f"config.json: partial_rotary_factor = {share}; it must be up to 1")
        width = int(head_dim * share)
        fields["rotary_dim"] = width if width < head_dim else 0
    kind = rope.get("rope_type")
    if get.family.model_type == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # its names in early files
    if kind == "longrope":
        return fields | _longrope(get, rope, width, note)
    fields["rope_scaling"] = _scaling(get, rope, kind)
    if get.family.local_rope:
        # The same positions in all layers are written like those of models without windows.
        same = get.family.model_type == "olmo3" and fields["rope_scaling"] is None
        if not same or local not in (None, theta):
            fields["local_rope_theta"] = _real(
                "rope_local_base_freq", theta if local is None else local
            )
    return fields


def _rope(get: _Reader, note: Note) -> tuple[dict[str, Any], Any]:
    """Returns the rotary settings of layers that see all tokens, and the base of the others.

    rope_scaling beside rope_parameters counts, as in transformers.

    Raises:
      LmsiError: they are no objects, or transformers would lose the base of rope_parameters.
    """
    local = get("rope_local_base_freq")
    new, old = get("rope_parameters"), get("rope_scaling") or {}
    for key, value in (("rope_parameters", new or {}), ("rope_scaling", old)):
        if not isinstance(value, dict):
            raise LmsiError(f"config.json: {key} = {_shown(value)} is not an object")
    old = _normal(old)
    if not new:
        return old, local
    if nested := "full_attention" in new or "sliding_attention" in new:
        for kind in ("full_attention", "sliding_attention"):
            if not isinstance(new.get(kind), dict) or not get.family.local_rope:
                raise LmsiError(
                    f"config.json: rope_parameters by kinds of layers is not supported for "
                    f"{get.family.model_type}"
                    if not get.family.local_rope
                    else f"config.json: rope_parameters has no {kind!r}"
                )
        local = _local_theta(new["sliding_attention"], local)
        new = new["full_attention"]
    new = _normal(new)
    other = sorted(k for k, value in old.items() if value is not None and new.get(k) != value)
    if not other:
        return new, local
    kept = {"rope_theta": get("rope_theta"), **(new if nested else {}), **old}
    if not nested and new.get("rope_theta", kept["rope_theta"]) != kept["rope_theta"]:
        raise LmsiError(
            f"config.json: rope_scaling and rope_parameters have different values of {other[0]!r}, "
            f"and transformers takes rope_scaling alone, with rope_theta = {kept['rope_theta']!r}; "
            "move its settings into rope_parameters"
        )
    note(
        f"config.json: rope_scaling and rope_parameters have different values of {other[0]!r}; "
        "those of rope_scaling are taken, as in transformers"
    )
    return kept, local


def _normal(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Returns rotary settings with their type under the key `rope_type`."""
    if not rope:
        return {}
    kind = rope.get("rope_type", rope.get("type")) or "default"
    return {**{key: value for key, value in rope.items() if key != "type"}, "rope_type": kind}


def _local_theta(rope: Mapping[str, Any], default: Any) -> Any:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise LmsiError(
            f"config.json: rope_parameters' sliding_attention has rope_type {_shown(kind)}, which "
            "is not supported; it must be 'default'"
        )
    return rope.get("rope_theta", default)


def _scaling(get: _Reader, rope: Mapping[str, Any], kind: Any) -> RopeScaling | None:
    if kind in (None, "default"):
        _check_rope(get, rope, "default", set())
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise LmsiError(
            f"config.json: rope_scaling of type {_shown(kind)} is not supported; supported are "
            "default, linear, llama3, yarn and longrope"
        )
    if "factor" not in rope:
        raise LmsiError(f"config.json: rope_scaling of type {kind!r} has no 'factor'")
    factor = _real("factor", rope["factor"])
    if kind == "linear":
        _check_rope(get, rope, kind, {"factor"})
        return LinearScaling(factor=factor)
    length = "original_max_position_embeddings"
    original = rope.get(length, get.number("max_position_embeddings"))
    if kind == "llama3":
        bounds = ("low_freq_factor", "high_freq_factor")
        _check_rope(get, rope, kind, {"factor", length, *bounds})
        low, high = (_real(name, rope.get(name)) for name in bounds)
        return Llama3Scaling(
            factor=factor, low_freq_factor=low, high_freq_factor=high, original_length=original
        )
    ramp = ("beta_fast", "beta_slow", "attention_factor", "truncate")
    _check_rope(get, rope, kind, {"factor", length, *ramp})
    settings = {name: rope[name] for name in ramp if rope.get(name) is not None}
    return YarnScaling(factor=factor, original_length=original, **settings)


def _longrope(get: _Reader, rope: Mapping[str, Any], width: int, note: Note) -> dict[str, Any]:
    """Returns the fields of LongRoPE for contexts as long as in the first training.

    transformers takes other divisors, for all positions, once a text is longer.
    """
    length = "original_max_position_embeddings"
    _check_rope(
        get, rope, "longrope", {"short_factor", "long_factor", "factor", "attention_factor", length}
    )
    longest = get.number("max_position_embeddings")
    original = get(length, rope.get(length, longest))
    divisors = rope.get("short_factor")
    if (
        not isinstance(divisors, list)
        or not all(type(divisor) in (int, float) for divisor in divisors)
        or type(original) is not int
        or not 1 < original < 2**31
    ):
        raise LmsiError(
            "config.json: rope_scaling of type 'longrope' needs a list 'short_factor' and a number "
            f"{length!r} above 1. {_AGAIN}"
        )
    if (gain := rope.get("attention_factor")) is None:
        factor = max(1.0, _real("factor", rope.get("factor", longest / original)))
        gain = math.sqrt(1 + math.log(factor) / math.log(original))
    if longest > original:
        note(
            f"contexts up to {original:,} tokens: config.json's 'long_factor', for up to "
            f"{longest:,}, is not imported"
        )
    scaling = LongRopeScaling(
        divisors=tuple(map(float, divisors)), attention_factor=_real("attention_factor", gain)
    )
    if len(divisors) != width // 2:
        raise LmsiError(
            f"config.json: 'short_factor' has {len(divisors)} numbers; {width} rotary dimensions "
            f"need {width // 2}"
        )
    return {"rope_scaling": scaling, "max_length": min(longest, original)}


def _check_rope(get: _Reader, rope: Mapping[str, Any], kind: str, reads: set[str]) -> None:
    reads = reads | {"rope_type", "rope_theta"} | get.family.reads & {"partial_rotary_factor"}
    odd = sorted(
        key
        for key, value in rope.items()
        if key not in reads and value is not None and not _is_neutral(key, value)
    )
    if odd:
        raise LmsiError(
            f"config.json: rope_scaling of type {kind!r} has {odd[0]!r}, which is not supported"
        )
