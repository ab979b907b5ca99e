"""Arrays that stay on the devices, and those that each chunk of decode steps takes from the host.

`DeviceModel` holds the weights, `DevicePrompts` the caches of task prompts, `DeviceCaches` those of
questions and the pool of pages.
`slot_arrays` and `page_table` describe the scheduler's state for one device group in NumPy;
`join_groups` joins those of all groups along their first axis.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.config import Decoding, ModelConfig
from lmsi_jax.models.attention import Cache
from lmsi_jax.models.params import Params
from lmsi_jax.models.sharding import (
    blocks_sharding,
    decoding_weights,
    make_decode_mesh,
    slots_sharding,
)
from lmsi_jax.rollout.decode_step import (
    PromptBatch,
    PromptCaches,
    SlotArrays,
    move_pages,
    prefill_prompt,
    prefill_questions,
)
from lmsi_jax.rollout.fewer_slots import ProgramCache, rows_agree
from lmsi_jax.rollout.kv_pages import PageTable, Pool, concatenate_pools, empty_segments
from lmsi_jax.rollout.requests import Request
from lmsi_jax.rollout.sampler import keys_of_words, uid_words
from lmsi_jax.rollout.scheduler import (
    Plan,
    Running,
    Scheduler,
    batch_sizes,
    question_bucket,
    question_parts,
)
from lmsi_jax.rollout.stops import Stops
from lmsi_jax.rollout.task_prompts import (
    PLACES,
    BlockTable,
    PromptBlocks,
    Residency,
    TaskPrompt,
    pool_size,
)
from lmsi_jax.runtime.progress import doing


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
        self._agrees: dict[int, bool] = {}
        self.mesh = make_decode_mesh(decoding)
        self.weights = decoding_weights(config, params, jnp.dtype(decoding.dtype), self.mesh)

    def slots_for(self, samples: int) -> int:
        """Returns the slots of each device group for a run of so many samples.

        They are fewer than `Decoding.slots` only if not all of these could ever be busy, and if
        fewer are seen to change no bit.
        """
        sizes, full = batch_sizes(self.decoding), self.decoding.slots
        few = min((size for size in sizes if size * self.mesh.data >= samples), default=full)
        if few == full or self.mesh.mesh is not None:
            return full
        if few not in self._agrees:
            self._agrees[few] = rows_agree(self.config, self.weights, few, full)
        return few if self._agrees[few] else full

    def zeros(self, shape: tuple[int, ...], dtype: str | None = None) -> jax.Array:
        """Returns zeros of `shape` in each device group; caches have their kv heads on axis 1."""
        shape = (self.mesh.data * shape[0], *shape[1:])
        heads = shape[1] if len(shape) > 1 else 1
        dtype = dtype or self.decoding.dtype
        return jnp.zeros(shape, jnp.dtype(dtype), device=slots_sharding(self.mesh, heads))


class EncodedQuestion:
    """A request as the decode loop sees it.

    Attributes:
      number: the position of the request among all that were passed.
      request: the request.
      prompt: its task prompt.
      tokens: of its own text.
      stops: finds the ends of its samples.
      words: `uid_words` of its uid.
    """

    def __init__(
        self, number: int, request: Request, prompt: TaskPrompt, tokens: list[int], stops: Stops
    ):
        self.number, self.request, self.prompt = number, request, prompt
        self.tokens, self.stops = tokens, stops
        self.words = uid_words(request.uid)


class DevicePrompts:
    """Keys and values of task prompts, kept from one call of the engine to the next.

    Args:
      model: the model.

    Attributes:
      blocks: the pool; None before the first prompt.
    """

    def __init__(self, model: DeviceModel):
        self._model = model
        self._residency = Residency(0)
        self.blocks: PromptBlocks | None = None

    @property
    def size(self) -> int:
        """Number of blocks."""
        return self._residency.size

    def reserve(self, prompts: Sequence[TaskPrompt]) -> None:
        """Makes the pool large enough for these prompts; they are computed when they are needed."""
        size, config = pool_size(prompts), self._model.config
        if size <= self.size:
            return
        where = blocks_sharding(self._model.mesh, config.num_kv_heads)

        def zeros(*block: int) -> list[jax.Array]:
            shape, kind = (size, config.num_kv_heads, *block), self._model.decoding.dtype
            return [jnp.zeros(shape, kind, device=where) for _ in range(config.num_layers)]

        self._residency, self.blocks = Residency(size), None  # frees the old ones first
        self.blocks = PromptBlocks(zeros(PLACES, config.head_dim), zeros(config.head_dim, PLACES))

    def admit(self, prompt: TaskPrompt) -> bool:
        """Adds a user of a prompt, and computes it if need be; False if there is no room now."""
        if not prompt.tokens:
            return True
        new = self._residency.admit(prompt)
        if new:
            with doing(f"prefill of a task prompt of {len(prompt.tokens):,} tokens"):
                for place, block in enumerate(new):
                    self._prefill(prompt, place, block)
                jax.block_until_ready(self.blocks)
        return new is not None

    def leave(self, prompt: TaskPrompt) -> None:
        """Removes a user of a prompt."""
        if prompt.tokens:
            self._residency.leave(prompt)

    def number(self, prompt: TaskPrompt) -> int:
        """Returns the number of a prompt in use; -1 for the empty one."""
        return self._residency.number(prompt) if prompt.tokens else -1

    @property
    def table(self) -> BlockTable:
        """The blocks of the prompts in use."""
        return self._residency.table()

    def _prefill(self, prompt: TaskPrompt, place: int, block: int) -> None:
        model, begin = self._model, place * PLACES
        tokens, lengths = pad_sequences([prompt.tokens[begin : begin + PLACES]], PLACES)
        row = block, self.number(prompt), begin
        batch = PromptBatch(
            tokens,  # type: ignore[arg-type]
            lengths,  # type: ignore[arg-type]
            *(np.array([n], np.int32) for n in row),  # type: ignore[arg-type]
        )
        before = self._residency.table(prompt, place)
        self.blocks = prefill_prompt(
            model.config, model.mesh, model.weights, self.blocks, before, batch
        )


class DeviceCaches:
    """Keys and values of one decode loop.

    Args:
      model: the model.
      shared: the task prompts.
      schedulers: of each device group; they are told of every page that is added.
      longest: tokens of the longest question.
      depth: most pages of a sample.

    Attributes:
      shared: the task prompts.
      questions: the parts of the questions' caches.
      pool: the samples' pages.
    """

    def __init__(
        self,
        model: DeviceModel,
        shared: DevicePrompts,
        schedulers: Sequence[Scheduler],
        longest: int,
        depth: int,
    ):
        self._model, self.shared, self._schedulers = model, shared, schedulers
        self._plan, self._depth = schedulers[0].plan, depth
        config, plan = model.config, self._plan
        self._parts = question_parts(longest)
        self.questions = []
        for size in self._parts:
            shape = (plan.prompt_slots, config.num_kv_heads, size, config.head_dim)
            keys, values = ([model.zeros(shape) for _ in range(config.num_layers)] for _ in "kv")
            lengths = model.zeros((plan.prompt_slots,), "int32")
            self.questions.append(Cache(keys, values, lengths))
        entry = 2 * config.num_kv_heads * config.head_dim * config.num_layers
        self._most_segments = -(-depth // plan.segment_depth)
        segment = entry * plan.page * plan.segment * jnp.dtype(model.decoding.dtype).itemsize
        # At least half of what full samples need: the pool grows, and compiles, once at most.
        reserved = max(-(-self._most_segments // 2), model.decoding.pool_bytes // segment)
        self.pool = self._segments(min(self._most_segments, reserved))

    @property
    def prompts(self) -> PromptCaches:
        """The task prompts' and the questions' caches."""
        return PromptCaches(shared=self.shared.blocks, questions=self.questions)

    @property
    def segments(self) -> int:
        """Number of segments of the pool."""
        return len(self.pool.keys[0])

    @property
    def shapes(self) -> tuple[int, ...]:
        """All sizes besides those of the plan."""
        return len(self._parts), self.shared.size, self._depth, self.segments

    def parts_used(self, longest: int) -> np.ndarray:
        """Returns which parts questions of up to `longest` tokens reach into."""
        return np.cumsum([0, *self._parts[:-1]]) < max(1, longest)

    def prefill(self, admitted: Sequence[Sequence[tuple[EncodedQuestion, int]]]) -> None:
        """Caches question prompts; for each device group (question, prompt slot) pairs.

        The last token of each is left out: it is the first input of the question's samples.
        """
        buckets: dict[int, list[list[tuple[EncodedQuestion, int]]]] = {}
        for number, group in enumerate(admitted):
            for pair in group:
                length = question_bucket(len(pair[0].tokens) - 1)
                buckets.setdefault(length, [[] for _ in admitted])[number].append(pair)
        for length, groups in sorted(buckets.items()):
            size = max(1, self._model.decoding.prefill_tokens // length)
            for begin in range(0, max(map(len, groups)), size):
                self._prefill([group[begin : begin + size] for group in groups], size, length)

    def _prefill(
        self, groups: Sequence[Sequence[tuple[EncodedQuestion, int]]], size: int, length: int
    ) -> None:
        """Caches at most `size` prompts of each group, padded to `length`."""
        model, sequences, rows = self._model, [], []
        for group in groups:
            for question, slot in group:
                prompt = question.prompt
                sequences.append(question.tokens[:-1])
                rows.append((slot, self.shared.number(prompt), len(prompt.tokens)))
            idle = size - len(group)
            sequences += [[]] * idle
            rows += [(self._plan.prompt_slots, -1, 0)] * idle
        tokens, lengths = pad_sequences(sequences, length)
        columns = np.ascontiguousarray(np.array(rows, np.int32).T)
        self.questions = prefill_questions(
            model.config, model.mesh, model.weights, self.questions, self.shared.blocks,
            self.shared.table,
            PromptBatch(tokens, lengths, *columns),  # type: ignore[arg-type]
        )  # fmt: skip

    def reserve(self) -> None:
        """Makes room for the next chunk, in as few segments as hold all pages.

        The pool doubles until the chunk fits: few sizes, so few compilations. Then pages are moved
        together, because a step reads every segment in use as a whole.
        """
        while any(scheduler.missing_pages() for scheduler in self._schedulers):
            count = self.segments
            assert count < self._most_segments, "every sample has all pages that it can need"
            more = self._segments(min(count, self._most_segments - count))
            self.pool = concatenate_pools(self.pool, more)
        size = self._plan.segment
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
        shape = (plan.segment, config.num_kv_heads, plan.page, config.head_dim)
        for scheduler in self._schedulers:
            scheduler.add_pages(count * plan.segment)
        return empty_segments(config.num_layers, count, lambda: self._model.zeros(shape))

    def _move(self, source: int, target: int, groups: list[list[tuple[int, int]]]) -> None:
        """Copies pages between two segments, (from, to) pairs for each device group."""
        pages = np.zeros((2, len(groups), self._plan.segment), np.int32)
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


# --- chunks ---------------------------------------------------------------------------------------

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class NoiseSource:
    """The part of the noise that all samples of a run share."""

    seed: int
    round_index: int


def slot_arrays(
    plan: Plan,
    active: Sequence[Running],
    targets: Sequence[tuple[int, int]],
    slots: int,
    questions: Sequence[EncodedQuestion],
    prompt_number: Callable[[TaskPrompt], int],
) -> Arrays:
    """Returns the arrays of `SlotArrays`, with `words` and `index` in place of its noise.

    Args:
      plan: the run's sizes.
      active: the samples, one for each of the first slots.
      targets: page and offset for each of them.
      slots: number of slots (W).
      questions: the questions that samples refer to by number.
      prompt_number: returns the number of a task prompt.
    """
    names = ("token", "length", "before", "start", "slot_in_group", "index", "offset")
    arrays: Arrays = {name: np.zeros(slots, np.int32) for name in names}
    arrays |= {name: np.full(slots, -1, np.int32) for name in ("page", "prompt")}
    arrays["words"] = np.zeros((slots, 2), np.uint32)
    per_prompt = min(plan.slots_per_prompt, slots)
    arrays["group_slots"] = np.zeros((plan.prompt_slots, per_prompt), np.int32)
    taken = [0] * plan.prompt_slots
    for slot, (running, (page, offset)) in enumerate(zip(active, targets, strict=True)):
        question, place = questions[running.question], taken[running.prompt_slot]
        arrays["token"][slot] = running.tokens[-1] if running.tokens else question.tokens[-1]
        arrays["length"][slot] = len(running.tokens)
        start = len(question.prompt.tokens)
        arrays["prompt"][slot], arrays["start"][slot] = prompt_number(question.prompt), start
        arrays["before"][slot] = start + len(question.tokens) - 1
        arrays["index"][slot] = question.request.indices[running.index]
        arrays["words"][slot] = question.words
        arrays["page"][slot], arrays["offset"][slot] = page, offset
        arrays["slot_in_group"][slot] = running.prompt_slot * per_prompt + place
        arrays["group_slots"][running.prompt_slot, place] = slot
        taken[running.prompt_slot] += 1
    return arrays


def page_table(plan: Plan, active: Sequence[Running], pages: int, slots: int, depth: int) -> Arrays:
    """Returns the arrays of `PageTable`.

    Args:
      plan: the run's sizes.
      active: the samples, one for each of the first slots.
      pages: number of pages, free or not.
      slots: number of slots (W).
      depth: most pages of a sample (J).
    """
    owner, stored, first = (np.zeros(pages, np.int32) for _ in range(3))
    of_slot, count = np.zeros((slots, depth), np.int32), np.zeros(slots, np.int32)
    for slot, running in enumerate(active):
        length = len(running.tokens)
        filled = running.pages[: -(-length // plan.page)]  # without one that is still empty
        count[slot] = len(filled)
        if filled:
            of_slot[slot, : len(filled)] = filled
            begins = np.arange(len(filled)) * plan.page
            owner[filled], first[filled] = slot, begins
            stored[filled] = np.minimum(plan.page, length - begins)
    segments = (-1, plan.segment)
    return {
        "owner": owner.reshape(segments),
        "stored": stored.reshape(segments),
        "first": first.reshape(segments),
        "used": np.asarray(stored.reshape(segments).any(1)),
        "of_slot": of_slot,
        "count": count,
    }


def join_groups(
    slots: Sequence[Arrays], tables: Sequence[Arrays], noise: NoiseSource
) -> tuple[PageTable, SlotArrays]:
    """Joins the `page_table` and `slot_arrays` of all device groups; derives the sample keys."""
    arrays, table = _concatenate_groups(slots), _concatenate_groups(tables)
    words, indices = arrays.pop("words"), arrays.pop("index").astype(np.uint32)
    keys = keys_of_words(noise.seed, noise.round_index, words, indices)
    return (
        PageTable(**table),  # type: ignore[arg-type]
        SlotArrays(noise=keys, **arrays),  # type: ignore[arg-type]
    )


def _concatenate_groups(groups: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}


def pad_sequences(sequences: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads token sequences: tokens [B, length] and lengths [B]."""
    batch = np.zeros((len(sequences), length), np.int32)
    for i, sequence in enumerate(sequences):
        batch[i, : len(sequence)] = sequence
    return batch, np.array([len(sequence) for sequence in sequences], np.int32)
