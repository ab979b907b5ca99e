"""Published config.json files: the shapes that they stand for, and the way back."""

import dataclasses
import json
import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsi_jax.config import ModelConfig, gin_loader
from lmsi_jax.config.configurables import load_run
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.hf_config import ignored_keys, model_config
from lmsi_jax.interop.hf_export import hf_config
from lmsi_jax.interop.hf_families import COMMON, FAMILIES, unwrapped
from lmsi_jax.interop.hf_shards import Shards
from lmsi_jax.interop.hf_weights import gin_text, import_model

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
_MISTRAL = {
    **{"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu"},
    **{"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 32000},
    **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8},
    **{"max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 10000.0},
    **{"sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16"},
}
_GEMMA3_IMAGES = {
    **{"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"},
    **{"boi_token_index": 255999, "eoi_token_index": 256000, "eos_token_id": [1, 106]},
    **{"image_token_index": 262144, "mm_tokens_per_image": 256, "torch_dtype": "bfloat16"},
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    "text_config": {
        **{"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text"},
        **{"num_hidden_layers": 34, "sliding_window": 1024},
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
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


def test_the_text_model_of_a_gemma_3_with_images_is_the_packaged_one(tmp_path):
    packaged = _loaded(tmp_path, "include 'models/gemma3_4b.gin'")
    found = model_config(_GEMMA3_IMAGES)
    changes = {"max_length": found.max_length, "query_scalar": 0.0, "vocab_size": 262208}
    assert found == dataclasses.replace(packaged, **changes)
    assert hf_config(found)["model_type"] == "gemma3_text"
    with pytest.raises(LmsiError, match="use_video = True"):
        model_config({**_GEMMA3_IMAGES, "use_video": True})


def test_a_window_is_in_every_layer_of_a_mistral():
    assert model_config(_MISTRAL).windows == (4096,)
    for none in ({"sliding_window": None}, {"sliding_window": 32768}):
        config = model_config({**_MISTRAL, **none})
        assert config.windows == (0,)
        assert hf_config(config)["model_type"] == "llama"  # which computes the same


_PHI4_MINI = {
    **{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu"},
    **{"attention_bias": False, "embd_pdrop": 0.0, "full_attn_mod": 1, "interpolate_factor": 1},
    **{"hidden_size": 3072, "intermediate_size": 8192, "vocab_size": 200064, "lm_head_bias": False},
    **{"num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8},
    **{"max_position_embeddings": 131072, "original_max_position_embeddings": 4096},
    **{"partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05},
    **{"rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True},
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0] * 48,
        "long_factor": [1.0 + i / 10 for i in range(48)],
    },
}


def test_longrope_is_imported_for_the_contexts_of_the_first_training(tmp_path):
    notes = []
    config = model_config(_PHI4_MINI, notes.append)
    assert (config.rotary_dim, config.max_length, config.windows) == (96, 4096, (0,))
    assert config.rope_scaling.divisors == (1.0,) * 48
    assert config.rope_scaling.attention_factor == pytest.approx((1 + 5 / 12) ** 0.5)
    assert notes == [
        "contexts up to 4,096 tokens: config.json's 'long_factor', for up to 131,072, is not "
        "imported"
    ]
    assert model_config(hf_config(config)) == config
    assert _loaded(tmp_path, gin_text(config, tmp_path, tmp_path)) == config
    assert ModelConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    short = {**_PHI4_MINI, "rope_scaling": {**_PHI4_MINI["rope_scaling"], "short_factor": [1.0]}}
    with pytest.raises(LmsiError, match="has 1 numbers; 96 rotary dimensions need 48"):
        model_config(short)


def test_layers_without_rotary_positions_are_read_from_both_keys():
    smollm = {k: v for k, v in _LLAMA.items() if k not in ("architectures", "rope_scaling")}
    smollm |= {"model_type": "smollm3", "num_hidden_layers": 8, "no_rope_layer_interval": 4}
    wanted = (True, True, True, False)
    assert model_config(smollm).rotary_layers == wanted
    listed = {**smollm, "no_rope_layers": [1, 1, 1, 0] * 2, "no_rope_layer_interval": 7}
    assert model_config(listed).rotary_layers == wanted
    assert hf_config(model_config(listed))["no_rope_layers"] == [1, 1, 1, 0] * 2
    with pytest.raises(LmsiError, match=r"no_rope_layers = \[1, 2\]; it must have a 0 or 1"):
        model_config({**smollm, "no_rope_layers": [1, 2]})


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("_orig_mod.module.model.norm.weight", "model.norm.weight"),
        ("model.module.weight", "model.module.weight"),
    ],
)
def test_what_torch_s_wrappers_put_before_names_is_left_out(stored, name):
    assert unwrapped(stored) == name


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mixtral", "mixtures of experts"),
        ("qwen3_moe", "mixtures of experts"),
        ("gpt2", "LayerNorms or an MLP without a gate"),
        ("mamba", "recurrent or convolutions"),
        ("glm4", "pair neighbouring dimensions"),
        ("gemma3n", "images or sound"),
    ],
)
def test_a_family_that_is_not_supported_has_its_reason_named(kind, reason):
    match = f"model_type = '{kind}' is not supported: .*{reason}.*supported are llama, qwen2"
    with pytest.raises(LmsiError, match=match):
        model_config({**_LLAMA, "model_type": kind})


_ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.sampled_from([0, 1, 2, 3, 4, 0.5, 1.0, 2**31, float("nan"), float("inf"), 1e300])
    | st.sampled_from(["", "yarn", "default", "llama3", "longrope", "linear", "4", "silu"])
    | st.sampled_from(["full_attention", "sliding_attention", "Qwen2ForCausalLM"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "rope_theta"]), inner)
    ),
    max_leaves=6,
)
_KEYS = sorted(COMMON.union(*(family.reads for family in FAMILIES)))
_ROPE = st.dictionaries(
    st.sampled_from(
        [
            *("rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor"),
            *("short_factor", "long_factor", "attention_factor", "beta_fast", "truncate"),
            *("original_max_position_embeddings", "full_attention", "sliding_attention"),
            "partial_rotary_factor",
        ]
    ),
    _ODD,
)


