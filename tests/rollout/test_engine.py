"""Samples of the engine equal plain, uncached decoding, and depend on their noise alone."""

import dataclasses
import random

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_decoder import reference_logits
from sample_all import sample_all

from lmsi_jax.config import Decoding, Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.transformer import fresh_params
from lmsi_jax.rollout import fewer_slots
from lmsi_jax.rollout.decode_step import decode_chunk, prefill_questions
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.rollout.requests import Request
from lmsi_jax.rollout.sampler import inverse_cdf, sample_keys, uniforms
from lmsi_jax.rollout.scheduler import Scheduler

QUESTIONS = [("q1", "Q: Ann has 3 pens.\nA:"), ("q2", "Q: Ben has some hats and cups?\nA:")]
MANY = [(f"{uid}/{n}", text * (1 + n)) for n in range(4) for uid, text in QUESTIONS]
PREFIX = "Q: 3 + 4?\nA: The answer is 7.\n\n"
NOISE = {"seed": 3, "round_index": 1}
# Two chunks to a page, several pages to a sample, more samples than slots, questions that wait.
SMALL = Decoding(slots=5, chunk=2, page=4, prefill_tokens=64, prompt_cache_factor=1.5)
FREE = Sampling(num_samples=3, temperature=1.0, max_new_tokens=13, stop=())


def _ragged(uid, index):
    """A limit of 1 to 12 tokens, so that samples end one after the other."""
    return 1 + (5 * index + 7 * int(uid[-1])) % 12


@pytest.fixture(scope="module")
def engine(micro_config, micro_params, tokenizer):
    return Engine(micro_config, micro_params, tokenizer, SMALL)


def _run(engine, questions, sampling=FREE, prefix=PREFIX, **more):
    return sample_all(engine, prefix, questions, sampling, **(NOISE | more))


def _plain(config, params, tokenizer, prompt, uid, index, sampling, steps):
    """Decodes one sample with a full forward pass for each token."""
    ids, logprobs = tokenizer.encode(prompt), []
    start = len(ids)
    noise = np.asarray(uniforms(sample_keys(3, 1, [uid], [index]), jnp.arange(steps)[None]))[0]
    for step in range(steps):
        scores = reference_logits(config, params, ids)[-1]
        if sampling.temperature:
            weights = np.exp((scores - scores.max()) / sampling.temperature)
            token = int(
                inverse_cdf(jnp.asarray(weights)[None], jnp.asarray(noise[step : step + 1]))[0]
            )
        else:
            token = int(scores.argmax())
        logprobs.append(scores[token] - scores.max() - np.log(np.exp(scores - scores.max()).sum()))
        ids.append(token)
    return ids[start:], logprobs


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_equal_plain_decoding(
    engine, micro_config, micro_params, tokenizer, prefix, temperature
):
    sampling = Sampling(num_samples=3, temperature=temperature, max_new_tokens=9, stop=())
    paths = _run(engine, QUESTIONS, sampling, prefix)
    assert {uid: [p.sample_index for p in samples] for uid, samples in paths.items()} == {
        "q1": [0, 1, 2],
        "q2": [0, 1, 2],
    }
    texts = dict(QUESTIONS)
    for path in (paths["q1"][1], paths["q2"][2]):
        prompt = prefix + texts[path.uid]
        ids, logprobs = _plain(
            micro_config, micro_params, tokenizer, prompt, path.uid, path.sample_index, sampling,
            path.tokens,
        )  # fmt: skip
        assert path.text == tokenizer.decode(ids)
        assert path.logprob == pytest.approx(sum(logprobs), abs=1e-3)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_every_kind_of_attention_equals_plain_decoding(micro_config, tokenizer, kv_heads):
    """Multi-query, grouped and multi-head; windows shorter than the prompt and than a page."""
    config = dataclasses.replace(
        micro_config,
        num_kv_heads=kv_heads,
        windows=(7, 0, 3),
        num_layers=3,
        attention_softcap=2.0,
        logits_softcap=5.0,
    )
    params = fresh_params(config, 1)
    engine = Engine(config, params, tokenizer, SMALL)
    sampling = Sampling(
        num_samples=2, temperature=1.0, max_new_tokens=11, stop=(), token_logprobs=True
    )
    for path in _run(engine, QUESTIONS, sampling)["q2"]:
        ids, logprobs = _plain(
            config, params, tokenizer, PREFIX + QUESTIONS[1][1], "q2", path.sample_index, sampling,
            path.tokens,
        )  # fmt: skip
        assert path.text == tokenizer.decode(ids)
        np.testing.assert_allclose(path.logprobs, logprobs, atol=1e-4)


