"""The decoder's arithmetic, once, for training and for decoding; Flax declares its parameters.

The functions below take the parameter tree and an `attend` callback. Training passes attention over
packed rows, the decode step passes attention over shared caches; everything else is the same code,
for every family of `ModelConfig`.

Precision: states and products have the parameters' type. Norms, rotary positions, the softmax and
the logits, which add up or spread rounding errors, are float32 in any case.

Shapes: N rows of any leading shape, D embed, H query heads, G kv heads, K head dim, F mlp, V vocab.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from lmsi_jax.config import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ModelConfig,
    RopeScaling,
    YarnScaling,
)
from lmsi_jax.models.params import (
    Array,
    Params,
    add_outputs,
    apply_fused,
    apply_matrix,
    arrays,
    fuse_projections,
    soft_cap,
    wide_matmul,
)

Angles = tuple[jax.Array, jax.Array]
"""Cosines and sines."""


def angles_of(config: ModelConfig, positions: jax.Array) -> tuple[Angles, ...]:
    """Returns the `rotary_angles` of a model's layers; `layer_angles` picks those of one layer.

    The first are those of most layers; a second follows if local layers have their own base.
    """
    width = config.rotary_dim or config.head_dim
    angles = rotary_angles(positions, width, config.rope_theta, config.rope_scaling)
    if not config.local_rope_theta:
        return (angles,)
    return angles, rotary_angles(positions, width, config.local_rope_theta)


def layer_angles(config: ModelConfig, layer: int, angles: tuple[Angles, ...]) -> Angles | None:
    """Returns those of `angles_of` that a layer uses; None in a layer without rotary positions."""
    if not config.is_rotary(layer):
        return None
    return angles[1 if config.is_local(layer) else 0]


def rotary_angles(
    positions: jax.Array, width: int, theta: float, scaling: RopeScaling | None = None
) -> Angles:
    """Returns cos and sin [..., 1, width/2] for positions [...], in float32.

    With YaRN and LongRoPE both are multiplied by the attention factor.
    """
    angle = positions[..., None, None].astype(jnp.float32) * frequencies(width, theta, scaling)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    match scaling:
        case YarnScaling():
            gain = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1
            return cos * gain, sin * gain
        case LongRopeScaling():
            return cos * scaling.attention_factor, sin * scaling.attention_factor
    return cos, sin


def rotate(x: jax.Array, angles: Angles | None) -> jax.Array:
    """Rotates x [..., heads, K] by `rotary_angles` in float32; the result has the type of x.

    Angles of fewer dimensions than K rotate the first ones; None rotates nothing.
    """
    if angles is None:
        return x
    cos, sin = angles
    if (width := 2 * cos.shape[-1]) < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :width], angles), x[..., width:]], axis=-1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def frequencies(width: int, theta: float, scaling: RopeScaling | None = None) -> jax.Array:
    """Returns the angles [width/2] by which one position rotates, float32."""
    plain = theta ** (-jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    match scaling:
        case LinearScaling():
            return plain / scaling.factor
        case Llama3Scaling():
            return _interpolate(plain, scaling.factor, _llama3_kept(plain, scaling))
        case YarnScaling():
            return _interpolate(plain, scaling.factor, _yarn_kept(width, theta, scaling))
        case LongRopeScaling():
            return plain / jnp.asarray(scaling.divisors, jnp.float32)
    return plain


def _interpolate(plain: jax.Array, factor: float, kept: jax.Array) -> jax.Array:
    """Keeps the share `kept` of each frequency and divides the rest by `factor`."""
    return plain * kept + plain / factor * (1 - kept)


def _llama3_kept(plain: jax.Array, scaling: Llama3Scaling) -> jax.Array:
    turns = scaling.original_length * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return jnp.clip((turns - low) / (high - low), 0, 1)


def _yarn_kept(width: int, theta: float, scaling: YarnScaling) -> jax.Array:
    """Returns a ramp over the dimensions (Peng et al. 2023, equation 18, with r at dimensions)."""

    def dimension(turns: float) -> float:
        """Returns the dimension whose frequency turns that often in the original length."""
        angle = 2 * math.pi * turns / scaling.original_length
        return -width / 2 * math.log(angle) / math.log(theta)

    begin, end = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, width - 1)
    # A ramp without length is a step.
    ramp = (jnp.arange(width // 2) - begin) / max(end - begin, 1e-3)
    return 1 - jnp.clip(ramp, 0, 1)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
}


def _plain(activation: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    return _ACTIVATIONS[activation](gate) * up


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(activation: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """Returns activation(gate) * up (Shazeer 2020), elementwise; see `ModelConfig.activation`."""
    return _plain(activation, gate, up)


def _backward(
    activation: str, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, pull = jax.vjp(functools.partial(_plain, activation), *kept)
    return pull(gradient)


# Keeps two arrays where JAX would keep five: to read those back takes longer than to recompute.
gated.defvjp(lambda activation, gate, up: (_plain(activation, gate, up), (gate, up)), _backward)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float, plus_one: bool = False) -> jax.Array:
    """Divides each row of x [..., D] by its root mean square (Zhang and Sennrich 2019).

    Computed in float32; the result has the type of x.

    Args:
      x: rows.
      scale: [D] factor of each feature.
      epsilon: added to the mean square.
      plus_one: multiply by 1 + scale instead (Gemma).
    """
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    gain = scale.astype(jnp.float32)
    return _scaled(wide * inverse, gain + 1.0 if plus_one else gain).astype(x.dtype)


def norm(config: ModelConfig, scale: jax.Array, x: jax.Array) -> jax.Array:
    """Applies `rms_norm` with a model's settings."""
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


