"""One table from logical axes to mesh axes, for weights; checked before anything is placed.

The mesh has two axes: "data" (rows of a batch, lanes of the decoder) and "model" (heads, the MLP,
the vocabulary). With `fsdp` the weights are spread over "data" too, and gathered where they are
used (Rajbhandari et al. 2020).
"""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.params import arrays

# Logical axis -> mesh axis. "embed" is spread over "data" with fsdp alone.
RULES = {
    "vocab": "model",
    "mlp": "model",
    "joined_kv": "model",
    "kv": "model",
    "embed": None,
    "head_dim": None,  # the norms of queries and keys: each device has whole heads
}


def logical_axes(config: ModelConfig) -> Any:
    """Returns the parameter tree with the names of each array's axes in place of the array."""
    return jax.tree.map(lambda array: array.axes, arrays(config))


def weight_specs(config: ModelConfig, model: int = 1, data: int = 1, fsdp: bool = False) -> Any:
    """Returns the parameter tree with each array's `PartitionSpec` in place of the array.

    Args:
      config: the model's shape.
      model: devices along the "model" axis; an axis that they do not divide stays whole.
      data: devices along the "data" axis, likewise.
      fsdp: whether "embed" is spread over "data".
    """
    rules = RULES | {"embed": "data" if fsdp else None}
    whole = {
        "vocab": config.vocab_size % model,
        "mlp": config.mlp_dim % model,
        "joined_kv": config.num_heads % model,
        "kv": config.num_kv_heads % model,
        "embed": config.embed_dim % data,
    }
    rules |= {name: None for name, rest in whole.items() if rest}
    return jax.tree.map(
        lambda names: spec(names, rules),
        logical_axes(config),
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def spec(names: tuple[str | None, ...], rules: dict[str, str | None]) -> PartitionSpec:
    """Returns where an array with these logical axes goes.

    Raises:
      LmsiError: an axis that no rule names, or two axes of one array on one mesh axis.
    """
    unknown = [name for name in names if name is not None and name not in rules]
    if unknown:
        raise LmsiError(f"no partitioning rule names the axis {unknown[0]!r}; add it to RULES")
    axes = [rules[name] if name is not None else None for name in names]
    used = [axis for axis in axes if axis is not None]
    if len(used) != len(set(used)):
        raise LmsiError(
            f"the axes {names} would lie on {axes}: one mesh axis twice; change one rule of RULES"
        )
    return PartitionSpec(*axes)
