"""Samples of every family equal plain decoding, and rows keep their bits in any company."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FEW_FAST, of_family
from path_scores import Characters, expected, sharp_params
from sample_all import sample_all

from lmsi_jax.config import Decoding, Sampling
from lmsi_jax.models.sharding import decoding_weights
from lmsi_jax.models.transformer import angles_of, hidden_states
from lmsi_jax.rollout.engine import Engine

NOISE = {"seed": 5, "round_index": 2}
# Two chunks to a page, several pages to a sample, more samples than slots.
LAYOUT = Decoding(slots=3, chunk=2, page=4, prefill_tokens=64)


@pytest.mark.parametrize("family", FEW_FAST)
def test_log_probabilities_equal_plain_decoding(micro_config, family):
    """Windows end in the prompt, in the question and in the sample."""
    config = of_family(micro_config, family)
    params, letters = sharp_params(config, 1), Characters(config.vocab_size)
    draw = np.random.default_rng(0)
    prefix, *texts = (letters.decode(draw.integers(320, size=n)) for n in (9, 1, 6))
    sampling = Sampling(
        num_samples=2, temperature=0.7, max_new_tokens=11, stop=(), token_logprobs=True
    )
    questions = [(f"q{n}", text) for n, text in enumerate(texts)]
    engine = Engine(config, params, letters, LAYOUT)
    found = sample_all(engine, prefix, questions, sampling, **NOISE)
    for uid, text in questions:
        sample = found[uid][1]
        plain = expected(config, params, letters.encode(prefix + text), sample, 0.7, **NOISE)
        assert sample.tokens == 11
        np.testing.assert_allclose(sample.logprobs, plain.logprobs, rtol=0, atol=1e-4)
        assert plain.miss.max() < 1e-4


@functools.partial(jax.jit, static_argnums=0)
def _states(config, weights, tokens):
    positions = 7 + jnp.arange(len(tokens))

    def attend(layer, q, k, v):
        """Returns numbers of each row's own that depend on q, k and v."""
        return q + jnp.repeat(k + v, q.shape[1] // k.shape[1], axis=1)

    return hidden_states(config, weights, tokens, angles_of(config, positions), attend)


@pytest.mark.parametrize("family", FEW_FAST)
def test_a_row_s_bits_do_not_depend_on_how_many_rows_there_are(micro_config, family):
    config = of_family(micro_config, family)
    weights = decoding_weights(config, sharp_params(config, 1), jnp.float32)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 320, 64))
    whole = np.asarray(_states(config, weights, tokens))
    for count in (2, 5, 16, 48):
        np.testing.assert_array_equal(_states(config, weights, tokens[:count]), whole[:count])
