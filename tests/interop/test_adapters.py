"""PEFT's adapters, merged at import: the numbers against NumPy, and against PEFT where it is."""

import json

import hub_models as hub
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lmsi_jax.cli.main import main
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.hf_shards import Adapters, Shards, read_tensor
from lmsi_jax.interop.hf_weights import import_model
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.training.checkpoints import load_params

RANK = 3
_F32 = np.dtype(np.float32)


def _write(folder, base, targets, extra=None, **settings):
    """Writes adapters of rank 3 for some weights, {module: (out, in)}; returns their A and B."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    pairs, stored = {}, {}
    for module, (out, into) in targets.items():
        a, b = rng.normal(size=(RANK, into)), rng.normal(size=(out, RANK))
        pairs[module] = a.astype(np.float32), b.astype(np.float32)
        for half, values in zip("AB", pairs[module], strict=True):
            stored[f"base_model.model.{module}.lora_{half}.weight"] = values
    stored |= {f"base_model.model.{name}": values for name, values in (extra or {}).items()}
    save_file(stored, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none", **settings}
    config["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return pairs


_TARGETS = {
    "model.layers.1.self_attn.q_proj": (64, 32),
    "model.layers.2.mlp.down_proj": (32, 56),
}


@pytest.fixture
def base(tmp_path):
    hub.make("llama", tmp_path / "base")
    return tmp_path / "base"


def test_adapters_are_merged_and_everything_else_is_the_base(base, tmp_path, capsys):
    table = np.random.default_rng(1).normal(size=(hub.VOCABULARY, 32)).astype(np.float32)
    pairs = _write(tmp_path / "lora", base, _TARGETS, {"lm_head.weight": table})
    assert main(["import-hf", str(tmp_path / "lora"), str(tmp_path / "out")]) == 0
    assert "lora are merged into" in capsys.readouterr().out
    alone = import_model(base, tmp_path / "alone")
    params, before = (load_params(tmp_path / d, parameter_shapes(alone)) for d in ("out", "alone"))
    a, b = pairs["model.layers.1.self_attn.q_proj"]
    query = before["layer_1"]["query"] + 2.0 * (b @ a).T
    np.testing.assert_allclose(params["layer_1"]["query"], query, atol=1e-5)
    np.testing.assert_array_equal(params["lm_head"], table)
    np.testing.assert_array_equal(params["layer_0"]["query"], before["layer_0"]["query"])
    assert not np.allclose(params["layer_2"]["down"], before["layer_2"]["down"], atol=0.1)


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({}, (2.0, 2.0)),
        ({"use_rslora": True}, (6 / 3**0.5,) * 2),
        ({"alpha_pattern": {"down_proj": 9}}, (2.0, 3.0)),
        ({"alpha_pattern": {r"layers\.1\..*q_proj": 3}}, (1.0, 2.0)),
    ],
)
def test_the_scale_is_the_one_that_the_settings_say(tmp_path, settings, scales):
    pairs = _write(tmp_path / "lora", "base", _TARGETS, **settings)
    adapters = Adapters(tmp_path / "lora")
    for module, scale in zip(_TARGETS, scales, strict=True):
        a, b = adapters.factors(f"{module}.weight")
        np.testing.assert_array_equal(a, pairs[module][0])
        np.testing.assert_allclose(b, pairs[module][1] * scale, rtol=1e-6)
    assert adapters.factors("model.norm.weight") is None


def test_adapters_of_fused_projections_are_merged_before_these_are_cut(tmp_path):
    hub.make("phi3", tmp_path / "base")
    targets = {"model.layers.0.self_attn.qkv_proj": (64, 32)}
    pairs = _write(tmp_path / "lora", tmp_path / "base", targets)
    config = import_model(tmp_path / "lora", tmp_path / "out")
    params = load_params(tmp_path / "out", parameter_shapes(config))
    a, b = pairs["model.layers.0.self_attn.qkv_proj"]
    stored = Shards(tmp_path / "base")
    whole = (
        read_tensor(stored, "model.layers.0.self_attn.qkv_proj.weight", _F32, False) + 2.0 * b @ a
    )
    for name, begin, end in (("query", 0, 32), ("key", 32, 48), ("value", 48, 64)):
        np.testing.assert_allclose(params["layer_0"][name], whole[begin:end].T, atol=1e-5)


def test_the_base_is_the_one_that_is_named_in_the_command(base, tmp_path, capsys):
    _write(tmp_path / "lora", "/gone/model", _TARGETS)
    words = ["import-hf", str(tmp_path / "lora"), str(tmp_path / "out")]
    assert main(words) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "'/gone/model', which is not there" in error and "--base=MODEL" in error
    assert main([*words, f"--base={base}"]) == 0
    assert main(["import-hf", str(base), str(tmp_path / "x"), f"--base={base}"]) == 2
    assert "--base is for adapters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported; only 'LORA'"),
        ({"use_dora": True}, "use_dora = True is not supported; merge these adapters with PEFT"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not supported"),
        ({"lora_alpha": "6"}, "lora_alpha = '6'"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern"),
        ({"use_dora": True, "lora_bias": True}, "use_dora = True, lora_bias = True is not"),
    ],
)
def test_adapters_that_are_not_plain_lora_are_refused(base, tmp_path, settings, match):
    _write(tmp_path / "lora", base, _TARGETS, **settings)
    with pytest.raises(LmsiError, match=match):
        import_model(tmp_path / "lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("targets", "extra", "match"),
    [
        ({"model.layers.7.mlp.up_proj": (56, 32)}, {}, "has none: name the model"),
        ({"model.layers.0.mlp.up_proj": (57, 32)}, {}, r"is \(57, 32\); .* has \(56, 32\)"),
        ({}, {"model.embed_tokens.weight": np.ones((9, 32))}, r"is \(9, 32\)"),
        (
            {},
            {"model.norm.lora_magnitude_vector": np.ones(3)},
            "lora_magnitude_vector' is not one of a pair",
        ),
    ],
)
def test_adapters_of_another_model_are_refused(base, tmp_path, targets, extra, match):
    _write(tmp_path / "lora", base, targets, extra)
    with pytest.raises(LmsiError, match=match):
        import_model(tmp_path / "lora", tmp_path / "out")


def test_the_merge_is_that_of_peft(base, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the library peft")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=10,
        target_modules=["q_proj", "up_proj"],
        rank_pattern={"up_proj": 2},
        alpha_pattern={"layers.0.mlp.up_proj": 5},
        modules_to_save=["lm_head"],
        use_rslora=True,
    )
    adapted = peft.get_peft_model(model, settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    adapted.save_pretrained(tmp_path / "lora")
    import_model(tmp_path / "lora", tmp_path / "out")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "merged" / name).write_bytes((base / name).read_bytes())
    config = import_model(tmp_path / "merged", tmp_path / "theirs")
    ours, theirs = (load_params(tmp_path / d, parameter_shapes(config)) for d in ("out", "theirs"))
    for layer in ("layer_0", "layer_1"):
        for name, values in theirs[layer].items():
            np.testing.assert_allclose(ours[layer][name], values, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(ours["lm_head"], theirs["lm_head"], atol=1e-6)
