"""Questions -> shards: the plan, the share of each process, what survives; the engine is a fake."""

import dataclasses
import errno
import itertools
import json
import math
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.config import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.context import read_samples
from lmsi_jax.pipeline.sample import (
    Job,
    fill_shards,
    plan_shards,
    vote_is_settled,
)
from lmsi_jax.records import Question, Sample
from lmsi_jax.rollout.requests import Request, Response, Rollout, Stats
from lmsi_jax.rollout.scheduler import check_fit
from lmsi_jax.runtime import files
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.voting import AnswerReader

SAMPLING = Sampling(num_samples=3, max_new_tokens=8)
_LENGTHS = st.dictionaries(
    st.text("abc/0", min_size=1), st.integers(1, 90), min_size=1, max_size=30
)


class PureEngine(Rollout):
    """Samples that depend on seed, round, uid and index alone; completed in any order."""

    def __init__(self, order=0, max_length=100):
        self.order, self.max_length = order, max_length
        self.calls = []

    def prompt_lengths(self, requests):
        lengths = {request.uid: len(request.text) for request in requests}
        check_fit(lengths, 1, SAMPLING.max_new_tokens, self.max_length)
        return [len(request.text) for request in requests]

    def generate(self, requests, *, seed, round_index, is_settled=None, on_chunk=None):
        self.calls.append([request.uid for request in requests])
        numbered = list(enumerate(requests))
        random.Random(self.order).shuffle(numbered)
        for done, (number, request) in enumerate(numbered, start=1):
            samples = tuple(_sample(seed, round_index, request, k) for k in request.indices)
            yield Response(number=number, samples=samples)
            if on_chunk is not None:
                on_chunk(Stats(3 * done, 12 * done, 20 * done))


def _sample(seed, round_index, request, k):
    text = f"{request.prefix}{request.text}|{seed}|{round_index}|{k}"
    return Sample(
        uid=request.uid, sample_index=k, text=text, tokens=4, logprob=-1.5, end="end_token"
    )


def _job(name="a", count=10, shuffled=None):
    uids = [f"{name}/{index}" for index in range(count)]
    if shuffled is not None:
        random.Random(shuffled).shuffle(uids)
    texts = {uid: "x" * (5 + 13 * (int(uid.split("/")[1]) % 4)) for uid in uids}
    return Job(name=name, prefix="P", questions=texts, sampling=SAMPLING)


JOBS = (_job("a", 10), _job("b", 3), _job("b-cot", 7))


def _make(folder, jobs=JOBS, share=(0, 1), engine=None, on_chunk=None, completed=None):
    """Makes the missing shards of a share; returns the numbers of all and of the missing ones."""
    engine, store = engine or PureEngine(), ShardStore(folder)
    shards = plan_shards(engine, jobs, size=4, share=share)
    names = store.missing([shard.name for shard in shards])
    missing = [shard for shard in shards if shard.name in names]
    for uid, samples in fill_shards(
        engine, missing, store, seed=1, round_index=2, on_chunk=on_chunk
    ):
        if completed is not None:
            completed.append((uid, len(samples)))
    return len(shards), len(missing)


