"""Paths from the shared-prefix loop against plain, unshared, uncached decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_decoder import reference_logits

from lmsi_jax.decoding.engine import Engine
from lmsi_jax.decoding.keys import path_keys, uniforms
from lmsi_jax.decoding.sampling import Sampling, inverse_cdf
from lmsi_jax.errors import LmsiError

QUESTIONS = [("q1", "Q: Ann has 3 pens.\nA:"), ("q2", "Q: Ben has some hats and cups?\nA:")]
PREFIX = "Q: 3 + 4?\nA: The answer is 7.\n\n"


@pytest.fixture(scope="module")
def engine(micro_config, micro_params, tokenizer):
    return Engine(micro_config, micro_params, tokenizer, lanes=6)


def _plain(config, params, tokenizer, prompt, uid, index, sampling, steps):
    """Decodes one path with a full forward pass for each token."""
    ids, logprobs = tokenizer.encode(prompt), []
    start = len(ids)
    for step in range(steps):
        scores = reference_logits(config, params, ids)[-1]
        if sampling.temperature:
            key = path_keys(3, 1, [uid], [index])
            weights = np.exp((scores - scores.max()) / sampling.temperature)
            token = int(inverse_cdf(jnp.asarray(weights)[None], uniforms(key, step))[0])
        else:
            token = int(scores.argmax())
        logprobs.append(scores[token] - scores.max() - np.log(np.exp(scores - scores.max()).sum()))
        ids.append(token)
    return ids[start:], sum(logprobs)


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_paths_equal_plain_decoding(
    engine, micro_config, micro_params, tokenizer, prefix, temperature
):
    sampling = Sampling(paths=3, temperature=temperature, max_new_tokens=5, stop=())
    paths = engine.generate(prefix, QUESTIONS, sampling, seed=3, round_index=1)
    assert [(p.uid, p.index) for p in paths] == [(u, k) for u, _ in QUESTIONS for k in range(3)]
    texts = dict(QUESTIONS)
    for path in (paths[1], paths[5]):
        ids, logprob = _plain(
            micro_config, micro_params, tokenizer, prefix + texts[path.uid], path.uid, path.index,
            sampling, path.tokens,
        )  # fmt: skip
        assert path.text == tokenizer.decode(ids)
        assert path.logprob == pytest.approx(logprob, abs=1e-3)


def test_a_path_does_not_depend_on_the_order_of_the_questions(engine):
    sampling = Sampling(paths=3, temperature=1.0, max_new_tokens=8, stop=())
    forward = engine.generate(PREFIX, QUESTIONS, sampling, seed=3, round_index=1)
    backward = engine.generate(PREFIX, QUESTIONS[::-1], sampling, seed=3, round_index=1)
    by_name = {(p.uid, p.index): p for p in backward}
    assert forward == [by_name[p.uid, p.index] for p in forward]


def test_a_path_ends_before_the_first_stop_string(engine):
    free = Sampling(paths=3, temperature=1.0, max_new_tokens=40, stop=())
    whole = engine.generate("", QUESTIONS, free, seed=3, round_index=1)
    stop = whole[0].text[10:13]
    stopped = engine.generate(
        "", QUESTIONS, Sampling(paths=3, temperature=1.0, max_new_tokens=40, stop=(stop,)),
        seed=3, round_index=1,
    )  # fmt: skip
    assert stopped[0].finished
    assert stopped[0].text == whole[0].text[: whole[0].text.index(stop)]
    assert stopped[0].tokens < whole[0].tokens
    for cut, path in zip(stopped, whole, strict=True):
        assert path.text.startswith(cut.text)
        assert cut.finished == (stop in path.text or path.finished)


def test_a_prompt_that_does_not_fit_names_the_question_and_the_sizes(engine):
    sampling = Sampling(paths=3, max_new_tokens=250)
    with pytest.raises(LmsiError, match=r"question q1 needs \d+ positions.*the model has 256"):
        engine.generate(PREFIX, QUESTIONS, sampling, seed=0, round_index=0)


def test_a_run_gives_the_paths_of_any_number_of_questions_whatever_their_order(engine):
    sampling = Sampling(paths=3, temperature=1.0, max_new_tokens=8, stop=())
    many = [(f"{uid}/{n}", text * (1 + n)) for n in range(3) for uid, text in QUESTIONS]
    noise = {"seed": 3, "round_index": 1}
    paths = dict(engine.run(PREFIX, many, sampling, **noise))
    assert {u: [p.index for p in own] for u, own in paths.items()} == {
        uid: [0, 1, 2] for uid, _ in many
    }
    assert dict(engine.run(PREFIX, many[::-1], sampling, **noise)) == paths
    assert dict(engine.run(PREFIX, many[3:4], sampling, **noise)) == {many[3][0]: paths[many[3][0]]}
    seen = []
    list(engine.run(PREFIX, many, sampling, **noise, watch=seen.append))
    tokens = sum(path.tokens for own in paths.values() for path in own)
    assert (seen[-1].paths, seen[-1].tokens) == (18, tokens)
    assert tokens <= seen[-1].busy_lane_steps <= seen[-1].lane_steps


def test_a_run_refuses_a_question_that_does_not_fit_before_it_samples_any(engine):
    sampling = Sampling(paths=3, max_new_tokens=200)
    text = "Q: Ann has 3 pens. " * 20
    with pytest.raises(LmsiError, match=r"question long needs \d+ positions.*the model has 256"):
        next(engine.run("", [*QUESTIONS, ("long", text)], sampling, seed=0, round_index=0))
    assert engine.prompt_tokens(text) == len(engine.tokenizer.encode(text))


def test_a_tokenizer_larger_than_the_model_is_refused(micro_config, micro_params, tokenizer):
    import dataclasses

    small = dataclasses.replace(micro_config, vocab_size=100)
    with pytest.raises(LmsiError, match="320 ids.*only 100"):
        Engine(small, micro_params, tokenizer)


def test_groups_of_one_shape_are_compiled_once(engine):
    from lmsi_jax.decoding.loop import decode_chunk

    sampling = Sampling(paths=3, temperature=1.0, max_new_tokens=8, stop=())
    engine.generate(PREFIX, QUESTIONS, sampling, seed=0, round_index=0)
    compiled = decode_chunk._cache_size()
    for seed in range(3):
        engine.generate(PREFIX, QUESTIONS[:1], sampling, seed=seed, round_index=seed)
    assert decode_chunk._cache_size() == compiled
    assert jax.devices()
