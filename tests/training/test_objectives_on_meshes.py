"""Pairs and teachers on a mesh of eight virtual devices give the losses of one device."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from virtual_devices import environment

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Trains two steps on each objective, on one device and on the mesh, through `trainer.train`.
_SCRIPT = """
import dataclasses, itertools, json, sys
import jax, numpy as np
from lmsi_jax.config import ModelConfig
from lmsi_jax.models.transformer import init_params
from lmsi_jax.config import Loss, Preference, Training
from lmsi_jax.models.sharding import make_training_mesh, shard_params
from lmsi_jax.training import trainer
from lmsi_jax.training.losses import Teacher
from lmsi_jax.training.metrics import read_metrics
from lmsi_jax.training.packing import pair_row, weighted_row
from lmsi_jax.training.scoring import ScoredRows, TargetScorer

config = ModelConfig(vocab_size=160, num_layers=1, embed_dim=32, num_heads=4, num_kv_heads=2,
                     head_dim=8, mlp_dim=48)
params = init_params(config, jax.random.key(0))
teacher = Teacher(config=config, params=init_params(config, jax.random.key(1)))
rng = np.random.default_rng(0)
draw = lambda n: rng.integers(3, 160, n).tolist()
few = [weighted_row((), draw(3), draw(4), 1.0) for _ in range(24)]
twos = [pair_row(a, b) for a, b in zip(few, few[1:])]
number = lambda rows: [dataclasses.replace(r, example=i) for i, r in enumerate(rows)]
base = Training(steps=2, microbatches=1, sequences_per_prefix=4, sequence_length=24,
                max_prefix_length=0, log_every=1, save_every=2)
cases = {
    "model": (dataclasses.replace(base, loss=Loss(distillation="model")), number(few)),
    "top_k": (dataclasses.replace(base, loss=Loss(distillation="top_k", top_k=3)), number(few)),
    "scpo": (dataclasses.replace(base, preference=Preference()), number(twos)),
}
seen, found = [], {}
step = trainer.train_step
def watched(*args):
    if args[6] is not None:
        up = args[6].params["layer_0"]["up"]
        seen.append(up.size // up.addressable_data(0).size)
    return step(*args)
trainer.train_step = watched
for name, (training, rows) in cases.items():
    for data, model in ((1, 1), (2, 4)):
        own = dataclasses.replace(training, data=data, model=model, fsdp=True)
        if name != "model":
            where = shard_params(config, make_training_mesh(own), teacher.params)
            records = TargetScorer(config=config, params=where, training=own).records(rows)
            rows = list(ScoredRows(rows, records))
        folder = f"{sys.argv[1]}/{name}-{data}"
        trainer.train(config, own, params, itertools.cycle(rows), folder,
                      teacher=teacher if name == "model" else None)
        found[f"{name}-{data}"] = read_metrics(folder)
print(json.dumps({"metrics": found, "shards": seen}))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path_factory.mktemp("meshes"))],
        cwd=ROOT,
        env=environment(8),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["model", "top_k", "scpo"])
def test_the_losses_are_those_of_one_device(outcome, name):
    one, mesh = (outcome["metrics"][f"{name}-{data}"] for data in (1, 2))
    assert len(one) == len(mesh) == 2
    for a, b in zip(one, mesh, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            np.testing.assert_allclose(b[key], value, rtol=1e-4, atol=2e-5, err_msg=key)


def test_a_teacher_in_memory_lies_spread_over_the_mesh(outcome):
    assert outcome["shards"] == [1, 1, 8, 8]
