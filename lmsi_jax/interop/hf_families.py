"""The Hugging Face architectures that are supported, and the names of their tensors.

A family is a set of values of `ModelConfig`; config.json states some of them (`hf_config` reads
those), the others follow from the architecture and are listed here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from lmsi_jax.config import MATRICES, ModelConfig
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
      activation: its only `hidden_act`, and our name of that.
    """

    model_type: str
    architecture: str
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any]
    reads: frozenset[str] = frozenset()
    activation: tuple[str, str] = ("silu", "silu")


_GEMMA = {
    "norm_plus_one": True,
    "post_norms": True,
    "scale_embeddings": True,
    "activation": "gelu",
}
_GEMMA_READS = frozenset(
    {
        *("hidden_activation", "query_pre_attn_scalar", "sliding_window", "layer_types"),
        *("attn_logit_softcapping", "final_logit_softcapping", "attention_bias"),
    }
)
_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "query_pre_attn_scalar": 256}
GEMMA_GELU = ("gelu_pytorch_tanh", "gelu")
_QWEN_READS = frozenset({"use_sliding_window", "sliding_window", "max_window_layers"})
_QWEN_READS |= {"layer_types"}
BIASED = ("query", "key", "value")

FAMILIES = (
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        fixed={},
        defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-6},
        reads=frozenset({"attention_bias", "mlp_bias"}),
    ),
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        fixed={"biases": BIASED},
        defaults={"rope_theta": 10000.0, "sliding_window": 4096, "max_window_layers": 28},
        reads=_QWEN_READS,
    ),
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        fixed={"qk_norm": True},
        defaults={
            **{"rope_theta": 10000.0, "sliding_window": 4096, "max_window_layers": 28},
            "head_dim": 128,
        },
        reads=_QWEN_READS | {"attention_bias"},
    ),
    Family(
        model_type="gemma2",
        architecture="Gemma2ForCausalLM",
        fixed=_GEMMA,
        defaults={
            **_GEMMA_DEFAULTS,
            **{"rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_pattern": 2},
            **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        },
        reads=_GEMMA_READS,
        activation=GEMMA_GELU,
    ),
    Family(
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        fixed={**_GEMMA, "qk_norm": True},
        defaults={
            **_GEMMA_DEFAULTS,
            **{"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0},
            **{"sliding_window": 4096, "sliding_window_pattern": 6},
        },
        reads=_GEMMA_READS | {"rope_local_base_freq", "sliding_window_pattern"},
        activation=GEMMA_GELU,
    ),
)

COMMON = frozenset(
    {
        *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size"),
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act"),
        *("rope_theta", "rope_scaling", "rope_parameters"),
    }
)

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
    """Returns all tensors of a model, in the order of its parameters."""
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
