"""bfloat16 weights and caches: the distance of whole samples from float32 arithmetic.

The reference takes the rounded weights in float64, so what is measured is the engine's arithmetic.
A bfloat16 number is off by up to 2**-9 = 0.2 %, and roundings add up through two layers and their
caches: log-probabilities of -10 to 0 are allowed to be 0.06 off, and 0.015 as a root mean square
(found: 0.03 and 0.007), in the second half of a sample no more than in the first.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from path_scores import Characters, expected, sharp_params
from sample_all import sample_all

from lmsi_jax.config import Decoding, Sampling
from lmsi_jax.rollout.engine import Engine

NOISE = {"seed": 5, "round_index": 2}
STEPS = 14
LAYOUT = Decoding(slots=5, chunk=2, page=4, prefill_tokens=64, dtype="bfloat16")


@pytest.fixture(scope="module")
def model(micro_config):
    """A model with a window that ends inside the question, and later inside the sample."""
    return dataclasses.replace(micro_config, vocab_size=60, windows=(0, 9))


@pytest.fixture(scope="module")
def params(model):
    return sharp_params(model, 3)


@pytest.fixture(scope="module")
def errors(model, params):
    """By temperature: log-probabilities' errors, misses and right values, each [samples, STEPS]."""
    letters, draw = Characters(model.vocab_size), np.random.default_rng(0)
    prefix, *texts = (letters.decode(draw.integers(60, size=n)) for n in (20, 6, 11, 25, 2))
    engine = Engine(model, params, letters, LAYOUT)
    rounded = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), params)
    found = {}
    for temperature in (0.0, 1.0):
        sampling = Sampling(
            num_samples=2,
            temperature=temperature,
            max_new_tokens=STEPS,
            stop=(),
            token_logprobs=True,
        )
        questions = [(f"q{n}", text) for n, text in enumerate(texts)]
        off, miss, right = [], [], []
        for uid, samples in sample_all(engine, prefix, questions, sampling, **NOISE).items():
            for sample in samples:
                prompt = letters.encode(prefix + dict(questions)[uid])
                plain = expected(model, rounded, prompt, sample, temperature, **NOISE)
                off.append(np.array(sample.logprobs) - plain.logprobs)
                miss.append(plain.miss)
                right.append(plain.logprobs)
        found[temperature] = np.array(off), np.array(miss), np.array(right)
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_token_of_a_sample_has_the_log_probability_of_float32(errors, temperature):
    off, _, right = errors[temperature]
    assert off.shape == (8, STEPS) and right.std() > 0.3
    assert np.abs(off).max() < 0.06


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_errors_stay_small_and_do_not_grow_along_a_sample(errors, temperature):
    off, _, _ = errors[temperature]
    for half in np.split(off, 2, axis=1):
        assert np.sqrt((half**2).mean()) < 0.015


def test_greedy_tokens_are_the_best_of_float32_up_to_the_tolerance(errors):
    assert errors[0.0][1].max() < 0.06


def test_sampled_tokens_are_those_that_float32_draws_up_to_the_tolerance(errors):
    """Less of the cumulative distribution than of a log-probability, because it ends at 1."""
    assert errors[1.0][1].max() < 0.015
