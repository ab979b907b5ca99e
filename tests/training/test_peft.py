"""Exported adapters are read by PEFT itself, and by NumPy, to what training reached."""

import json

import jax
import numpy as np
import pytest

from lmsi_jax.config import Lora
from lmsi_jax.errors import LmsiError
from lmsi_jax.training import lora as exported
from lmsi_jax.training.lora import fresh_adapters, merge_adapters

LORA = Lora(rank=3, alpha=6.0, targets=("value", "query", "down", "attention_out"), peft=True)


@pytest.fixture(scope="module")
def adapters(micro_params):
    rng = np.random.default_rng(0)
    drawn = fresh_adapters(LORA, micro_params)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), drawn)


@pytest.fixture
def folder(tmp_path, adapters):
    pytest.importorskip("safetensors", reason="the extra [hf] is not installed")
    exported.write_peft(LORA, adapters, tmp_path / "peft", "base")
    return tmp_path / "peft"


def test_numpy_merges_the_written_tensors_to_the_same_matrices(folder, adapters, micro_params):
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert len(tensors) == 2 * 4 * 2  # layers, targets, factors
    wanted = merge_adapters(LORA, micro_params, adapters)
    for layer in (0, 1):
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        change = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        found = (
            micro_params[f"layer_{layer}"]["down"] + config["lora_alpha"] / config["r"] * change.T
        )
        np.testing.assert_allclose(found, wanted[f"layer_{layer}"]["down"], atol=1e-5)


def test_peft_loads_and_merges_them_to_the_same_matrices(
    folder, adapters, micro_config, micro_params
):
    torch = pytest.importorskip("torch", reason="PEFT runs on torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    c = micro_config
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.embed_dim,
            intermediate_size=c.mlp_dim,
            num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_heads,
            num_key_value_heads=c.num_kv_heads,
            head_dim=c.head_dim,
        )
    )
    state = model.state_dict()
    for key in state:
        if ".layers." in key and key.endswith("proj.weight"):
            layer, module = key.split(".")[2], ".".join(key.split(".")[3:5])
            (ours,) = [n for n, theirs in exported._MODULES.items() if theirs == module]
            state[key] = torch.tensor(np.asarray(micro_params[f"layer_{layer}"][ours]).T.copy())
    model.load_state_dict(state)
    reached = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload().state_dict()
    wanted = merge_adapters(LORA, micro_params, adapters)
    for layer in range(c.num_layers):
        for ours, theirs in exported._MODULES.items():
            found = reached[f"model.layers.{layer}.{theirs}.weight"].numpy().T
            np.testing.assert_allclose(found, wanted[f"layer_{layer}"][ours], atol=1e-5)


def test_without_safetensors_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(exported.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LmsiError, match=r"pip install 'lmsi_jax\[hf\]'"):
        exported.check_installed()
