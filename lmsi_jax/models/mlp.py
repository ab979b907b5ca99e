"""The gate of the MLP (Shazeer 2020): activation(gate) * up."""

import functools
from collections.abc import Callable

import jax

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
}


def _plain(activation: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    return _ACTIVATIONS[activation](gate) * up


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(activation: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """activation(gate) * up, elementwise; see `ModelConfig.activation`."""
    return _plain(activation, gate, up)


def _backward(
    activation: str, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, pull = jax.vjp(functools.partial(_plain, activation), *kept)
    return pull(gradient)


# Keeps two arrays where JAX would keep five: they are read back slower than computed anew.
gated.defvjp(lambda activation, gate, up: (_plain(activation, gate, up), (gate, up)), _backward)