@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from([_LLAMA, _QWEN2, _GEMMA3, _GEMMA3_IMAGES, _PHI4_MINI, _MISTRAL]),
    family=st.none() | st.sampled_from([family.model_type for family in FAMILIES]),
    keys=st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=5), _ODD, max_size=3),
    rope=st.none() | st.tuples(st.sampled_from(["rope_scaling", "rope_parameters"]), _ROPE),
    missing=st.none() | st.sampled_from(_KEYS),
)
def test_odd_values_give_a_model_or_a_reason(base, family, keys, rope, missing):
    raw = {**base, **keys, **({rope[0]: rope[1]} if rope else {})}
    if family is not None:
        raw = {**raw, "model_type": family, "architectures": None}
    raw.pop(missing, None)
    try:
        config = model_config(raw)
        ignored_keys(raw)
        hf_config(config)
    except LmsiError as error:
        assert len(str(error)) < 2000


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
            {"rope_theta": None, "rope_parameters": {"rope_theta": 500000.0}},
            "of 'factor', and transformers takes .* with rope_theta = 10000.0; move",
        ),
        ({"rope_parameters": {"full_attention": {}}}, "kinds of layers is not supported for llama"),
    ],
)
def test_rotary_settings_that_are_odd_or_contradict_each_other_are_named(changes, match):
    with pytest.raises(LmsiError, match=match):
        model_config({**_LLAMA, **changes})


def test_equal_rotary_settings_under_both_keys_are_read():
    both = {**_LLAMA, "rope_parameters": {**_LLAMA["rope_scaling"], "rope_theta": 500000.0}}
    assert model_config(both) == model_config(_LLAMA)


def test_rope_scaling_counts_beside_other_rope_parameters_as_in_transformers():
    notes = []
    both = {**_LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    assert model_config(both, notes.append) == model_config(_LLAMA)
    assert "different values of 'factor'; those of rope_scaling are taken" in notes[0]


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


def test_a_pipe_in_place_of_config_json_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(LmsiError, match="config.json is no regular file"):
        import_model(tmp_path, tmp_path / "out")


def test_without_the_extra_its_name_is_told(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(LmsiError, match=r"pip install 'lmsi_jax\[hf\]'"):
        Shards(tmp_path)
