"""T5X's trainer and AdamW: python -m bench.peers.t5x_train --workload=train

`trainer.Trainer.train`, one step a call, with `models.DecoderOnlyModel` around our decoder
(`lmsi_jax.interop.t5x`), and T5X's own partitioner. Its metrics are part of the step, as in
T5X.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import frozen_dict

from bench import steps as adamw
from bench.peers.lmsi import config_of
from bench.peers.measure import require
from bench.peers.measure_steps import Ready, main, microbatches, parser
from bench.steps import Steps
from lmsi_jax.interop import t5x as lmsi_t5x
from lmsi_jax.models.transformer import fresh_params

_REMEDY = "install T5X from its GitHub repository (bench/README.md)"


def _trainer(steps: Steps, parts: int) -> Any:
    import seqio
    from t5x import models, optimizers, partitioning, train_state, trainer

    from lmsi_jax.interop.t5x import T5XDecoder

    optimizer = optimizers.adamw(
        adamw.LEARNING_RATE,
        b1=adamw.B1,
        b2=adamw.B2,
        eps=adamw.EPSILON,
        weight_decay=adamw.WEIGHT_DECAY,
    )
    config = config_of(steps.model, steps.length)
    model = models.DecoderOnlyModel(
        T5XDecoder(config),
        seqio.PassThroughVocabulary(steps.model.vocabulary),
        optimizer_def=optimizer,
        loss_normalizing_factor=steps.predictions,
    )
    shapes = {"decoder_input_tokens": (1, 8)}
    types = {"decoder_input_tokens": jnp.int32}
    variables = model.get_initial_variables(jax.random.key(0), shapes, types)
    state = train_state.FlaxOptimTrainState.create(optimizer, variables)
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    return trainer.Trainer(
        model,
        train_state=state.replace_params(frozen_dict.freeze(fresh_params(config, 0))),
        partitioner=partitioner,
        eval_names=[],
        summary_dir=None,
        train_state_axes=partitioner.get_mesh_axes(state),
        rng=jax.random.PRNGKey(0),
        learning_rate_fn=lambda step: adamw.LEARNING_RATE,  # for its metrics; Optax has its own
        num_microbatches=parts,
    )


def _converted(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """T5X's features: each place's target is the next token; the last has none."""
    weights = np.ones(tokens.shape, np.float32)
    weights[:, -1] = 0.0
    return {
        "decoder_input_tokens": tokens,
        "decoder_target_tokens": np.roll(tokens, -1, axis=1),
        "decoder_loss_weights": weights,
    }


def prepare(steps: Steps, options: argparse.Namespace) -> Ready:
    """Builds T5X's trainer."""
    require("t5x", "tensorboard", remedy=_REMEDY)
    lmsi_t5x.install()
    parts = microbatches(steps, options)
    trainer = _trainer(steps, parts)

    def step(tokens: np.ndarray) -> float:
        metrics = trainer.train(iter([_converted(tokens)]), num_steps=1)
        jax.block_until_ready(trainer.train_state)
        return float(metrics.result()["loss"].value)

    return Ready(
        step=step,
        same_weights=False,
        notes=["our decoder, whose first token sees itself alone in T5X; losses are near ours"],
        packages=("t5x", "jax", "jaxlib", "flax"),
        settings={"microbatches": parts},
    )


if __name__ == "__main__":
    main("t5x", prepare, parser(__doc__, microbatches=16))