def _bytes(folder):
    return {name: ShardStore(folder).path(name).read_bytes() for name in ShardStore(folder).names()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the shards that one undisturbed process makes."""
    folder = tmp_path_factory.mktemp("whole")
    _make(folder)
    return _bytes(folder)


class DamagedEngine(PureEngine):
    """A model whose log-probabilities are of one kind."""

    def __init__(self, logprob):
        super().__init__()
        self.logprob = logprob

    def generate(self, requests, **settings):
        for response in super().generate(requests, **settings):
            samples = tuple(
                dataclasses.replace(sample, logprob=self.logprob) for sample in response.samples
            )
            yield dataclasses.replace(response, samples=samples)


def test_a_model_without_probabilities_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(
        LmsiError, match=r"question 'a/\d' a log-probability that is not a number.*"
    ):
        _make(tmp_path, JOBS[:1], engine=DamagedEngine(math.nan))
    assert ShardStore(tmp_path).names() == ()


def test_an_impossible_sample_comes_back_from_its_shard(tmp_path):
    _make(tmp_path, JOBS[:1], engine=DamagedEngine(-math.inf))
    samples = read_samples(ShardStore(tmp_path), "a")
    assert {sample.logprob for drawn in samples.values() for sample in drawn} == {-math.inf}


# --- the plan -------------------------------------------------------------------------------------


def _plan(lengths, size):
    questions = {uid: "x" * length for uid, length in lengths.items()}
    job = Job(name="t", prefix="P", questions=questions, sampling=SAMPLING)
    return plan_shards(PureEngine(), [job], size=size)


def _uids(shard):
    return [request.uid for request in shard.requests]


@given(lengths=_LENGTHS, size=st.integers(1, 9), random=st.randoms())
def test_the_plan_is_a_function_of_the_set_of_questions(lengths, size, random):
    shuffled = list(lengths.items())
    random.shuffle(shuffled)
    assert _plan(dict(shuffled), size) == _plan(lengths, size)


@given(lengths=_LENGTHS, size=st.integers(1, 9))
def test_every_question_is_in_one_shard_and_all_shards_but_the_last_are_full(lengths, size):
    shards = _plan(lengths, size)
    assert sorted(uid for shard in shards for uid in _uids(shard)) == sorted(lengths)
    assert [len(shard.requests) for shard in shards[:-1]] == [size] * (len(shards) - 1)
    assert all(_uids(shard) == sorted(_uids(shard)) for shard in shards)
    count = len(shards)
    assert [shard.name for shard in shards] == [f"t-{i:05d}-of-{count:05d}" for i in range(count)]


@given(lengths=_LENGTHS, size=st.integers(1, 9))
def test_shards_are_in_the_order_of_the_lengths(lengths, size):
    for before, after in itertools.pairwise(_plan(lengths, size)):
        longest = max(lengths[uid] // 16 for uid in _uids(before))
        assert longest <= min(lengths[uid] // 16 for uid in _uids(after))


@given(count=st.integers(1, 6))
def test_the_processes_share_all_shards_evenly(count):
    shares = [plan_shards(PureEngine(), JOBS, size=4, share=(i, count)) for i in range(count)]
    names = [shard.name for share in shares for shard in share]
    assert sorted(names) == sorted(shard.name for shard in plan_shards(PureEngine(), JOBS, size=4))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# --- the bytes ------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 5),
    order=st.integers(0, 99),
    shuffled=st.integers(0, 99),
    there=st.sets(st.integers(0, 5)),
)
def test_the_bytes_are_the_same_for_all_orders_process_counts_and_beginnings(
    whole, tmp_path_factory, count, order, shuffled, there
):
    folder = tmp_path_factory.mktemp("parts")
    for number, name in enumerate(whole):
        if number in there:  # an earlier process, of any number, got this far
            ShardStore(folder).write(name, _rows(whole[name]))
    jobs = [_job(job.name, len(job.questions), shuffled) for job in JOBS]
    for index in range(count):
        _make(folder, jobs, (index, count), PureEngine(order))
    assert _bytes(folder) == whole


def _rows(data):
    import gzip

    return [json.loads(line) for line in gzip.decompress(data).splitlines()]


def test_rows_stand_in_the_order_of_uid_and_index(whole):
    for data in whole.values():
        rows = [(row["uid"], row["sample_index"]) for row in _rows(data)]
        assert rows == sorted(rows) and len(rows) == len(set(rows))


def test_all_missing_shards_go_through_one_call_of_the_engine(tmp_path):
    _make(tmp_path)
    ShardStore(tmp_path).path("a-00001-of-00003").unlink()
    engine = PureEngine()
    assert _make(tmp_path, engine=engine) == (6, 1)
    assert [len(call) for call in engine.calls] == [4]
    engine = PureEngine()
    assert _make(tmp_path / "fresh", engine=engine) == (6, 6)
    assert [len(call) for call in engine.calls] == [20]
    engine = PureEngine()
    assert _make(tmp_path / "fresh", engine=engine) == (6, 0)
    assert engine.calls == []


def test_one_question_may_be_asked_twice_by_equal_jobs(tmp_path):
    """Greedy evaluation and a vote of one sample make the same request; both get their shard."""
    job = _job("a", 5)
    _make(tmp_path, [job, dataclasses.replace(job, name="again")])
    store = ShardStore(tmp_path)
    assert read_samples(store, "a") == read_samples(store, "again") != {}


def test_a_job_with_numbers_has_the_samples_of_these_numbers_and_they_are_the_same(whole, tmp_path):
    some = dataclasses.replace(JOBS[0], numbers=(1, 2))
    _make(tmp_path, [some])
    wanted = [row for name in whole if name[:2] == "a-" for row in _rows(whole[name])]
    found = [
        sample.to_json()
        for own in read_samples(ShardStore(tmp_path), "a").values()
        for sample in own
    ]
    assert found == [row for row in wanted if row["sample_index"] in (1, 2)]


# --- leaving, and being thrown out ----------------------------------------------------------------


class _Out(Exception):
    pass


@pytest.mark.parametrize("chunks", [0, 1, 5, 9, 11, 19])
def test_whoever_leaves_between_two_chunks_has_written_what_was_complete(whole, tmp_path, chunks):
    completed = []

    def on_chunk(stats):
        if stats.samples >= 3 * chunks:
            raise _Out

    with pytest.raises(_Out):
        _make(tmp_path, on_chunk=on_chunk, completed=completed)
    complete = {uid for uid, _ in completed}
    assert len(complete) == chunks
    stand = _bytes(tmp_path)
    for name, data in whole.items():
        assert (name in stand) == ({row["uid"] for row in _rows(data)} <= complete)
    _make(tmp_path, share=(0, 2))
    _make(tmp_path, share=(1, 2))
    assert _bytes(tmp_path) == whole


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "make room on the disk"), (errno.EACCES, "make it writable")],
)
def test_a_disk_that_refuses_is_named_and_nothing_is_lost(
    whole, tmp_path, monkeypatch, code, remedy
):
    replace, written = files._replace, []

    def refuse(path, data):
        written.append(path)
        if len(written) == 4:
            raise OSError(code, os.strerror(code))
        replace(path, data)

    monkeypatch.setattr(files, "_replace", refuse)
    with pytest.raises(LmsiError, match=rf"cannot write .*{os.strerror(code)}; {remedy}"):
        _make(tmp_path)
    monkeypatch.setattr(files, "_replace", replace)
    assert len(_bytes(tmp_path)) == 1
    _make(tmp_path)
    assert _bytes(tmp_path) == whole


def test_a_read_only_folder_is_named(tmp_path, ordinary_user):
    tmp_path.chmod(0o500)
    with pytest.raises(LmsiError, match="make it writable"):
        _make(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\x1f\x8b", b"altered"])
def test_a_damaged_shard_is_named_and_made_again(whole, tmp_path, caplog, damage):
    _make(tmp_path)
    ShardStore(tmp_path).path("a-00001-of-00003").write_bytes(damage)
    engine = PureEngine()
    _make(tmp_path, engine=engine)
    assert "a-00001-of-00003.jsonl.gz was truncated or altered" in caplog.text
    assert len(engine.calls) == 1 and _bytes(tmp_path) == whole


def test_an_engine_that_leaves_a_question_out_does_not_pass(tmp_path):
    class Forgetful(PureEngine):
        def generate(self, requests, **how):
            yield from super().generate(requests[1:], **how)

    with pytest.raises(RuntimeError, match="left out questions of b-cot-00001-of-00002"):
        _make(tmp_path, engine=Forgetful())


# --- refused before anything is sampled -----------------------------------------------------------


def test_a_prompt_that_does_not_fit_in_any_job_is_refused_before_the_first_is_sampled(tmp_path):
    long = Job(name="z", prefix="P", questions={"z/1": "x" * 92}, sampling=SAMPLING)
    engine = PureEngine()
    with pytest.raises(
        LmsiError, match=r"question z/1 needs 101 positions .*the model has 100; use"
    ):
        _make(tmp_path, [*JOBS, long], engine=engine)
    assert engine.calls == [] and not list(tmp_path.iterdir())


def test_a_job_without_questions_names_the_settings(tmp_path):
    empty = Job(name="none", prefix="", questions={}, sampling=SAMPLING)
    with pytest.raises(LmsiError, match=r"none has no questions; set Questions.train_count"):
        _make(tmp_path, [*JOBS, empty])


# --- what is told and read ------------------------------------------------------------------------


def test_every_question_is_reported_and_counts_go_on_over_the_jobs(tmp_path):
    stats, completed = [], []
    _make(tmp_path, on_chunk=stats.append, completed=completed)
    assert sorted(completed) == sorted((uid, 3) for job in JOBS for uid in job.questions)
    assert [one.samples for one in stats] == [3 * n for n in range(21)]
    assert stats[-1] == Stats(60, 240, 400)


def test_adaptive_consistency_goes_by_the_requests_threshold_and_the_parsed_answers():
    question = Question(uid="q", task="t", text="Q: ?", kind="number")
    rule = vote_is_settled({"q": question}, AnswerReader())

    def is_settled(threshold, *answers):
        sampling = dataclasses.replace(SAMPLING, adaptive_consistency=threshold)
        request = Request(uid="q", text="Q: ?", sampling=sampling)
        samples = [
            Sample(
                uid="q", sample_index=k, text=f"The answer is {answer}.", tokens=9, logprob=-1.0,
                end="end_token",
            )
            for k, answer in enumerate(answers)
        ]  # fmt: skip
        return rule(request, samples)

    # 1 - I_0.5(5, 1) = 31/32, 1 - I_0.5(4, 2) = 26/32
    assert is_settled(0.95, 7, 7, 7, 7) and not is_settled(0.98, 7, 7, 7, 7)
    assert is_settled(0.80, 7, 7, 7, 8) and not is_settled(0.95, 7, 7, 7, 8)


def test_samples_are_read_by_job_and_in_index_order(tmp_path):
    _make(tmp_path)
    for job in JOBS:
        samples = read_samples(ShardStore(tmp_path), job.name)
        assert set(samples) == set(job.questions)
        for uid, own in samples.items():
            assert [(sample.uid, sample.sample_index) for sample in own] == [
                (uid, k) for k in range(3)
            ]
    assert read_samples(ShardStore(tmp_path), "nothing") == {}


def test_reading_beside_a_missing_shard_is_an_error(tmp_path):
    _make(tmp_path)
    ShardStore(tmp_path).path("a-00001-of-00003").unlink()
    with pytest.raises(LmsiError, match="a-00001-of-00003.jsonl.gz is missing; repeat the command"):
        read_samples(ShardStore(tmp_path), "a")


def test_shards_go_to_a_bucket_as_they_go_to_a_folder(whole, bucket):
    _make("gs://bucket/run/sample")
    names = {file.name: file.read_bytes() for file in (bucket.root / "run" / "sample").iterdir()}
    assert {f"{name}.jsonl.gz" for name in whole} <= set(names)
    assert all(names[f"{name}.jsonl.gz"] == data for name, data in whole.items())
    assert "open" in bucket.calls
    (bucket.root / "run" / "sample" / "b-00000-of-00001.jsonl.gz").write_bytes(b"cut")
    engine = PureEngine()
    _make("gs://bucket/run/sample", engine=engine)
    assert [len(run) for run in engine.calls] == [3]
    assert set(read_samples(ShardStore("gs://bucket/run/sample"), "b")) == set(JOBS[1].questions)
