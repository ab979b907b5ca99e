"""Measures how a small difference grows in training: python -m bench.perturbed runs/quickstart

Trains on the rows of a run's first round, as `lmsi run` does, and prints how far the weights have
moved after some of the steps. A second training, whose first weights are noisy or whose products
round differently, is compared with the stored weights of the first:

    python -m bench.perturbed runs/quickstart --save=plain
    python -m bench.perturbed runs/quickstart --noise=1e-7 --against=plain
    XLA_FLAGS=--xla_cpu_max_isa=AVX python -m bench.perturbed runs/quickstart --against=plain

Prints a JSON object for each of those steps: `moved`, the distance from the base's weights, and
`apart`, the distance from the other training's.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import lmsi_jax
from lmsi_jax.config import Optimizer, Training
from lmsi_jax.models.params import Params
from lmsi_jax.records import Example
from lmsi_jax.runtime.files import embedded_path
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.training.data import BatchIterator, Examples
from lmsi_jax.training.packing import batch_shape
from lmsi_jax.training.trainer import start, train_step

_STEPS = (1, 2, 3, 5, 10, 20, 30, 50, 75, 100, 125, 150)
_QUICKSTART = Training(
    steps=150,
    optimizer=Optimizer(name="adamw", learning_rate=5e-4, warmup_steps=20, decay="linear"),
    microbatches=8,
    sequences_per_prefix=4,
    sequence_length=384,
    max_prefix_length=320,
)


def read_rows(run: str) -> list[Example]:
    """Returns the examples that the first round of a run mixed, in the order of their tasks."""
    store = ShardStore(epath.Path(run) / "round_1" / "mix")
    names = [name for name in store.names() if name.startswith("self_generated-")]
    return [Example.from_json(row) for name in names for row in store.read(name)]


def noisy(params: Params, scale: float) -> Params:
    """Returns weights times 1 + scale * normal noise."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    return tree.unflatten(x * (1 + scale * jax.random.normal(key, x.shape)) for x, key in pairs)


def _flat(params: Params) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)])


def main() -> None:
    """Trains, and prints a line after some of the steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a finished run of the quick start")
    parser.add_argument("--noise", type=float, default=0.0, help="of the first weights")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--last", type=int, default=150, help="stop after this step")
    parser.add_argument("--save", type=pathlib.Path, help="a folder for the weights")
    parser.add_argument("--against", type=pathlib.Path, help="a folder of another training's")
    options = parser.parse_args()
    optimizer = dataclasses.replace(_QUICKSTART.optimizer, learning_rate=options.learning_rate)
    training = dataclasses.replace(_QUICKSTART, optimizer=optimizer)
    tokenizer = str(embedded_path("tokenizer.model"))
    examples = Examples(
        {"self_generated": read_rows(options.run)}, {"self_generated": 1.0}, tokenizer, seed=1
    )
    batches = BatchIterator(examples, batch_shape(training))
    model = lmsi_jax.load("embedded")
    base = _flat(model.params)
    first = noisy(model.params, options.noise) if options.noise else model.params
    params, state = start(model.config, training, first)
    for step in range(1, options.last + 1):
        batch = {name: jnp.asarray(array) for name, array in (batches.next() or {}).items()}
        count = len(examples.groups)
        params, state, _ = train_step(model.config, training, count, params, state, batch, None)
        if step not in _STEPS:
            continue
        weights = _flat(params)
        row = {"step": step, "moved": float(np.linalg.norm(weights - base))}
        if options.against:
            other = np.load(options.against / f"{step}.npy")
            row["apart"] = float(np.linalg.norm(weights - other))
        if options.save:
            options.save.mkdir(parents=True, exist_ok=True)
            np.save(options.save / f"{step}.npy", weights)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