@settings(max_examples=8)
@given(st.randoms(), st.integers(1, 8))
def test_a_sample_depends_neither_on_the_order_nor_on_the_company(engine, shuffle, count):
    everything = _run(engine, MANY)
    some = shuffle.sample(MANY, count)
    assert _run(engine, some) == {uid: everything[uid] for uid, _ in some}


def test_a_sample_does_not_depend_on_when_its_slot_was_refilled(engine):
    whole = _run(engine, MANY)
    cut = random.Random(0)
    limits = {(uid, k): cut.randint(1, 13) for uid, _ in MANY for k in range(3)}
    shorter = _run(engine, MANY, limit=lambda uid, k: limits[uid, k])
    for uid, paths in shorter.items():
        for path, long in zip(paths, whole[uid], strict=True):
            assert path.tokens == min(limits[uid, path.sample_index], long.tokens)
            assert long.text.startswith(path.text.rstrip("\ufffd"))


@pytest.mark.slow
def test_samples_of_other_layouts_have_the_same_noise(
    engine, micro_config, micro_params, tokenizer
):
    """Other shapes may round differently; at this size no two tokens are that close."""
    other = Engine(micro_config, micro_params, tokenizer, Decoding(slots=16, chunk=4, page=8))
    texts = {uid: [p.text for p in samples] for uid, samples in _run(engine, MANY).items()}
    assert {uid: [p.text for p in samples] for uid, samples in _run(other, MANY).items()} == texts


