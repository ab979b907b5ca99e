"""How a layer's matrices lie while they are multiplied by: apart, joined, or joined and turned."""

import jax
import jax.numpy as jnp

from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import Params
from lmsi_jax.models.products import product

# What reads one input is one product. The parallel block has one input for all, and one sum of
# both outputs: "out".
_QKV, _GATE_UP = ("query", "key", "value"), ("gate", "up")
_JOINED: dict[str, dict[str, tuple[str, ...]]] = {
    "parallel": {"into": _QKV + _GATE_UP},
    "sequential": {"into": _QKV, "gate_up": _GATE_UP},
}
_OUT = ("attention_out", "down")


def fuse(config: ModelConfig, params: Params) -> Params:
    """Joins the projections of each layer that read one input, or add to one sum.

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
    """`fuse`'s tree with the projections apart: for devices that hold a part of each."""
    layers = {f"layer_{layer}": params[f"layer_{layer}"] for layer in range(config.num_layers)}
    return _tables(params) | layers


def turned(config: ModelConfig, fused: Params) -> Params:
    """`fuse`'s tree with the layers' matrices stored [out, in].

    Equally fast, and XLA's kernels for CPUs then give a row of the product the same bits whatever
    the number of rows; as [in, out] they change below 48 rows.
    """
    layers = {}
    for layer in range(config.num_layers):
        p = fused[f"layer_{layer}"]
        layers[f"layer_{layer}"] = {
            **{name: array for name, array in p.items() if array.ndim == 1},
            **{f"{name}_turned": array.T for name, array in p.items() if array.ndim == 2},
        }
    return fused | layers


def _tables(params: Params) -> Params:
    """What belongs to no layer."""
    own = {"embedding": params["embedding"], "final_norm": params["final_norm"]["scale"]}
    return own | ({"lm_head": params["lm_head"]} if "lm_head" in params else {})


def times(p: Params, name: str, x: jax.Array) -> jax.Array:
    """x [..., in] times one of a layer's matrices, however it lies, with its bias: [..., out]."""
    y = x @ p[name] if name in p else product(True, x, p[f"{name}_turned"])
    return _biased(p, name, y)


def projected(config: ModelConfig, p: Params, joint: str, x: jax.Array) -> list[jax.Array]:
    """x times each of the matrices that `fuse` joins as `joint`, from one product or from several.

    Args:
      config: the model's shape.
      p: a layer's weights.
      joint: "into" or "gate_up".
      x: [..., D].
    """
    names = _JOINED[config.block][joint]
    if names[0] in p:
        return [times(p, name, x) for name in names]
    groups = config.num_kv_heads * config.head_dim
    widths = {"query": config.num_heads * config.head_dim, "key": groups, "value": groups}
    sizes = [widths.get(name, config.mlp_dim) for name in names]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    parts = jnp.split(times(p, joint, x), ends, axis=-1)
    return [_biased(p, name, part) for name, part in zip(names, parts, strict=True)]


def summed_outputs(p: Params, x: jax.Array, attended: jax.Array, hidden: jax.Array) -> jax.Array:
    """A parallel block's sum: x + attended times "attention_out" + hidden times "down"."""
    if "attention_out" in p:
        return x + times(p, "attention_out", attended) + times(p, "down", hidden)
    return x + times(p, "out", jnp.concatenate([attended, hidden], axis=-1))


def _biased(p: Params, name: str, y: jax.Array) -> jax.Array:
    bias = p.get(f"{name}_bias")
    return y if bias is None else y + bias
