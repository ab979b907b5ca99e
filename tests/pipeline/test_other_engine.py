"""The pipeline over an engine that is not ours: what `rollout.requests.Rollout` asks is enough."""

import pytest
from micro_run import shard_rows

from lmsi_jax.config import Sampling
from lmsi_jax.pipeline.context import Context
from lmsi_jax.records import Sample, Vote
from lmsi_jax.rollout.requests import Request, Response, Rollout, Stats

CHANGES = {"Sampling.num_samples": 8, "Sampling.adaptive_consistency": 0.95}


class Server(Rollout):
    """Answers 7 to everything, the last request first, as a server without JAX might."""

    def __init__(self):
        self.requests = []

    def prompt_lengths(self, requests):
        return [len(request.text.split()) for request in requests]

    def generate(self, requests, *, seed, round_index, is_settled=None, on_chunk=None):
        self.requests += requests
        stats = Stats()
        for number, request in reversed(list(enumerate(requests))):
            samples = []
            for k in request.indices:
                text = f" So {seed}.{round_index}.{k}. The answer is 7."
                samples.append(
                    Sample(
                        uid=request.uid, sample_index=k, text=text, tokens=9, logprob=-1.0,
                        end="end_token",
                    )
                )  # fmt: skip
                whole = len(samples) % request.sampling.adaptive_consistency_every == 0
                if whole and is_settled(request, samples):
                    break
            yield Response(number=number, samples=tuple(samples))
            stats += Stats(len(samples), 9 * len(samples), 9 * len(samples))
            on_chunk(stats)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(Context, "engine", lambda self, round_index: server)
    return server


def test_a_round_is_sampled_and_voted_on_with_another_engine(server, lmsi, tmp_path):
    run = tmp_path / "run"
    assert lmsi("sample", run, CHANGES)[0] == 0
    by_task = {}
    for request in server.requests:
        by_task.setdefault(request.uid.split("-")[0], []).append(request)
    assert {task: len(requests) for task, requests in by_task.items()} == {
        "purchases": 4,
        "compare": 4,
    }
    for requests in by_task.values():
        (prefix,) = {request.prefix for request in requests}
        assert prefix.count("A:") > 1  # the few-shot examples, which the text does not repeat
        assert all(request.text.count("A:") == 1 for request in requests)

    rows = shard_rows(run / "round_1" / "sample", Sample)
    indices = {}
    for row in rows:
        assert row.text == f" So 5.1.{row.sample_index}. The answer is 7."
        indices.setdefault(row.uid, []).append(row.sample_index)
    # Four equal answers settle a question; an answer that cannot be parsed settles none.
    for uid, numbers in indices.items():
        assert numbers == list(range(4 if uid.startswith("purchases") else 8))

    assert lmsi("vote", run, CHANGES)[0] == 0
    votes = shard_rows(run / "round_1" / "vote", Vote)
    assert {(vote.task, vote.winner) for vote in votes} == {("purchases", "7"), ("compare", None)}


def test_sampling_goes_on_with_the_missing_shards_on_another_engine(server, lmsi, tmp_path):
    run = tmp_path / "run"
    assert lmsi("sample", run, CHANGES)[0] == 0
    shards = sorted((run / "round_1" / "sample").glob("*.jsonl.gz"))
    before = {shard.name: shard.read_bytes() for shard in shards}
    server.requests.clear()
    shards[0].unlink()
    (run / "round_1" / "sample" / "stage.json").unlink()
    assert lmsi("sample", run, CHANGES)[0] == 0
    assert len(server.requests) == 2  # the questions of one shard
    assert {shard.name: shard.read_bytes() for shard in shards} == before


@pytest.mark.parametrize("indices", [(), (0, 2, 1), (0, 1, 1), (-1, 0, 1)])
def test_sample_indices_that_do_not_rise_are_refused(indices):
    with pytest.raises(ValueError, match="are not rising sample indices"):
        Request(uid="q", text="Q", sampling=Sampling(), sample_indices=indices)


def test_a_request_has_as_many_limits_as_samples():
    sampling = Sampling(num_samples=2, max_new_tokens=9)
    with pytest.raises(ValueError, match="3 limits for 2 samples"):
        Request(uid="q", text="Q", sampling=sampling, limits=(1, 2, 3))
    request = Request(uid="q", text="Q", sampling=sampling, limits=(4, 30))
    assert [request.limit(position) for position in (0, 1)] == [4, 9]
