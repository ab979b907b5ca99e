"""On a mesh, a microbatch's rows and the prefix that they share as one array.

Apart, each weight would be part of two products, and each gradient of a weight would be added up
between the devices twice: XLA adds the two only behind its reductions. Joined, each device group
("data") has its rows' tokens and, behind them, its share of the prefix's places.

Shapes: S groups, B rows of T tokens, P places of the prefix, a multiple of S; n = (B * T + P) / S.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, get_abstract_mesh

from lmsi_jax.decoding.prefix import Cache, on_mesh
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import Attend, block
from lmsi_jax.models.params import Params
from lmsi_jax.models.positions import Angles, angles_of
from lmsi_jax.training.attention import packed_attention

# Keys and values [1, P, G, K] with all places on each device; heads lie where they lie.
_ALL_PLACES = PartitionSpec(None, None, PartitionSpec.UNCONSTRAINED, None)


def suits(batch: dict[str, Any]) -> bool:
    """Whether a microbatch is traced for a mesh, and has a prefix."""
    return on_mesh() and batch["prefix"].shape[0] > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint:
    """The sizes of a joined array; S, B, T and P of the module's notation."""

    groups: int
    rows: int
    length: int
    places: int

    def join(self, rows: jax.Array, prefix: jax.Array) -> jax.Array:
        """rows [B, T, ...] and prefix [at most P, ...] -> [S, n, ...]."""
        missing = self.places - prefix.shape[0]
        padded = jnp.pad(prefix, [(0, missing)] + [(0, 0)] * (prefix.ndim - 1))
        parts = (a.reshape(self.groups, -1, *rows.shape[2:]) for a in (rows, padded))
        return jnp.concatenate(list(parts), axis=1)

    def rows_of(self, joint: jax.Array) -> jax.Array:
        """[S, n, ...] -> [B, T, ...]."""
        own = joint[:, : self.rows * self.length // self.groups]
        return own.reshape(self.rows, self.length, *joint.shape[2:])

    def prefix_of(self, joint: jax.Array) -> jax.Array:
        """[S, n, ...] -> [1, P, ...]."""
        own = joint[:, self.rows * self.length // self.groups :]
        return own.reshape(1, self.places, *joint.shape[2:])


def joint_of(batch: dict[str, Any]) -> Joint:
    """Returns how a microbatch is joined on the mesh that it is traced for."""
    groups = get_abstract_mesh().shape["data"]
    rows, length = batch["tokens"].shape
    places = -(-batch["prefix"].shape[0] // groups) * groups
    return Joint(groups=groups, rows=rows, length=length, places=places)


def joint_angles(config: ModelConfig, joint: Joint, batch: dict[str, Any]) -> tuple[Angles, ...]:
    """The rotary angles of all tokens, from those of the rows in `batch`."""
    prefix = angles_of(config, jnp.arange(joint.places))
    angles: tuple[Angles, ...] = jax.tree.map(joint.join, batch["angles"], prefix)
    return angles


def joint_layer(
    config: ModelConfig,
    joint: Joint,
    batch: dict[str, Any],
    angles: tuple[Angles, ...],
    layer: int,
) -> Callable[[Params, jax.Array], jax.Array]:
    """Returns what a layer does whose place in the pattern of windows is `layer`.

    That is: the layer's weights and states [S, n, D] -> states.
    """

    def run(p: Params, states: jax.Array) -> jax.Array:
        """The layer with weights p."""
        attend = _attention(config, joint, batch)
        states = block(config, p, layer, states, angles, attend)
        return jax.lax.with_sharding_constraint(states, PartitionSpec("data"))

    return run


def _attention(config: ModelConfig, joint: Joint, batch: dict[str, Any]) -> Attend:
    """The prefix over itself, the rows over themselves and the prefix."""
    length = batch["prefix_length"][None]
    places = jnp.arange(joint.places)[None]
    real = (places < length[:, None]).astype(jnp.int32)
    # In one block: each device takes its share of the queries.
    within_prefix = packed_attention(config, real, places, None, joint.places)

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """[S, n, heads, width]."""
        keys, values = (  # every row sees all of them
            jax.lax.with_sharding_constraint(joint.prefix_of(a), _ALL_PLACES) for a in (k, v)
        )
        cached = [[a.transpose(0, 2, 1, 3)] * (layer + 1) for a in (keys, values)]
        shared = Cache(cached[0], cached[1], length)  # whatever layer is asked for, it is this one
        of_rows = packed_attention(config, batch["segments"], batch["positions"], shared)
        rows = of_rows(layer, *(joint.rows_of(a) for a in (q, k, v)))
        prefix = within_prefix(layer, joint.prefix_of(q), keys, values)
        return joint.join(rows, prefix[0])

    return attend