# (layer, query [..., H, K], key [..., G, K], value [..., G, K]) -> [..., H, K]
Attend = Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]


def block(
    config: ModelConfig,
    p: Params,
    layer: int,
    x: jax.Array,
    angles: tuple[Angles, ...],
    attend: Attend,
) -> jax.Array:
    """Runs one layer with the weights p: x [..., D] -> [..., D]; `angles` are of `angles_of`."""
    if config.block == "sequential":
        x += _attention(config, p, layer, x, angles, attend)
        return x + _mlp(config, p, x)
    q, k, v, gate, up = apply_fused(config, p, "into", norm(config, p["norm"], x))
    attended = _attended(config, p, layer, (q, k, v), angles, attend)
    return add_outputs(p, x, attended, gated(config.activation, gate, up))


def _attention(
    config: ModelConfig,
    p: Params,
    layer: int,
    x: jax.Array,
    angles: tuple[Angles, ...],
    attend: Attend,
) -> jax.Array:
    normed = norm(config, p["attention_norm"], x) if config.pre_norms else x
    q, k, v = apply_fused(config, p, "into", normed)
    out = apply_matrix(p, "attention_out", _attended(config, p, layer, (q, k, v), angles, attend))
    return _to_residual(config, p, "attention_post_norm", out)


def _mlp(config: ModelConfig, p: Params, x: jax.Array) -> jax.Array:
    normed = norm(config, p["mlp_norm"], x) if config.pre_norms else x
    gate, up = apply_fused(config, p, "gate_up", normed)
    out = apply_matrix(p, "down", gated(config.activation, gate, up))
    return _to_residual(config, p, "mlp_post_norm", out)


def _to_residual(config: ModelConfig, p: Params, post_norm: str, out: jax.Array) -> jax.Array:
    if config.post_norms:
        out = norm(config, p[post_norm], out)
    return out if config.residual_multiplier == 1.0 else out * config.residual_multiplier


def _attended(
    config: ModelConfig,
    p: Params,
    layer: int,
    projections: tuple[jax.Array, jax.Array, jax.Array],
    angles: tuple[Angles, ...],
    attend: Attend,
) -> jax.Array:
    """Attends with query, key and value, heads still joined: [..., H * K]."""
    q, k, v = projections
    if config.joint_qk_norm:
        q, k = norm(config, p["query_norm"], q), norm(config, p["key_norm"], k)
    q, k, v = (a.reshape(*a.shape[:-1], -1, config.head_dim) for a in (q, k, v))
    if config.qk_norm and not config.joint_qk_norm:
        q, k = norm(config, p["query_norm"], q), norm(config, p["key_norm"], k)
    rotation = layer_angles(config, layer, angles)
    gain = (config.query_scalar or config.head_dim) ** -0.5
    attended = attend(layer, rotate(q, rotation) * gain, rotate(k, rotation), v)
    # Attention is merged in float32, and must not widen the rest of the model.
    return attended.reshape(*attended.shape[:-2], -1).astype(v.dtype)


def embed(config: ModelConfig, weights: Params, tokens: jax.Array) -> jax.Array:
    """Returns the input of the first layer: tokens [...] -> [..., D]."""
    x = weights["embedding"][tokens]
    # A Python number takes the type of x: the root is rounded to it, as in Gemma's training.
    x = x * config.embed_dim**0.5 if config.scale_embeddings else x
    return x if config.embedding_multiplier == 1.0 else x * config.embedding_multiplier


def hidden_states(
    config: ModelConfig,
    weights: Params,
    tokens: jax.Array,
    angles: tuple[Angles, ...],
    attend: Attend,
) -> jax.Array:
    """Runs all layers: tokens [...] -> normalised states [..., D].

    The angles are an argument so that a loop can compute them before it begins: inside, XLA
    computes the cosines anew for every head and layer.

    Args:
      config: the model's shape.
      weights: the parameters, fused or split (`models.params`).
      tokens: ids.
      angles: `angles_of` their positions.
      attend: the attention callback.
    """
    x = embed(config, weights, tokens)
    for layer in range(config.num_layers):
        x = block(config, weights[f"layer_{layer}"], layer, x, angles, attend)
    return norm(config, weights["final_norm"], x)


