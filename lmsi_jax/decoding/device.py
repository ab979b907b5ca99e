"""What an engine keeps on its devices from run to run, whatever is decoded."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.decoding.layout import Decoding
from lmsi_jax.decoding.spread import Spread, lanes_sharding
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import Params

Chunk = tuple[np.ndarray, np.ndarray]
"""Tokens and their log-probabilities, [W, steps] each."""


class Device:
    """What stays on the devices from run to run.

    Attributes:
      config: the model's shape.
      spread: the mesh.
      weights: from `spread.decoding_weights`.
      decoding: the layout.
      proven: programs of fewer rows that were tried, and whether they repeated a full chunk bit by
        bit.
      trace: a checksum of all chunks so far; processes that do the same have the same.
    """

    def __init__(self, config: ModelConfig, spread: Spread, weights: Params, decoding: Decoding):
        self.config, self.spread, self.weights, self.decoding = config, spread, weights, decoding
        self.proven: dict[tuple, bool] = {}
        self.trace = 0

    def note(self, chunk: Chunk) -> None:
        """Adds a chunk to the trace."""
        for array in chunk:
            self.trace = zlib.crc32(array.tobytes(), self.trace)

    def zeros(self, shape: tuple[int, ...], dtype: str | None = None) -> jax.Array:
        """Zeros with `shape` in each device group; caches have their kv heads on axis 1."""
        shape = (self.spread.groups * shape[0], *shape[1:])
        kind = jnp.dtype(dtype or self.decoding.dtype)
        heads = shape[1] if len(shape) > 1 else 1
        return jnp.zeros(shape, kind, device=lanes_sharding(self.spread, heads))
