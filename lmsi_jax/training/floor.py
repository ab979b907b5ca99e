"""The least time that a training step takes: its matrix products over the rate of the machine."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.models.config import ModelConfig
from lmsi_jax.training.packing import Batch


def step_flops(config: ModelConfig, parameters: int, batch: Batch) -> float:
    """Returns the FLOPs of a step, forward and backward.

    6 for each parameter and token (Kaplan et al. 2020, section 2.1), and for each token and key
    that it sees 12 times the width of all heads a layer: two products, three times. A prefix
    counts once for all rows behind it; padding does not count, nor does a table of embeddings that
    only looks up.

    Args:
      config: the model's shape.
      parameters: how many it has.
      batch: a step's batch, see `packing.Batch`, in NumPy.
    """
    real = batch["segments"] > 0
    prefixes = np.ravel(batch["prefix_length"]).astype(np.int64)
    tokens = int(real.sum()) + int(prefixes.sum())
    places = [batch["positions"][real], *(np.arange(size) for size in prefixes)]
    keys = np.concatenate(places).astype(np.int64) + 1
    seen = 0
    for layer in range(config.num_layers):
        window = config.window(layer)
        seen += int((np.minimum(keys, window) if window else keys).sum())
    looked_up = 0 if config.tied_embeddings else config.vocab_size * config.embed_dim
    return (
        6.0 * (parameters - looked_up) * tokens + 12.0 * config.num_heads * config.head_dim * seen
    )


def matmul_rate(dtype: Any = jnp.float32, devices: int = 1) -> float:
    """Returns FLOP/s of a large matrix product on `devices` devices like the first one.

    The best of a few: some hundredths of a second on a CPU. A busy machine gives too low a rate,
    and with it too high a ratio.
    """
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return devices * 2.0 * size**3 / max(min(seconds), 1e-9)
