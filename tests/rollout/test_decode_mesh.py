"""The engine on meshes of eight virtual devices gives the samples of one device."""

import dataclasses
import inspect
import json
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from virtual_devices import environment

from lmsi_jax.config import Decoding
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.sharding import (
    RULES,
    DeviceMesh,
    decoding_shapes,
    decoding_weights,
    logical_axes,
    make_decode_mesh,
    make_mesh,
    param_shardings,
    spec,
    weight_specs,
)
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.training import checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]
_MESHES = ((1, 1, False), (8, 1, True), (4, 2, False), (2, 4, True), (1, 8, False))
_SETUP = """
import json, sys
import jax, jax.numpy as jnp
from sample_all import sample_all
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.config import Decoding, Sampling
from lmsi_jax.rollout.decode_step import decode_chunk
from lmsi_jax.config import ModelConfig
from lmsi_jax.models.transformer import init_params
from lmsi_jax.models.tokenizers import SentencePiece

config = ModelConfig(vocab_size=320, num_layers=2, embed_dim=24, num_heads=8, num_kv_heads=2,
                     head_dim=6, mlp_dim=40, max_length=256, windows=(0, 9))
params, tokenizer = init_params(config, jax.random.key(0)), SentencePiece(sys.argv[1])
questions = [(f"q{n}", "Q: Ann has 3 pens." + " Ben has 4 cups." * (n % 3)) for n in range(11)]
prefix, found = "Q: 1 + 1?\\nA: 2.\\n", []

def listed(run):
    return {u: [[p.text, p.tokens, p.logprob] for p in own] for u, own in sorted(run.items())}
"""
_MESH_SCRIPT = """
for data, model, fsdp in json.loads(sys.argv[2]):
    layout = Decoding(slots=8 // data + 3, chunk=2, page=4, data=data, model=model, fsdp=fsdp)
    engine = Engine(config, params, tokenizer, layout)
    weight = engine._model.weights["layer_0"].get("up")
    mesh = {"shards": 1 if weight is None else weight.size // weight.addressable_data(0).size}
    for temperature in (0.0, 1.0):
        sampling = Sampling(num_samples=3, temperature=temperature, max_new_tokens=9, stop=())
        before = decode_chunk._cache_size()
        run = sample_all(engine, prefix, questions, sampling, seed=1, round_index=2)
        mesh["compiled"] = decode_chunk._cache_size() - before
        mesh[temperature] = listed(run)
    found.append(mesh)
json.dump(found, open(sys.argv[3], "w"))
"""


def _is_settled(request, samples):
    """Depends on the texts, so that a wrong sample shows in the number of samples."""
    return sum(map(ord, "".join(sample.text for sample in samples))) % 3 == 0


def _limit(uid, index):
    return 1 + (3 * int(uid[1:]) + 5 * index) % 8


# On one device with memory enough, then on meshes with a pool that must grow.
_POOLS = ((1, 1, False, 2**28), (4, 2, False, 1), (2, 4, True, 1))
# One sampling throughout, so that nothing but the pool's growth compiles anew.
# The block is another than on the meshes above: sequential, with everything that has an axis.
_POOL_SCRIPT = f"""
import dataclasses
config = dataclasses.replace(
    config, block="sequential", post_norms=True, qk_norm=True, tied_embeddings=False,
    biases=("query", "key", "value", "gate", "down"),
)
params = init_params(config, jax.random.key(1))
{inspect.getsource(_is_settled)}
{inspect.getsource(_limit)}
sampling = Sampling(num_samples=6, temperature=1.0, max_new_tokens=8, stop=(),
                    adaptive_consistency=0.95, adaptive_consistency_every=2)
for data, model, fsdp, pool in json.loads(sys.argv[2]):
    layout = Decoding(slots=8 // data + 3, chunk=2, page=4, pool_bytes=pool, data=data,
                      model=model, fsdp=fsdp)
    engine, before = Engine(config, params, tokenizer, layout), decode_chunk._cache_size()
    runs = {{}}
    cases = dict(all={{}}, early=dict(is_settled=_is_settled), cut=dict(limit=_limit))
    for name, more in cases.items():
        run = sample_all(engine, prefix, questions, sampling, seed=1, round_index=2, **more)
        runs[name] = listed(run)
    found.append(runs | {{"compiled": decode_chunk._cache_size() - before}})
json.dump(found, open(sys.argv[3], "w"))
"""


