"""The parameter tree: shapes, axes and initialisers; and the products with its matrices.

`arrays` declares the tree; axis names are T5X's, and `sharding.RULES` maps them to a mesh. For
computing, a layer's matrices are fused (`fuse_projections`), fused and transposed
(`transpose_weights`), or apart (`split_weights`); `apply_matrix` and `apply_fused` multiply by them
in any of these forms.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from lmsi_jax.config import ModelConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of the parameter tree.

    Attributes:
      shape: sizes of its axes.
      axes: their names.
      deviation: standard deviation of its initial normal distribution; None: all are `constant`.
      constant: initial value of a norm or a bias.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    deviation: float | None = None
    constant: float = 0.0


def arrays(config: ModelConfig) -> dict[str, Array | dict[str, Array]]:
    """Returns the parameter tree with an `Array` in place of each array.

    Within a level the order is that of the arrays' random keys.
    """
    tree: dict[str, Array | dict[str, Array]] = {"embedding": _table(config)}
    if not config.tied_embeddings:
        tree["lm_head"] = _table(config)
    tree["final_norm"] = {"scale": _scale(config, config.embed_dim, "embed")}
    layers = {f"layer_{layer}": _layer(config) for layer in range(config.num_layers)}
    return tree | layers


def _table(config: ModelConfig) -> Array:
    shape = (config.vocab_size, config.embed_dim)
    return Array(shape, ("vocab", "embed"), deviation=config.embed_dim**-0.5)


def _scale(config: ModelConfig, width: int, axis: str) -> Array:
    # A norm starts as the identity.
    return Array((width,), (axis,), constant=0.0 if config.norm_plus_one else 1.0)


def _layer(config: ModelConfig) -> dict[str, Array]:
    """Returns a layer's arrays by name; matrices are [in, out]."""
    matrices = _matrices(config)
    biases = {
        f"{name}_bias": Array(matrix.shape[1:], matrix.axes[1:])
        for name, matrix in matrices.items()
        if name in config.biases
    }
    return matrices | _norms(config) | biases


def _matrices(config: ModelConfig) -> dict[str, Array]:
    queries = config.num_heads * config.head_dim, "joined_kv"
    keys = config.num_kv_heads * config.head_dim, "kv"
    embed, mlp = (config.embed_dim, "embed"), (config.mlp_dim, "mlp")
    sides = {
        "query": (embed, queries),
        "key": (embed, keys),
        "value": (embed, keys),
        "gate": (embed, mlp),
        "up": (embed, mlp),
        "attention_out": (queries, embed),
        "down": (mlp, embed),
    }

    def matrix(into: tuple[int, str], out: tuple[int, str]) -> Array:
        # Those that write to the residual stream start smaller with depth.
        gain = (2 * config.num_layers) ** 0.5 if out == embed else 1.0
        shape, axes = (into[0], out[0]), (into[1], out[1])
        return Array(shape, axes, deviation=into[0] ** -0.5 / gain)

    return {name: matrix(*both) for name, both in sides.items()}


def _norms(config: ModelConfig) -> dict[str, Array]:
    names = ["norm"] if config.block == "parallel" else []
    if config.block == "sequential" and config.pre_norms:
        names = ["attention_norm", "mlp_norm"]
    if config.post_norms:
        names += ["attention_post_norm", "mlp_post_norm"]
    norms = {name: _scale(config, config.embed_dim, "embed") for name in names}
    if config.qk_norm:
        sides = {"query_norm": (config.num_heads, "joined_kv")}
        sides["key_norm"] = (config.num_kv_heads, "kv")
        for name, (heads, axis) in sides.items():
            norms[name] = (
                _scale(config, heads * config.head_dim, axis)
                if config.joint_qk_norm
                else _scale(config, config.head_dim, "head_dim")
            )
    return norms


