"""Which arrays a model has: names, shapes, axes, and how they are drawn.

Axis names are T5X's; `partitioning` lays them over a mesh.
"""

import dataclasses
from typing import Any

from lmsi_jax.models.config import ModelConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of the parameter tree.

    Attributes:
      shape: its sizes.
      axes: its axes' names.
      deviation: of the normal distribution that it is drawn from; None: all are `constant`.
      constant: what a norm or a bias begins with.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    deviation: float | None = None
    constant: float = 0.0


def arrays(config: ModelConfig) -> dict[str, Array | dict[str, Array]]:
    """The parameter tree, with what each array is in place of the array.

    Within a level the order is that of the arrays' random keys.
    """
    made: dict[str, Array | dict[str, Array]] = {"embedding": _table(config)}
    if not config.tied_embeddings:
        made["lm_head"] = _table(config)
    made["final_norm"] = {"scale": _scale(config, config.embed_dim, "embed")}
    layers = {f"layer_{layer}": _layer(config) for layer in range(config.num_layers)}
    return made | layers


def _table(config: ModelConfig) -> Array:
    """The embeddings, or the table that scores tokens: [V, D]."""
    shape = (config.vocab_size, config.embed_dim)
    return Array(shape, ("vocab", "embed"), deviation=config.embed_dim**-0.5)


def _scale(config: ModelConfig, width: int, axis: str) -> Array:
    """A norm's weight, which begins by changing nothing."""
    return Array((width,), (axis,), constant=0.0 if config.norm_plus_one else 1.0)


def _layer(config: ModelConfig) -> dict[str, Array]:
    """A layer's arrays by name; matrices are [in, out]."""
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
    names = ["norm"] if config.block == "parallel" else ["attention_norm", "mlp_norm"]
    if config.post_norms:
        names += ["attention_post_norm", "mlp_post_norm"]
    norms = {name: _scale(config, config.embed_dim, "embed") for name in names}
    if config.qk_norm:
        for name in ("query_norm", "key_norm"):
            norms[name] = _scale(config, config.head_dim, "head_dim")
    return norms
