"""Several processes make the shards of one, and leave together, whoever of them has to."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from lmsi_jax.errors import LmsiError, TryAgain
from lmsi_jax.runtime.processes import Processes
from lmsi_jax.runtime.signals import Terminated, deferred_signals, signals_as_exceptions
from lmsi_jax.runtime.store import ShardStore

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A run of one stage without tasks: connects, samples its share with a micro model, leaves.
_SCRIPT = """
import os, sys, time
import jax
from lmsi_jax.runtime import processes, signals
from lmsi_jax.pipeline import sample
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.config import ModelConfig
from lmsi_jax.config import Decoding, Sampling
from lmsi_jax.models.transformer import init_params
from lmsi_jax.models.tokenizers import SentencePiece
from lmsi_jax.runtime.store import ShardStore

folder, tokenizer, address, count, index, pause = sys.argv[1:]
count, index = int(count), int(index)
if count > 1:
    processes.connect(address, count, index)
config = ModelConfig(vocab_size=320, num_layers=2, embed_dim=24, num_heads=4, num_kv_heads=2,
                     head_dim=6, mlp_dim=40, max_length=256)

def carry_out(order):
    engine = Engine(config, init_params(config, jax.random.key(0)), SentencePiece(tokenizer),
                    Decoding(slots=6))
    sampling = Sampling(num_samples=3, temperature=1.0, max_new_tokens=8, stop=())
    jobs = [sample.Job(name=name, prefix="Q: 3?\\\\nA: 7.\\\\n", sampling=sampling,
                              questions={f"{name}/{i}": "Q: 1 + " + "9" * i for i in range(1, 8)})
            for name in ("a", "b")]
    with signals.deferred_signals() as requested:
        def on_chunk(stats):
            if stats.slot_steps:
                open(f"{folder}.{index}.began", "w").close()
                time.sleep(float(pause))
            if requested():
                raise signals.Terminated
        shards = sample.plan_shards(engine, jobs, size=2, share=them.share)
        missing = store.missing([shard.name for shard in shards])
        missing = [shard for shard in shards if shard.name in missing]
        list(sample.fill_shards(engine, missing, store, seed=1, round_index=order["round"],
                                       on_chunk=on_chunk))

store = ShardStore(folder)
code = 0
try:
    them = processes.Processes()
    with signals.signals_as_exceptions(), them.joined():
        if them.index == 0:
            with them.together("sample", 4):
                carry_out({"round": 4})
        else:
            for order in them.orders():
                carry_out(order)
except signals.Terminated:
    code = 143
