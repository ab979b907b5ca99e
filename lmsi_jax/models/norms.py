"""Root mean square norms (Zhang and Sennrich 2019), in float32 whatever the type of the states."""

import jax
import jax.numpy as jnp

from lmsi_jax.models.config import ModelConfig


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float, plus_one: bool = False) -> jax.Array:
    """Divides each row of x [..., D] by its root mean square, in float32; the type is x's.

    Args:
      x: rows.
      scale: [D] what each place is multiplied by.
      epsilon: added to the mean square.
      plus_one: multiply by 1 + scale instead (Gemma).
    """
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    gain = scale.astype(jnp.float32)
    return _scaled(wide * inverse, gain + 1.0 if plus_one else gain).astype(x.dtype)


def norm(config: ModelConfig, scale: jax.Array, x: jax.Array) -> jax.Array:
    """`rms_norm` as a model has it."""
    return rms_norm(x, scale, config.norm_epsilon, config.norm_plus_one)


@jax.custom_vjp
def _scaled(rows: jax.Array, scale: jax.Array) -> jax.Array:
    return rows * scale


def _scaled_backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    rows, scale = kept
    each = (gradient * rows).reshape(-1, scale.shape[0])
    # A sum over rows as a product: XLA's own takes ten times as long on CPUs.
    ones = jnp.ones((1, each.shape[0]), each.dtype)
    return gradient * scale, jnp.matmul(ones, each, precision="highest")[0]


_scaled.defvjp(lambda rows, scale: (rows * scale, (rows, scale)), _scaled_backward)
