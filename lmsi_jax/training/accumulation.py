"""Sums and gradients over the microbatches of a step, one at a time, in float32."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import Params
from lmsi_jax.training.packed import laid_out, with_angles

Objective = Callable[[Params, dict[str, jax.Array]], tuple[jax.Array, Any]]
"""(what is differentiated, one microbatch) -> a sum to minimise, and sums to report."""


def accumulated(objective: Objective, trained: Params, batch: Any) -> tuple[Any, Params]:
    """Adds up an objective's sums, and its gradient with regard to `trained`.

    Args:
      objective: of one microbatch; its sums are means once they are divided by what it counts.
      trained: what it is differentiated by; the gradient is float32 whatever its type.
      batch: arrays of M microbatches, [M, ...] each.

    Returns:
      The sums to report, and the gradient of the sum to minimise.
    """
    gradient = jax.grad(objective, has_aux=True)

    def add(total: Any, one: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(trained, one)), None

    first = jax.tree.map(lambda array: array[0], batch)
    shapes = jax.eval_shape(gradient, trained, first)
    none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    (grads, sums), _ = jax.lax.scan(add, none, batch)
    return sums, grads


def by_parameters(
    config: ModelConfig, params: Params, objective: Objective, batch: Any
) -> tuple[Any, Params]:
    """`accumulated` with regard to the parameters, which are laid out once for all microbatches."""
    weights = laid_out(config, params)
    sums, grads = accumulated(objective, weights, with_angles(config, weights, batch))
    wide = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), params)
    (of_params,) = jax.linear_transpose(lambda p: laid_out(config, p), wide)(grads)
    return sums, of_params