processes.disconnect()
sys.exit(code)
"""


def _start(folder, tokenizer_path, count, pause=0.0):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-c", _SCRIPT.replace("\\\\", "\\")),
                *(str(folder), tokenizer_path, address, str(count), str(index), str(pause)),
            ],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def _ended(processes):
    errors = [process.communicate(timeout=600)[1] for process in processes]
    return [process.returncode for process in processes], errors


def _bytes(folder):
    store = ShardStore(folder)
    return {name: store.path(name).read_bytes() for name in store.names()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tokenizer_path):
    """What one process makes."""
    folder = tmp_path_factory.mktemp("alone") / "sample"
    codes, errors = _ended(_start(folder, tokenizer_path, 1))
    assert codes == [0], errors
    assert len(_bytes(folder)) == 8
    return _bytes(folder)


def test_two_processes_make_the_shards_of_one(alone, tmp_path, tokenizer_path):
    codes, errors = _ended(_start(tmp_path / "sample", tokenizer_path, 2))
    assert codes == [0, 0], errors
    assert _bytes(tmp_path / "sample") == alone


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(4, 1), (1, 2), (2, 4)])
def test_killed_and_repeated_on_another_number_of_processes_the_bytes_are_the_same(
    alone, tmp_path, tokenizer_path, counts
):
    folder = tmp_path / "sample"
    killed = _start(folder, tokenizer_path, counts[0], pause=0.3)
    while len(_bytes(folder)) < 2:
        assert any(process.poll() is None for process in killed), "they ended before the kill"
        time.sleep(0.01)
    for process in killed:
        process.kill()
    _ended(killed)
    assert set(_bytes(folder)) < set(alone)
    codes, errors = _ended(_start(folder, tokenizer_path, counts[1]))
    assert codes == [0] * counts[1], errors
    assert _bytes(folder) == alone


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_sigterm_to_one_process_lets_all_leave_in_order(alone, tmp_path, tokenizer_path, who):
    folder = tmp_path / "sample"
    processes = _start(folder, tokenizer_path, 2, pause=1.0)
    while not all((tmp_path / f"sample.{index}.began").exists() for index in (0, 1)):
        assert all(process.poll() is None for process in processes), "one ended too early"
        time.sleep(0.01)
    processes[who].send_signal(signal.SIGTERM)
    codes, errors = _ended(processes)
    assert codes == [143, 143], errors
    stand = _bytes(folder)
    assert set(stand) < set(alone)
    codes, errors = _ended(_start(folder, tokenizer_path, 1))
    assert codes == [0], errors
    assert _bytes(folder) == alone and stand.items() <= alone.items()


# --- what the processes say to each other, through a store in this process ------------------------


class _Store:
    """The part of jax.distributed's client that is used."""

    def __init__(self):
        self.entries = {}

    def key_value_set(self, key, value):
        assert key not in self.entries
        self.entries[key] = value

    def key_value_dir_get(self, key):
        return [(name, value) for name, value in self.entries.items() if name.startswith(key)]


@pytest.fixture
def connected(monkeypatch):
    """Returns a function that gives the processes of a run, as each of them sees them."""
    from jax._src import distributed

    def make(count):
        state = distributed.global_state
        monkeypatch.setattr(state, "client", _Store())
        monkeypatch.setattr(state, "num_processes", count)
        processes = []
        for index in range(count):
            monkeypatch.setattr(state, "process_id", index)
            processes.append(Processes())
        return processes

    return make


