"""What the architectures have in common and apart: Llama 3, Qwen 2.5, Qwen 3, Gemma 2 and 3."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmsi_jax.errors import LmsiError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What a Hugging Face architecture has beyond the numbers in its config.json.

    Attributes:
      model_type: in config.json.
      architecture: its class in transformers.
      fixed: fields of `ModelConfig` that are the same in all its models.
      defaults: what transformers takes for a key that config.json leaves out.
      reads: keys beyond `COMMON` that config.json may have.
      activation: the one `hidden_act` that it is known with, and ours for it.
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
# They say how a model was made, stored or is called, not what it computes.
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


def family_of(raw: Mapping[str, Any]) -> Family:
    """Returns the family of a config.json.

    Raises:
      LmsiError: it is none of `FAMILIES`.
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
