"""A run's programs, traced for devices that need not be here: shapes in, nothing computed.

The functions that are traced are those of a run, `training.step.train_step` and
`decoding.loop.decode_chunk`; their arguments have the shapes and places that a run gives them
(tests/aot/test_programs.py holds the engine's own arguments against these).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from lmsi_jax.decoding.feed import joined, rows_of, table_of
from lmsi_jax.decoding.keys import keys_of_words
from lmsi_jax.decoding.layout import Decoding, plan, prompt_bucket, question_bucket
from lmsi_jax.decoding.loop import Rows, decode_chunk
from lmsi_jax.decoding.pages import Pool, Table
from lmsi_jax.decoding.prefix import Cache
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.decoding.spread import Spread, decoding_shapes, lanes_sharding, make_spread
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import parameter_shapes
from lmsi_jax.models.mesh import offered
from lmsi_jax.training.packing import batch_shape
from lmsi_jax.training.placement import mesh_of, on_mesh
from lmsi_jax.training.settings import Training
from lmsi_jax.training.step import shardings, state_shapes, train_step

GROUPS = 4  # of metrics: the formats that a round's examples have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """What a configuration does not say of its questions, in tokens.

    Attributes:
      prompt: the task prompt; LMSI's have eight exemplars or fewer.
      question: a question's own.
    """

    prompt: int = 1024
    question: int = 128


def train_program(
    config: ModelConfig, training: Training, devices: Sequence[jax.Device]
) -> jax.stages.Lowered:
    """Traces an optimiser step on the first data * model of these devices.

    Raises:
      LmsiError: there are not that many.
    """
    with offered(devices):
        mesh = mesh_of(training)
        params = parameter_shapes(config)
        trees = (params, state_shapes(training, params))
        where = shardings(config, training, params)
        if mesh is None or where is None:
            here = SingleDeviceSharding(devices[0])
            where = jax.tree.map(lambda _: here, trees)
        arguments = jax.tree.map(_placed, trees, where)
        batch = _batch(training, devices, mesh)
        return train_step.lower(config, training, GROUPS, *arguments, batch)


def _placed(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _batch(training: Training, devices: Sequence[jax.Device], mesh: Any) -> dict[str, Any]:
    """The shapes of `packing.Batch`, where `placement.fed` puts them."""
    shape = batch_shape(training)
    size = (shape.microbatches, shape.rows, shape.length)
    rows = ("tokens", "segments", "positions", "groups")
    sizes: dict[str, tuple[tuple[int, ...], Any]] = dict.fromkeys(rows, (size, jnp.int32))
    sizes["weights"] = (size, jnp.float32)
    sizes["prefix"] = ((shape.microbatches, shape.prefix_length), jnp.int32)
    sizes["prefix_length"] = ((shape.microbatches,), jnp.int32)
    found = {}
    for name, (own, kind) in sizes.items():
        spec = PartitionSpec() if name.startswith("prefix") else PartitionSpec(None, "data")
        where = SingleDeviceSharding(devices[0]) if mesh is None else on_mesh(mesh, spec)
        found[name] = jax.ShapeDtypeStruct(own, kind, sharding=where)
    return found


def sample_program(
    config: ModelConfig,
    decoding: Decoding,
    sampling: Sampling,
    lengths: Lengths,
    devices: Sequence[jax.Device],
) -> jax.stages.Lowered:
    """Traces a decode chunk of all lanes, with pages for paths of full length.

    Raises:
      LmsiError: the layout wants more devices.
    """
    with offered(devices):
        spread = make_spread(decoding.data, decoding.model, decoding.fsdp)
        arguments = decode_arguments(config, decoding, sampling, lengths, spread)
        if spread.mesh is None:
            here = SingleDeviceSharding(devices[0])
            arguments = jax.tree.map(lambda a: _placed(a, here), arguments)
        chunk = plan(decoding, sampling).chunk
        return decode_chunk.lower(
            config, spread, sampling.filters, chunk, *arguments, sampling.temperature
        )


def decode_arguments(
    config: ModelConfig,
    decoding: Decoding,
    sampling: Sampling,
    lengths: Lengths,
    spread: Spread,
) -> tuple[Any, Cache | None, Cache, Pool, Table, Rows]:
    """What `decode_chunk` is given from `weights` to `rows`, as shapes with places.

    Args:
      config: the model's shape.
      decoding: the layout.
      sampling: how paths are drawn.
      lengths: of prompt and questions.
      spread: the mesh.
    """
    sizes = plan(decoding, sampling)
    heads, width = config.num_kv_heads, config.head_dim
    groups, kind = spread.groups, jnp.dtype(decoding.dtype)
    by_head = lanes_sharding(spread, heads)

    def cached(sequences: int, places: int) -> Any:
        return jax.ShapeDtypeStruct(
            (groups * sequences, heads, places, width), kind, sharding=by_head
        )

    def cache(sequences: int, places: int) -> Cache:
        """Keys and values of all layers, and how many places of each sequence are filled."""
        layers = [cached(sequences, places) for _ in range(config.num_layers)]
        counts: Any = jax.ShapeDtypeStruct(
            (groups * sequences,), jnp.int32, sharding=lanes_sharding(spread)
        )
        return Cache(layers, list(layers), counts)

    depth = -(-sampling.max_new_tokens // sizes.page)
    segments = [[cached(sizes.rows, sizes.page)] * depth for _ in range(config.num_layers)]
    weights = decoding_shapes(config, parameter_shapes(config), kind, spread)
    return (
        weights,
        _prompt(config, lengths, kind, spread),
        cache(sizes.slots, question_bucket(lengths.question - 1)),
        Pool(segments, [list(one) for one in segments]),
        *_orders(decoding, sampling, depth, groups),
    )


def _prompt(config: ModelConfig, lengths: Lengths, kind: Any, spread: Spread) -> Cache | None:
    """The task prompt's cache, on all devices; its heads over "model" where they divide."""
    if not lengths.prompt:
        return None
    own = (1, config.num_kv_heads, prompt_bucket(lengths.prompt), config.head_dim)
    layer: Any
    count: Any
    if spread.mesh is None:
        layer, count = jax.ShapeDtypeStruct(own, kind), jax.ShapeDtypeStruct((1,), jnp.int32)
    else:
        split = config.num_kv_heads % spread.mesh.shape["model"] == 0
        spec = PartitionSpec(None, "model" if split else None)
        layer = jax.ShapeDtypeStruct(own, kind, sharding=NamedSharding(spread.mesh, spec))
        everywhere = NamedSharding(spread.mesh, PartitionSpec())
        count = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=everywhere)
    return Cache([layer] * config.num_layers, [layer] * config.num_layers, count)


def _orders(decoding: Decoding, sampling: Sampling, depth: int, groups: int) -> tuple[Table, Rows]:
    """What the host sends with a chunk, as the shapes of orders for idle rows."""
    sizes = plan(decoding, sampling)
    table = joined([table_of(sizes, [], depth * sizes.rows, sizes.rows, depth)] * groups)
    rows = joined([rows_of(sizes, [], [], sizes.rows, [], _NO_WORDS, 0)] * groups)
    words, index = rows.pop("words"), rows.pop("index").astype(np.uint32)
    noise = jax.eval_shape(lambda w, i: keys_of_words(0, 0, w, i), words, index)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (table, rows))
    return Table(**shapes[0]), Rows(noise=noise, **shapes[1])


_NO_WORDS = np.zeros((0, 2), np.uint32)
