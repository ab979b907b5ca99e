"""Each family against Hugging Face's own model, randomly drawn, small, in float32.

Scores through training's packed path, and 64 greedy tokens through the decode engine. All windows,
and the lengths that positions are stretched from, are shorter than the sequences.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from path_scores import Characters

from lmsi_jax.decoding.engine import Engine
from lmsi_jax.decoding.layout import Decoding
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.rope import LinearScaling, Llama3Scaling, YarnScaling
from lmsi_jax.training.losses import token_scores

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip(
    "transformers", minversion="5.0", reason="transformers 5 is not installed"
)

VOCABULARY, PROMPT, NEW = 96, 40, 64
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "attn_implementation": "eager",
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_OURS = {
    "vocab_size": VOCABULARY,
    "num_layers": 3,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "mlp_dim": 48,
    "max_length": 256,
    "block": "sequential",
}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
         "original_max_position_embeddings": 32}  # fmt: skip
_GEMMA = {"post_norms": True, "norm_plus_one": True, "activation": "gelu", "query_scalar": 24.0,
          "scale_embeddings": True}  # fmt: skip
# Family: the name of its configuration class, what is set there, and what here.
FAMILIES = {
    "llama, llama3 scaling": (
        "LlamaConfig",
        {"rope_parameters": _LLAMA3, "tie_word_embeddings": False, "rms_norm_eps": 1e-5},
        {
            "rope_scaling": Llama3Scaling(factor=8.0, original_length=32),
            "tied_embeddings": False,
            "norm_epsilon": 1e-5,
        },
    ),
    "llama, yarn, all biases": (
        "LlamaConfig",
        {"rope_parameters": _YARN, "tie_word_embeddings": True, "attention_bias": True,
         "mlp_bias": True},
        {
            "rope_scaling": YarnScaling(factor=4.0, original_length=32),
            "biases": ("query", "key", "value", "attention_out", "gate", "up", "down"),
        },
    ),
    "qwen2": (
        "Qwen2Config",
        # Its heads are always as wide as they divide.
        {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
        {"num_heads": 2, "num_kv_heads": 1, "biases": ("query", "key", "value")},
    ),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}, {"qk_norm": True}),
    "gemma2": (
        "Gemma2Config",
        {"query_pre_attn_scalar": 24, "sliding_window": 7, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 5.0},
        {**_GEMMA, "windows": (7, 0), "attention_softcap": 2.0, "logits_softcap": 5.0},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "query_pre_attn_scalar": 24,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {
            **_GEMMA,
            "qk_norm": True,
            "windows": (6, 6, 0),
            "rope_theta": 1e6,
            "local_rope_theta": 1e4,
            "rope_scaling": LinearScaling(factor=8.0),
        },
    ),
}  # fmt: skip
_MATRICES = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
             "attention_out": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
             "down": "mlp.down_proj"}  # fmt: skip


def _params(config, state):
    """Our tree from Hugging Face's tensors."""

    def tensor(name):
        return jnp.asarray(state[f"{name}.weight"].numpy())

    params = {
        "embedding": tensor("model.embed_tokens"),
        "final_norm": {"scale": tensor("model.norm")},
    }
    if not config.tied_embeddings:
        params["lm_head"] = tensor("lm_head")
    for number in range(config.num_layers):
        own = f"model.layers.{number}"
        layer = {name: tensor(f"{own}.{theirs}").T for name, theirs in _MATRICES.items()}
        for name in config.biases:
            layer[f"{name}_bias"] = jnp.asarray(state[f"{own}.{_MATRICES[name]}.bias"].numpy())
        norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        if config.post_norms:
            norms |= {
                "attention_post_norm": "post_attention_layernorm",
                "mlp_norm": "pre_feedforward_layernorm",
                "mlp_post_norm": "post_feedforward_layernorm",
            }
        if config.qk_norm:
            norms |= {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
        params[f"layer_{number}"] = layer | {
            name: tensor(f"{own}.{theirs}") for name, theirs in norms.items()
        }
    return params


@functools.cache
def _pair(family):
    """Hugging Face's model, our configuration and parameters."""
    name, theirs, ours = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, name)(**(_SIZES | theirs))
    ).eval()
    with torch.no_grad():  # norms and biases are drawn too, or nobody would miss them
        for _, tensor in model.named_parameters():
            if tensor.ndim == 1:
                tensor += 0.3 * torch.randn_like(tensor)
    config = ModelConfig(**(_OURS | ours))
    return model, config, _params(config, model.state_dict())


def _tokens(count, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


def _theirs(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens, np.int64))[None]).logits[0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_behind_a_prefix_have_hugging_faces_scores(family):
    model, config, params = _pair(family)
    prefix, examples = _tokens(12, 1), [_tokens(n, n) for n in (50, 30)]
    row = np.concatenate(examples)
    batch = {
        "prefix": np.pad(prefix, (0, 4)),
        "prefix_length": np.int32(12),
        "tokens": row[None],
        "segments": np.repeat([1, 2], [50, 30])[None],
        "positions": np.concatenate([12 + np.arange(50), 12 + np.arange(30)])[None],
    }
    found = np.asarray(jax.jit(token_scores, static_argnums=0)(config, params, batch))[0]
    for begin, example in ((0, examples[0]), (50, examples[1])):
        expected = _theirs(model, np.concatenate([prefix, example]))[12:-1]
        got = found[begin : begin + len(example) - 1]
        assert expected.std() > 0.3
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_paths_of_64_tokens_are_hugging_faces(family):
    model, config, params = _pair(family)
    letters = Characters(VOCABULARY)
    layout = Decoding(lanes=2, chunk=8, page=32, prefill_tokens=64)
    engine = Engine(config, params, letters, layout)
    sampling = Sampling(paths=1, temperature=0.0, max_new_tokens=NEW, stop=())
    prompt = _tokens(PROMPT, 3)
    prefix, question = letters.decode(prompt[:25]), letters.decode(prompt[25:])
    ((_, (path,)),) = engine.run(prefix, [("q", question)], sampling, seed=0, round_index=0)
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    expected = model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)[0, PROMPT:]
    assert len(set(expected.tolist())) > 3
    assert letters.encode(path.text) == expected.tolist()
