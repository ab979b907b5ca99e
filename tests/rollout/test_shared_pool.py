"""Requests of several tasks, styles and lengths share one pool, one program, and change no byte."""

import dataclasses

import numpy as np
import pytest

from lmsi_jax.config import Decoding, Sampling
from lmsi_jax.models.transformer import fresh_params
from lmsi_jax.rollout.decode_step import decode_chunk
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.rollout.requests import Request
from lmsi_jax.rollout.scheduler import plan, question_bucket
from lmsi_jax.rollout.task_prompts import PLACES, Residency, TaskPrompt, pool_size

GREEDY = Sampling(num_samples=1, temperature=0.0, max_new_tokens=12, stop=())
DIRECT = dataclasses.replace(GREEDY, max_new_tokens=4, stop=("\n",))
SHORT, LONG = "Q: 3 + 4?\nA: The answer is 7.\n\n", "Q: 3 + 4?\nA: The answer is 7.\n\n" * 6


def _requests(counts=(6, 6, 6)):
    """Few-shot, zero-shot and direct questions of 10 to 100 tokens."""
    styles = (("few", LONG, GREEDY), ("zero", "", GREEDY), ("direct", SHORT, DIRECT))
    return [
        Request(
            uid=f"{name}/{n}",
            prefix=prefix,
            text=f"Q: Ann has {n} pens." + " Ben has 4 cups." * (n % 4) + "\nA:",
            sampling=sampling,
        )
        for (name, prefix, sampling), count in zip(styles, counts, strict=True)
        for n in range(count)
    ]


def _run(engine, requests):
    seen = []
    responses = engine.generate(requests, seed=1, round_index=0, on_chunk=seen.append)
    return {requests[one.number].uid: one.samples for one in responses}, seen[-1]


@pytest.fixture(scope="module")
def windowed(micro_config):
    config = dataclasses.replace(micro_config, windows=(0, 9))
    return config, fresh_params(config, 1)


def test_styles_and_lengths_share_a_program_and_keep_the_slots_busy(windowed, tokenizer):
    """Three task prompts, one of two blocks; questions in one part of their caches and in two.

    Each sample equals the one that its request gives alone, in a pool of other sizes.
    """
    assert len(tokenizer.encode(LONG)) > PLACES
    requests = _requests()
    engine = Engine(*windowed, tokenizer, Decoding(slots=5, chunk=2, page=4, prefill_tokens=64))
    before = decode_chunk._cache_size()
    together, stats = _run(engine, requests)
    assert stats.utilisation > 0.8
    assert decode_chunk._cache_size() - before == 1
    lengths = {question_bucket(n - 1) for n in engine.prompt_lengths(requests)}
    assert stats.programs == 1 + 1 + len(lengths)  # decoding, task prompts, questions
    assert _run(engine, requests)[1].programs == 0
    for uid in ("few/0", "few/3", "zero/5", "direct/2"):
        alone = Engine(*windowed, tokenizer, engine.decoding)
        own = [request for request in requests if request.uid == uid]
        assert _run(alone, own)[0] == {uid: together[uid]}


def test_a_pool_of_long_samples_has_few_segments_and_gives_the_same_samples(windowed, tokenizer):
    """Each segment is compiled anew in every layer, so a segment of long samples is larger."""
    sampling = dataclasses.replace(GREEDY, max_new_tokens=70)
    layout = Decoding(slots=3, chunk=2, page=2)
    assert (plan(layout, sampling).segment_depth, plan(layout, sampling).segment) == (5, 15)
    requests = [dataclasses.replace(one, sampling=sampling) for one in _requests((2, 2, 0))]
    together, _ = _run(Engine(*windowed, tokenizer, layout), requests)
    wide = dataclasses.replace(layout, page=10)  # a segment is one page of each slot
    assert plan(wide, sampling).segment_depth == 1
    other, _ = _run(Engine(*windowed, tokenizer, wide), requests)
    for uid, samples in together.items():
        assert samples[0].tokens == 70
        assert samples[0].text == other[uid][0].text


def test_a_prompt_waits_for_room_and_stays_until_it_is_needed():
    one, two, three = (
        TaskPrompt(text, (1,) * n) for text, n in (("a", 300), ("b", 10), ("c", 129))
    )
    assert [prompt.blocks for prompt in (one, two, three)] == [3, 1, 2]
    assert (pool_size([one, two]), pool_size([two] * 9), pool_size([])) == (4, 4, 0)
    residency = Residency(4)
    assert residency.admit(one) == [0, 1, 2]
    assert residency.admit(two) == [3]
    assert residency.admit(one) == []
    assert residency.admit(three) is None
    residency.leave(one)
    assert residency.admit(three) is None  # another user of it is left
    residency.leave(one)
    assert residency.admit(one) == []  # it was still there
    residency.leave(one)
    assert residency.admit(three) == [0, 1]
    assert residency.number(three) not in (residency.number(two), -1)
    table = residency.table()
    assert table.count == 3
    rows = np.stack([table.block, table.prompt, table.first, table.stored])[:, :3].T.tolist()
    number = residency.number(three)
    assert rows == [[3, 1, 0, 10], [0, number, 0, PLACES], [1, number, PLACES, 1]]
    assert residency.table(three, 1).count == 1
