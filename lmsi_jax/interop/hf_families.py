"""The Hugging Face architectures that are supported, and the names of their tensors.

A family is a set of values of `ModelConfig`: config.json states some of them (`hf_config` reads
those), the others follow from the architecture and are listed here. To add one, add its `Family`,
and a micro model to `tests/hub_models.py`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from lmsi_jax.config import MATRICES, LongRopeScaling, ModelConfig
from lmsi_jax.models.transformer import parameter_shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A Hugging Face architecture: the parts of it that its config.json does not state.

    Attributes:
      model_type: the value in config.json.
      architecture: its class in transformers.
      fixed: fields of `ModelConfig` with the same value in all its models.
      defaults: transformers' defaults of keys that config.json omits.
      reads: keys beyond `COMMON` that config.json may have.
      activation: its only `hidden_act`.
      fused: its projections of one input are one tensor, see `FUSED`.
      local_rope: layers with a window have rotary positions of their own, never stretched.
      exports: True for a model that has what only this family has, among those of equal `fixed`.
    """

    model_type: str
    architecture: str
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any]
    reads: frozenset[str] = frozenset()
    activation: str = "silu"
    fused: bool = False
    local_rope: bool = False
    exports: Callable[[ModelConfig], bool] = lambda config: True


BIASED = ("query", "key", "value")
GELU = "gelu_pytorch_tanh"
_THETA = {"rope_theta": 10000.0}
_BIASES = frozenset({"attention_bias", "mlp_bias"})
_WINDOWS = frozenset({"sliding_window", "layer_types"})
_QWEN_READS = _WINDOWS | {"use_sliding_window", "max_window_layers"}
_QWEN_DEFAULTS = {**_THETA, "sliding_window": 4096, "max_window_layers": 28}
_OLMO = {"pre_norms": False, "post_norms": True, "qk_norm": True, "joint_qk_norm": True}
_GEMMA_1 = {"norm_plus_one": True, "scale_embeddings": True, "activation": "gelu"}
_GEMMA = {**_GEMMA_1, "post_norms": True}
_GEMMA_READS = _WINDOWS | {
    *("hidden_activation", "query_pre_attn_scalar", "attention_bias"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
}
_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "query_pre_attn_scalar": 256}
GRANITE_FIELDS: Mapping[str, str] = {
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logits_divisor",
}
"""Granite's key in config.json -> the field of `ModelConfig`."""


def _is_granite(config: ModelConfig) -> bool:
    multiplied = any(getattr(config, field) != 1.0 for field in GRANITE_FIELDS.values())
    return multiplied or config.query_scalar not in (0.0, config.head_dim)


