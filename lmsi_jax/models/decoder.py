"""The decoder's arithmetic, once, for training and for decoding; Flax declares its parameters.

The functions below take the parameter tree and an `attend` callback. Training passes attention over
a packed batch, the decode loop passes attention over shared caches; everything else is the same
code.

Precision: states and products have the parameters' type. What adds up or spreads rounding is
float32 whatever that type is: norms, rotary positions, the softmax and the scores of the tokens.

Shapes: N rows of any leading shape, D embed, H query heads, G kv heads, K head dim, F mlp, V vocab.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from lmsi_jax.models.config import ModelConfig

Params = dict[str, Any]
# (layer, query [..., H, K], key [..., G, K], value [..., G, K]) -> [..., H, K]
Attend = Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]


_INTO = ("query", "key", "value", "gate", "up")


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Divides each row of x [..., D] by its root mean square, in float32; the type is x's."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return _scaled(wide * inverse, scale.astype(jnp.float32)).astype(x.dtype)


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


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin [..., 1, K/2] for positions [...], in float32 (Su et al. 2021)."""
    frequency = theta ** (-jnp.arange(head_dim // 2, dtype=jnp.float32) / (head_dim // 2))
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x [..., heads, K] by `rotary_angles`, in float32; the type is x's."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def angles_of(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`rotary_angles` of a model's heads."""
    return rotary_angles(positions, config.head_dim, config.rope_theta)


def soft_cap(scores: jax.Array, cap: float) -> jax.Array:
    """Keeps scores within -cap and cap, in their own type; 0.0 leaves them alone (Gemma 2)."""
    return cap * jnp.tanh(scores / cap) if cap else scores


def _product(turned: bool, a: jax.Array, b: jax.Array, **how: Any) -> jax.Array:
    """a @ b, or a @ b's transpose, as one product that names the axes: a transpose before it
    would be carried out."""
    batch = tuple(range(b.ndim - 2))
    axes = (((a.ndim - 1,), (b.ndim - (1 if turned else 2),)), (batch, batch))
    return jax.lax.dot_general(a, b, axes, **how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide(turned: bool, a: jax.Array, b: jax.Array) -> jax.Array:
    return _product(turned, a, b, preferred_element_type=jnp.float32)


def _wide_backward(
    turned: bool, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, pull = jax.vjp(functools.partial(_product, turned), *operands)
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
    return _product(turned, a, b) if a.dtype == jnp.float32 else _wide(turned, a, b)


def fuse(config: ModelConfig, params: Params) -> Params:
    """Joins each layer's projections into one matrix in and one out: two matmuls, not seven.

    The parallel block reads one normalised input, so query, key, value, gate and up are one
    product, and the two outputs are one sum.
    """
    fused = {"embedding": params["embedding"], "final_norm": params["final_norm"]["scale"]}
    for layer in range(config.num_layers):
        p = params[f"layer_{layer}"]
        fused[f"layer_{layer}"] = {
            "norm": p["norm"],
            "into": jnp.concatenate([p[name] for name in _INTO], axis=1),
            "out": jnp.concatenate([p["attention_out"], p["down"]], axis=0),
        }
    return fused


def turned(config: ModelConfig, fused: Params) -> Params:
    """`fuse`'s tree with the layers' matrices stored [out, in].

    Equally fast, and XLA's kernels for CPUs then give a row of the product the same bits whatever
    the number of rows; as [in, out] they change below 48 rows.
    """
    layers = {f"layer_{layer}": dict(fused[f"layer_{layer}"]) for layer in range(config.num_layers)}
    for layer in layers.values():
        layer |= {f"{name}_turned": layer.pop(name).T for name in ("into", "out")}
    return fused | layers


def _projected(config: ModelConfig, p: Params, normed: jax.Array) -> list[jax.Array]:
    """Query, key, value, gate and up of normalised rows, from one product or from five."""
    if "query" in p:
        return [normed @ p[name] for name in _INTO]
    heads, groups, width = config.num_heads, config.num_kv_heads, config.head_dim
    sizes = [heads * width, groups * width, groups * width, config.mlp_dim, config.mlp_dim]
    joined = normed @ p["into"] if "into" in p else _product(True, normed, p["into_turned"])
    return jnp.split(joined, [sum(sizes[: i + 1]) for i in range(4)], axis=-1)


def block(
    config: ModelConfig, p: Params, layer: int, x: jax.Array, angles: Any, attend: Attend
) -> jax.Array:
    """One layer with the weights p: x [..., D] at positions of `angles` -> x [..., D]."""
    normed = rms_norm(x, p["norm"], config.norm_epsilon)
    q, k, v, gate, up = _projected(config, p, normed)
    q, k, v = (a.reshape(*a.shape[:-1], -1, config.head_dim) for a in (q, k, v))
    attended = attend(layer, rotate(q, angles) * config.head_dim**-0.5, rotate(k, angles), v)
    # Attention is merged in float32, and must not pull the rest of the model along.
    attended = attended.reshape(*x.shape[:-1], -1).astype(x.dtype)
    hidden = gated(gate, up)
    if "attention_out" in p:
        return x + attended @ p["attention_out"] + hidden @ p["down"]
    both = jnp.concatenate([attended, hidden], axis=-1)
    return x + (both @ p["out"] if "out" in p else _product(True, both, p["out_turned"]))


@jax.custom_vjp
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """The MLP's hidden units: silu(gate) * up (Shazeer 2020, section 2)."""
    return nn.silu(gate) * up


def _gated_backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    gate, up = kept
    share = jax.nn.sigmoid(gate)
    return gradient * up * share * (1 + gate * (1 - share)), gradient * gate * share


# Keeps two arrays where JAX would keep five: they are read back slower than computed anew.
gated.defvjp(lambda gate, up: (gated(gate, up), (gate, up)), _gated_backward)


def hidden_states(
    config: ModelConfig,
    fused: Params,
    tokens: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    attend: Attend,
) -> jax.Array:
    """Runs all layers; tokens [...] and their `angles_of` positions -> normalised states [..., D].

    The angles come from outside so that a loop can take them before it begins: inside, XLA takes
    the cosines anew for every head and layer.
    """
    x = fused["embedding"][tokens]
    for layer in range(config.num_layers):
        x = block(config, fused[f"layer_{layer}"], layer, x, angles, attend)
    return rms_norm(x, fused["final_norm"], config.norm_epsilon)


def split_weights(config: ModelConfig, params: Params) -> Params:
    """`fuse`'s tree with the projections apart: for devices that hold a part of each."""
    layers = {f"layer_{layer}": params[f"layer_{layer}"] for layer in range(config.num_layers)}
    own = {"embedding": params["embedding"], "final_norm": params["final_norm"]["scale"]}
    return own | layers


def logits(config: ModelConfig, fused: Params, states: jax.Array) -> jax.Array:
    """Scores of every token: states [..., D] -> [..., V], float32 and soft-capped.

    Rounded to bfloat16, a score of 20 could be 0.06 off, and with it its log-probability.
    """
    return soft_cap(wide_matmul(states, fused["embedding"], turned=True), config.logits_softcap)


class Decoder(nn.Module):
    """Declares the parameters, with T5X's axis names, and computes logits for packed batches."""

    config: ModelConfig

    def _layer(self, layer: int) -> Params:
        c = self.config
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        shapes = {
            "query": ((c.embed_dim, queries), ("embed", "joined_kv")),
            "key": ((c.embed_dim, keys), ("embed", "kv")),
            "value": ((c.embed_dim, keys), ("embed", "kv")),
            "gate": ((c.embed_dim, c.mlp_dim), ("embed", "mlp")),
            "up": ((c.embed_dim, c.mlp_dim), ("embed", "mlp")),
            "attention_out": ((queries, c.embed_dim), ("joined_kv", "embed")),
            "down": ((c.mlp_dim, c.embed_dim), ("mlp", "embed")),
        }
        return _Matrices(shapes, c.embed_dim, c.num_layers, name=f"layer_{layer}")()

    @nn.compact
    def __call__(self, tokens: jax.Array, positions: jax.Array, attend: Attend) -> jax.Array:
        """tokens, positions [B, T] -> logits [B, T, V]."""
        c = self.config
        params: Params = {
            "embedding": partitioning.param_with_axes(
                "embedding",
                nn.initializers.normal(c.embed_dim**-0.5),
                (c.vocab_size, c.embed_dim),
                jnp.float32,
                axes=("vocab", "embed"),
            ),
            "final_norm": _Scale(c.embed_dim, name="final_norm")(),
        }
        params |= {f"layer_{i}": self._layer(i) for i in range(c.num_layers)}
        fused = fuse(c, params)
        states = hidden_states(c, fused, tokens, angles_of(c, positions), attend)
        return logits(c, fused, states)


class _Scale(nn.Module):
    width: int

    @nn.compact
    def __call__(self) -> Params:
        ones = nn.initializers.ones
        return {
            "scale": partitioning.param_with_axes(
                "scale", ones, (self.width,), jnp.float32, axes=("embed",)
            )
        }


class _Matrices(nn.Module):
    """One layer's matrices; those that write to the residual stream start smaller with depth."""

    shapes: Any
    width: int
    depth: int

    @nn.compact
    def __call__(self) -> Params:
        made = {}
        for name, (shape, axes) in self.shapes.items():
            gain = shape[0] ** -0.5 / ((2 * self.depth) ** 0.5 if axes[1] == "embed" else 1.0)
            made[name] = partitioning.param_with_axes(
                name, nn.initializers.normal(gain), shape, jnp.float32, axes=axes
            )
        made["norm"] = partitioning.param_with_axes(
            "norm", nn.initializers.ones, (self.width,), jnp.float32, axes=("embed",)
        )
        return made


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Draws a fresh parameter tree, float32."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = Decoder(config).init(key, tokens, tokens, lambda layer, q, k, v: q)
    return nn.unbox(variables["params"])


def fresh_params(config: ModelConfig, seed: int) -> Params:
    """Draws the parameter tree that a seed stands for."""
    return init_params(config, jax.random.key(seed))


def parameter_shapes(config: ModelConfig) -> Params:
    """Returns the parameter tree with shapes and types in place of arrays."""
    return jax.eval_shape(lambda: fresh_params(config, 0))
