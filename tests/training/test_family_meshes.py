"""A training step of each kind of block on a mesh gives the losses of one device."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from virtual_devices import environment

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
_FAMILIES = ("qwen2", "gemma3", "olmo2")
_SCRIPT = """
import json, sys
import numpy as np
from families import of_family
from path_scores import sharp_params
from lmsi_jax.config import ModelConfig
from lmsi_jax.config import Optimizer, Training
from lmsi_jax.models.sharding import make_training_mesh, shard_batch
from lmsi_jax.training.packing import batch_shape, batches, weighted_row
from lmsi_jax.training.trainer import start, train_step

sizes = ModelConfig(vocab_size=160, num_layers=4, embed_dim=32, num_heads=8, num_kv_heads=4,
                    head_dim=8, mlp_dim=48, scan_layers=True, remat="layer")
rng = np.random.default_rng(0)
draw = lambda: rng.integers(3, 160, rng.integers(2, 9)).tolist()
prefix = tuple(draw())
rows = [weighted_row(prefix, draw(), draw(), float(n % 3 + 1), 0) for n in range(300)]
found = {}
for family in json.loads(sys.argv[1]):
    config = of_family(sizes, family)
    for data, model in ((1, 1), (2, 4)):
        training = Training(steps=3, microbatches=2, sequences_per_prefix=4,
                            sequence_length=24, max_prefix_length=9,
                            optimizer=Optimizer(learning_rate=1e-3),
                            data=data, model=model, fsdp=data > 1)
        params, state = start(config, training, sharp_params(config, 1))
        stream = batches(iter(rows), batch_shape(training))
        losses = []
        for _ in range(training.steps):
            batch = shard_batch(make_training_mesh(training), next(stream))
            params, state, metrics = train_step(config, training, 1, params, state, batch)
            losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        found.setdefault(family, []).append(losses)
json.dump(found, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Losses and norms of gradients of three steps, by family: on one device, and on eight."""
    out = tmp_path_factory.mktemp("families") / "losses.json"
    subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(_FAMILIES), str(out)],
        cwd=ROOT, env=environment(8), check=True, timeout=600,
    )  # fmt: skip
    return json.loads(out.read_text())


@pytest.mark.parametrize("family", _FAMILIES)
def test_losses_and_gradients_of_a_mesh_are_those_of_one_device(losses, family):
    one, mesh = losses[family]
    assert one[2][0] < one[0][0]
    np.testing.assert_allclose(mesh, one, rtol=1e-5)
