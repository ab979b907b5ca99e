"""Published config.json files: the shapes that they stand for, and the way back."""

import dataclasses
import sys

import pytest

from lmsi_jax.config import ModelConfig, gin_loader
from lmsi_jax.config.configurables import load_run
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.hf_config import hf_config, ignored_keys, model_config
from lmsi_jax.interop.hf_shards import Shards
from lmsi_jax.interop.hf_weights import gin_text

_LLAMA = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"},
    **{"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "pretraining_tp": 1},
    **{"bos_token_id": 128000, "eos_token_id": 128001, "initializer_range": 0.02},
    **{"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256},
    **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8},
    **{"max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0},
    **{"tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True},
    "rope_scaling": {
        **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        **{"original_max_position_embeddings": 8192, "rope_type": "llama3"},
    },
}
_QWEN2 = {
    **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu"},
    **{"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643},
    **{"hidden_size": 3584, "intermediate_size": 18944, "vocab_size": 152064},
    **{"num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4},
    **{"max_position_embeddings": 131072, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0},
    **{"max_window_layers": 28, "sliding_window": 131072, "use_sliding_window": False},
    **{"tie_word_embeddings": False, "use_mrope": False, "transformers_version": "4.40.1"},
}
_QWEN3 = {
    **{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu"},
    **{"attention_bias": False, "attention_dropout": 0.0, "head_dim": 128, "vocab_size": 151936},
    **{"hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 40960},
    **{"num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8},
    **{"max_window_layers": 36, "sliding_window": None, "use_sliding_window": False},
    **{"rms_norm_eps": 1e-06, "rope_theta": 1000000, "rope_scaling": None},
    "tie_word_embeddings": False,
}
_GEMMA2 = {
    **{"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attention_bias": False},
    **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "head_dim": 256},
    **{"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
    **{"hidden_size": 3584, "intermediate_size": 14336, "vocab_size": 256000},
    **{"num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8},
    **{"max_position_embeddings": 8192, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06},
    **{"rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096},
    **{"cache_implementation": "hybrid", "pad_token_id": 0},
}
_GEMMA3 = {
    **{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"},
    **{"attention_bias": False, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    **{"hidden_activation": "gelu_pytorch_tanh", "head_dim": 256, "vocab_size": 262144},
    **{"hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768},
    **{"num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1},
    **{"query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000},
    **{"rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512},
    **{"sliding_window_pattern": 6, "cache_implementation": "hybrid"},
}
PUBLISHED = {
    "llama3_8b": _LLAMA,
    "qwen2_5_7b": _QWEN2,
    "qwen3_8b": _QWEN3,
    "gemma2_9b": _GEMMA2,
    "gemma3_1b": _GEMMA3,
}


def _loaded(tmp_path, text):
    file = tmp_path / "run.gin"
    file.write_text(f"{text}\nRun.model = @ModelConfig()\nRun.output_dir = 'none'\n")
    gin_loader.load(str(file), gin_loader.GinArgs())
    return load_run().model


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_the_packaged_model(tmp_path, name):
    packaged = _loaded(tmp_path, f"include 'models/{name}.gin'")
    found = model_config(PUBLISHED[name])
    scalar = packaged.query_scalar or packaged.head_dim
    assert (found.query_scalar or found.head_dim) == scalar
    same = {"max_length": found.max_length, "query_scalar": found.query_scalar}
    assert found == dataclasses.replace(packaged, **same)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_way_back_and_the_gin_file_say_the_same_model(tmp_path, name):
    config = model_config(PUBLISHED[name])
    raw = hf_config(config)
    assert model_config(raw) == config
    for key in set(raw) & set(PUBLISHED[name]) - {"sliding_window", "rope_scaling"}:
        assert raw[key] == PUBLISHED[name][key], key
    assert _loaded(tmp_path, gin_text(config, tmp_path, tmp_path)) == config


def test_how_a_model_is_trained_does_not_concern_its_config_file():
    config = model_config(_LLAMA)
    trained = dataclasses.replace(config, remat="layer", scan_layers=True, query_block=64)
    assert hf_config(trained) == hf_config(config)


def test_the_keys_of_transformers_5_are_read_like_those_of_4():
    rope = {"rope_type": "default", "rope_theta": 1000000}
    new = {k: v for k, v in _GEMMA3.items() if "rope" not in k and k != "sliding_window_pattern"}
    new["layer_types"] = (["sliding_attention"] * 5 + ["full_attention"]) * 4
    new["layer_types"] += ["sliding_attention"] * 2
    new["rope_parameters"] = {
        "full_attention": rope,
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    assert model_config(new) == model_config(_GEMMA3)
    llama = {k: v for k, v in _LLAMA.items() if "rope" not in k}
    llama["rope_parameters"] = {**_LLAMA["rope_scaling"], "rope_theta": 500000.0}
    assert model_config(llama) == model_config(_LLAMA)


@pytest.mark.parametrize(
    "key",
    [
        *({"is_llama_config": True}, {"_attn_implementation_autoset": True}),
        *({"unsloth_version": "2025.1"}, {"_model_name_or_path": "some/model"}),
        *({"tokenizer_class": "LlamaTokenizer"}, {"model_max_length": 2048}, {"max_length": 20}),
        *({"temperature": 0.6}, {"top_p": 0.9}, {"do_sample": True}, {"num_beams": 1}),
        *({"auto_map": {"AutoConfig": "c.C"}}, {"tokenizer_padding_side": "left"}),
        *({"transformers.js_config": {"dtype": "q4"}}, {"sep_token_id": 3}),
    ],
)
def test_settings_of_generation_and_tools_are_ignored_and_named(key):
    assert model_config({**_LLAMA, **key}) == model_config(_LLAMA)
    assert ignored_keys({**_LLAMA, **key}) == list(key)


def test_values_that_are_the_same_as_no_key_are_ignored():
    neutral = {"partial_rotary_factor": 1.0, "layer_types": ["full_attention"] * 32}
    assert model_config({**_LLAMA, **neutral, "use_mrope": False}) == model_config(_LLAMA)
    assert ignored_keys({**_LLAMA, **neutral}) == ignored_keys(_LLAMA) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rope_scaling": "yarn"}, "rope_scaling = 'yarn' is not an object"),
        ({"rope_parameters": "yarn"}, "rope_parameters = 'yarn' is not an object"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "'factor' is None; it must be"),
        ({"rope_scaling": {"type": "linear"}}, "type 'linear' has no 'factor'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' is None"),
        ({"rope_theta": "1e4"}, "'rope_theta' is '1e4'"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
            "rope_scaling and rope_parameters have different values of 'factor'",
        ),
    ],
)
def test_rotary_settings_that_are_odd_or_contradict_each_other_are_named(changes, match):
    with pytest.raises(LmsiError, match=match):
        model_config({**_LLAMA, **changes})


def test_equal_rotary_settings_under_both_keys_are_read():
    both = {**_LLAMA, "rope_parameters": {**_LLAMA["rope_scaling"], "rope_theta": 500000.0}}
    assert model_config(both) == model_config(_LLAMA)


@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
def test_nobody_is_told_to_delete_what_says_that_weights_are_quantised(key):
    with pytest.raises(LmsiError, match=f"has '{key}': the weights are quantised") as error:
        model_config({**_LLAMA, key: {"bits": 4}, "use_mrope": True})
    assert "delete" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sliding_window": 4096}, "sliding_window = 4096 is not supported for llama"),
        ({"use_mrope": True}, "use_mrope = True is not supported for llama"),
        ({"num_local_experts": 8}, "num_local_experts = 8 .*delete it there"),
        ({"use_mrope": True, "new": 2}, "use_mrope = True, new = 2 are not supported for llama"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"layer_types": ["sliding_attention"] * 16}, "layer_types = .* is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type 'dynamic' is not supported"),
        ({"is_encoder_decoder": True}, "it must be false"),
    ],
)
def test_what_would_change_the_network_is_refused_by_name(changes, match):
    with pytest.raises(LmsiError, match=match):
        model_config({**_LLAMA, **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"block": "parallel"}, "a PaLM-style model .* has no architecture"),
        ({"logits_softcap": 30.0}, "LlamaForCausalLM has ModelConfig.logits_softcap = 0.0"),
        ({"windows": (8, 0)}, "ModelConfig.windows = .* no architecture"),
        ({"biases": ("gate",)}, "ModelConfig.biases"),
        ({"local_rope_theta": 9.0}, "ModelConfig.local_rope_theta"),
    ],
)
def test_a_model_that_no_architecture_computes_is_not_exported(changes, match):
    config = ModelConfig(
        vocab_size=64, num_layers=2, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
        block="sequential",
    )  # fmt: skip
    with pytest.raises(LmsiError, match=match):
        hf_config(dataclasses.replace(config, **changes))


def test_without_the_extra_its_name_is_told(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(LmsiError, match=r"pip install -e '\.\[hf\]'"):
        Shards(tmp_path)
