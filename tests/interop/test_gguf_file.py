"""GGUF files: tensors under Hugging Face's names, split files, damage, what is refused."""

import gguf_files as files
import numpy as np
import pytest
from gguf_files import gguf

from lmsi_jax.errors import LmsiError
from lmsi_jax.interop import gguf_file
from lmsi_jax.interop.gguf_file import GgufModel, is_gguf
from lmsi_jax.interop.hf_config import model_config
from lmsi_jax.interop.hf_families import tensors as parameters
from lmsi_jax.interop.hf_shards import DTYPES, read_tensor

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
F32 = np.dtype(np.float32)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("small_slices", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tensors_are_those_of_the_hugging_face_model(file, arch, small_slices, monkeypatch):
    if small_slices:
        monkeypatch.setattr(gguf_file, "_SLICE_BYTES", 5 * 4 * files.WIDTH)
    values = files.tensors(arch, tied=arch != "qwen3", biased=arch == "llama")
    files.write(file, arch, values)
    found = GgufModel(file)
    assert found.names == sorted(values)
    assert set(found.dtypes.values()) == {"F32"}
    for name, value in values.items():
        np.testing.assert_allclose(read_tensor(found, name, F32, False), value, atol=3e-7, rtol=0)
        assert found.shapes[name] == value.shape
        if value.ndim > 1:
            turned = read_tensor(found, name, F32, True)
            np.testing.assert_array_equal(turned, read_tensor(found, name, F32, False).T)
            assert turned.flags.c_contiguous
    wanted = {tensor.name: tensor.shape for tensor in parameters(model_config(found.config))}
    assert wanted == found.shapes


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_a_type_that_all_matrices_have_is_kept(file, kind):
    values = files.tensors("llama")
    files.write(file, "llama", values, types={"weight": kind})
    found = GgufModel(file)
    assert set(found.dtypes.values()) == {kind}
    for name, value in values.items():
        kept = read_tensor(found, name, DTYPES[kind], False)
        np.testing.assert_array_equal(kept, value.astype(DTYPES[kind]))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_matrices_are_read_in_float32(file, kind):
    values = files.tensors("qwen2")
    files.write(file, "qwen2", values, types={"_proj.weight": kind})
    found = GgufModel(file)
    assert set(found.dtypes.values()) == {"F32"}
    type_ = gguf.GGMLQuantizationType[kind]
    for name, value in values.items():
        wanted = value
        if name.endswith("_proj.weight"):
            wanted = gguf.quants.dequantize(gguf.quants.quantize(value, type_), type_)
            assert 0 < np.abs(wanted - value).max() < 0.5
        np.testing.assert_array_equal(read_tensor(found, name, F32, False), wanted)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_read_slice_by_slice(file, kind, monkeypatch):
    monkeypatch.setattr(gguf_file, "_SLICE_BYTES", 7 * 4 * 512)
    type_ = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[type_]
    data = np.random.default_rng(1).integers(0, 99, (files.WIDTH, 512 // block * size), np.uint8)
    values = files.tensors("qwen3")
    name = "model.layers.1.mlp.down_proj.weight"
    del values[name]
    extra = {files.gguf_name("qwen3", name): (data, type_)}
    files.write(file, "qwen3", values, extra=extra)
    np.testing.assert_array_equal(
        read_tensor(GgufModel(file), name, F32, False), gguf.quants.dequantize(data, type_)
    )


def test_tied_embeddings_are_those_of_a_file_without_an_output_table(file):
    files.write(file, "llama", files.tensors("llama", tied=False))
    assert GgufModel(file).config["tie_word_embeddings"] is False
    files.write(file, "llama", files.tensors("llama", tied=True))
    assert GgufModel(file).config["tie_word_embeddings"] is True


def _parts(folder):
    return sorted(folder.glob("m-*.gguf"))


def test_a_split_model_is_read_from_any_of_its_files(tmp_path):
    values = files.tensors("llama")
    files.write(tmp_path / "m.gguf", "llama", values, split=6)
    parts = _parts(tmp_path)
    assert len(parts) > 3
    for part in (parts[0], parts[2]):
        found = GgufModel(part)
        for name, value in values.items():
            np.testing.assert_array_equal(read_tensor(found, name, F32, False), value)
        assert "tokenizer.json" in found.tokenizer_files()


def test_a_missing_file_of_a_split_model_is_named(tmp_path):
    files.write(tmp_path / "m.gguf", "llama", split=6)
    parts = _parts(tmp_path)
    parts[1].unlink()
    with pytest.raises(LmsiError, match=f"{parts[1].name} is missing beside it"):
        GgufModel(parts[0])


def test_a_renamed_file_of_a_split_model_is_refused(tmp_path):
    files.write(tmp_path / "m.gguf", "llama", split=6)
    renamed = _parts(tmp_path)[0].rename(tmp_path / "first.gguf")
    with pytest.raises(LmsiError, match="is one of .* files; keep the names"):
        GgufModel(renamed)


def test_files_of_two_models_are_refused(tmp_path):
    for name, layers in (("a", 2), ("b", 1)):
        values = files.tensors("llama")
        if layers == 1:
            values = {key: value for key, value in values.items() if ".1.mlp" not in key}
        (tmp_path / name).mkdir()
        files.write(tmp_path / name / "m.gguf", "llama", values, split=15)
    last = _parts(tmp_path / "a")[-1]
    last.write_bytes((_parts(tmp_path / "b")[-1]).read_bytes())
    with pytest.raises(LmsiError, match="hold .* tensors instead of"):
        GgufModel(last)


def test_a_file_cut_anywhere_is_refused_and_named(file):
    files.write(file, "llama")
    whole = file.read_bytes()
    cuts = [*range(0, 64), *np.linspace(64, len(whole) - 33, 300).astype(int)]
    for cut in cuts:
        file.write_bytes(whole[:cut])
        with pytest.raises(LmsiError, match="model.gguf.*(again|not a GGUF)"):
            GgufModel(file)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: b"GGML" + data[4:], "is not a GGUF file"),
        (lambda data: data[:4] + (1).to_bytes(4, "little") + data[8:], "version 1 GGUF file"),
        (lambda data: data[:4] + (3).to_bytes(4, "big") + data[8:], "big-endian"),
        (lambda data: data[:16] + (2**60).to_bytes(8, "little") + data[24:], "truncated or dam"),
    ],
)
def test_a_file_that_is_no_readable_gguf_is_refused(file, change, match):
    files.write(file, "llama")
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(LmsiError, match=match):
        GgufModel(file)