def apply_layers(
    config: ModelConfig,
    layer: Callable[[Params, int, Any], Any],
    weights: Params,
    states: Any,
) -> Any:
    """Runs a layer function over all layers, as `remat` and `scan_layers` say.

    Args:
      config: the model's shape, and how its layers are run.
      layer: (the layer's weights, its place in `ModelConfig.layer_cycle`, states) -> states.
      weights: the parameters, prepared for the layer function.
      states: before the first layer.

    Returns:
      The states after the last layer.
    """
    # Within a scan XLA cannot merge the recomputation with the forward pass anyway.
    prevent_cse = not config.scan_layers
    if config.remat == "layer":
        layer = jax.checkpoint(layer, prevent_cse=prevent_cse, static_argnums=(1,))
    elif config.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        layer = jax.checkpoint(layer, prevent_cse=prevent_cse, policy=policy, static_argnums=(1,))

    period = config.layer_cycle
    by_layer = [weights[f"layer_{number}"] for number in range(config.num_layers)]
    scanned = config.num_layers // period * period if config.scan_layers else 0

    def cycle(states: Any, weights: list[Params]) -> tuple[Any, None]:
        for place, p in enumerate(weights):
            states = layer(p, place, states)
        return states, None

    if scanned:  # one iteration is one cycle, compiled once
        stacked = [
            jax.tree.map(lambda *each: jnp.stack(each), *by_layer[place:scanned:period])
            for place in range(period)
        ]
        states, _ = jax.lax.scan(cycle, states, stacked)
    for number in range(scanned, config.num_layers):
        states = layer(by_layer[number], number % period, states)
    return states


def logits(config: ModelConfig, weights: Params, states: jax.Array) -> jax.Array:
    """Returns the logits of every token: states [..., D] -> [..., V], float32 and soft-capped.

    Rounded to bfloat16, a logit of 20 could be 0.06 off, and with it its log-probability.
    """
    table = weights["embedding" if config.tied_embeddings else "lm_head"]
    scores = wide_matmul(states, table, transposed=True)
    scores = scores if config.logits_divisor == 1.0 else scores / config.logits_divisor
    return soft_cap(scores, config.logits_softcap)


class Decoder(nn.Module):
    """Declares the parameters, with T5X's axis names, and computes logits for packed batches."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, positions: jax.Array, attend: Attend) -> jax.Array:
        """tokens, positions [B, T] -> logits [B, T, V]."""
        c = self.config
        params: Params = {
            name: _declared(name, one) if isinstance(one, Array) else _Arrays(one, name=name)()
            for name, one in arrays(c).items()
        }
        fused = fuse_projections(c, params)
        states = hidden_states(c, fused, tokens, angles_of(c, positions), attend)
        return logits(c, fused, states)


class _Arrays(nn.Module):
    """Declares arrays under a name of their own."""

    arrays: dict[str, Array]

    @nn.compact
    def __call__(self) -> Params:
        return {name: _declared(name, array) for name, array in self.arrays.items()}


def _declared(name: str, array: Array) -> jax.Array:
    """Declares an array in the module that is being set up."""
    if array.deviation is None:
        draw = nn.initializers.constant(array.constant)
    else:
        draw = nn.initializers.normal(array.deviation)
    return partitioning.param_with_axes(name, draw, array.shape, jnp.float32, axes=array.axes)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Draws a fresh parameter tree, float32."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = Decoder(config).init(key, tokens, tokens, lambda layer, q, k, v: q)
    return nn.unbox(variables["params"])


def fresh_params(
    config: ModelConfig, seed: int, shardings: Any = None, dtype: str = "float32"
) -> Params:
    """Draws the parameter tree of a seed.

    Args:
      config: the model's shape.
      seed: fixes the numbers, whatever the shardings.
      shardings: a tree of `jax.sharding.Sharding`: each array is drawn in place, and no device or
        process ever holds all of them. None: on the default device.
      dtype: type of the arrays; they are drawn in float32.
    """

    # Compiled in any case: uncompiled, rounding differs by an ulp.
    def draw_tree(key: jax.Array) -> Params:
        params = init_params(config, key)
        return jax.tree.map(lambda array: array.astype(dtype), params)

    draw = jax.jit(draw_tree) if shardings is None else jax.jit(draw_tree, out_shardings=shardings)
    return draw(jax.random.key(seed))


def fresh_fingerprint(config: ModelConfig, seed: int) -> str:
    """Returns a hash of shape, seed and generator, which identifies `fresh_params` undrawn."""
    generator = str(jax.random.key_impl(jax.random.key(seed)))
    identity = {"model": dataclasses.asdict(config), "seed": seed, "generator": generator}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def parameter_shapes(config: ModelConfig, dtype: str = "float32") -> Params:
    """Returns the parameter tree with shapes and types in place of arrays."""
    kind = jnp.dtype(dtype)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, kind), arrays(config))
