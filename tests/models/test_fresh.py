"""A model that a seed stands for has the same weights wherever they are drawn."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from virtual_devices import environment

from lmsi_jax.models.params import arrays
from lmsi_jax.models.transformer import fresh_params, init_params

ROOT = pathlib.Path(__file__).resolve().parents[2]
_DRAW = """
import json, sys
import jax, numpy as np
from lmsi_jax.models.sharding import make_decode_mesh, param_shardings
from lmsi_jax.config import ModelConfig
from lmsi_jax.config import Decoding
from lmsi_jax.models.transformer import fresh_params
from lmsi_jax.training.checkpoints import digest

config = ModelConfig(vocab_size=320, num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=4,
                     head_dim=16, mlp_dim=96, max_length=256)
found = [[digest(fresh_params(config, 3)), 1.0]]
for data, model, fsdp in ((2, 4, True), (4, 2, False)):
    mesh = make_decode_mesh(Decoding(data=data, model=model, fsdp=fsdp))
    params = fresh_params(config, 3, param_shardings(config, mesh))
    up = params["layer_1"]["up"]
    found.append([digest(params), up.addressable_data(0).size / up.size])
json.dump(found, sys.stdout)
"""


def test_a_mesh_draws_the_weights_of_one_device_each_where_it_lies():
    done = subprocess.run(
        [sys.executable, "-c", _DRAW],
        cwd=ROOT,
        env=environment(8),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    digests, shares = zip(*json.loads(done.stdout), strict=True)
    assert len(set(digests)) == 1
    assert shares == (1.0, 1 / 8, 1 / 2)


def test_a_seed_stands_for_one_model(micro_config):
    one, again, other = (fresh_params(micro_config, seed) for seed in (3, 3, 4))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, again))
    assert not np.array_equal(one["embedding"], other["embedding"])
    plain = init_params(micro_config, jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, plain)
    deviation = arrays(micro_config)["embedding"].deviation
    assert np.std(one["embedding"]) == pytest.approx(deviation, rel=0.05)


def test_the_type_is_the_one_that_is_asked_for(micro_config):
    whole = fresh_params(micro_config, 3)
    short = fresh_params(micro_config, 3, dtype="bfloat16")
    rounded = jax.tree.map(lambda a: a.astype("bfloat16"), whole)
    assert jax.tree.all(jax.tree.map(np.array_equal, short, rounded))
    assert {a.dtype.name for a in jax.tree.leaves(short)} == {"bfloat16"}
