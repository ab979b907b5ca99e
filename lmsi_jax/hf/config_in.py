"""config.json -> `ModelConfig`.

Every key of a config.json is either read here or known to change nothing; what is neither is
refused by name, for a network that is almost the right one writes almost right text.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmsi_jax.errors import LmsiError
from lmsi_jax.hf.families import BIASED, COMMON, GEMMA_GELU, IDLE, Family, family_of
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling


def model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Returns the `ModelConfig` of a config.json.

    Raises:
      LmsiError: an architecture, a feature or a key that is not supported, or a number that is
        missing or does not fit; it names the key.
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
    except ValueError as error:
        raise LmsiError(f"config.json does not describe a model: {error}") from None
    # 0.0 stands for head_dim: one way to write one model.
    same = config.query_scalar == config.head_dim
    return dataclasses.replace(config, query_scalar=0.0) if same else config


class _Reader:
    """config.json's values, with transformers' defaults; null counts as left out."""

    def __init__(self, family: Family, raw: Mapping[str, Any]):
        # A null of Gemma 2's caps means none, not the default.
        own = {key: 0.0 for key in _CAPS if key in raw and raw[key] is None}
        given = {key: value for key, value in raw.items() if value is not None}
        self.values = {**family.defaults, **own, **given}
        self.given = given

    def __call__(self, key: str, default: Any = None) -> Any:
        """A value, or the default."""
        return self.values.get(key, default)

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number above 0.

        Raises:
          LmsiError: it is missing or none.
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
    """Refuses keys that say something which is not understood, and values that are not supported.

    Raises:
      LmsiError: names the key and its value.
    """
    known = COMMON | family.reads | IDLE
    for key, value in raw.items():
        if key not in known and value not in (None, False, 0, "", [], {}):
            raise LmsiError(
                f"config.json: {key} = {value!r} is not supported for {family.model_type}; if it "
                "does not change what the model computes, delete it there"
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


def _biases(get: _Reader) -> tuple[str, ...]:
    attention = (*BIASED, "attention_out") if get("attention_bias") else ()
    return attention + (("gate", "up", "down") if get("mlp_bias") else ())


def _windows(get: _Reader) -> tuple[int, ...]:
    """The sliding windows, as the shortest cycle that gives each layer its own."""
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
    all_ = [window if kind == "sliding_attention" else 0 for kind in kinds]
    length = next(n for n in range(1, layers + 1) if all_ == (all_[:n] * layers)[:layers])
    return tuple(all_[:length])


def _kind(get: _Reader, layer: int) -> str:
    """A layer's attention where config.json has no `layer_types`, as older ones."""
    if pattern := get("sliding_window_pattern"):
        return "sliding_attention" if (layer + 1) % pattern else "full_attention"
    if get("use_sliding_window", False) and layer >= get("max_window_layers"):
        return "sliding_attention"
    return "full_attention"


def _positions(get: _Reader) -> dict[str, Any]:
    """The rotary fields, from transformers 4's keys or from 5's `rope_parameters`."""
    local = get("rope_local_base_freq")
    rope = get("rope_parameters")
    if rope is None:
        rope = {"rope_theta": get("rope_theta"), **(get("rope_scaling") or {})}
    elif "full_attention" in rope:
        for kind in ("full_attention", "sliding_attention"):
            if not isinstance(rope.get(kind), dict):
                raise LmsiError(f"config.json: rope_parameters has no {kind!r}")
        local = _local_theta(rope["sliding_attention"], local)
        rope = rope["full_attention"]
    found: dict[str, Any] = {
        "rope_theta": float(rope.get("rope_theta", get("rope_theta"))),
        "rope_scaling": _scaling(rope, get),
    }
    if local is not None:
        found["local_rope_theta"] = float(local)
    return found


def _local_theta(rope: Mapping[str, Any], default: float | None) -> float | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise LmsiError(
            f"config.json: rope_parameters' sliding_attention has rope_type {kind!r}, which is "
            "not supported; it must be 'default'"
        )
    return rope.get("rope_theta", default)


def _scaling(rope: Mapping[str, Any], get: _Reader) -> RopeScaling | None:
    """The stretching of rotary frequencies."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    longest = get.number("max_position_embeddings")
    original = rope.get("original_max_position_embeddings", longest)
    if kind == "default":
        _check_rope(rope, kind, set())
        return None
    if "factor" not in rope:
        raise LmsiError(f"config.json: rope_scaling of type {kind!r} has no 'factor'")
    factor = float(rope["factor"])
    if kind == "linear":
        _check_rope(rope, kind, {"factor"})
        return LinearScaling(factor=factor)
    if kind == "llama3":
        own = ("low_freq_factor", "high_freq_factor")
        _check_rope(rope, kind, {"factor", "original_max_position_embeddings", *own})
        low, high = (float(rope[name]) for name in own)
        return Llama3Scaling(
            factor=factor, low_freq_factor=low, high_freq_factor=high, original_length=original
        )
    if kind == "yarn":
        ramp = ("beta_fast", "beta_slow", "attention_factor", "truncate")
        _check_rope(rope, kind, {"factor", "original_max_position_embeddings", *ramp})
        given = {name: rope[name] for name in ramp if rope.get(name) is not None}
        return YarnScaling(factor=factor, original_length=original, **given)
    raise LmsiError(
        f"config.json: rope_scaling of type {kind!r} is not supported; supported are default, "
        "linear, llama3 and yarn"
    )


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