def test_files_are_known_by_their_first_bytes(tmp_path, file):
    files.write(file, "llama")
    (tmp_path / "other").write_bytes(b"GG")
    assert is_gguf(file)
    assert not any(map(is_gguf, (tmp_path, tmp_path / "other", tmp_path / "none")))


def test_a_type_that_is_not_read_is_named(file):
    kind = gguf.GGMLQuantizationType.IQ4_NL
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.zeros((files.WIDTH, files.MLP // block * size), np.uint8)
    values = files.tensors("llama")
    del values["model.layers.0.mlp.down_proj.weight"]
    files.write(file, "llama", values, extra={"blk.0.ffn_down.weight": (data, kind)})
    with pytest.raises(LmsiError, match="blk.0.ffn_down.weight has the type IQ4_NL; supported"):
        GgufModel(file)


def test_a_tensor_that_is_not_known_is_named(file):
    extra = {"blk.0.ffn_gate_inp.weight": (np.ones((4, 4), np.float32), None)}
    files.write(file, "llama", extra=extra)
    with pytest.raises(LmsiError, match="a tensor 'blk.0.ffn_gate_inp.weight'.*'llama'"):
        GgufModel(file)


def _config(file, arch, keys, **more):
    files.write(file, arch, keys=keys, **more)
    return GgufModel(file).config


@pytest.mark.parametrize(
    ("arch", "keys", "wanted"),
    [
        ("llama", {}, {"rope_scaling": None, "rms_norm_eps": 1e-5, "head_dim": 16}),
        ("llama", {"attention.key_length": None}, {"head_dim": 16}),
        ("llama", {"attention.head_count_kv": [2, 2]}, {"num_key_value_heads": 2}),
        (
            "qwen2",
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 128,
            },
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                }
            },
        ),
        (
            "gemma3",
            {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
            {
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "query_pre_attn_scalar": 16,
                "layer_types": ["sliding_attention"] * 2,
                "rope_local_base_freq": 10000.0,
            },
        ),
        (
            "gemma2",
            {"attn_logit_softcapping": 40.0},
            {
                "attn_logit_softcapping": 40.0,
                "final_logit_softcapping": 30.0,
                "layer_types": ["sliding_attention", "full_attention"],
            },
        ),
        (
            "llama",
            {"attention.sliding_window": 64},
            {"model_type": "mistral", "sliding_window": 64},
        ),
        ("llama", {"attention.sliding_window": 512}, {"model_type": "llama"}),
        ("llama", {"expert_count": 0}, {"model_type": "llama"}),
    ],
)
def test_the_configuration_is_that_of_the_keys(file, arch, keys, wanted):
    found = _config(file, arch, keys)
    assert {key: found.get(key) for key in wanted} == wanted


