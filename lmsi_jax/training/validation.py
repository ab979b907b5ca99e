"""Examples held out of a round's training, and the loss on them.

A hash of the question decides, so the split depends neither on the seed nor on the order, and no
question has examples on both sides.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from lmsi_jax.config import ModelConfig, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models import sharding
from lmsi_jax.models.params import Params, cast_params
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
      count: least number of examples to hold out, if there are that many.

    Returns:
      (the sources without the held-out examples, those in the order of their hashes).

    Raises:
      LmsiError: a source would have no example left.
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
    rest = {name: [row for row in rows if row.uid not in taken] for name, rows in sources.items()}
    for name, rows in sources.items():
        if rows and not rest[name]:
            raise LmsiError(
                f"Training.validation_count = {count} leaves none of the {len(rows)} {name} "
                "examples to train on; lower it"
            )
    return rest, held_out


def _hash(uid: str) -> bytes:
    return hashlib.sha256(uid.encode()).digest()


class Validation:
    """The loss on held-out rows; false if there are none.

    Args:
      config: the model's shape.
      training: the batch shape and the mesh.
      rows: the held-out rows; they stay in the host's memory, packed.
    """

    def __init__(self, config: ModelConfig, training: Training, rows: Iterable[packing.Row]):
        self._config, self._training = config, training
        shape = dataclasses.replace(batch_shape(training), top_k=0)
        microbatches = list(packing.microbatches(rows, shape))
        if microbatches:  # empty ones fill the last step
            empty = {name: np.zeros_like(array) for name, array in microbatches[0].items()}
            microbatches += [empty] * (-len(microbatches) % shape.microbatches)
        self._batches = list(packing.stack_microbatches(microbatches, shape.microbatches))

    def __bool__(self) -> bool:
        return bool(self._batches)

    def loss(self, params: Params) -> float:
        """Returns the weighted mean cross entropy of the target tokens, in nats.

        Args:
          params: the plain model, placed as the training's.
        """
        mesh = sharding.make_training_mesh(self._training)
        totals = np.zeros(2)
        for batch in self._batches:
            placed = sharding.shard_batch(mesh, batch)
            totals += np.asarray(_sums(self._config, self._training, params, placed), np.float64)
        return float(totals[0] / totals[1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(
    config: ModelConfig, training: Training, params: Params, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Sums the weighted cross entropy and the weights of a step's batch."""
    mesh = sharding.make_training_mesh(training)

    def microbatch_sums(microbatch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, sums = weighted_sums(config, weights, microbatch, 1)
        return sums.cross_entropy, microbatch["weights"].sum()

    with mesh.context():
        weights = prepare_weights(config, cast_params(params, training.compute_dtype))
        entropies, totals = jax.lax.map(microbatch_sums, batch)
        return sharding.replicate(mesh, (entropies.sum(), totals.sum()))
