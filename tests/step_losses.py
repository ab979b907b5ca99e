"""A step's losses and gradient without its optimiser, as the trainer's parts give them."""

import jax

from lmsi_jax.config import Loss, ModelConfig
from lmsi_jax.models.params import Params
from lmsi_jax.training.forward import parameter_gradients
from lmsi_jax.training.losses import Arrays, Sums, Teacher, normalize_sums, weighted_sums

_PLAIN = Loss()


def step_losses(
    config: ModelConfig,
    params: Params,
    batch: Arrays,
    groups: int,
    loss: Loss = _PLAIN,
    teacher: Teacher | None = None,
) -> tuple[Sums, Params]:
    """Losses and gradient of a whole step, one microbatch at a time.

    Returns:
      The weighted means over all target tokens (by group NaN where a group has no weight), and the
      gradient of the optimised one, all float32. Accumulation is exact: sums are divided by the
      total weight at the end, and float32 where the parameters are narrower.
    """

    def objective(weights: Params, one: Arrays) -> tuple[jax.Array, Sums]:
        return weighted_sums(config, weights, one, groups, loss, teacher)

    return normalize_sums(*parameter_gradients(config, params, objective, batch))


def loss_and_gradient(
    config: ModelConfig,
    params: Params,
    batch: Arrays,
    groups: int,
    loss: Loss = _PLAIN,
    teacher: Teacher | None = None,
) -> tuple[jax.Array, Params, jax.Array]:
    """The cross entropy of a step, the optimised loss' gradient, and the cross entropy by group.

    See `step_losses`, which also gives the optimised loss.
    """
    means, gradient = step_losses(config, params, batch, groups, loss, teacher)
    return means.cross_entropy, gradient, means.by_group
