"""GGUF files through `lmsi import-hf`: parameters, tokenizer and what is refused."""

import json
import resource

import gguf_files as files
import numpy as np
import pytest

from lmsi_jax.cli.main import main
from lmsi_jax.config import gin_loader
from lmsi_jax.config.configurables import load_run, load_run_of
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.hf_families import tensors
from lmsi_jax.interop.hf_weights import import_model
from lmsi_jax.models.tokenizers import open_tokenizer
from lmsi_jax.prompts import STOP_STRINGS
from lmsi_jax.training import streaming
from lmsi_jax.training.streaming import Saved

pytest.importorskip("tokenizers", reason="needs the extra [hf]")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def _check_parameters(out, config, values):
    saved = Saved(out / "checkpoint_0")
    for tensor in tensors(config):
        read = saved.read(tensor.path)
        value = values[tensor.name]
        np.testing.assert_allclose(read.T if tensor.transposed else read, value, atol=3e-7, rtol=0)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_parameters_and_tokenizer_are_those_of_the_file(tmp_path, arch):
    values = files.tensors(arch)
    files.write(tmp_path / "m.gguf", arch, values, template=TEMPLATE)
    config = import_model(tmp_path / "m.gguf", tmp_path / "out")
    _check_parameters(tmp_path / "out", config, values)
    folder = tmp_path / "out" / "tokenizer"
    tokenizer = open_tokenizer(str(folder))
    assert tokenizer.encode("ab") == [259]
    assert tokenizer.end_ids == {257}
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((tmp_path / "out" / "model.json").read_text())["num_layers"] == files.LAYERS


def test_the_command_imports_a_file_and_the_gin_file_names_it(tmp_path, capsys):
    files.write(tmp_path / "m.gguf", "qwen2")
    main(["import-hf", str(tmp_path / "m.gguf"), str(tmp_path / "out"), "--dtype=bfloat16"])
    printed = capsys.readouterr().out
    assert "parameters in" in printed and "Sampling.stop" not in printed
    assert "m.gguf" in (tmp_path / "out" / "model.gin").read_text()
    dtypes = {dtype.name for dtype in Saved(tmp_path / "out" / "checkpoint_0").dtypes.values()}
    assert dtypes == {"bfloat16"}


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_file_with_a_chat_template_is_prompted_in_it_and_the_import_says_so(
    tmp_path, capsys, template
):
    files.write(tmp_path / "m.gguf", "qwen2", **({"template": template} if template else {}))
    main(["import-hf", str(tmp_path / "m.gguf"), str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert ("prompts: in its chat template" in printed) == bool(template)
    assert ("--gin_file=prompting/base.gin" in printed) == bool(template)
    run = load_run_of(tmp_path / "out")
    assert (run.chat is None) == (template is None)
    assert run.sampling.stop == (() if template else STOP_STRINGS)
    assert run.mixing.end == ("blank_line" if template else "end_token")
    model = str(tmp_path / "out" / "model.gin")
    gin_loader.load("quickstart", gin_loader.GinArgs(files=(model, "prompting/base.gin")))
    run = load_run()
    assert (run.chat, run.sampling.stop, run.mixing.end) == (None, STOP_STRINGS, "end_token")


def test_a_folder_with_one_split_model_is_imported(tmp_path):
    values = files.tensors("llama")
    folder = tmp_path / "hub"
    folder.mkdir()
    files.write(folder / "m.gguf", "llama", values, split=6)
    assert len(list(folder.iterdir())) > 3
    (folder / "README.md").write_text("A model.")
    config = import_model(folder, tmp_path / "out")
    _check_parameters(tmp_path / "out", config, values)


def _refused(source, match):
    """Checks that an import fails with a message and leaves nothing behind."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(LmsiError, match=match):
        import_model(source, source.parent / "out")
    assert sorted(source.parent.iterdir()) == before


def test_a_folder_with_several_models_is_refused(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    for name in ("a", "b"):
        files.write(folder / f"{name}.gguf", "llama")
    _refused(folder, "has several GGUF models, a.gguf, b.gguf; name the file of one")


def test_a_file_of_another_format_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    _refused(tmp_path / "model.safetensors", "is no folder and no GGUF file")
    (tmp_path / "m.gguf").write_bytes(b"")
    _refused(tmp_path / "m.gguf", "m.gguf is truncated")


def test_a_missing_tensor_is_named(tmp_path):
    values = files.tensors("llama")
    del values["model.layers.1.mlp.up_proj.weight"]
    files.write(tmp_path / "m.gguf", "llama", values)
    _refused(tmp_path / "m.gguf", "m.gguf has no tensor 'model.layers.1.mlp.up_proj.*its metadata")


def test_a_window_of_a_llama_is_in_every_layer(tmp_path):
    files.write(tmp_path / "m.gguf", "llama", keys={"attention.sliding_window": 64})
    assert import_model(tmp_path / "m.gguf", tmp_path / "out").windows == (64,)


def test_metadata_that_describe_no_model_are_named_with_the_file(tmp_path):
    files.write(tmp_path / "m.gguf", "llama", keys={"attention.head_count": 3})
    match = "m.gguf, its metadata .* ModelConfig.num_heads = 3 must be a multiple"
    _refused(tmp_path / "m.gguf", match)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_values_that_are_no_finite_numbers_are_refused(tmp_path, name, value):
    values = files.tensors("llama")
    values[name].flat[-1] = value
    files.write(tmp_path / "m.gguf", "llama", values)
    _refused(tmp_path / "m.gguf", f"{name} has NaN or infinite values in float32")


def test_a_full_disk_takes_two_lines_and_loses_nothing(tmp_path, monkeypatch, capsys):
    """The system refuses the files of the checkpoint, which TensorStore writes, beyond a size."""
    files.write(tmp_path / "m.gguf", "qwen2")
    save = streaming.save

    def save_on_a_full_disk(*args):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
        try:
            save(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(streaming, "save", save_on_a_full_disk)
    words = ["import-hf", str(tmp_path / "m.gguf"), str(tmp_path / "out")]
    assert main(words) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error == (
        f"lmsi: error: cannot write {tmp_path / 'out'}: File too large; make room on the disk, "
        "then repeat the command to resume"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    monkeypatch.setattr(streaming, "save", save)
    assert main(words) == 0


def test_a_type_too_narrow_for_the_values_is_refused(tmp_path):
    values = files.tensors("llama")
    values["model.norm.weight"][0] = 3.4e38
    files.write(tmp_path / "m.gguf", "llama", values)
    with pytest.raises(LmsiError, match="model.norm.weight has NaN or infinite values in bfloat16"):
        import_model(tmp_path / "m.gguf", tmp_path / "out", "bfloat16")
    import_model(tmp_path / "m.gguf", tmp_path / "out")