def test_fewer_slots_at_the_end_change_no_byte(micro_config, micro_params, tokenizer, monkeypatch):
    monkeypatch.setattr(fewer_slots, "PATIENCE", 0)
    sampling = Sampling(num_samples=16, temperature=1.0, max_new_tokens=12, stop=())
    found = []
    for adaptive_batch in (True, False):
        layout = Decoding(slots=128, chunk=2, page=4, adaptive_batch=adaptive_batch)
        engine = Engine(micro_config, micro_params, tokenizer, layout)
        seen = []
        found.append(_run(engine, MANY, sampling, limit=_ragged, on_chunk=seen.append))
        widths = {(b.slot_steps - a.slot_steps) // 2 for a, b in zip(seen, seen[1:], strict=False)}
        assert (min(widths) < 128) == adaptive_batch
    assert found[0] == found[1]


def test_a_program_of_fewer_slots_that_gives_other_bits_is_not_used(
    micro_config, micro_params, tokenizer, monkeypatch
):
    sampling = Sampling(num_samples=16, temperature=1.0, max_new_tokens=12, stop=())
    layout = Decoding(slots=128, chunk=2, page=4)
    whole = Engine(
        micro_config, micro_params, tokenizer, dataclasses.replace(layout, adaptive_batch=False)
    )
    engine = Engine(micro_config, micro_params, tokenizer, layout)
    monkeypatch.setattr(fewer_slots, "PATIENCE", 0)
    monkeypatch.setattr(fewer_slots, "chunks_agree", lambda *_: False)
    seen = []
    checked = _run(engine, MANY, sampling, limit=_ragged, on_chunk=seen.append)
    assert checked == _run(whole, MANY, sampling, limit=_ragged)
    assert False in engine._model.programs.verified.values() and seen[-1].slot_steps % 256 == 0


def test_a_program_of_fewer_slots_is_compiled_once_it_is_worth_it():
    """Not for the last chunks of a short task, and not for each of the sizes between."""
    decoded = []

    def decode(slots):
        decoded.append(slots)
        return fewer_slots.Chunk([np.zeros((5, 2), int)], [np.zeros((5, 2))], 2 * slots)

    cache = fewer_slots.ProgramCache()
    for _ in range(fewer_slots.PATIENCE + 3):
        cache.decode([8, 16], 5, lambda slots: slots, decode)
    assert decoded == [16] * fewer_slots.PATIENCE + [16, 8] + [8, 8]
    assert cache.verified == {8: True}


def test_prompts_of_one_token_and_no_task_prompt(engine, micro_config, micro_params, tokenizer):
    sampling = Sampling(num_samples=2, temperature=1.0, max_new_tokens=1, stop=())
    letter = tokenizer.decode([tokenizer.encode("Q:")[0]])
    assert len(tokenizer.encode(letter)) == 1
    for path in _run(engine, [("one", letter)], sampling, "")["one"]:
        ids, logprobs = _plain(
            micro_config, micro_params, tokenizer, letter, "one", path.sample_index, sampling, 1
        )
        assert path.text == tokenizer.decode(ids)
        assert path.logprob == pytest.approx(sum(logprobs), abs=1e-4)


def test_counts_add_up(engine):
    seen = []
    paths = _run(engine, MANY, on_chunk=seen.append)
    tokens = sum(path.tokens for own in paths.values() for path in own)
    assert (seen[-1].samples, seen[-1].tokens) == (24, tokens)
    assert 0.5 < seen[-1].utilisation <= 1
    assert seen[-1].slot_steps % (5 * 2) == 0


def test_after_the_first_run_nothing_is_compiled(engine):
    _run(engine, MANY)
    before = decode_chunk._cache_size(), prefill_questions._cache_size()
    for seed in range(3):
        _run(engine, MANY[seed:], seed=seed, round_index=seed)
    assert (decode_chunk._cache_size(), prefill_questions._cache_size()) == before


@pytest.mark.slow
def test_pages_are_added_when_samples_need_them(micro_config, micro_params, tokenizer, engine):
    tight = Engine(micro_config, micro_params, tokenizer, dataclasses.replace(SMALL, pool_bytes=1))
    assert _run(tight, MANY) == _run(engine, MANY)


def test_a_settled_question_starts_no_more_samples(engine):
    """The rule is asked at fixed counts, of samples in index order, whatever ended first."""
    everything = _run(engine, MANY, dataclasses.replace(FREE, num_samples=8))
    asked = []

    def is_settled(request, samples):
        asked.append((request.uid, len(samples)))
        assert [sample.sample_index for sample in samples] == list(range(len(samples)))
        return request.uid.startswith("q1") and len(samples) >= 4

    stopping = dataclasses.replace(
        FREE, num_samples=8, adaptive_consistency=0.95, adaptive_consistency_every=2
    )
    paths = _run(engine, MANY, stopping, is_settled=is_settled)
    assert {uid: len(samples) for uid, samples in paths.items()} == {
        uid: 4 if uid.startswith("q1") else 8 for uid, _ in MANY
    }
    texts = {uid: [path.text for path in samples] for uid, samples in everything.items()}
    assert all(
        [p.text for p in samples] == texts[uid][: len(samples)] for uid, samples in paths.items()
    )
    assert len(asked) == len(set(asked))
    assert {count for uid, count in asked if uid.startswith("q1")} == {2, 4}


def test_a_sample_ends_before_the_first_stop_string(engine):
    free = Sampling(num_samples=3, temperature=1.0, max_new_tokens=40, stop=())
    whole = _run(engine, QUESTIONS, free, "")["q1"]
    stop = whole[0].text[10:13]
    stopped = _run(engine, QUESTIONS, dataclasses.replace(free, stop=(stop,)), "")["q1"]
    assert stopped[0].end == "stop"
    assert stopped[0].text == whole[0].text[: whole[0].text.index(stop)]
    assert stopped[0].tokens < whole[0].tokens
    for cut, path in zip(stopped, whole, strict=True):
        assert path.text.startswith(cut.text)
        assert cut.end == ("stop" if stop in path.text else path.end)


def test_token_logprobs_come_on_request_and_add_up(engine):
    plain = _run(engine, QUESTIONS)["q1"]
    told = _run(engine, QUESTIONS, dataclasses.replace(FREE, token_logprobs=True))["q1"]
    for path, full in zip(plain, told, strict=True):
        assert path.logprobs is None and "logprobs" not in path.to_json()
        assert len(full.logprobs) == full.tokens
        assert sum(full.logprobs) == pytest.approx(path.logprob, abs=1e-3)
        assert type(full).from_json(full.to_json()) == full


@pytest.mark.slow
def test_bfloat16_stays_near_float32(engine, micro_config, micro_params, tokenizer):
    narrow = Engine(
        micro_config, micro_params, tokenizer, dataclasses.replace(SMALL, dtype="bfloat16")
    )
    greedy = Sampling(num_samples=1, temperature=0.0, max_new_tokens=1, stop=())
    for uid, paths in _run(narrow, MANY, greedy).items():
        wide = _run(engine, MANY, greedy)[uid]
        assert paths[0].logprob == pytest.approx(wide[0].logprob, abs=0.05)


@pytest.mark.slow
def test_compacting_pages_changes_no_sample(micro_config, micro_params, tokenizer, monkeypatch):
    layout = Decoding(slots=4, chunk=2, page=2, pool_bytes=1)
    engine = Engine(micro_config, micro_params, tokenizer, layout)

    def run():
        return _run(engine, MANY, limit=lambda uid, k: 1 + (5 * k + len(uid)) % 13)

    moved, real = [], Scheduler.compact

    def compact(self, size):
        moves = real(self, size)
        moved.extend(moves)
        return moves

    monkeypatch.setattr(Scheduler, "compact", compact)
    together = run()
    assert moved
    monkeypatch.setattr(Scheduler, "compact", lambda self, size: [])
    assert run() == together


def test_no_requests_give_no_responses(engine):
    assert _run(engine, []) == {}


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_sampled(engine):
    sampling = Sampling(num_samples=3, max_new_tokens=200)
    text = "Q: Ann has 3 pens. " * 20
    with pytest.raises(LmsiError, match=r"question long needs \d+ positions.*the model has 256"):
        sample_all(engine, "", [*QUESTIONS, ("long", text)], sampling, **NOISE)


def test_prompt_lengths_are_those_of_the_requests_own_texts(engine):
    requests = [
        Request(uid=uid, prefix=prefix, text=text, sampling=FREE)
        for prefix in ("", PREFIX)
        for uid, text in MANY
    ]
    lengths = [len(engine.tokenizer.encode(request.text)) for request in requests]
    assert engine.prompt_lengths(requests) == lengths


def test_a_tokenizer_larger_than_the_model_is_refused(micro_config, micro_params, tokenizer):
    small = dataclasses.replace(micro_config, vocab_size=100)
    with pytest.raises(LmsiError, match="320 ids.*only 100"):
        Engine(small, micro_params, tokenizer)


@pytest.mark.parametrize(
    "bad", [{"slots": 0}, {"chunk": 8, "page": 12}, {"dtype": "int8"}, {"prompt_cache_factor": 0.5}]
)
def test_a_layout_out_of_range_is_refused(bad):
    with pytest.raises(LmsiError, match=next(iter(bad))):
        Decoding(**bad)


def test_samples_drawn_in_several_calls_equal_those_drawn_in_one(engine):
    seven = dataclasses.replace(FREE, num_samples=7)
    whole = _run(engine, MANY, seven)
    split: dict[str, list] = {uid: [] for uid in whole}
    for first in range(3):
        numbers = range(first, 7, 3)
        sampling = dataclasses.replace(FREE, num_samples=len(numbers))
        for uid, paths in _run(engine, MANY, sampling, numbers=numbers).items():
            assert [path.sample_index for path in paths] == list(numbers)
            split[uid] += paths
    for uid, paths in split.items():
        paths = sorted(paths, key=lambda path: path.sample_index)
        assert [(p.sample_index, p.text) for p in paths] == [
            (p.sample_index, p.text) for p in whole[uid]
        ]


def test_a_sample_has_the_noise_of_its_index_whatever_its_prompt_is(engine):
    """So hot that every token is as likely as any other: what comes is the noise alone."""
    hot = dataclasses.replace(FREE, num_samples=4, temperature=1e12)
    whole = _run(engine, QUESTIONS, hot)
    numbers = {PREFIX: (0, 2), "Q: 5?\nA: So. The answer is 5.\n\n": (1, 3)}
    for prefix, some in numbers.items():
        half = dataclasses.replace(hot, num_samples=2)
        for uid, paths in _run(engine, QUESTIONS, half, prefix, numbers=some).items():
            assert [p.text for p in paths] == [whole[uid][k].text for k in some]
    assert len({path.text for paths in whole.values() for path in paths}) == 8