def cast_params(params: Any, dtype: Any) -> Any:
    """Rounds a tree of arrays to a type."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def soft_cap(logits: jax.Array, cap: float) -> jax.Array:
    """Squashes logits into (-cap, cap), in their own type; 0.0 does nothing (Gemma 2)."""
    return cap * jnp.tanh(logits / cap) if cap else logits


def product(transposed: bool, a: jax.Array, b: jax.Array, **how: Any) -> jax.Array:
    """Returns a @ b, or a @ b.T, as one product that names the axes.

    XLA would carry out a transpose before it.
    """
    batch = tuple(range(b.ndim - 2))
    axes = (((a.ndim - 1,), (b.ndim - (1 if transposed else 2),)), (batch, batch))
    return jax.lax.dot_general(a, b, axes, **how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide(transposed: bool, a: jax.Array, b: jax.Array) -> jax.Array:
    return product(transposed, a, b, preferred_element_type=jnp.float32)


def _wide_backward(
    transposed: bool, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, pull = jax.vjp(functools.partial(product, transposed), *operands)
    return pull(gradient.astype(operands[0].dtype))


# Left to itself, JAX would multiply the float32 gradient by float32 copies of the operands.
_wide.defvjp(lambda transposed, a, b: (_wide(transposed, a, b), (a, b)), _wide_backward)


def wide_matmul(a: jax.Array, b: jax.Array, transposed: bool = False) -> jax.Array:
    """Returns a @ b with sums and result in float32, as are the gradient's products.

    No operand is widened: bfloat16 matrices are multiplied as such, forward and backward.

    Args:
      a: [..., n, K], or [..., K] if b has two axes.
      b: [..., K, m]; with `transposed` [..., m, K].
      transposed: equally fast, and on XLA's CPU back end a row's bits then do not depend on n.
    """
    return product(transposed, a, b) if a.dtype == jnp.float32 else _wide(transposed, a, b)


# Projections of one input are one product. The parallel block has one input for all of them, and
# one sum of both outputs, "out".
_QKV, _GATE_UP = ("query", "key", "value"), ("gate", "up")
_JOINED: dict[str, dict[str, tuple[str, ...]]] = {
    "parallel": {"into": _QKV + _GATE_UP},
    "sequential": {"into": _QKV, "gate_up": _GATE_UP},
}
_OUT = ("attention_out", "down")


def fuse_projections(config: ModelConfig, params: Params) -> Params:
    """Concatenates the projections of each layer that read one input, or add to one sum.

    A parallel block is then two products, not seven; a sequential one four.
    """
    layers = {}
    for layer in range(config.num_layers):
        p = dict(params[f"layer_{layer}"])
        for joint, names in _JOINED[config.block].items():
            p[joint] = jnp.concatenate([p.pop(name) for name in names], axis=1)
        if config.block == "parallel":
            p["out"] = jnp.concatenate([p.pop(name) for name in _OUT], axis=0)
            biases = [p.pop(f"{name}_bias") for name in _OUT if name in config.biases]
            if biases:
                p["out_bias"] = sum(biases[1:], start=biases[0])
        layers[f"layer_{layer}"] = p
    return _tables(params) | layers


def split_weights(config: ModelConfig, params: Params) -> Params:
    """Returns the tree of `fuse_projections` with the matrices apart, to be sharded."""
    layers = {f"layer_{layer}": params[f"layer_{layer}"] for layer in range(config.num_layers)}
    return _tables(params) | layers


def transpose_weights(config: ModelConfig, fused: Params) -> Params:
    """Returns the tree of `fuse_projections` with the layers' matrices stored [out, in].

    Equally fast, and XLA's kernels for CPUs then give a row of the product the same bits whatever
    the number of rows; as [in, out] they change below 48 rows.
    """
    layers = {}
    for layer in range(config.num_layers):
        p = fused[f"layer_{layer}"]
        layers[f"layer_{layer}"] = {
            **{name: array for name, array in p.items() if array.ndim == 1},
            **{f"{name}_transposed": array.T for name, array in p.items() if array.ndim == 2},
        }
    return fused | layers


def _tables(params: Params) -> Params:
    tables = {"embedding": params["embedding"], "final_norm": params["final_norm"]["scale"]}
    return tables | ({"lm_head": params["lm_head"]} if "lm_head" in params else {})


def apply_matrix(p: Params, name: str, x: jax.Array) -> jax.Array:
    """Multiplies x [..., in] by one of a layer's matrices, and adds its bias: [..., out]."""
    y = x @ p[name] if name in p else product(True, x, p[f"{name}_transposed"])
    return _adapted(p, name, x, _biased(p, name, y))


def apply_fused(config: ModelConfig, p: Params, joint: str, x: jax.Array) -> list[jax.Array]:
    """Multiplies x by each of the matrices that are fused as `joint`, in one product or in several.

    Args:
      config: the model's shape.
      p: a layer's weights.
      joint: "into" or "gate_up".
      x: [..., D].
    """
    names = _JOINED[config.block][joint]
    if names[0] in p:
        return [apply_matrix(p, name, x) for name in names]
    groups = config.num_kv_heads * config.head_dim
    widths = {"query": config.num_heads * config.head_dim, "key": groups, "value": groups}
    sizes = [widths.get(name, config.mlp_dim) for name in names]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    parts = jnp.split(apply_matrix(p, joint, x), ends, axis=-1)
    return [
        _adapted(p, name, x, _biased(p, name, part))
        for name, part in zip(names, parts, strict=True)
    ]


def add_outputs(p: Params, x: jax.Array, attended: jax.Array, hidden: jax.Array) -> jax.Array:
    """Returns a parallel block's output: x + attended @ attention_out + hidden @ down."""
    if "attention_out" in p:
        # Their own sum first: devices with parts of both then add up once.
        return x + (apply_matrix(p, "attention_out", attended) + apply_matrix(p, "down", hidden))
    joined = apply_matrix(p, "out", jnp.concatenate([attended, hidden], axis=-1))
    return x + _adapted(p, "down", hidden, _adapted(p, "attention_out", attended, joined))


def _biased(p: Params, name: str, y: jax.Array) -> jax.Array:
    bias = p.get(f"{name}_bias")
    return y if bias is None else y + bias


def _adapted(p: Params, name: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Adds the low-rank product of a frozen matrix's adapters to y, if it has some (LoRA)."""
    adapter = p.get("adapters", {}).get(name)
    return y if adapter is None else y + (x @ adapter["a"]) @ adapter["b"]
