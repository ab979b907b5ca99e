"""The decoder's arithmetic, once, for training and for decoding; Flax declares its parameters.

The functions below take the parameter tree and an `attend` callback. Training passes attention over
a packed batch, the decode loop passes attention over shared caches; everything else is the same
code, for every family of `ModelConfig`.

Precision: states and products have the parameters' type. What adds up or spreads rounding is
float32 whatever that type is: norms, rotary positions, the softmax and the scores of the tokens.

Shapes: N rows of any leading shape, D embed, H query heads, G kv heads, K head dim, F mlp, V vocab.

The gate of the MLP (Shazeer 2020): activation(gate) * up.

Root mean square norms (Zhang and Sennrich 2019), in float32 whatever the type of the states.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from lmsi_jax.config.architecture import ModelConfig
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
from lmsi_jax.models.rotary import Angles, angles_of, layer_angles, rotate

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
    """One layer with the weights p: x [..., D] at positions of `angles_of` -> x [..., D]."""
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
    """What a sequential block's attention adds to x."""
    q, k, v = apply_fused(config, p, "into", norm(config, p["attention_norm"], x))
    out = apply_matrix(p, "attention_out", _attended(config, p, layer, (q, k, v), angles, attend))
    return norm(config, p["attention_post_norm"], out) if config.post_norms else out


def _mlp(config: ModelConfig, p: Params, x: jax.Array) -> jax.Array:
    """What a sequential block's MLP adds to x."""
    gate, up = apply_fused(config, p, "gate_up", norm(config, p["mlp_norm"], x))
    out = apply_matrix(p, "down", gated(config.activation, gate, up))
    return norm(config, p["mlp_post_norm"], out) if config.post_norms else out


def _attended(
    config: ModelConfig,
    p: Params,
    layer: int,
    projections: tuple[jax.Array, jax.Array, jax.Array],
    angles: tuple[Angles, ...],
    attend: Attend,
) -> jax.Array:
    """Query, key and value, heads joined, through `attend`: [..., H * K]."""
    q, k, v = (a.reshape(*a.shape[:-1], -1, config.head_dim) for a in projections)
    if config.qk_norm:
        q, k = norm(config, p["query_norm"], q), norm(config, p["key_norm"], k)
    own = layer_angles(config, layer, angles)
    gain = (config.query_scalar or config.head_dim) ** -0.5
    attended = attend(layer, rotate(q, own) * gain, rotate(k, own), v)
    # Attention is merged in float32, and must not pull the rest of the model along.
    return attended.reshape(*attended.shape[:-2], -1).astype(v.dtype)


def embed(config: ModelConfig, weights: Params, tokens: jax.Array) -> jax.Array:
    """What the first layer reads: tokens [...] -> [..., D]."""
    x = weights["embedding"][tokens]
    # A Python number takes the type of x: so the root is rounded to it, as Gemma was trained.
    return x * config.embed_dim**0.5 if config.scale_embeddings else x


def hidden_states(
    config: ModelConfig,
    weights: Params,
    tokens: jax.Array,
    angles: tuple[Angles, ...],
    attend: Attend,
) -> jax.Array:
    """Runs all layers; tokens [...] and their `angles_of` positions -> normalised states [..., D].

    The angles come from outside so that a loop can take them before it begins: inside, XLA takes
    the cosines anew for every head and layer.

    Args:
      config: the model's shape.
      weights: the parameters as `weights` lays them out.
      tokens: ids.
      angles: of their positions.
      attend: attention.
    """
    x = embed(config, weights, tokens)
    for layer in range(config.num_layers):
        x = block(config, weights[f"layer_{layer}"], layer, x, angles, attend)
    return norm(config, weights["final_norm"], x)


def logits(config: ModelConfig, weights: Params, states: jax.Array) -> jax.Array:
    """Scores of every token: states [..., D] -> [..., V], float32 and soft-capped.

    Rounded to bfloat16, a score of 20 could be 0.06 off, and with it its log-probability.
    """
    scored = weights["embedding" if config.tied_embeddings else "lm_head"]
    return soft_cap(wide_matmul(states, scored, transposed=True), config.logits_softcap)


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
    """Draws the parameter tree that a seed stands for.

    Args:
      config: the model's shape.
      seed: whose numbers they are, wherever they lie.
      shardings: a tree of `jax.sharding.Sharding`: each array is drawn where it is to lie, and no
        device or process ever holds all of them. None: on the default device.
      dtype: of the arrays; they are drawn in float32.
    """

    def drawn(key: jax.Array) -> Params:
        """The tree; compiled always, as rounding differs by an ulp from what is not."""
        params = init_params(config, key)
        return jax.tree.map(lambda array: array.astype(dtype), params)

    draw = jax.jit(drawn) if shardings is None else jax.jit(drawn, out_shardings=shardings)
    return draw(jax.random.key(seed))


def fresh_fingerprint(config: ModelConfig, seed: int) -> str:
    """Returns what identifies `fresh_params`, without drawing them: shape, seed, generator."""
    generator = str(jax.random.key_impl(jax.random.key(seed)))
    drawn = {"model": dataclasses.asdict(config), "seed": seed, "generator": generator}
    return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()


def parameter_shapes(config: ModelConfig, dtype: str = "float32") -> Params:
    """Returns the parameter tree with shapes and types in place of arrays."""
    kind = jnp.dtype(dtype)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, kind), arrays(config))
