"""Rotary position embeddings (Su et al. 2021), stretched by a `RopeScaling`.

Shapes: K head dim.
"""

import math

import jax
import jax.numpy as jnp

from lmsi_jax.config import LinearScaling, Llama3Scaling, ModelConfig, RopeScaling, YarnScaling

Angles = tuple[jax.Array, jax.Array]
"""Cosines and sines."""


def angles_of(config: ModelConfig, positions: jax.Array) -> tuple[Angles, ...]:
    """Returns the `rotary_angles` of a model's layers; `layer_angles` picks those of one layer.

    The first are those of most layers; a second follows if local layers have their own base.
    """
    width = config.head_dim
    angles = rotary_angles(positions, width, config.rope_theta, config.rope_scaling)
    if not config.local_rope_theta:
        return (angles,)
    return angles, rotary_angles(positions, width, config.local_rope_theta)


def layer_angles(config: ModelConfig, layer: int, angles: tuple[Angles, ...]) -> Angles:
    """Returns those of `angles_of` that a layer uses."""
    return angles[1 if config.is_local(layer) else 0]


def rotary_angles(
    positions: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Angles:
    """Returns cos and sin [..., 1, K/2] for positions [...], in float32.

    With YaRN both are multiplied by its attention factor.
    """
    angle = positions[..., None, None].astype(jnp.float32) * frequencies(head_dim, theta, scaling)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if isinstance(scaling, YarnScaling):
        gain = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1
        return cos * gain, sin * gain
    return cos, sin


def rotate(x: jax.Array, angles: Angles) -> jax.Array:
    """Rotates x [..., heads, K] by `rotary_angles` in float32; the result has the type of x."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> jax.Array:
    """Returns the angles [K/2] by which one position rotates, float32."""
    plain = theta ** (-jnp.arange(head_dim // 2, dtype=jnp.float32) / (head_dim // 2))
    match scaling:
        case LinearScaling():
            return plain / scaling.factor
        case Llama3Scaling():
            return _interpolate(plain, scaling.factor, _llama3_kept(plain, scaling))
        case YarnScaling():
            return _interpolate(plain, scaling.factor, _yarn_kept(head_dim, theta, scaling))
    return plain


def _interpolate(plain: jax.Array, factor: float, kept: jax.Array) -> jax.Array:
    """Keeps the share `kept` of each frequency and divides the rest by `factor`."""
    return plain * kept + plain / factor * (1 - kept)


def _llama3_kept(plain: jax.Array, scaling: Llama3Scaling) -> jax.Array:
    turns = scaling.original_length * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return jnp.clip((turns - low) / (high - low), 0, 1)


def _yarn_kept(head_dim: int, theta: float, scaling: YarnScaling) -> jax.Array:
    """Returns a ramp over the dimensions (Peng et al. 2023, equation 18, with r at dimensions)."""

    def dimension(turns: float) -> float:
        """Returns the dimension whose frequency turns that often in the original length."""
        angle = 2 * math.pi * turns / scaling.original_length
        return -head_dim / 2 * math.log(angle) / math.log(theta)

    begin, end = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, head_dim - 1)
    # A ramp without length is a step.
    ramp = (jnp.arange(head_dim // 2) - begin) / max(end - begin, 1e-3)
    return 1 - jnp.clip(ramp, 0, 1)
