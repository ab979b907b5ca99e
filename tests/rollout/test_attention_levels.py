"""Attention over prompt, question, pages and chunk of random shapes equals plain attention."""

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from path_scores import Characters, expected, sharp_params
from sample_all import sample_all

from lmsi_jax.config import Decoding, ModelConfig, Sampling
from lmsi_jax.rollout.engine import Engine

VOCABULARY = 37
NOISE = {"seed": 5, "round_index": 2}


def _model(groups, per, width, layers, windows, caps):
    return ModelConfig(
        vocab_size=VOCABULARY,
        num_layers=layers,
        embed_dim=12,
        num_heads=groups * per,
        num_kv_heads=groups,
        head_dim=2 * width,
        mlp_dim=10,
        max_length=128,
        windows=windows,
        attention_softcap=caps[0],
        logits_softcap=caps[1],
    )


def _layout(slots, chunk, chunks, prefill, pool):
    return Decoding(
        slots=slots, chunk=chunk, page=chunk * chunks, prefill_tokens=prefill, pool_bytes=pool
    )


_MODELS = st.builds(
    _model,
    groups=st.integers(1, 3),
    per=st.integers(1, 3),
    width=st.integers(1, 4),
    layers=st.integers(1, 2),
    windows=st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 20]), min_size=1, max_size=2).map(tuple),
    caps=st.tuples(st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.0, 3.0])),
)
_LAYOUTS = st.builds(
    _layout,
    slots=st.integers(1, 7),
    chunk=st.integers(1, 4),
    chunks=st.integers(1, 3),
    prefill=st.sampled_from([1, 64, 100]),
    pool=st.just(2**20),
)
# Tokens of the task prompt, of each question, of a sample; a pool of few sizes compiles quickly.
_LENGTHS = st.tuples(
    st.integers(1, 24) | st.just(65),
    st.lists(st.integers(1, 24), min_size=1, max_size=3),
    st.integers(5, 13),
)


@pytest.mark.slow
# Each example compiles anew, about 1 s; a failing one is shown as it was found.
@settings(max_examples=12, phases=(Phase.explicit, Phase.generate))
@given(_MODELS, _LAYOUTS, _LENGTHS, st.integers(1, 3), st.sampled_from([0.0, 0.7, 1.0]))
# Windows that end inside the prompt, the question, a page and the chunk; pages that come later.
@example(
    _model(2, 2, 3, 2, (16, 3), (2.0, 5.0)), _layout(3, 2, 2, 64, 1), (9, [5, 1, 24], 13), 3, 1.0
)
# No task prompt, and a question of one token: nothing but the sample is attended.
@example(_model(1, 3, 2, 2, (0, 2), (0.0, 0.0)), _layout(4, 3, 1, 1, 1), (0, [1, 4], 10), 2, 0.7)
def test_log_probabilities_equal_plain_attention(model, layout, lengths, paths, temperature):
    params, letters = sharp_params(model, 1), Characters(VOCABULARY)
    draw = np.random.default_rng(sum(lengths[1]))
    prefix, *texts = (
        letters.decode(draw.integers(VOCABULARY, size=n)) for n in (lengths[0], *lengths[1])
    )
    questions = [(f"q{n}", text) for n, text in enumerate(texts)]
    steps = min(lengths[2], 3 * layout.page + 1)
    sampling = Sampling(
        num_samples=paths, temperature=temperature, max_new_tokens=steps, stop=(),
        token_logprobs=True,
    )  # fmt: skip
    engine = Engine(model, params, letters, layout)
    found = sample_all(engine, prefix, questions, sampling, **NOISE)
    assert [len(found[uid]) for uid, _ in questions] == [paths] * len(questions)
    for uid, text in questions[-2:]:
        sample = found[uid][-1]
        assert sample.tokens == steps
        prompt = letters.encode(prefix + text)
        plain = expected(model, params, prompt, sample, temperature, **NOISE)
        np.testing.assert_allclose(sample.logprobs, plain.logprobs, rtol=0, atol=1e-4)
        assert plain.miss.max() < 1e-4