FAMILIES = (
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        defaults={**_THETA, "rms_norm_eps": 1e-6},
        reads=_BIASES,
    ),
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        fixed={"biases": BIASED},
        defaults=_QWEN_DEFAULTS,
        reads=_QWEN_READS,
    ),
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        fixed={"qk_norm": True},
        defaults={**_QWEN_DEFAULTS, "head_dim": 128},
        reads=_QWEN_READS | {"attention_bias"},
    ),
    Family(
        model_type="gemma",
        architecture="GemmaForCausalLM",
        fixed={**_GEMMA_1, "post_norms": False},
        defaults={**_THETA, "tie_word_embeddings": True, "head_dim": 256},
        reads=frozenset({"hidden_activation", "attention_bias"}),
        activation=GELU,
    ),
    Family(
        model_type="gemma2",
        architecture="Gemma2ForCausalLM",
        fixed=_GEMMA,
        defaults={
            **_GEMMA_DEFAULTS,
            **_THETA,
            **{"sliding_window": 4096, "sliding_window_pattern": 2},
            **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        },
        reads=_GEMMA_READS,
        activation=GELU,
    ),
    Family(
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        local_rope=True,
        fixed={**_GEMMA, "qk_norm": True},
        defaults={
            **_GEMMA_DEFAULTS,
            **{"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0},
            **{"sliding_window": 4096, "sliding_window_pattern": 6},
            # A multimodal folder's text_config states only what differs from these.
            **{"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216},
            **{"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4},
            "max_position_embeddings": 131072,
        },
        reads=_GEMMA_READS | {"rope_local_base_freq", "sliding_window_pattern"},
        activation=GELU,
    ),
    Family(
        model_type="mistral",
        architecture="MistralForCausalLM",
        defaults={**_THETA, "num_key_value_heads": 8, "sliding_window": 4096},
        reads=frozenset({"sliding_window"}),
        exports=lambda config: any(config.windows) and all(config.rotary_layers),
    ),
    Family(
        model_type="smollm3",
        architecture="SmolLM3ForCausalLM",
        defaults={
            **{"rope_theta": 2000000.0, "num_key_value_heads": 4, "tie_word_embeddings": True},
            "no_rope_layer_interval": 4,
        },
        reads=_QWEN_READS | _BIASES | {"no_rope_layers", "no_rope_layer_interval"},
        exports=lambda config: not all(config.rotary_layers),
    ),
    Family(
        model_type="olmo2",
        architecture="Olmo2ForCausalLM",
        fixed=_OLMO,
        defaults={**_THETA, "rms_norm_eps": 1e-5},
        reads=frozenset({"attention_bias"}),
        exports=lambda config: not any(config.windows),
    ),
    Family(
        model_type="olmo3",
        architecture="Olmo3ForCausalLM",
        local_rope=True,
        fixed=_OLMO,
        defaults={
            **{"rope_theta": 500000.0, "rms_norm_eps": 1e-5},
            **{"sliding_window": 4096, "sliding_window_pattern": 4},
        },
        reads=_WINDOWS | {"attention_bias"},
    ),
    Family(
        model_type="granite",
        architecture="GraniteForCausalLM",
        defaults={**_THETA, "attention_multiplier": 1.0},
        reads=_BIASES | {"attention_multiplier", *GRANITE_FIELDS},
        exports=_is_granite,
    ),
    Family(
        model_type="phi3",
        architecture="Phi3ForCausalLM",
        defaults={**_THETA, "rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        reads=frozenset(
            {"sliding_window", "partial_rotary_factor", "original_max_position_embeddings"}
        ),
        fused=True,
        exports=lambda config: (
            config.rotary_dim > 0 or isinstance(config.rope_scaling, LongRopeScaling)
        ),
    ),
)

_EXPERTS = "its layers are mixtures of experts, and the decoder here has one MLP in a layer"
_LAYER_NORM = "it has LayerNorms or an MLP without a gate, and the decoder here has neither"
_RECURRENT = "some of its layers are recurrent or convolutions, and all are attention here"
_IMAGES_TOO = "it reads images or sound, and of those the text model of a Gemma 3 alone is taken"
_ENCODER = "it has an encoder, and the decoder here has no attention to one"
REASONS = {
    name: reason
    for reason, names in {
        _EXPERTS: (
            *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "phimoe", "gpt_oss"),
            *("llama4", "llama4_text", "deepseek_v2", "deepseek_v3", "dbrx", "glm4_moe"),
        ),
        _LAYER_NORM: (
            *("gpt2", "gpt_neox", "gptj", "gpt_neo", "opt", "bloom", "phi", "falcon", "stablelm"),
            *("starcoder2", "cohere", "cohere2", "nemotron", "olmo", "mpt"),
        ),
        _RECURRENT: (
            *("mamba", "mamba2", "falcon_h1", "falcon_mamba", "jamba", "bamba", "lfm2"),
            *("granitemoehybrid", "recurrent_gemma", "qwen3_next", "qwen3_5", "qwen3_5_text"),
        ),
        _IMAGES_TOO: (
            *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mllama", "llava", "paligemma", "mistral3"),
            *("gemma3n", "gemma4"),
        ),
        _ENCODER: ("t5", "mt5", "t5gemma", "bart"),
        "its attention is sharpened with the position": ("ministral3",),
        "its rotary positions pair neighbouring dimensions": ("glm", "glm4", "helium"),
        "it normalises queries and keys after the rotary positions": ("hunyuan_v1_dense",),
    }.items()
    for name in names
}
"""Reasons why well-known values of model_type are not supported."""

COMMON = frozenset(
    {
        *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size"),
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act"),
        *("rope_theta", "rope_scaling", "rope_parameters"),
    }
)
"""Keys of config.json that every family reads."""

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
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Module of a `fused` family -> the modules of the others whose rows it has, in order."""


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
    """Returns all tensors of a model, in the order of its parameters; none is fused."""
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


def fused_tensors(config: ModelConfig) -> Iterator[tuple[str, list[Tensor]]]:
    """Yields each fused tensor's name in a `fused` family, and the tensors whose rows it has."""
    by_name = {tensor.name: tensor for tensor in tensors(config)}
    for layer in range(config.num_layers):
        for joint, modules in FUSED.items():
            prefix = f"model.layers.{layer}."
            parts = [by_name[f"{prefix}{module}.weight"] for module in modules]
            yield f"{prefix}{joint}.weight", parts


def unwrapped(name: str) -> str:
    """Returns a tensor's name without what torch's compile and data parallelism put before it."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


_WRAPPERS = ("_orig_mod.", "module.")
_IMAGES = ("vision_tower.", "multi_modal_projector.")


def text_tensor(name: str) -> str | None:
    """Returns the name that a tensor of a multimodal Gemma 3 has in the text model alone.

    Args:
      name: as published ("language_model.model.norm.weight"), or as transformers 5 saves it
        ("model.language_model.norm.weight").

    Returns:
      None for tensors of the image encoder.
    """
    bare = name.removeprefix("model.")
    if bare.startswith(_IMAGES):
        return None
    if bare.startswith("language_model."):
        inner = bare.removeprefix("language_model.")
        return inner if inner.startswith(("model.", "lm_head.")) else f"model.{inner}"
    return name
