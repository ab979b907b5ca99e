"""Our training step, `lmsi_jax.training`'s: python -m bench.peers.lmsi_train --workload=train

Full rows, one segment each, no shared prefix.
"""

import argparse
import dataclasses

import jax
import numpy as np

from bench import steps as adamw
from bench import tuning
from bench.peers.lmsi import config_of
from bench.peers.measure import add_dtype
from bench.peers.measure_steps import Ready, main, microbatches, parser
from bench.steps import Steps
from lmsi_jax.config import Optimizer, Training
from lmsi_jax.models.transformer import fresh_params
from lmsi_jax.training.packing import Batch
from lmsi_jax.training.trainer import start, train_step


def packed(tokens: np.ndarray, parts: int) -> Batch:
    """Full rows [rows, length] as microbatches without a prefix; a row is one segment."""
    shape = (parts, len(tokens) // parts, tokens.shape[1])
    weights = np.ones(shape, np.float32)
    weights[..., 0] = 0.0  # nothing predicts the first token
    return {
        "prefix": np.zeros((parts, 0), np.int32),
        "prefix_length": np.zeros(parts, np.int32),
        "tokens": tokens.reshape(shape),
        "segments": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape),
        "groups": np.zeros(shape, np.int32),
        "weights": weights,
    }


def training(steps: Steps, options: argparse.Namespace) -> Training:
    """The settings of a step."""
    parts = microbatches(steps, options)
    return Training(
        optimizer=Optimizer(
            learning_rate=adamw.LEARNING_RATE,
            b2=adamw.B2,
            weight_decay=adamw.WEIGHT_DECAY,
            max_grad_norm=0.0,
        ),
        microbatches=parts,
        sequences_per_prefix=steps.rows // parts,
        sequence_length=steps.length,
        max_prefix_length=0,
        compute_dtype=options.dtype or steps.model.dtype,
    )


def prepare(steps: Steps, options: argparse.Namespace) -> Ready:
    """Draws parameters; they and the optimiser's state are donated from step to step."""
    config, settings = config_of(steps.model, steps.length), training(steps, options)
    if steps.model.layers > 8:  # one program for all layers compiles in a fraction of the time
        config = dataclasses.replace(config, scan_layers=True)
    params, state = start(config, settings, fresh_params(config, 0))

    def step(tokens: np.ndarray) -> float:
        nonlocal params, state
        given = packed(tokens, settings.microbatches)
        params, state, metrics = train_step(config, settings, 1, params, state, given)
        jax.block_until_ready((params, state))
        return float(metrics["loss"])

    return Ready(
        step=step,
        same_weights=False,
        packages=("lmsi_jax", "jax", "jaxlib"),
        notes=[f"the block is {steps.model.block}, and the weights are our own"],
        settings=tuning.settings(options)
        | {"microbatches": settings.microbatches, "dtype": settings.compute_dtype},
    )


if __name__ == "__main__":
    main(
        "lmsi",
        prepare,
        add_dtype(tuning.add_flags(parser(f"{__doc__}\n{tuning.EXPLAINED}", microbatches=16))),
    )
