"""Each family's model by transformers, stored as GGUF, is read back as that model."""

import dataclasses
import json

import gguf_files as files
import hub_models as hub
import numpy as np
import pytest
from safetensors import safe_open

from lmsi_jax.interop.gguf_file import GgufModel
from lmsi_jax.interop.hf_config import model_config
from lmsi_jax.interop.hf_shards import read_tensor

ARCHITECTURES = {
    "llama": "llama",
    "llama-biased": "llama",
    "qwen2.5": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
}
_YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 32}
_SCALINGS = {"llama-biased": _YARN, "qwen2.5": _YARN, "gemma3": {"type": "linear", "factor": 8.0}}


def _keys(name, config):
    """Returns what a converter writes of a configuration."""
    rope = config.get("rope_parameters") or {}
    keys = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
        **{f"rope.scaling.{key}": value for key, value in _SCALINGS.get(name, {}).items()},
    }
    size = config.get("head_dim")
    keys |= {f"attention.{side}_length": size for side in ("key", "value")}
    if name.startswith("gemma"):
        keys["attention.sliding_window"] = config["sliding_window"]
    if name == "gemma2":
        for cap in ("attn", "final"):
            keys[f"{cap}_logit_softcapping"] = config[f"{cap}_logit_softcapping"]
    return keys


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_model_is_the_one_that_was_stored(name, tmp_path):
    hub.make(name, tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    with safe_open(tmp_path / "hub" / "model.safetensors", framework="np") as opened:
        values = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    heads = (config["num_attention_heads"], config["num_key_value_heads"])
    file = tmp_path / "model.gguf"
    files.write(file, ARCHITECTURES[name], values, _keys(name, config), heads=heads)
    found = GgufModel(file)
    assert found.names == sorted(values)
    for key, value in values.items():
        read = read_tensor(found, key, np.dtype(np.float32), False)
        np.testing.assert_allclose(read, value, atol=3e-7, rtol=0)
    wanted = model_config(config)
    if name == "llama":  # a file has Llama 3's scaling with the published constants alone
        wanted = dataclasses.replace(wanted, rope_scaling=None)
    if name.startswith("gemma"):  # head_dim; files do not have it
        wanted = dataclasses.replace(wanted, query_scalar=0.0)
    assert model_config(found.config) == wanted
