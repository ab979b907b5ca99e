"""What can be wrong with a model's folder, and how much memory a conversion takes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hub_models as hub
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from lmsi_jax.cli.main import main
from lmsi_jax.cli.subcommands import parse_size
from lmsi_jax.config import ModelConfig, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.hf_export import export_model
from lmsi_jax.interop.hf_shards import Shards, read_tensor, write_shards
from lmsi_jax.interop.hf_weights import import_model
from lmsi_jax.models.tokenizers import encode_first, open_tokenizer
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.pipeline.scorers import Verifier
from lmsi_jax.records import Question, Sample
from lmsi_jax.runtime.files import read_json
from lmsi_jax.training.checkpoints import load_params
from lmsi_jax.training.streaming import Saved


@pytest.fixture
def source(tmp_path):
    hub.make("qwen2.5", tmp_path / "hub", shard_size="30KB")
    return tmp_path / "hub"


def _refused(source, match):
    """Importing fails so, and leaves nothing behind."""
    out = source.parent / "out"
    with pytest.raises(LmsiError, match=match):
        import_model(source, out)
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def _files(source):
    return sorted(source.glob("model-*.safetensors"))


def _change(source, name, **changes):
    file = source / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_truncated_file_is_named_with_a_tensor_that_it_holds(source):
    file = _files(source)[1]
    file.write_bytes(file.read_bytes()[:-100])
    _refused(source, f"{file.name} is truncated or damaged .it holds 'model.*download or copy it")


def test_a_missing_file_is_named_with_a_tensor_that_it_holds(source):
    file = _files(source)[1]
    file.unlink()
    _refused(source, f"{file.name} is missing .it holds 'model.*download or copy it again")


def test_an_index_that_does_not_belong_to_the_files_is_refused(source):
    index = json.loads((source / "model.safetensors.index.json").read_text())
    first = index["weight_map"]["model.norm.weight"]
    other = next(file.name for file in _files(source) if file.name != first)
    index["weight_map"]["model.norm.weight"] = other
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    _refused(source, "has no tensor 'model.norm.weight'.*do not belong together")


def test_an_index_that_points_out_of_its_folder_is_refused(source):
    index = {"weight_map": {"model.norm.weight": "../secret.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    _refused(source, "places 'model.norm.weight' outside of its folder")


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "model.safetensors.index.json", "model.safetensors", "tokenizer.json"),
        *("generation_config.json", "tokenizer_config.json", "chat_template.jinja"),
        "model-00001-of",
    ],
)
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(source, name):
    file = next(iter(sorted(source.glob(f"{name}*.safetensors"))), source / name)
    if name == "model.safetensors":
        file = source / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    _refused(source, f"{file.name} is no regular file; name a file with this content")


def test_a_pickle_is_never_read(source):
    for file in source.glob("*.safetensors*"):
        file.unlink()
    torch.save({}, source / "pytorch_model.bin")
    _refused(source, "pytorch_model.bin, a pickle.*save the model as safetensors")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"intermediate_size": 57},
            r"down_proj.weight is \(32, 56\), config.json has \(32, 57\)",
        ),
        ({"num_hidden_layers": 4, "layer_types": None}, r"no tensor 'model.layers.3.*are missing"),
        (
            {"num_hidden_layers": 2, "layer_types": None},
            "has a tensor 'model.layers.2.*does not ask for",
        ),
        ({"tie_word_embeddings": True}, "lm_head.weight is not model.embed_tokens.weight"),
        ({"vocab_size": 300}, "is .384, 32., config.json has .300, 32."),
        ({"model_type": "mamba"}, "model_type = 'mamba' is not supported"),
        ({"model_type": "gemma3"}, "import the text model"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "only Qwen2ForCausalLM"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        (
            {"quantization_config": {"bits": 4}},
            "'quantization_config': .* are quantised",
        ),
        ({"num_attention_heads": "4"}, "num_attention_heads = '4'; it must be a whole number"),
        ({"num_key_value_heads": 3}, "must be a multiple of ModelConfig.num_kv_heads = 3"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "longrope", "factor": 2}},
            "'longrope'",
        ),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "has no 'factor'"),
        ({"layer_types": ["full_attention"]}, "names 1 layers, num_hidden_layers 3"),
        ({"layer_types": ["chunked_attention"] * 3}, "'chunked_attention', which is not"),
    ],
)
def test_a_config_that_does_not_fit_is_named(source, changes, match):
    _change(source, "config.json", **changes)
    _refused(source, match)


def test_one_line_names_the_keys_that_are_ignored(source, capsys):
    _change(source, "config.json", temperature=0.6, unsloth_version="2025.1")
    main(["import-hf", str(source), str(source.parent / "out")])
    printed = capsys.readouterr().out
    assert "ignored in config.json, they change no score: temperature, unsloth_version\n" in printed


def test_nan_in_a_safetensors_file_is_refused(source):
    shards = Shards(source)
    values = {
        name: read_tensor(shards, name, np.dtype(np.float32), False).copy() for name in shards.names
    }
    values["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    for file in source.glob("model*.safetensors*"):
        file.unlink()
    save_file(values, source / "model.safetensors")
    _refused(source, "model.layers.1.mlp.up_proj.weight has NaN or infinite values in float32")


def test_a_single_file_is_read_and_an_index_beside_it_is_not(source, capsys):
    values = {}
    for file in _files(source):
        values |= load_file(file)
    save_file({k: v + 1 for k, v in values.items()}, source / "model.safetensors")
    main(["import-hf", str(source), str(source.parent / "out")])
    assert "model.safetensors is read, and model.safetensors.index.json" in capsys.readouterr().out
    config = ModelConfig.from_json(read_json(source.parent / "out" / "model.json"))
    params = load_params(source.parent / "out", parameter_shapes(config))
    np.testing.assert_array_equal(params["embedding"], values["model.embed_tokens.weight"] + 1)
    for file in _files(source)[1:]:
        file.unlink()  # as transformers leave an index of older shards
    assert import_model(source, source.parent / "again") == config


def test_a_link_to_a_file_that_is_not_there_is_named(source):
    for file in source.glob("*.safetensors*"):
        file.unlink()
    (source / "model.safetensors").symlink_to(source / "gone")
    _refused(source, "model.safetensors is a link to a file that is missing: download")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("config.json", "{", "hub/config.json cannot be read: .*; download it again"),
        ("config.json", "[]", "hub/config.json is no object; download it again"),
        ("tokenizer.json", "{", "hub/tokenizer.json is not a readable tokenizer.json"),
        ("tokenizer_config.json", "[3]", "hub/tokenizer_config.json is no object"),
        ("tokenizer_config.json", "{}", "ends a text of .*hub/tokenizer.json; put"),
    ],
)
def test_errors_name_the_file_that_the_user_has(source, name, text, match):
    (source / "generation_config.json").unlink(missing_ok=True)
    _change(source, "config.json", eos_token_id=None)
    (source / name).write_text(text)
    _refused(source, match)


@pytest.mark.parametrize(
    "name",
    ["Qwen2Tokenizer", "GPT2TokenizerFast"],
)
def test_vocab_and_merges_are_read_as_transformers_reads_them(tmp_path, name):
    hub.make("qwen2.5", tmp_path / "hub")
    source = tmp_path / "hub"
    spec = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]))
    merges = [" ".join(merge) for merge in spec["model"]["merges"]]
    (source / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    added = {t["id"]: {**t, "content": t["content"]} for t in spec["added_tokens"]}
    for token in added.values():
        del token["id"]
    settings = {"tokenizer_class": name, "eos_token": "<|endoftext|>", "bos_token": None}
    settings |= {"unk_token": None, "pad_token": "<|pad|>", "added_tokens_decoder": added}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = getattr(transformers, name).from_pretrained(source)
    import_model(source, tmp_path / "out")
    ours = open_tokenizer(tmp_path / "out" / "tokenizer")
    for text in (
        "Q: Ann's 12,345 pens?\n\nA: it is na\u00efve \u96ea",
        "  two  spaces e\u0301",
        "12 345",
    ):
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.eos_id == theirs.eos_token_id
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "BartTokenizer"}')
    with pytest.raises(LmsiError, match="hub/tokenizer_config.json: tokenizer_class = 'Bart"):
        import_model(source, tmp_path / "again")


def test_a_model_of_the_hub_s_cache_is_imported_by_its_name(source, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub").constants
    cache = tmp_path / "cache"
    snapshot = cache / "models--ann--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(source, snapshot)
    (cache / "models--ann--tiny" / "refs").mkdir()
    (cache / "models--ann--tiny" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert import_model(Path("ann/tiny"), tmp_path / "out") == import_model(source, tmp_path / "b")
    with pytest.raises(LmsiError, match="ann/none is no folder .* hub does not give a model of"):
        import_model(Path("ann/none"), tmp_path / "c")


def test_without_the_hub_s_library_its_name_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(LmsiError, match="ann/none is no folder .* pip install huggingface_hub"):
        import_model(Path("ann/none"), tmp_path / "out")


@pytest.mark.parametrize(
    ("stated", "listed", "words"),
    [
        (
            7,
            [340, 9],
            "eos_token_id [7] does not end a text: generation_config.json lists [9, 340]",
        ),
        (9, [9], "a text also ends at 340, the tokenizer's eos_token; transformers continues"),
        (340, [340, 9], None),
    ],
)
def test_a_line_names_ends_that_files_disagree_on(source, capsys, stated, listed, words):
    assert open_tokenizer(source).eos_id == 340
    _change(source, "config.json", eos_token_id=stated)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    main(["import-hf", str(source), str(source.parent / "out")])
    printed = capsys.readouterr().out
    assert words in printed if words else "eos_token" not in printed
    ends = open_tokenizer(source.parent / "out" / "tokenizer").end_ids
    assert ends == {340, *listed}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("odd", ["7", [7, None], {"id": 7}, True])
def test_ends_that_are_no_numbers_are_named(source, name, odd):
    (source / "generation_config.json").write_text("{}")
    _change(source, name, eos_token_id=odd)
    _refused(source, f"hub/{name}: eos_token_id = .*; it must be a number")


def _fill_table(source, last):
    """Gives every row of the table a control token, and the id after them to one more."""
    rows = json.loads((source / "config.json").read_text())["vocab_size"]
    spec = json.loads((source / "tokenizer.json").read_text())
    like = {**spec["added_tokens"][0], "special": True}
    names = [(i, f"<{i}>") for i in range(open_tokenizer(source).vocab_size, rows)]
    names.append((rows, last))
    spec["added_tokens"] += [{**like, "id": i, "content": name} for i, name in names]
    (source / "tokenizer.json").write_text(json.dumps(spec))
    return rows


def test_a_control_token_without_a_row_in_the_table_is_left_out(source, capsys):
    before = open_tokenizer(source)
    rows = _fill_table(source, "<image>")
    assert open_tokenizer(source).vocab_size == rows + 1
    main(["import-hf", str(source), str(source.parent / "out")])
    assert "the model has no row for them: <image> (control" in capsys.readouterr().out
    after = open_tokenizer(source.parent / "out" / "tokenizer")
    assert after.vocab_size == rows
    text = "Q: Ann has 3 pens <image>?"
    assert after.encode(text) == before.encode(text)
    assert (after.end_ids, after.start_ids) == (before.end_ids, before.start_ids)


def test_an_end_token_without_a_row_in_the_table_is_refused(source):
    rows = _fill_table(source, "<end>")
    _change(source, "tokenizer_config.json", eos_token="<end>")
    _refused(source, f"has {rows + 1} ids, config.json's vocab_size is {rows}")


def test_a_missing_or_foreign_tokenizer_is_named(source):
    spec = json.loads((source / "tokenizer.json").read_text())
    more = spec["added_tokens"][0]
    more["special"] = False
    spec["added_tokens"] += [{**more, "id": i, "content": f"<{i}>"} for i in range(343, 391)]
    (source / "tokenizer.json").write_text(json.dumps(spec))
    _refused(source, r"has 39\d ids, config.json's vocab_size is 384")
    (source / "tokenizer.json").unlink()
    _refused(source, "has no tokenizer.json and no tokenizer.model")


def test_a_folder_without_a_model_and_an_occupied_one_are_named(source, tmp_path):
    with pytest.raises(LmsiError, match="is no folder"):
        import_model(tmp_path / "none", tmp_path / "out")
    with pytest.raises(LmsiError, match="has no config.json"):
        import_model(tmp_path, tmp_path / "out")
    with pytest.raises(LmsiError, match="is there already; remove it, or name another"):
        import_model(source, source)


def test_weights_of_a_type_that_is_not_read_are_named(source):
    from safetensors.numpy import load_file, save_file

    file = _files(source)[0]
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].astype(np.int8)
    save_file(tensors, file, metadata={"format": "pt"})
    _refused(source, f"{name} has the type I8.*not quantised")


@pytest.mark.parametrize("dtype", ["keep", "float32", "bfloat16"])
def test_bfloat16_is_kept_or_cast_and_read_as_float32(tmp_path, dtype):
    model = hub.make("llama", tmp_path / "hub", dtype=torch.bfloat16)
    config = import_model(tmp_path / "hub", tmp_path / "out", dtype)
    saved = Saved(tmp_path / "out")
    wanted = "float32" if dtype == "float32" else "bfloat16"
    assert {kind.name for kind in saved.dtypes.values()} == {wanted}
    params = load_params(tmp_path / "out", parameter_shapes(config))
    query = model.model.layers[1].self_attn.q_proj.weight.detach().float().numpy().T
    np.testing.assert_array_equal(params["layer_1"]["query"], query)
    assert params["layer_1"]["query"].dtype == np.float32
    export_model(tmp_path / "out", config, tmp_path / "out" / "tokenizer", tmp_path / "back")
    if dtype != "float32":
        assert hub.tensors(tmp_path / "back") == hub.tensors(tmp_path / "hub")


@pytest.mark.parametrize("chat", ["no", "in the settings", "in a file"])
def test_the_import_says_how_a_model_is_prompted_and_how_to_change_it(source, capsys, chat):
    if chat == "in the settings":
        _change(source, "tokenizer_config.json", chat_template="{{ messages }}")
    elif chat == "in a file":
        (source / "chat_template.jinja").write_text("{{ messages }}")
    assert main(["import-hf", str(source), str(source.parent / "out")]) == 0
    printed, gin = capsys.readouterr().out, (source.parent / "out" / "model.gin").read_text()
    instruct = "a turn ends with <|endoftext|>; --gin_file=prompting/base.gin after model.gin"
    assert (instruct in printed) == (chat != "no")
    assert ("it has no chat template" in printed) == (chat == "no")
    assert f"include 'prompting/{'base' if chat == 'no' else 'instruct'}.gin'" in gin


def test_an_imported_model_judges_samples_as_transformers_computes_it(tmp_path):
    model = hub.make("llama", tmp_path / "hub")
    config = import_model(tmp_path / "hub", tmp_path / "out")
    assert ModelConfig.from_json(read_json(tmp_path / "out" / "model.json")) == config
    question = Question(uid="q", task="t", text="Q: 3 + 4?", kind="number")
    sample = Sample(
        uid="q", sample_index=0, text="It is 7.", tokens=4, logprob=-1.0, end="end_token"
    )
    shape = Training(
        microbatches=1, sequences_per_prefix=1, sequence_length=128, max_prefix_length=0
    )
    judge = Verifier(tmp_path / "out", prompt="{question} {solution} Right?", shape=shape)
    tokenizer = open_tokenizer(str(tmp_path / "out" / "tokenizer"))
    before = encode_first(tokenizer, "Q: 3 + 4? It is 7. Right?")
    own = tokenizer.encode(" Yes")
    with torch.no_grad():
        scores = model(torch.tensor([[*before, *own]])).logits[0].log_softmax(-1)
    total = sum(float(scores[len(before) - 1 + i, token]) for i, token in enumerate(own))
    assert judge(question, sample) == pytest.approx(np.exp(total), rel=1e-3)


def test_a_palm_style_model_has_no_hugging_face_architecture(tmp_path, capsys):
    from lmsi_jax.runtime.files import embedded_path

    folder = tmp_path / "run"
    folder.mkdir()
    gin = "include 'models/embedded.gin'\nRun.model = @ModelConfig()\n"
    (folder / "model.gin").write_text(gin)
    words = ["export-hf", str(embedded_path("")), str(tmp_path / "out"), f"--run={folder}"]
    assert main(words) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "a PaLM-style model" in error and "has no architecture in Hugging Face's" in error
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_its_configuration_is_named(tmp_path, capsys):
    (tmp_path / "checkpoint_1" / "state").mkdir(parents=True)
    assert main(["export-hf", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "name the run's folder with --run=DIR" in " ".join(capsys.readouterr().err.split())


def test_a_checkpoint_that_is_not_there_is_named_before_its_configuration_is_asked_for(
    tmp_path, capsys
):
    assert main(["export-hf", str(tmp_path / "nope"), str(tmp_path / "out")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "/nope; there is no such folder; name a folder checkpoint_N" in error
    assert "--run" not in error and not (tmp_path / "out").exists()


def test_sizes_are_read_with_their_units():
    assert [parse_size(text) for text in ("5GB", "1.5MB", "200k", "7")] == [
        5 * 10**9, 1_500_000, 200_000, 7,
    ]  # fmt: skip
    with pytest.raises(LmsiError, match="write a size such as 5GB"):
        parse_size("large")


_MEASURE = """
import pathlib, sys, threading, time
import psutil
from lmsi_jax.interop.hf_weights import import_model
from lmsi_jax.interop.hf_export import export_model
import jax, orbax.checkpoint, safetensors, tokenizers
me, root = psutil.Process(), pathlib.Path(sys.argv[1])
peak = [0]
def watch():
    while True:
        peak[0] = max(peak[0], me.memory_info().rss)
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
for work in (
    lambda: import_model(root / "hub", root / "out", sys.argv[2]),
    lambda: export_model(root / "out", import_config, root / "out" / "tokenizer", root / "back"),
):
    before = peak[0] = me.memory_info().rss
    import_config = work()
    print(peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["keep", "float32"])
