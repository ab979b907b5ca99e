"""A training run of a micro model as a program: python one_run.py FOLDER [DEADLINE]

Prints "step N" as each step begins. With a deadline, saving after SIGTERM never ends.
"""

import itertools
import pathlib
import sys
import time

import jax
import numpy as np

from lmsi_jax.config import ModelConfig, Optimizer, Training
from lmsi_jax.models.transformer import init_params
from lmsi_jax.runtime.signals import Terminated, signals_as_exceptions
from lmsi_jax.training import checkpoints, trainer
from lmsi_jax.training.optimizers import transformation
from lmsi_jax.training.packing import weighted_row

CONFIG = ModelConfig(
    vocab_size=64,
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    max_length=64,
)
SETTINGS = {
    "steps": 60,
    "optimizer": Optimizer(learning_rate=3e-3),
    "microbatches": 2,
    "sequences_per_prefix": 2,
    "sequence_length": 24,
    "max_prefix_length": 8,
    "log_every": 4,
    "save_every": 3,
    "keep": 2,
}
GROUPS = ("self_generated/cot", "self_generated/direct", "human/cot", "human/direct")


def rows():
    """Random rows behind three prefixes, none like another, so that a wrong position shows."""
    rng = np.random.default_rng(0)
    prefixes = [(), (3, 4, 5), (6, 7, 8, 9)]
    for number in itertools.count():
        asked, answered = (rng.integers(3, 64, rng.integers(2, 8)).tolist() for _ in range(2))
        weight = float(np.float32(rng.uniform(0.1, 2)))
        yield weighted_row(prefixes[number % 3], asked, answered, weight, number % 4)


def run(folder, held_out=(), **changes):
    """Trains, or goes on; returns the parameters."""
    training = Training(**{**SETTINGS, **changes})
    params = init_params(CONFIG, jax.random.key(0))
    return trainer.train(CONFIG, training, params, rows(), folder, groups=GROUPS, held_out=held_out)


def outcome(folder):
    """All that a finished run left which must not depend on what it went through."""
    folder = pathlib.Path(folder)
    made = checkpoints.Checkpoints(folder, SETTINGS["keep"])
    params = init_params(CONFIG, jax.random.key(0))
    training = Training(**SETTINGS)
    blank = transformation(training.optimizer, training.steps).init(params)
    params, state = made.restore(training.steps, params, blank)
    return {
        "steps": made.steps,
        "params": checkpoints.digest(params),
        "state": checkpoints.digest(state),
        "metrics": (folder / "metrics.jsonl").read_bytes(),
        "data_state": made.data_state(training.steps),
    }


def announced(step):
    def announce(*args):
        number = int(jax.tree.leaves(args[4])[0]) + 1  # Adam's own count
        print(f"step {number}", flush=True)
        time.sleep(0.02)
        return step(*args)

    return announce


def main(folder, deadline=None):
    """The program; exit code 143 after SIGTERM."""
    trainer.train_step = announced(trainer.train_step)
    changes = {}
    if deadline is not None:
        changes["deadline_seconds"] = float(deadline)
        checkpoints.Checkpoints.wait = lambda self: time.sleep(600)
    try:
        with signals_as_exceptions():
            run(folder, **changes)
    except Terminated:
        return 143
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
