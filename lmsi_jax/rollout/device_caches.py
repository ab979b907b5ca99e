"""Arrays that stay on the devices: weights, the caches of prompts, the pool of pages."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.config import Decoding, ModelConfig
from lmsi_jax.models.attention import Cache
from lmsi_jax.models.params import Params
from lmsi_jax.models.sharding import decoding_weights, make_decode_mesh, slots_sharding
from lmsi_jax.rollout.chunks import ProgramCache, pad_sequences
from lmsi_jax.rollout.decode_step import (
    PromptBatch,
    PromptCaches,
    move_pages,
    prefill_prompt,
    prefill_questions,
)
from lmsi_jax.rollout.kv_pages import Pool, concatenate_pools, empty_segments
from lmsi_jax.rollout.scheduler import Scheduler, prompt_bucket


class DeviceModel:
    """A model on the devices, ready to decode.

    Attributes:
      config: the model's shape.
      decoding: the layout.
      mesh: the devices.
      weights: the parameters as decoding reads them.
      programs: chooses between programs of more and of fewer slots.
    """

    def __init__(self, config: ModelConfig, params: Params, decoding: Decoding):
        self.config, self.decoding = config, decoding
        self.programs = ProgramCache()
        self.mesh = make_decode_mesh(decoding)
        self.weights = decoding_weights(config, params, jnp.dtype(decoding.dtype), self.mesh)

    def prefill_prompt(self, tokens: list[int]) -> Cache:
        """Computes the cache of a task prompt."""
        batch, lengths = pad_sequences([tokens], prompt_bucket(len(tokens)))
        return prefill_prompt(self.config, self.mesh, self.weights, batch, lengths)

    def zeros(self, shape: tuple[int, ...], dtype: str | None = None) -> jax.Array:
        """Returns zeros of `shape` in each device group; caches have their kv heads on axis 1."""
        shape = (self.mesh.data * shape[0], *shape[1:])
        heads = shape[1] if len(shape) > 1 else 1
        dtype = dtype or self.decoding.dtype
        return jnp.zeros(shape, jnp.dtype(dtype), device=slots_sharding(self.mesh, heads))


class DeviceCaches:
    """Keys and values of one decode loop.

    Args:
      model: the model.
      shared: the task prompt's cache, or None.
      schedulers: of each device group; they are told of every page that is added.
      bucket: the padded length of question prompts.
      depth: most pages of a sample.

    Attributes:
      prompts: the task prompt's and the questions' caches.
      shared_length: positions of the task prompt.
      pool: the samples' pages.
    """

    def __init__(
        self,
        model: DeviceModel,
        shared: Cache | None,
        schedulers: Sequence[Scheduler],
        bucket: int,
        depth: int,
    ):
        self._model, self._schedulers = model, schedulers
        self._plan, self._bucket, self._depth = schedulers[0].plan, bucket, depth
        self.shared_length = 0 if shared is None else int(np.asarray(shared.lengths)[0])
        config, plan = model.config, self._plan
        shape = (plan.prompt_slots, config.num_kv_heads, bucket, config.head_dim)
        keys, values = ([model.zeros(shape) for _ in range(config.num_layers)] for _ in range(2))
        questions = Cache(keys, values, model.zeros((plan.prompt_slots,), "int32"))
        self.prompts = PromptCaches(shared=shared, questions=questions)
        entry = 2 * config.num_kv_heads * config.head_dim * config.num_layers
        segment = entry * plan.page * plan.slots * jnp.dtype(model.decoding.dtype).itemsize
        self.pool = self._segments(max(1, min(depth, model.decoding.pool_bytes // segment)))

    @property
    def segments(self) -> int:
        """Number of segments of the pool."""
        return len(self.pool.keys[0])

    def prefill(self, admitted: Sequence[Sequence[tuple[list[int], int]]]) -> None:
        """Caches question prompts; for each device group (tokens, prompt slot) pairs.

        The last token of each is left out: it is the first input of the question's samples.
        """
        model = self._model
        size = max(1, model.decoding.prefill_tokens // self._bucket)
        for begin in range(0, max(map(len, admitted)), size):
            sequences: list[list[int]] = []
            slots: list[int] = []
            for group in admitted:
                some = group[begin : begin + size]
                idle = size - len(some)
                sequences += [*(tokens[:-1] for tokens, _ in some), *([] for _ in range(idle))]
                slots += [*(slot for _, slot in some), *[self._plan.prompt_slots] * idle]
            tokens, lengths = pad_sequences(sequences, self._bucket)
            batch = PromptBatch(tokens, lengths, np.array(slots, np.int32))  # type: ignore[arg-type]
            questions = prefill_questions(
                model.config, model.mesh, model.weights,
                self.prompts.questions, self.prompts.shared, batch,
            )  # fmt: skip
            self.prompts = PromptCaches(shared=self.prompts.shared, questions=questions)

    def reserve(self) -> None:
        """Makes room for the next chunk, in as few segments as hold all pages.

        The pool doubles until the chunk fits: few sizes, so few compilations. Then pages are moved
        together, because a step reads every segment in use as a whole.
        """
        while any(scheduler.missing_pages() for scheduler in self._schedulers):
            count = self.segments
            assert count < self._depth, "every sample has all pages that it can need"
            more = self._segments(min(count, self._depth - count))
            self.pool = concatenate_pools(self.pool, more)
        size = self._plan.slots
        moves: dict[tuple[int, int], list[list[tuple[int, int]]]] = {}
        for number, scheduler in enumerate(self._schedulers):
            for begin, end in scheduler.compact(size):
                segments = (begin // size, end // size)
                groups = moves.setdefault(segments, [[] for _ in self._schedulers])
                groups[number].append((begin % size, end % size))
        for (source, target), groups in sorted(moves.items()):
            self._move(source, target, groups)

    def _segments(self, count: int) -> Pool:
        config, plan = self._model.config, self._plan
        shape = (plan.slots, config.num_kv_heads, plan.page, config.head_dim)
        for scheduler in self._schedulers:
            scheduler.add_pages(count * plan.slots)
        return empty_segments(config.num_layers, count, lambda: self._model.zeros(shape))

    def _move(self, source: int, target: int, groups: list[list[tuple[int, int]]]) -> None:
        """Copies pages between two segments, (from, to) pairs for each device group."""
        pages = np.zeros((2, len(groups), self._plan.slots), np.int32)
        for number, pairs in enumerate(groups):
            for i, pair in enumerate(pairs):
                pages[:, number, i] = pair
        layers = [*self.pool.keys, *self.pool.values]
        copied = move_pages(
            self._model.mesh,
            [layer[source] for layer in layers],
            [layer[target] for layer in layers],
            *pages.reshape(2, -1),
            np.array([len(pairs) for pairs in groups], np.int32),
        )
        for layer, array in zip(layers, copied, strict=True):
            layer[target] = array
