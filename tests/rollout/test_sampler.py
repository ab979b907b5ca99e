"""Draws by the inverse cumulative distribution, and the truncation before it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsi_jax.config import Augmentation, Evaluation, Loss, Sampling, Truncation, Voting
from lmsi_jax.errors import LmsiError
from lmsi_jax.rollout.sampler import apply_top_k_top_p, inverse_cdf, sample_token


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=70, max_size=70).filter(any),
    st.floats(0, 1, exclude_max=True, width=32),
)
def test_a_draw_is_the_index_at_which_the_cumulative_sum_passes_the_uniform_number(
    weights, uniform
):
    drawn = int(inverse_cdf(jnp.asarray([weights]), jnp.asarray([uniform]))[0])
    upto = np.cumsum(np.asarray(weights, np.float64))
    target = uniform * upto[-1]
    assert weights[drawn] > 0
    # Rounding may move a draw across an edge that the target falls on.
    assert upto[drawn] >= target - 1e-4
    assert upto[drawn] - weights[drawn] <= target + 1e-4


def test_draws_follow_the_softmax():
    scores = jnp.asarray([0.0, 1.0, 2.0, -1.0])
    uniform = (jnp.arange(20_000) + 0.5) / 20_000
    tokens, logprobs = sample_token(
        jnp.broadcast_to(scores, (20_000, 4)), uniform, 0.5, Truncation(False, 0, 1.0)
    )
    share = np.bincount(np.asarray(tokens), minlength=4) / 20_000
    np.testing.assert_allclose(share, jax.nn.softmax(scores / 0.5), atol=1e-3)
    expected = jax.nn.log_softmax(scores)[tokens]
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def test_greedy_takes_the_best_token_whatever_the_noise():
    scores = jnp.asarray([[0.1, 3.0, 2.9], [5.0, 1.0, 0.0]])
    tokens, _ = sample_token(
        scores, jnp.asarray([0.999, 0.999]), 1.0, Sampling(temperature=0).truncation
    )
    assert tokens.tolist() == [1, 0]


@pytest.mark.parametrize("k", [1, 3, 0])
def test_top_k_keeps_k_tokens_and_zero_keeps_all(k):
    scores = jax.random.normal(jax.random.key(0), (5, 9))
    kept = np.isfinite(np.asarray(apply_top_k_top_p(scores, k, 1.0)))
    assert kept.sum(1).tolist() == [k or 9] * 5


def test_top_p_keeps_the_smallest_set_with_that_probability():
    probabilities = jnp.asarray([[0.5, 0.25, 0.15, 0.1]])
    for top_p, count in ((0.4, 1), (0.6, 2), (0.8, 3), (0.95, 4)):
        kept = np.isfinite(np.asarray(apply_top_k_top_p(jnp.log(probabilities), 0, top_p)))
        assert kept[0].tolist() == [i < count for i in range(4)]


def test_min_p_keeps_tokens_near_the_most_likely_one():
    probabilities = jnp.asarray([[0.5, 0.25, 0.15, 0.1]])
    for min_p, count in ((0.0, 4), (0.15, 4), (0.25, 3), (0.4, 2), (0.6, 1), (1.0, 1)):
        kept = np.isfinite(np.asarray(apply_top_k_top_p(jnp.log(probabilities), 0, 1.0, min_p)))
        assert kept[0].tolist() == [i < count for i in range(4)]


def test_the_default_is_the_full_distribution():
    assert Sampling().truncation == Truncation(greedy=False, top_k=0, top_p=1.0, min_p=0.0)


def test_settings_out_of_range_are_refused():
    bad_ones = (
        *({"min_p": -0.1}, {"num_samples": 0}, {"temperature": -1}, {"top_p": 0.0}),
        *({"max_new_tokens": 0}, {"stop": ("",)}, {"stop": "\n"}),
    )
    for bad in bad_ones:
        with pytest.raises(LmsiError, match=next(iter(bad))):
            Sampling(**bad)


@pytest.mark.parametrize("threshold", [0.5, 1.0, 1.5, -0.95, float("nan")])
def test_an_adaptive_consistency_that_cannot_work_is_refused_with_its_remedy(threshold):
    with pytest.raises(LmsiError, match="adaptive_consistency = .*above 0.5 and below 1.*None"):
        Sampling(adaptive_consistency=threshold)
    with pytest.raises(LmsiError, match="adaptive_consistency_every = 0; use 1 or more"):
        Sampling(adaptive_consistency=0.95, adaptive_consistency_every=0)


def test_adaptive_consistency_is_off_by_default():
    assert Sampling().adaptive_consistency is None
    assert Sampling(adaptive_consistency=0.95).adaptive_consistency_every == 4


def test_at_the_least_temperature_the_most_probable_token_is_drawn():
    scores = jnp.asarray([[0.0, 1.0, 0.5], [3.0, -80.0, 2.999]])
    uniform = jnp.asarray([0.1, 0.999])
    for value in (1e-30, 1e-7, 1e30):
        sampling = Sampling(temperature=value)
        tokens, _ = sample_token(scores, uniform, np.float32(value), sampling.truncation)
        assert tokens.tolist() == [1, 0] if value < 1 else set(tokens.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("value", [1e-38, 1e-45, -1.0])
@pytest.mark.parametrize("cls", [Sampling, Evaluation, Voting, Loss, Augmentation])
def test_smaller_temperatures_are_refused(cls, value):
    with pytest.raises(LmsiError, match=r"temperature = .* or more"):
        cls(temperature=value)
