"""Training on meshes of eight virtual devices, and of two processes, gives what one device does."""

import json
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from virtual_devices import environment

from lmsi_jax.config import Optimizer, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.sharding import make_training_mesh, opt_state_specs, weight_specs
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.training.optimizers import transformation

ROOT = pathlib.Path(__file__).resolve().parents[2]
_MESHES = ((1, 1, False), (2, 4, True))
_MORE = ((8, 1, True), (4, 2, False), (1, 8, False))
_CASES = (("adamw", False), ("adafactor", False), ("adamw", True))
# Trains a few steps in every given way; writes losses and parameters.
_SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from lmsi_jax.runtime import processes
from lmsi_jax.config import ModelConfig
from lmsi_jax.models.transformer import init_params
from lmsi_jax.models.sharding import fetch_tree, make_training_mesh, shard_batch
from lmsi_jax.config import Lora, Optimizer, Training
from lmsi_jax.training.packing import batch_shape, batches, weighted_row
from lmsi_jax.training.trainer import merge_trained, start, train_step

out, meshes, cases, address, count, index = sys.argv[1:]
if int(count) > 1:
    processes.connect(address, int(count), int(index))
# Axes of 128 and above, so that Adafactor factors them.
config = ModelConfig(vocab_size=160, num_layers=2, embed_dim=128, num_heads=8, num_kv_heads=2,
                     head_dim=16, mlp_dim=136, windows=(0, 9))
params = init_params(config, jax.random.key(0))
rng = np.random.default_rng(0)
draw = lambda least, most: rng.integers(3, 160, rng.integers(least, most)).tolist()
prefixes = [(), tuple(draw(5, 9))]
rows = [weighted_row(prefixes[n % 2], draw(2, 9), draw(2, 9), float(n % 3 + 1), n % 2)
        for n in range(700)]
found = []
for data, model, fsdp in json.loads(meshes):
    for name, lora in json.loads(cases):
        training = Training(steps=4, microbatches=2, sequences_per_prefix=8,
                            sequence_length=24, max_prefix_length=9,
                            optimizer=Optimizer(name=name, learning_rate=5e-5),
                            lora=Lora(targets=("query", "down")) if lora else None,
                            data=data, model=model, fsdp=fsdp)
        p, state = start(config, training, params)
        before = jax.tree.map(lambda leaf: leaf.sharding, (p, state))
        losses, compiled = [], train_step._cache_size()
        stream = batches(iter(rows), batch_shape(training))
        for _ in range(training.steps):
            batch = shard_batch(make_training_mesh(training), next(stream))
            p, state, metrics = train_step(config, training, 2, p, state, batch)
            losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        after = jax.tree.map(lambda leaf: leaf.sharding, (p, state))
        moved = [str(b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after))
                 if data * model > 1 and a != b]
        parts = lambda leaf: leaf.size // leaf.addressable_data(0).size
        moments = [parts(leaf) for leaf in jax.tree.leaves(state) if leaf.ndim]
        run = {"losses": losses, "moved": moved, "shards": parts(p["layer_0"]["up"]),
               "moments": max(moments), "compiled": train_step._cache_size() - compiled}
        tree = fetch_tree(merge_trained(training, p, state))
        np.savez(f"{out}.{index}.{len(found)}.npz",
                 **{str(n): leaf for n, leaf in enumerate(jax.tree.leaves(tree))})
        found.append(run)
np.savez(f"{out}.{index}.{len(found)}.npz",
         **{str(n): leaf for n, leaf in enumerate(jax.tree.leaves(params))})
with open(f"{out}.{index}.json", "w") as file:
    json.dump(found, file)