def test_memory_grows_by_the_largest_tensor_not_by_the_model(tmp_path, dtype):
    pytest.importorskip("psutil", reason="wants psutil")
    layers, wide, mlp = 20, 1024, 8192  # 20 times 3 matrices of 16 MB in bfloat16
    (tmp_path / "hub").mkdir()
    hub.write_tokenizer(tmp_path / "hub", "qwen")
    config = {
        "model_type": "qwen2",
        "vocab_size": 32_768,
        "hidden_size": wide,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    from lmsi_jax.interop.hf_config import model_config
    from lmsi_jax.interop.hf_families import tensors
    from lmsi_jax.interop.hf_shards import DTYPES

    rng = np.random.default_rng(0)
    parts = [
        (t.name, t.shape, DTYPES["BF16"], lambda shape=t.shape: _noise(rng, shape))
        for t in tensors(model_config(config))
    ]
    write_shards(tmp_path / "hub", parts, 10**12)
    model = sum(int(np.prod(shape)) * 2 for _, shape, _, _ in parts)
    largest = max(int(np.prod(shape)) for _, shape, _, _ in parts) * (
        4 if dtype == "float32" else 2
    )
    assert model > 1.1e9 and len(Shards(tmp_path / "hub").names) == len(parts)
    words = [sys.executable, "-c", _MEASURE, str(tmp_path), dtype]
    done = subprocess.run(words, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    for what, line in zip(("import", "export"), done.stdout.split(), strict=True):
        print(what, dtype, f"{model / 1e6:.0f} MB, largest {largest / 1e6:.0f}, grew", line)
        assert int(line) < 3 * largest + 200e6


def _noise(rng, shape):
    bits = rng.integers(0, 2**16, shape, dtype=np.uint16) & 0xBFFF  # no infinities, no NaN
    from lmsi_jax.interop.hf_shards import DTYPES

    return bits.view(DTYPES["BF16"])
