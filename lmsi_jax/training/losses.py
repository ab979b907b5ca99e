"""Target-only cross entropy with per-token weights, normalised by their sum."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import Params, logits
from lmsi_jax.training.packed import packed_states

Arrays = dict[str, jax.Array]


def token_losses(config: ModelConfig, params: Params, batch: Arrays) -> jax.Array:
    """Cross entropy in nats of each token given those before it, [B, T]; 0 at row starts.

    Args:
      config: the model's shape.
      params: its parameter tree.
      batch: one microbatch of `packing.Batch`, without the leading axis.
    """
    weights, states = packed_states(config, params, batch)
    scores = logits(config, weights, states[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["tokens"][:, 1:])
    return jnp.pad(losses, ((0, 0), (1, 0)))


def weighted_sums(
    config: ModelConfig, params: Params, batch: Arrays, groups: int
) -> tuple[jax.Array, Any]:
    """Sum of weight * loss over a microbatch; the same, and the weights, by group [groups]."""
    weighted = token_losses(config, params, batch) * batch["weights"]
    member = jax.nn.one_hot(batch["groups"], groups)
    by_group = jnp.einsum("bt,btg->g", weighted, member)
    weights = jnp.einsum("bt,btg->g", batch["weights"], member)
    return weighted.sum(), (by_group, weights)


def loss_and_gradient(
    config: ModelConfig, params: Params, batch: Arrays, groups: int
) -> tuple[jax.Array, Params, jax.Array]:
    """Loss and gradient of a whole step, one microbatch at a time.

    Returns:
      The weighted mean loss over all target tokens, its gradient, and the mean by group (NaN where
      a group has no weight), all float32. Accumulation is exact: sums are divided by the total
      weight at the end, and float32 where the parameters are narrower.
    """
    gradient = jax.value_and_grad(weighted_sums, argnums=1, has_aux=True)

    def add(total: Any, one: Arrays) -> tuple[Any, None]:
        (value, aux), grads = gradient(config, params, one, groups)
        return jax.tree.map(jnp.add, total, (value, aux, grads)), None

    zero = jnp.zeros(())
    none = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    start = (zero, (jnp.zeros(groups), jnp.zeros(groups)), none)
    (value, (by_group, weights), grads), _ = jax.lax.scan(add, start, batch)
    total = jnp.maximum(weights.sum(), 1e-6)
    return value / total, jax.tree.map(lambda g: g / total, grads), by_group / weights