processes.disconnect()
"""


def _run(out, meshes, cases, devices, count=1):
    """Runs the script in `count` processes of `devices` devices.

    Returns:
      What it says of each way, and the parameters that each ended with; last, where all began.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    arguments = [str(out), json.dumps(meshes), json.dumps(cases), address, str(count)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, *arguments, str(index)],
            cwd=ROOT, env=environment(devices), stderr=subprocess.PIPE, text=True,
        )
        for index in range(count)
    ]  # fmt: skip
    errors = [process.communicate(timeout=600)[1] for process in running]
    assert [process.returncode for process in running] == [0] * count, errors
    facts = json.loads(out.with_name(f"{out.name}.{count - 1}.json").read_text())
    trees = []
    for number in range(len(facts) + 1):
        with np.load(out.with_name(f"{out.name}.{count - 1}.{number}.npz")) as saved:
            trees.append([saved[name] for name in saved.files])
    return facts, trees


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One device and a mesh, every case."""
    return _run(tmp_path_factory.mktemp("meshes") / "run", _MESHES, _CASES, devices=8)


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """Other meshes, every case."""
    return _run(tmp_path_factory.mktemp("more") / "run", _MORE, _CASES, devices=8)


def _assert_same(one, other, before):
    """Adam turns a gradient of almost zero, all rounding, into a step of up to the rate: single
    parameters may differ by a part of it, all together by a thousandth of their way."""
    (facts, tree), (wanted, expected) = one, other
    np.testing.assert_allclose(facts["losses"], wanted["losses"], rtol=1e-5)
    assert len({loss for loss, _ in wanted["losses"]}) == 4  # something is learnt each step
    for leaf, right in zip(tree, expected, strict=True):
        np.testing.assert_allclose(leaf, right, rtol=0, atol=1e-5)
    way = sum(((a - b) ** 2).sum() for a, b in zip(expected, before, strict=True)) ** 0.5
    off = sum(((a - b) ** 2).sum() for a, b in zip(expected, tree, strict=True)) ** 0.5
    assert off < 1e-3 * way


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(_CASES)))
def test_a_mesh_gives_losses_and_parameters_of_one_device(runs, case):
    facts, trees = runs
    at = len(_CASES) + case
    _assert_same((facts[at], trees[at]), (facts[case], trees[case]), trees[-1])


def _assert_stays(facts):
    """Params and state stay where they lay, so the step is compiled once."""
    assert [run["moved"] for run in facts] == [[]] * len(facts)
    assert [run["compiled"] for run in facts] == [1] * len(facts)


def test_every_step_leaves_params_and_state_where_they_lay_and_compiles_once(runs):
    _assert_stays(runs[0])


def test_weights_and_moments_are_spread_as_the_mesh_says(runs):
    facts = runs[0]
    assert [run["shards"] for run in facts] == [1, 1, 1, 8, 8, 8]
    assert [run["moments"] for run in facts] == [1, 1, 1, 8, 4, 4]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", range(len(_MORE)))
@pytest.mark.parametrize("case", range(len(_CASES)))
def test_other_meshes_do_too(runs, more, mesh, case):
    at = mesh * len(_CASES) + case
    _assert_same((more[0][at], more[1][at]), (runs[0][case], runs[1][case]), runs[1][-1])


@pytest.mark.slow
def test_other_meshes_spread_and_compile_as_they_should(more):
    facts = more[0]
    _assert_stays(facts)
    assert [run["shards"] for run in facts[:: len(_CASES)]] == [8, 2, 8]
    assert [run["moments"] for run in facts[:: len(_CASES)]] == [8, 2, 8]


@pytest.mark.slow
def test_two_processes_give_what_one_device_does(runs, tmp_path):
    """Each has four devices, and feeds the rows of those."""
    cases = _CASES[:1]
    facts, trees = _run(tmp_path / "run", [(4, 2, True)], cases, devices=4, count=2)
    assert facts[0]["shards"] == 8
    _assert_same((facts[0], trees[0]), (runs[0][0], runs[1][0]), runs[1][-1])


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_each_array_of_the_state_lies_where_its_parameter_does(micro_config, name):
    shapes = parameter_shapes(micro_config)
    big = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(8 * n for n in leaf.shape), leaf.dtype), shapes
    )
    specs = weight_specs(micro_config, model=2, data=2, fsdp=True)
    state = jax.eval_shape(transformation(Optimizer(name=name), 5).init, big)
    found = opt_state_specs(specs, big, state)
    flat, _ = jax.tree_util.tree_flatten_with_path(
        found, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )
    ups = {
        jax.tree_util.keystr(path[:-2]): spec
        for path, spec in flat
        if jax.tree_util.keystr(path).endswith("['layer_0']['up']")
    }
    assert specs["layer_0"]["up"] == PartitionSpec("data", "model")
    if name == "adafactor":  # up is [embed 192, mlp 320]: rows lack mlp, columns lack embed
        own = {key.rsplit(".", 1)[-1]: spec for key, spec in ups.items()}
        assert own["v_row"] == PartitionSpec("data")
        assert own["v_col"] == PartitionSpec("model")
    else:
        assert len(ups) >= (2 if name == "adamw" else 1)
        assert set(ups.values()) == {PartitionSpec("data", "model")}


def test_a_mesh_that_cannot_be_is_refused_with_the_remedy():
    assert make_training_mesh(Training()).mesh is None
    with pytest.raises(LmsiError, match="need 64 devices; this process has"):
        make_training_mesh(Training(data=8, model=8))
    with pytest.raises(LmsiError, match="= 6 is not a multiple of Training.data = 4"):
        Training(sequences_per_prefix=6, data=4)
    with pytest.raises(LmsiError, match="Training.model = 0"):
        Training(model=0)
