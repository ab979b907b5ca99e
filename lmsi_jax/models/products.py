"""Products whose sums are float32 and whose operands stay as narrow as they are; soft caps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def soft_cap(scores: jax.Array, cap: float) -> jax.Array:
    """Keeps scores within -cap and cap, in their own type; 0.0 leaves them alone (Gemma 2)."""
    return cap * jnp.tanh(scores / cap) if cap else scores


def product(turned: bool, a: jax.Array, b: jax.Array, **how: Any) -> jax.Array:
    """a @ b, or a @ b's transpose, as one product that names the axes: a transpose before it
    would be carried out."""
    batch = tuple(range(b.ndim - 2))
    axes = (((a.ndim - 1,), (b.ndim - (1 if turned else 2),)), (batch, batch))
    return jax.lax.dot_general(a, b, axes, **how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide(turned: bool, a: jax.Array, b: jax.Array) -> jax.Array:
    return product(turned, a, b, preferred_element_type=jnp.float32)


def _wide_backward(
    turned: bool, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, pull = jax.vjp(functools.partial(product, turned), *operands)
    return pull(gradient.astype(operands[0].dtype))


# Left to itself, JAX would multiply the float32 gradient by float32 copies of the operands.
_wide.defvjp(lambda turned, a, b: (_wide(turned, a, b), (a, b)), _wide_backward)


def wide_matmul(a: jax.Array, b: jax.Array, turned: bool = False) -> jax.Array:
    """a @ b of one float type, with sums and result in float32; the gradient's products likewise.

    No operand is widened: bfloat16 matrices are multiplied as such, forward and backward.

    Args:
      a: [..., n, K], or [..., K] where b has two axes.
      b: [..., K, m]; with `turned` [..., m, K].
      turned: as fast, and on XLA's CPU back end a row's bits are then the same whatever n.
    """
    return product(turned, a, b) if a.dtype == jnp.float32 else _wide(turned, a, b)