def _on_eight_devices(script, meshes, tokenizer_path, out):
    """Returns the results of a script on each mesh, in a process with eight virtual devices."""
    subprocess.run(
        [sys.executable, "-c", _SETUP + script, tokenizer_path, json.dumps(meshes), str(out)],
        cwd=ROOT, env=environment(8), check=True, timeout=600,
    )  # fmt: skip
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def runs(tokenizer_path, tmp_path_factory):
    """The same questions on every mesh."""
    out = tmp_path_factory.mktemp("mesh") / "runs.json"
    return _on_eight_devices(_MESH_SCRIPT, _MESHES, tokenizer_path, out)


@pytest.fixture(scope="module")
def two_runs(tokenizer_path, tmp_path_factory):
    """The same questions on one device and on eight."""
    out = tmp_path_factory.mktemp("mesh") / "two_runs.json"
    return _on_eight_devices(_MESH_SCRIPT, [_MESHES[0], _MESHES[3]], tokenizer_path, out)


@pytest.fixture(scope="module")
def pools(tokenizer_path, tmp_path_factory):
    """The same questions with a small pool: all samples, with adaptive consistency, with limits."""
    out = tmp_path_factory.mktemp("mesh") / "pools.json"
    return _on_eight_devices(_POOL_SCRIPT, _POOLS, tokenizer_path, out)


def _assert_same_samples(one, mesh):
    """Sums over devices round differently: log-probabilities are near, texts are the same."""
    assert list(one) == list(mesh)
    for uid, paths in one.items():
        for (text, tokens, logprob), (other, count, near) in zip(paths, mesh[uid], strict=True):
            assert (other, count) == (text, tokens)
            assert near == pytest.approx(logprob, abs=2e-3)


@pytest.mark.parametrize("temperature", ["0.0", "1.0"])
def test_eight_devices_give_the_samples_of_one(two_runs, temperature):
    _assert_same_samples(two_runs[0][temperature], two_runs[1][temperature])


def test_eight_devices_compile_as_few_programs_as_one(two_runs):
    assert two_runs[0]["compiled"] == two_runs[1]["compiled"]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, len(_MESHES)))
@pytest.mark.parametrize("temperature", ["0.0", "1.0"])
def test_a_mesh_gives_the_samples_of_one_device(runs, number, temperature):
    _assert_same_samples(runs[0][temperature], runs[number][temperature])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, len(_POOLS)))
@pytest.mark.parametrize("name", ["all", "early", "cut"])
def test_pools_that_grow_give_the_samples_of_a_large_one(pools, number, name):
    """A pool that has grown is another program; the first, large from the start, never does."""
    assert pools[0]["compiled"] < pools[number]["compiled"]
    _assert_same_samples(pools[0][name], pools[number][name])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(_POOLS)))
def test_adaptive_consistency_on_a_mesh_follows_the_rule_sample_by_sample(pools, number):
    counts = []
    for uid, paths in pools[number]["all"].items():
        said = [types.SimpleNamespace(text=text) for text, _, _ in paths]
        counts.append(next((n for n in (2, 4) if _is_settled(None, said[:n])), 6))
        assert pools[number]["early"][uid] == paths[: counts[-1]]
    assert set(counts) == {2, 4, 6}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(_POOLS)))
def test_limits_on_a_mesh_hold_for_each_sample(pools, number):
    for uid, paths in pools[number]["cut"].items():
        whole = pools[number]["all"][uid]
        for index, ((text, tokens, _), (longer, most, _)) in enumerate(
            zip(paths, whole, strict=True)
        ):
            assert tokens == min(_limit(uid, index), most)
            assert longer.startswith(text.rstrip("\ufffd"))


@pytest.mark.slow
def test_a_mesh_compiles_as_few_programs_as_one_device(runs):
    """So the caches return with the shardings that they were passed with."""
    assert {run["compiled"] for run in runs} == {runs[0]["compiled"]}


