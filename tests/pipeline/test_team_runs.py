"""Several processes that hold one engine together leave the samples of one process.

Where an axis of the mesh has more than two places across processes, Gloo adds in another order than
one process does: texts are the same then, log-probabilities near. Elsewhere all bytes are.
"""

import re
import signal
import time

import pytest
from micro_run import contents, shard_rows
from several import ended, start, together

from lmsi_jax.records import Sample
from lmsi_jax.runtime.store import ShardStore

pytestmark = pytest.mark.slow
# Between two chunks each process says that it is there, and waits, so that it can be killed there.
_SLOW = """
import pathlib, time
from lmsi_jax.pipeline import sample
chunk = sample.Meter.chunk
def slow(meter, stats):
    chunk(meter, stats)
    pathlib.Path({folder!r}).touch()
    time.sleep(0.3)
sample.Meter.chunk = slow
"""


# This process draws with another seed.
_OTHER = """
from lmsi_jax.pipeline import sample
fill = sample.fill_shards
sample.fill_shards = lambda *args, seed, **more: fill(*args, seed=seed + 1, **more)
"""


def _mesh(data, model):
    """Settings: four shards of one task, on a mesh."""
    questions = {"Questions.train": ("purchases",), "Questions.train_count": 8}
    mesh = {"Decoding.data": data, "Decoding.model": model, "Decoding.slots": 8 // data}
    return questions | mesh | {"Sampling.token_logprobs": True}


def _bytes(folder):
    store = ShardStore(folder / "round_1" / "sample")
    return {name: store.path(name).read_bytes() for name in store.names()}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def alone(gin_file, compiled, tmp_path_factory):
    """Returns what makes the samples of a mesh in one process, once for each mesh."""
    made = {}

    def sampled(data, model):
        if (data, model) not in made:
            folder = tmp_path_factory.mktemp("alone") / "run"
            settings = {"Run.output_dir": str(folder), **_mesh(data, model)}
            words = ["sample", gin_file, *(f"--gin.{k}={v!r}" for k, v in settings.items())]
            codes, errors = together(words, 1, devices=data * model, compiled=compiled)
            assert codes == [0], errors
            made[data, model] = folder
        return made[data, model]

    return sampled


@pytest.mark.parametrize(
    ("count", "devices", "mesh", "groups"),
    [
        (2, 1, (1, 2), ["processes 0 to 1 of 2"]),
        (2, 2, (2, 2), ["processes 0 to 1 of 2"]),
        (4, 1, (1, 2), ["processes 0 to 1 of 4", "processes 2 to 3 of 4"]),
    ],
    ids=str,
)
def test_the_bytes_are_those_of_one_process(
    alone, compiled, words, tmp_path, count, devices, mesh, groups
):
    folder = tmp_path / "run"
    command = words("sample", folder, _mesh(*mesh))
    codes, errors = together(command, count, devices=devices, compiled=compiled)
    assert codes == [0] * count, errors
    assert _bytes(folder) == _bytes(alone(*mesh))
    said = [re.search(r"round 1: sampling, (processes \d+ to \d+ of \d+)", one) for one in errors]
    assert [one[1] for one in said if one] == groups  # the first process of each replica group


@pytest.mark.parametrize(("count", "mesh"), [(2, (1, 4)), (4, (2, 4))], ids=str)
def test_with_wide_axes_across_processes_the_texts_are_those_of_one(
    alone, compiled, words, tmp_path, count, mesh
):
    folder = tmp_path / "run"
    command = words("sample", folder, _mesh(*mesh))
    codes, errors = together(command, count, devices=2, compiled=compiled)
    assert codes == [0] * count, errors
    for other in (alone(*mesh), alone(1, 1)):
        pairs = zip(
            *(shard_rows(f / "round_1/sample", Sample) for f in (folder, other)), strict=True
        )
        for ours, theirs in pairs:
            assert (ours.uid, ours.index, ours.text) == (theirs.uid, theirs.index, theirs.text)
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def _going(words, folder, count, compiled):
    """Starts processes that go slowly, and waits until there is something to lose."""
    signs = [folder.with_name(f"there_{index}") for index in range(count)]
    before = {index: _SLOW.format(folder=str(sign)) for index, sign in enumerate(signs)}
    command = words("sample", folder, _mesh(1, 2))
    processes = start(command, count, before, 2 // count, compiled)
    while not (all(sign.exists() for sign in signs) and _bytes(folder)):
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.02)
    return processes


@pytest.mark.parametrize("who", [0, 1])
def test_killed_and_taken_up_by_another_number_of_processes_the_bytes_are_the_same(
    alone, compiled, words, tmp_path, who
):
    """Who is left ends too, by itself or by JAX's heartbeat, and never as after a mistake."""
    folder, whole = tmp_path / "run", _bytes(alone(1, 2))
    processes = _going(words, folder, 2, compiled)
    processes[who].kill()
    codes, errors = ended(processes)
    assert codes[who] == -signal.SIGKILL, errors
    assert codes[1 - who] in (75, -signal.SIGABRT), errors
    stand = _bytes(folder)
    assert stand and set(stand) < set(whole)
    command = words("sample", folder, _mesh(1, 2))
    codes, errors = together(command, [1, 4][who], devices=[2, 1][who], compiled=compiled)
    assert set(codes) == {0}, errors
    assert _bytes(folder) == whole


@pytest.mark.parametrize("who", [0, 1])
def test_sigterm_to_one_of_them_lets_both_leave_behind_the_same_chunk(
    alone, compiled, words, tmp_path, who
):
    folder, whole = tmp_path / "run", _bytes(alone(1, 2))
    processes = _going(words, folder, 2, compiled)
    processes[who].send_signal(signal.SIGTERM)
    codes, errors = ended(processes)
    assert codes == [143, 143], errors
    assert set(_bytes(folder)) < set(whole)
    codes, errors = together(words("sample", folder, _mesh(1, 2)), 2, compiled=compiled)
    assert codes == [0, 0], errors
    assert _bytes(folder) == whole


def test_processes_that_draw_different_tokens_refuse_to_go_on(words, compiled, tmp_path):
    command = words("sample", tmp_path / "run", _mesh(1, 2))
    codes, errors = together(command, 2, {1: _OTHER}, compiled=compiled)
    assert codes == [2, 2], errors
    assert all("have drawn different tokens" in " ".join(error.split()) for error in errors)


def test_a_whole_run_of_two_processes_on_one_mesh_is_that_of_one(words, compiled, tmp_path):
    mesh = {"Decoding.data": 2, "Decoding.model": 2, "Training.data": 2, "Training.model": 2}
    for name, count in (("one", 1), ("two", 2)):
        command = words("run", tmp_path / name, mesh)
        codes, errors = together(command, count, devices=4 // count, compiled=compiled)
        assert codes == [0] * count, errors
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert (tmp_path / "two" / "report.html").exists()


def test_processes_that_make_no_equal_groups_refuse_before_they_sample(words, compiled, tmp_path):
    command = words("sample", tmp_path / "run", {"Decoding.model": 3})
    codes, errors = together(command, 2, devices=2, compiled=compiled)
    assert codes == [2, 2]
    said = [" ".join(error.split()) for error in errors]
    assert all("no multiple of the 2 that a process has; use 2 or 4" in e for e in said), said