def _in_threads(*works):
    """Runs functions at the same time; returns what each returned or raised."""
    results = [None] * len(works)

    def run(number, work):
        try:
            results[number] = work()
        except BaseException as error:  # KeyboardInterrupt is among what is to be raised
            results[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def _lead(leader, *stages, error=None):
    def run():
        with leader.joined():
            for stage in stages:
                with leader.together(stage, 1):
                    if error is not None:
                        raise error

    return run


def _help(helper, done, error=None):
    def run():
        with helper.joined():
            for order in helper.orders():
                if error is not None:
                    raise error
                done.append((helper.index, order["stage"], order["round"]))

    return run


def test_a_single_process_waits_for_nobody():
    alone = Processes()
    assert alone.share == (0, 1)
    with alone.joined(), alone.together("sample", 1):
        pass


def test_every_process_carries_out_every_order_once(connected):
    leader, *others = connected(3)
    done = []
    results = _in_threads(_lead(leader, "sample", "eval"), *(_help(o, done) for o in others))
    assert results == [None, None, None]
    assert sorted(done) == [
        *((1, "eval", 1), (1, "sample", 1)),
        *((2, "eval", 1), (2, "sample", 1)),
    ]


def test_the_leader_waits_for_the_slowest(connected):
    leader, helper = connected(2)
    ready = []

    def help():
        for _ in helper.orders():
            time.sleep(0.5)
            ready.append(True)

    def lead():
        with leader.joined(), leader.together("sample", 1):
            pass
        return list(ready)

    assert _in_threads(lead, help)[0] == [True]


_WHY = [
    (LmsiError("the disk is full"), LmsiError, "process {} failed: the disk is full"),
    (Terminated(), Terminated, ""),
    (KeyboardInterrupt(), KeyboardInterrupt, ""),
    (ZeroDivisionError("a bug"), LmsiError, "process {} failed: a bug"),
]


@pytest.mark.parametrize(("error", "kind", "text"), _WHY)
@pytest.mark.parametrize("who", [0, 2])
def test_when_one_leaves_those_who_wait_follow(connected, who, error, kind, text):
    leader, *others = connected(3)
    errors = [error if index == who else None for index in range(3)]
    works = [_lead(leader, "sample", "eval", error=errors[0])]
    works += [_help(other, [], errors[other.index]) for other in others]
    results = _in_threads(*works)
    assert results[who] is error
    for index in {0, 1, 2} - {who}:
        assert isinstance(results[index], kind)
        assert str(results[index]) == text.format(who)


@pytest.mark.parametrize(("error", "kind", "text"), _WHY)
def test_when_one_leaves_those_who_work_leave_as_on_sigterm(connected, error, kind, text):
    leader, helper = connected(2)
    with (
        pytest.raises(kind) as raised,
        signals_as_exceptions(),
        leader.joined(),
        deferred_signals() as requested,
    ):
        with pytest.raises(type(error)), helper.joined():
            raise error
        end = time.monotonic() + 20
        while not requested():
            assert time.monotonic() < end
            time.sleep(0.01)
        raise Terminated
    assert str(raised.value) == text.format(1)


@pytest.mark.parametrize(
    ("error", "own", "others"),
    [
        (LmsiError("the disk is full"), 2, 2),
        (ZeroDivisionError("a bug, or a broken chip"), None, 75),
        (TryAgain("another process is gone without a word"), 75, 75),
    ],
)
def test_who_follows_a_mistake_says_so_and_who_follows_a_breakdown_may_try_again(
    connected, error, own, others
):
    leader, helper = connected(2)
    results = _in_threads(_lead(leader, "sample", error=error), _help(helper, []))
    assert [getattr(result, "exit_code", None) for result in results] == [own, others]


def test_what_the_first_finds_is_what_all_of_them_find(connected):
    processes = connected(4)
    looked = []

    def find(index):
        def own():
            looked.append(index)
            return (f"{index}-a", f"{index}-b")

        return own

    def work(one, members):
        return lambda: [list(one.run_on_leader(members, find(one.index))) for _ in range(2)]

    teams = [range(0, 1), *[range(1, 4)] * 3]
    found = _in_threads(*map(work, processes, teams))
    assert found == [[["0-a", "0-b"]] * 2, *[[["1-a", "1-b"]] * 2] * 3]
    assert sorted(looked) == [0, 0, 1, 1]


def test_who_waits_for_a_finding_follows_one_that_leaves(connected):
    first, second = connected(2)

    def fail():
        with first.joined():
            raise LmsiError("the disk is full")

    failed = _in_threads(fail, lambda: second.run_on_leader(range(2), list))[1]
    assert str(failed) == "process 0 failed: the disk is full"


def test_what_ended_well_disturbs_nobody(connected):
    leader, helper = connected(2)
    with signals_as_exceptions(), leader.joined():
        with helper.joined():
            pass
        time.sleep(1.5)


def test_a_lost_store_is_named_with_the_remedy(connected, monkeypatch):
    import jax

    _, helper = connected(2)

    def gone(_key):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect")

    monkeypatch.setattr(helper._client, "key_value_dir_get", gone)
    with pytest.raises(LmsiError, match="process 0 is gone .*repeat the command in every process"):
        next(helper.orders())


def test_workers_of_a_pod_that_were_not_connected_are_refused(monkeypatch):
    import jax

    monkeypatch.setattr(jax, "process_count", lambda: 8)
    with (
        pytest.raises(LmsiError, match="one of 8 JAX processes.*--coordinator_address=auto"),
        Processes().together("sample", 1),
    ):
        pass


def test_orders_are_json_that_a_person_can_read(connected):
    (leader,) = connected(2)[:1]
    with pytest.raises(ZeroDivisionError), leader.together("eval", 3):
        raise ZeroDivisionError
    assert json.loads(leader._client.entries["lmsi/order/1"]) == {"stage": "eval", "round": 3}
