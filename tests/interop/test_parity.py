"""Imported models against transformers, family by family: scores, greedy tokens, bytes."""

import json

import hub_models as hub
import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from sample_all import sample_all

from lmsi_jax.config import Decoding, Sampling
from lmsi_jax.interop.hf_export import export_model, family_for
from lmsi_jax.interop.hf_weights import import_model
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.training.checkpoints import load_params
from lmsi_jax.training.losses import token_logits


@pytest.fixture(scope="module", params=hub.MODELS)
def imported(request, tmp_path_factory):
    """(the hub's folder, transformers' model, the imported folder, ModelConfig)."""
    root = tmp_path_factory.mktemp(request.param)
    model = hub.make(request.param, root / "hub")
    return root / "hub", model, root / "ours", import_model(root / "hub", root / "ours")


@pytest.fixture(scope="module")
def params(imported):
    _, _, folder, config = imported
    return load_params(folder, parameter_shapes(config))


class Numbers:
    """A tokenizer whose texts are the ids themselves."""

    vocab_size = hub.VOCABULARY
    eos_id = -1
    end_ids = frozenset({-1})
    start_ids = ()

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))


def _tokens(shape, seed):
    return np.random.default_rng(seed).integers(0, hub.VOCABULARY, shape).astype(np.int32)


def _scores(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.float().numpy()


def test_packed_rows_behind_a_prompt_have_the_scores_of_transformers(imported, params):
    _, model, _, config = imported
    prefix, examples = _tokens(12, 1), [_tokens(n, n) for n in (50, 30)]
    batch = {
        "prefix": np.pad(prefix, (0, 4)),
        "prefix_length": np.int32(12),
        "tokens": np.concatenate(examples)[None],
        "segments": np.repeat([1, 2], [50, 30])[None],
        "positions": np.concatenate([12 + np.arange(50), 12 + np.arange(30)])[None],
    }
    found = np.asarray(jax.jit(token_logits, static_argnums=0)(config, params, batch))[0]
    for begin, example in ((0, examples[0]), (50, examples[1])):
        wanted = _scores(model, np.concatenate([prefix, example])[None])[0, 12:-1]
        assert wanted.std() > 0.3
        ours = found[begin : begin + len(example) - 1]
        np.testing.assert_allclose(ours, wanted, atol=1e-4, rtol=0)


def test_64_greedy_tokens_behind_a_shared_prompt_are_those_of_transformers(imported, params):
    _, model, _, config = imported
    prefix, questions = _tokens(21, 1), [_tokens(n, n) for n in (7, 12)]
    engine = Engine(config, params, Numbers(), Decoding(slots=4))
    sampling = Sampling(num_samples=1, temperature=0.0, max_new_tokens=64, stop=())
    rows = [(str(i), " ".join(map(str, q))) for i, q in enumerate(questions)]
    found = sample_all(engine, " ".join(map(str, prefix)), rows, sampling, seed=0, round_index=0)
    model.generation_config.eos_token_id = None
    for number, question in enumerate(questions):
        prompt = torch.tensor(np.concatenate([prefix, question])[None].astype(np.int64))
        wanted = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=64,
            pad_token_id=0,
        )
        (sample,) = found[str(number)]
        new = wanted[0, prompt.shape[1] :].tolist()
        assert len(set(new)) > 3
        assert Numbers().encode(sample.text) == new


def test_the_export_has_the_same_bytes_and_transformers_load_it(imported, tmp_path):
    source, model, folder, config = imported
    export_model(folder, config, folder / "tokenizer", tmp_path / "out", max_shard_bytes=30_000)
    own_class = family_for(config).model_type == model.config.model_type
    if own_class:
        assert hub.tensors(tmp_path / "out") == hub.tensors(source)
    else:  # a Phi 3 without LongRoPE computes what a Mistral does, with fused projections
        assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "mistral"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    ).eval()
    tokens = _tokens((1, 30), 5)
    atol = 0 if own_class else 1e-5
    np.testing.assert_allclose(_scores(again, tokens), _scores(model, tokens), atol=atol, rtol=0)
    text = "Ann's 12,345 pens.\n\nA: 雪"
    theirs, own = (
        transformers.AutoTokenizer.from_pretrained(f) for f in (tmp_path / "out", source)
    )
    assert theirs(text).input_ids == own(text).input_ids
    assert again.generation_config.eos_token_id == model.config.eos_token_id
    assert import_model(tmp_path / "out", tmp_path / "again") == config


@pytest.mark.parametrize("published", [True, False])
def test_the_text_model_of_a_gemma_3_with_images_scores_like_the_whole(tmp_path, published):
    text = dict(transformers.Gemma3TextConfig(**hub.sizes("gemma3")).to_dict())
    vision = {
        **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "image_size": 8, "patch_size": 4},
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    source = tmp_path / "hub"
    model.save_pretrained(source)
    hub.write_tokenizer(source, "gemma")
    values = load_file(source / "model.safetensors")
    forms = [("model.language_model.", "language_model.model."), ("model.", "")]
    old = {name: _renamed(name, forms) for name in values}
    new = {name: _renamed(name, [(b, a) for a, b in forms[:1]]) for name in values}
    names = old if published else new
    save_file({names[name]: array for name, array in values.items()}, source / "model.safetensors")
    config = import_model(source, tmp_path / "ours")
    params = load_params(tmp_path / "ours", parameter_shapes(config))
    tokens = _tokens(30, 5)
    batch = {
        **{"prefix": np.zeros(0, np.int32), "prefix_length": np.int32(0), "tokens": tokens[None]},
        "segments": np.ones((1, 30), np.int32),
        "positions": np.arange(30)[None],
    }
    found = np.asarray(jax.jit(token_logits, static_argnums=0)(config, params, batch))[0]
    wanted = _scores(model, tokens[None])[0, :-1]
    assert wanted.std() > 0.3
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def _renamed(name, forms):
    for begin, other in forms:
        if name.startswith(begin):
            return other + name.removeprefix(begin)
    return name