@pytest.mark.slow
def test_weights_are_sharded_as_the_mesh_says(runs):
    """`up` is split over "model" if its width allows, and with fsdp over "data" too."""
    assert [run["shards"] for run in runs] == [1, 8, 2, 8, 8]


def test_the_table_places_every_axis_of_every_weight(micro_config):
    axes = logical_axes(micro_config)
    assert axes["layer_0"]["up"] == ("embed", "mlp")
    specs = weight_specs(micro_config, model=2, data=4, fsdp=True)
    assert specs["embedding"] == PartitionSpec("model", "data")
    assert specs["layer_1"]["down"] == PartitionSpec("model", "data")
    assert specs["final_norm"]["scale"] == PartitionSpec("data")
    assert jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple)).num_leaves == len(
        jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    )


def test_the_table_places_the_axes_of_every_family(micro_config):
    everything = {"block": "sequential", "qk_norm": True, "tied_embeddings": False}
    config = dataclasses.replace(micro_config, **everything, biases=("query", "key", "up", "down"))
    specs = weight_specs(config, model=2, data=4, fsdp=True)
    assert specs["lm_head"] == specs["embedding"] == PartitionSpec("model", "data")
    layer = specs["layer_0"]
    for name in ("query_bias", "key_bias", "up_bias"):
        assert layer[name] == PartitionSpec("model")
    for name in ("down_bias", "attention_norm", "mlp_norm"):
        assert layer[name] == PartitionSpec("data")
    assert layer["query_norm"] == layer["key_norm"] == PartitionSpec(None)
    # Two kv heads do not divide among four devices: their weights and biases stay whole.
    layer = weight_specs(config, model=4)["layer_0"]
    assert layer["key_bias"] == PartitionSpec(None)
    assert layer["query_bias"] == PartitionSpec("model")


def test_axes_that_do_not_divide_stay_whole(micro_config):
    assert weight_specs(micro_config, data=5, fsdp=True)["embedding"] == PartitionSpec(
        "model", None
    )
    assert weight_specs(micro_config, model=4)["layer_0"]["key"] == PartitionSpec(None, None)
    assert weight_specs(micro_config, model=4)["layer_0"]["query"] == PartitionSpec(None, "model")


def test_weights_that_were_read_to_their_place_are_those_that_were_cast(
    micro_config, micro_params, tmp_path
):
    """In the type of decoding: on a pod there is no room for another copy."""
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, micro_params)
    saved.close()
    decode_mesh = DeviceMesh(make_mesh(jax.devices()[:1], 1, 1))
    like = parameter_shapes(micro_config, "bfloat16")
    read = checkpoints.load_params(tmp_path, like, param_shardings(micro_config, decode_mesh))
    weights = decoding_weights(micro_config, read, jnp.bfloat16, decode_mesh)
    assert weights["layer_1"]["down"] is read["layer_1"]["down"]
    whole = decoding_weights(micro_config, micro_params, jnp.bfloat16, decode_mesh)
    shapes = decoding_shapes(
        micro_config, parameter_shapes(micro_config), jnp.bfloat16, decode_mesh
    )
    for ours, theirs, shape in zip(*map(jax.tree.leaves, (weights, whole, shapes)), strict=True):
        assert ours.dtype == jnp.bfloat16 and ours.sharding == theirs.sharding == shape.sharding
        np.testing.assert_array_equal(ours, theirs)


def test_a_collision_and_an_unknown_axis_are_named():
    with pytest.raises(LmsiError, match="one mesh axis twice"):
        spec(("mlp", "vocab"), RULES)
    with pytest.raises(LmsiError, match="no partitioning rule names the axis 'stack'"):
        spec(("stack", "mlp"), RULES)


def test_too_few_devices_are_refused_with_their_number():
    assert make_decode_mesh(Decoding()) == DeviceMesh()
    with pytest.raises(LmsiError, match="need 64 devices, this process has"):
        make_decode_mesh(Decoding(data=8, model=8))
    with pytest.raises(LmsiError, match="Decoding.data = 0"):
        Decoding(data=0)
