"""Turn the metadata of a GGUF file into the config.json of its Hugging Face model.

Every key of the architecture is read here or known to change nothing; the others are refused by
name, for a network that is almost the right one writes almost right text.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmsi_jax.errors import LmsiError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """The conventions of one architecture in GGUF files.

    Attributes:
      model_type: in config.json.
      class_name: in transformers.
      permuted: rows of the query's and the key's heads are stored for rotary pairs of neighbours.
      norm_plus_one: norms are stored with the 1 that the model adds to its weights.
      four_norms: a layer also normalises the outputs of attention and the MLP.
    """

    model_type: str
    class_name: str
    permuted: bool = False
    norm_plus_one: bool = False
    four_norms: bool = False


ARCHITECTURES = {
    "llama": Architecture(model_type="llama", class_name="LlamaForCausalLM", permuted=True),
    "qwen2": Architecture(model_type="qwen2", class_name="Qwen2ForCausalLM"),
    "qwen3": Architecture(model_type="qwen3", class_name="Qwen3ForCausalLM"),
    "gemma2": Architecture(
        model_type="gemma2", class_name="Gemma2ForCausalLM", norm_plus_one=True, four_norms=True
    ),
    "gemma3": Architecture(
        model_type="gemma3_text",
        class_name="Gemma3ForCausalLM",
        norm_plus_one=True,
        four_norms=True,
    ),
}
# Layers whose scores are divided by the root of hidden_size / heads instead of head_dim's: the 27B
# models. The files do not say it; llama.cpp decides by the number of layers too.
_WIDE_QUERIES = {"gemma2": 46, "gemma3": 62}
# Every which layer sees all tokens.
_FULL_EVERY = {"gemma2": 2, "gemma3": 6}
# Llama 3.1 to 3.3's rope_scaling; files hold only the divisors of the frequencies.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_ORIGINAL = 8192

_READ = frozenset(
    {
        *("block_count", "context_length", "embedding_length", "feed_forward_length"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
        *("attention.value_length", "attention.layer_norm_rms_epsilon", "vocab_size"),
        *("attention.sliding_window", "attention.sliding_window_pattern"),
        *("attn_logit_softcapping", "final_logit_softcapping"),
        *("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.scale_linear"),
        *("rope.dimension_count_swa", "attention.key_length_swa", "attention.value_length_swa"),
        *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
        *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.attn_factor"),
    }
)
_IDLE = frozenset({"rope.scaling.finetuned", "tensor_data_layout", "attention.causal"})


def architecture(file: str, metadata: Mapping[str, Any]) -> Architecture:
    """Returns the conventions of a file.

    Raises:
      LmsiError: its architecture is not supported.
    """
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise LmsiError(
            f"{file}: general.architecture = {name!r} is not supported; supported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def config_json(
    file: str,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_divisors: np.ndarray | None = None,
) -> dict[str, Any]:
    """Returns the config.json of the model.

    Args:
      file: its name, for errors.
      metadata: its key-value pairs.
      shapes: the tensors' shapes by ggml's names, rows first.
      rope_divisors: the tensor `rope_freqs.weight`, [head_dim / 2], if the file has one.

    Raises:
      LmsiError: an architecture, a feature or a value that is not supported, or a key that is
        missing; it names the key.
    """
    family = architecture(file, metadata)
    get = _Reader(file, metadata)
    if "token_embd.weight" not in shapes:
        raise LmsiError(f"{file} has no tensor 'token_embd.weight'; {get.again}")
    heads, width = get.whole("attention.head_count"), get.whole("embedding_length")
    head_dim = get.whole("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        for suffix in ("", "_swa"):
            get.check(key + suffix, head_dim)
    get.check("attention.key_length_swa", head_dim)
    context = get.whole("context_length")
    config = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": width,
        "intermediate_size": get.whole("feed_forward_length"),
        "num_hidden_layers": get.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "rms_norm_eps": get.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": get.real("rope.freq_base", 10000.0),
        "rope_scaling": _scaling(get, context, rope_divisors),
        "tie_word_embeddings": "output.weight" not in shapes,
        **_windows(get, family, context),
        **_activation(get, family, heads, width, head_dim),
    }
    if family.model_type in ("llama", "qwen3") and "blk.0.attn_q.bias" in shapes:
        config["attention_bias"] = True
    if family.model_type == "llama" and "blk.0.ffn_gate.bias" in shapes:
        config["mlp_bias"] = True
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            config[f"{key}_token_id"] = token
    return config


class _Reader:
    """The architecture's keys, without its name before them."""

    again = "take a file that was converted by a current llama.cpp"

    def __init__(self, file: str, metadata: Mapping[str, Any]):
        self.file, self.architecture = file, metadata["general.architecture"]
        begin = f"{self.architecture}."
        self.values = {
            key.removeprefix(begin): value
            for key, value in metadata.items()
            if key.startswith(begin)
        }
        odd = sorted(
            f"{begin}{key} = {_shown(value)}"
            for key, value in self.values.items()
            if key not in _READ | _IDLE and not _neutral(value)
        )
        if odd:
            raise LmsiError(f"{file}: {', '.join(odd)} is not supported")

    def __call__(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def whole(self, key: str, default: int | None = None) -> int:
        """Returns a whole number above 0; a list by layer if all of it is the same."""
        value = self.values.get(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if type(value) is not int or value < 1:
            raise self.error(key, value, "a whole number above 0, the same in all layers")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Returns a number above 0."""
        value = self.values.get(key, default)
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise self.error(key, value, "a number above 0")
        return value

    def check(self, key: str, only: Any) -> None:
        """Refuses a value other than the one that is supported."""
        value = self.values.get(key, only)
        if value != only:
            raise self.error(key, value, f"{only!r}")

    def error(self, key: str, value: Any, supported: str) -> LmsiError:
        """Returns the error for a value."""
        return LmsiError(
            f"{self.file}: {self.architecture}.{key} = {_shown(value)}; supported is {supported}"
            + (f": {self.again}" if value is None else "")
        )


def _shown(value: Any) -> str:
    return repr(value.tolist() if isinstance(value, np.ndarray) else value)[:60]


def _neutral(value: Any) -> bool:
    return not value.any() if isinstance(value, np.ndarray) else not value


def _windows(get: _Reader, family: Architecture, context: int) -> dict[str, Any]:
    """Returns the keys of the sliding windows."""
    window = get("attention.sliding_window", 0)
    if family.model_type == "llama" and 0 < window < context:
        return {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "sliding_window": window,
        }
    if not family.four_norms:
        if 0 < window < context:
            raise get.error("attention.sliding_window", window, "none")
        return {}
    every = get("attention.sliding_window_pattern", _FULL_EVERY[get.architecture])
    layers = get.whole("block_count")
    if isinstance(every, np.ndarray):
        local = [bool(each) for each in every]
    else:
        local = [bool((layer + 1) % every) for layer in range(layers)]
    kinds = ["sliding_attention" if each else "full_attention" for each in local]
    return {"sliding_window": get.whole("attention.sliding_window", 4096), "layer_types": kinds}


def _activation(
    get: _Reader, family: Architecture, heads: int, width: int, head_dim: int
) -> dict[str, Any]:
    """Returns the keys of the activation, and those that Gemma alone has."""
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    if family.model_type != "gemma2":
        for key in caps:
            if get(key):
                raise get.error(key, get(key), "none")
    if not family.four_norms:
        return {"hidden_act": "silu"}
    wide = _WIDE_QUERIES[get.architecture] == get.whole("block_count")
    keys: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": width // heads if wide else head_dim,
    }
    if family.model_type == "gemma2":
        return keys | {key: get.real(key, default) for key, default in caps.items()}
    return keys | {"rope_local_base_freq": get.real("rope.freq_base_swa", 10000.0)}


def _scaling(get: _Reader, context: int, divisors: np.ndarray | None) -> dict[str, Any] | None:
    """Returns `rope_scaling`."""
    kind = get("rope.scaling.type", "linear" if get("rope.scale_linear") else "none")
    if divisors is not None:
        if kind != "none":
            raise get.error("rope.scaling.type", kind, "'none' beside the tensor rope_freqs.weight")
        return _llama3(get, divisors)
    if kind == "none":
        return None
    factor = get.real("rope.scaling.factor", get("rope.scale_linear"))
    get.check("rope.scaling.attn_factor", 1.0)
    if kind == "linear":
        return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": get.whole(
                "rope.scaling.original_context_length", context
            ),
        }
        for key in ("beta_fast", "beta_slow"):
            if get(f"rope.scaling.yarn_{key}") is not None:
                scaling[key] = get.real(f"rope.scaling.yarn_{key}")
        return scaling
    raise get.error("rope.scaling.type", kind, "'none', 'linear' or 'yarn'")


def _llama3(get: _Reader, divisors: np.ndarray) -> dict[str, Any]:
    """Returns the llama3 scaling whose divisors of the rotary frequencies these are.

    Raises:
      LmsiError: they are of no scaling with Llama 3's constants.
    """
    theta, size = get.real("rope.freq_base", 10000.0), 2 * divisors.size
    wavelengths = 2 * np.pi * theta ** (np.arange(0, size, 2) / size)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    factor = float(divisors.max())
    share = np.clip((_LLAMA3_ORIGINAL / wavelengths - low) / (high - low), 0, 1)
    if not np.allclose(1 / ((1 - share) / factor + share), divisors, rtol=1e-4):
        raise LmsiError(
            f"{get.file}: rope_freqs.weight is not the scaling of Llama 3.1, which is the only one "
            "supported in a tensor"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        **_LLAMA3,
        "original_max_position_embeddings": _LLAMA3_ORIGINAL,
    }