@pytest.mark.parametrize(("arch", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_27b_gemmas_divide_scores_by_their_width_over_heads(file, arch, layers):
    keys = {"block_count": layers, "attention.head_count": 2, "attention.head_count_kv": 2}
    assert _config(file, arch, keys)["query_pre_attn_scalar"] == files.WIDTH // 2


def test_llama_3_scaling_is_known_by_its_divisors(file):
    theta, head_dim = 500000.0, 64
    divisors = np.empty(head_dim // 2, np.float32)
    for pair in range(head_dim // 2):
        wavelength = 2 * np.pi * theta ** (2 * pair / head_dim)
        smooth = min(1.0, max(0.0, (8192 / wavelength - 1) / 3))
        divisors[pair] = 1 / ((1 - smooth) / 32 + smooth)
    keys = {"rope.freq_base": theta, "attention.key_length": 64, "attention.value_length": 64}
    found = _config(file, "llama", keys, extra={"rope_freqs.weight": (divisors, None)})
    assert found["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    with pytest.raises(LmsiError, match="rope_freqs.weight is not the scaling of Llama 3.1"):
        _config(file, "llama", keys, extra={"rope_freqs.weight": (divisors[::-1].copy(), None)})


@pytest.mark.parametrize(
    ("arch", "keys", "match"),
    [
        ("mamba", {}, "general.architecture = 'mamba' is not supported; supported are llama"),
        ("llama", {"expert_count": 8}, "llama.expert_count = 8 is not supported"),
        (
            "llama",
            {"expert_count": 8, "attention.clamp_kqv": 2.0},
            "llama.attention.clamp_kqv = 2.0, llama.expert_count = 8 is not supported",
        ),
        ("llama", {"block_count": None}, "llama.block_count = None; supported is a whole number"),
        ("llama", {"rope.dimension_count": 8}, "rope.dimension_count = 8; supported is 16"),
        ("llama", {"attention.head_count_kv": [2, 1]}, r"head_count_kv = \[2, 1\]; supported"),
        ("qwen2", {"attention.sliding_window": 64}, "sliding_window = 64; supported is none"),
        ("qwen3", {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}, "'longrope'"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "softcapping = 30.0; supported is none"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(file, arch, keys, match):
    with pytest.raises(LmsiError, match=match):
        _config(file, arch, keys, values=files.tensors("llama" if arch == "mamba" else arch))
