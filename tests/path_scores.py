"""Reference log-probabilities of samples, by one plain forward pass over prompt and sample.

The tokenizer here has one character for each id, so a path's text gives its tokens.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from reference_decoder import reference_logits

from lmsi_jax.rollout.sampler import sample_keys, uniforms


@dataclasses.dataclass(frozen=True)
class Characters:
    """A tokenizer with one character per id; the model has no row for the end token."""

    vocab_size: int

    @property
    def eos_id(self):
        return self.vocab_size

    @property
    def end_ids(self):
        return frozenset({self.eos_id})

    start_ids = ()

    def encode(self, text):
        return [ord(character) - ord("A") for character in text]

    def decode(self, ids):
        return "".join(chr(ord("A") + i) for i in ids)


@dataclasses.dataclass(frozen=True)
class Expected:
    """The numbers of a sample by the reference.

    Attributes:
      logprobs: [T] log-probabilities of its tokens at temperature 1.
      miss: [T] how far the path's uniform number is from the share of the cumulative distribution
        that stands for the token drawn; greedy: how far the token's score is below the best one.
    """

    logprobs: np.ndarray
    miss: np.ndarray


def expected(config, params, prompt, path, temperature, seed, round_index):
    """Scores a sample, given the tokens of its prompt, in float64."""
    tokens = Characters(config.vocab_size).encode(path.text)
    assert len(tokens) == path.tokens
    scores = reference_logits(config, params, [*prompt, *tokens])[len(prompt) - 1 : -1]
    taken = np.arange(len(tokens)), np.array(tokens)
    shifted = scores - scores.max(-1, keepdims=True)
    logprobs = (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))[taken]
    if not temperature:
        return Expected(logprobs, -shifted[taken])
    weights = np.exp(shifted / temperature)
    upto = np.cumsum(weights, -1) / weights.sum(-1, keepdims=True)
    below = np.pad(upto, ((0, 0), (1, 0)))[taken]
    keys = sample_keys(seed, round_index, [path.uid], [path.sample_index])
    noise = np.asarray(uniforms(keys, jnp.arange(len(tokens))[None]), np.float64)[0]
    return Expected(logprobs, np.maximum(0, np.maximum(below - noise, noise - upto[taken])))


def sharp_params(config, seed):
    """Random float32 parameters with larger scores than fresh ones, so that attention matters."""
    draw = np.random.default_rng(seed)

    def normal(rows, columns, gain):
        return jnp.asarray(draw.normal(size=(rows, columns)) * gain * rows**-0.5, jnp.float32)

    def scale(width=config.embed_dim):
        drawn = draw.uniform(0.5, 1.5, width) - config.norm_plus_one
        return jnp.asarray(drawn, jnp.float32)

    embed = config.embed_dim
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    table = draw.normal(size=(config.vocab_size, embed)) * 2 * embed**-0.5
    params = {
        "embedding": jnp.asarray(table, jnp.float32),
        "final_norm": {"scale": scale()},
    }
    if not config.tied_embeddings:
        params["lm_head"] = normal(embed, config.vocab_size, 2.0).T
    for layer in range(config.num_layers):
        params[f"layer_{layer}"] = _sharp_layer(config, draw, normal, scale, queries, keys)
    return params


def _sharp_layer(config, draw, normal, scale, queries, keys):
    embed, mlp = config.embed_dim, config.mlp_dim
    parallel = config.block == "parallel"
    first = "norm" if parallel else "attention_norm"
    layer = {
        **({first: scale()} if config.pre_norms else {}),
        "query": normal(embed, queries, 1.5),
        "key": normal(embed, keys, 1.5),
        "value": normal(embed, keys, 1.0),
        "gate": normal(embed, mlp, 1.0),
        "up": normal(embed, mlp, 1.0),
        "attention_out": normal(queries, embed, 0.7),
        "down": normal(mlp, embed, 0.3),
    }
    post = ["attention_post_norm", "mlp_post_norm"] if config.post_norms else []
    layer |= {
        name: scale() for name in ([] if parallel or not config.pre_norms else ["mlp_norm"]) + post
    }
    if config.qk_norm:
        widths = (queries, keys) if config.joint_qk_norm else (config.head_dim,) * 2
        both = zip(("query_norm", "key_norm"), widths, strict=True)
        layer |= {name: scale(width) for name, width in both}
    for name in config.biases:
        drawn = 0.3 * draw.normal(size=layer[name].shape[1])
        layer[f"{name}_bias"] = jnp.asarray(drawn, jnp.float32)
    return layer
