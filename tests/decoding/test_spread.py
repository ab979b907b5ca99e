"""The engine over meshes of eight virtual devices gives the paths of one device."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax.sharding import PartitionSpec

from lmsi_jax.decoding.layout import Decoding
from lmsi_jax.decoding.spread import Spread, make_spread
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.partitioning import RULES, logical_axes, spec, weight_specs

ROOT = pathlib.Path(__file__).resolve().parents[2]
_MESHES = ((1, 1, False), (8, 1, True), (4, 2, False), (2, 4, True), (1, 8, False))
_SCRIPT = """
import json, sys
import jax, jax.numpy as jnp
from lmsi_jax.decoding.engine import Engine
from lmsi_jax.decoding.layout import Decoding
from lmsi_jax.decoding.loop import decode_chunk
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import init_params
from lmsi_jax.models.tokenizer import SentencePiece

config = ModelConfig(vocab_size=320, num_layers=2, embed_dim=24, num_heads=8, num_kv_heads=2,
                     head_dim=6, mlp_dim=40, max_length=256, windows=(0, 9))
params, tokenizer = init_params(config, jax.random.key(0)), SentencePiece(sys.argv[1])
questions = [(f"q{n}", "Q: Ann has 3 pens." + " Ben has 4 cups." * (n % 3)) for n in range(11)]
found = []
for data, model, fsdp in json.loads(sys.argv[2]):
    layout = Decoding(lanes=8 // data + 3, chunk=2, page=4, data=data, model=model, fsdp=fsdp)
    engine = Engine(config, params, tokenizer, layout)
    weight = engine._device.weights["layer_0"].get("up")
    mesh = {"shards": 1 if weight is None else weight.size // weight.addressable_data(0).size}
    for temperature in (0.0, 1.0):
        sampling = Sampling(paths=3, temperature=temperature, max_new_tokens=9, stop=())
        before = decode_chunk._cache_size()
        run = list(engine.run("Q: 1 + 1?\\nA: 2.\\n", questions, sampling, seed=1, round_index=2))
        mesh["compiled"] = decode_chunk._cache_size() - before
        mesh[temperature] = {u: [[p.text, p.logprob] for p in own] for u, own in sorted(run)}
    found.append(mesh)
json.dump(found, open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="module")
def runs(tokenizer_path, tmp_path_factory):
    """The same questions on every mesh."""
    out = tmp_path_factory.mktemp("spread") / "runs.json"
    flags = "--xla_force_host_platform_device_count=8"
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run(
        [sys.executable, "-c", _SCRIPT, tokenizer_path, json.dumps(_MESHES), str(out)],
        cwd=ROOT, env=environment, check=True, timeout=600,
    )  # fmt: skip
    return json.loads(out.read_text())


@pytest.mark.parametrize("number", range(1, len(_MESHES)))
@pytest.mark.parametrize("temperature", ["0.0", "1.0"])
def test_a_mesh_gives_the_paths_of_one_device(runs, number, temperature):
    """Sums over devices round differently: log-probabilities are near, texts are the same."""
    one, mesh = runs[0][temperature], runs[number][temperature]
    assert list(one) == list(mesh)
    for uid, paths in one.items():
        for (text, logprob), (other, near) in zip(paths, mesh[uid], strict=True):
            assert other == text
            assert near == pytest.approx(logprob, abs=2e-3)


def test_a_mesh_compiles_as_few_programs_as_one_device(runs):
    """So the caches come back placed as they went in."""
    assert {run["compiled"] for run in runs} == {runs[0]["compiled"]}


def test_weights_are_spread_as_the_mesh_says(runs):
    """`up` is split over "model" where its width allows, and with fsdp over "data" too."""
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


def test_axes_that_do_not_divide_stay_whole(micro_config):
    assert weight_specs(micro_config, data=5, fsdp=True)["embedding"] == PartitionSpec(
        "model", None
    )
    assert weight_specs(micro_config, model=4)["layer_0"]["key"] == PartitionSpec(None, None)
    assert weight_specs(micro_config, model=4)["layer_0"]["query"] == PartitionSpec(None, "model")


def test_a_collision_and_an_unknown_axis_are_named():
    with pytest.raises(LmsiError, match="one mesh axis twice"):
        spec(("mlp", "vocab"), RULES)
    with pytest.raises(LmsiError, match="no partitioning rule names the axis 'stack'"):
        spec(("stack", "mlp"), RULES)


def test_too_few_devices_are_refused_with_their_number():
    assert make_spread(1, 1, False) == Spread()
    with pytest.raises(LmsiError, match="need 64 devices, this process has"):
        make_spread(8, 8, False)
    with pytest.raises(LmsiError, match="Decoding.data = 0"):
        Decoding(data=0)
