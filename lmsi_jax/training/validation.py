"""Examples that are held out of a round's training, and the loss on them.

What is held out is read off a hash of the question, so it depends neither on the seed nor on the
order, and no question has examples on both sides.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from lmsi_jax.config.architecture import ModelConfig
from lmsi_jax.config.optimization import Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models import sharding
from lmsi_jax.models.params import Params
from lmsi_jax.records import Example
from lmsi_jax.training import packing
from lmsi_jax.training.forward import prepare_weights
from lmsi_jax.training.losses import weighted_sums
from lmsi_jax.training.packing import batch_shape

Sources = dict[str, list[Example]]


def split(sources: Mapping[str, Sequence[Example]], count: int) -> tuple[Sources, list[Example]]:
    """Holds out whole questions, in the order of their hashes, until there are enough examples.

    Args:
      sources: examples by source, "self_generated" and "human".
      count: how many to hold out at least, where there are that many.

    Returns:
      (what is left of the sources, what is held out in the order of its hashes).

    Raises:
      LmsiError: nothing would be left of a source.
    """
    by_question: dict[str, list[Example]] = {}
    for example in (example for rows in sources.values() for example in rows):
        by_question.setdefault(example.uid, []).append(example)
    held_out: list[Example] = []
    taken: set[str] = set()
    for uid in sorted(by_question, key=_hash):
        if len(held_out) >= count:
            break
        held_out += by_question[uid]
        taken.add(uid)
    left = {name: [row for row in rows if row.uid not in taken] for name, rows in sources.items()}
    for name, rows in sources.items():
        if rows and not left[name]:
            raise LmsiError(
                f"Training.validation_count = {count} leaves none of the {len(rows)} {name} "
                "examples to train on; lower it"
            )
    return left, held_out


def _hash(uid: str) -> bytes:
    return hashlib.sha256(uid.encode()).digest()


class Validation:
    """The loss on rows that are not trained on; false where there are none.

    Args:
      config: the model's shape.
      training: the batch shape and the mesh.
      rows: what is held out; they are kept in the host's memory, packed.
    """

    def __init__(self, config: ModelConfig, training: Training, rows: Iterable[packing.Row]):
        self._config, self._training = config, training
        shape = dataclasses.replace(batch_shape(training), top_k=0)
        self._batches = list(
            _stack_microbatches(packing.microbatches(rows, shape), shape.microbatches)
        )

    def __bool__(self) -> bool:
        return bool(self._batches)

    def loss(self, params: Params) -> float:
        """Mean cross entropy over the target tokens, by their weights, in nats.

        Args:
          params: the plain model, placed as the training's.
        """
        totals = np.zeros(2)
        for batch in self._batches:
            fed = sharding.shard_batch(self._training, batch)
            totals += np.asarray(_sums(self._config, self._training, params, fed), np.float64)
        return float(totals[0] / totals[1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(
    config: ModelConfig, training: Training, params: Params, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Weighted cross entropy and weights of a step's batch."""

    def one(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, sums = weighted_sums(config, weights, batch, 1)
        return sums.cross_entropy, batch["weights"].sum()

    with sharding.mesh_context(training):
        weights = prepare_weights(config, sharding.cast_params(training, params))
        entropies, totals = jax.lax.map(one, batch)
        return sharding.replicate_over_mesh(training, (entropies.sum(), totals.sum()))


def _stack_microbatches(
    microbatches: Iterable[packing.Batch], count: int
) -> Iterable[packing.Batch]:
    """Steps of `count` microbatches; empty ones fill the last."""
    found = list(microbatches)
    if found:
        empty = {name: np.zeros_like(array) for name, array in found[0].items()}
        found += [empty] * (-len(found) % count)
    return packing.stack_microbatches(found, count)
