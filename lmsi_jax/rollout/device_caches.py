"""Arrays that stay on the devices, and those that each chunk of decode steps takes from the host.

`DeviceModel` holds the weights, `DeviceCaches` the caches of prompts and the pool of pages.
`slot_arrays` and `page_table` describe the scheduler's state for one device group in NumPy;
`join_groups` joins those of all groups along their first axis. `ProgramCache` uses smaller programs
once they have been seen to repeat the full one's bits.
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.config import Decoding, ModelConfig
from lmsi_jax.models.attention import Cache
from lmsi_jax.models.params import Params
from lmsi_jax.models.sharding import decoding_weights, make_decode_mesh, slots_sharding
from lmsi_jax.rollout.decode_step import (
    PromptBatch,
    PromptCaches,
    SlotArrays,
    move_pages,
    prefill_prompt,
    prefill_questions,
)
from lmsi_jax.rollout.kv_pages import PageTable, Pool, concatenate_pools, empty_segments
from lmsi_jax.rollout.requests import Request
from lmsi_jax.rollout.sampler import keys_of_words, uid_words
from lmsi_jax.rollout.scheduler import Plan, Running, Scheduler, prompt_bucket


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


# --- chunks ---------------------------------------------------------------------------------------

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class NoiseSource:
    """The part of the noise that all samples of a run share."""

    seed: int
    round_index: int


class EncodedQuestion:
    """A request as the decode loop sees it.

    Attributes:
      number: the position of the request among all that were passed.
      request: the request.
      tokens: of its own text.
      words: `uid_words` of its uid.
    """

    def __init__(self, number: int, request: Request, tokens: list[int]):
        self.number, self.request, self.tokens = number, request, tokens
        self.words = uid_words(request.uid)


def slot_arrays(
    plan: Plan,
    active: Sequence[Running],
    targets: Sequence[tuple[int, int]],
    slots: int,
    questions: Sequence[EncodedQuestion],
    shared_length: int,
) -> Arrays:
    """Returns the arrays of `SlotArrays`, with `words` and `index` in place of its noise.

    Args:
      plan: the run's sizes.
      active: the samples, one for each of the first slots.
      targets: page and offset for each of them.
      slots: number of slots (W).
      questions: the questions that samples refer to by number.
      shared_length: cached positions of the task prompt.
    """
    names = ("token", "length", "before", "slot_in_group", "index", "offset")
    arrays: Arrays = {name: np.zeros(slots, np.int32) for name in names}
    arrays["page"] = np.full(slots, -1, np.int32)
    arrays["words"] = np.zeros((slots, 2), np.uint32)
    per_prompt = min(plan.slots_per_prompt, slots)
    arrays["group_slots"] = np.zeros((plan.prompt_slots, per_prompt), np.int32)
    taken = [0] * plan.prompt_slots
    for slot, (running, (page, offset)) in enumerate(zip(active, targets, strict=True)):
        question, place = questions[running.question], taken[running.prompt_slot]
        arrays["token"][slot] = running.tokens[-1] if running.tokens else question.tokens[-1]
        arrays["length"][slot] = len(running.tokens)
        arrays["before"][slot] = shared_length + len(question.tokens) - 1
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
      plan: the run's sizes; a segment has as many pages as the run has slots.
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
    segments = (-1, plan.slots)
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


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A decoded chunk on the host, without idle slots.

    Attributes:
      tokens: for each device group [active, c].
      logprobs: the same, at temperature 1.
      slot_steps: steps times slots that were computed, idle ones included.
    """

    tokens: Sequence[np.ndarray]
    logprobs: Sequence[np.ndarray]
    slot_steps: int


PATIENCE = 16
"""Chunks that a smaller program could have decoded before it is compiled: about what it costs."""


class ProgramCache:
    """Decodes each chunk with the fewest slots that are known to change no bit.

    Near the end of a task few samples are left, and a program of fewer slots is faster. But XLA may
    order the sums of another shape differently, and a last bit can change a sampled token. So a
    smaller program is tried once beside the one that is trusted, on a chunk with more than half of
    its slots busy, and is used from then on if all tokens and log-probabilities agree bit by bit.

    Measured gain: workload B of bench/ (8 questions of 32 samples, ragged, 128 slots) takes 28,416
    slot steps in place of 43,008, and on the CPU of bench/README.md a step of 16 slots takes 19 ms,
    one of 64 takes 33 ms and one of 128 takes 55 ms. A small model, or a GPU, gains less than the
    compilations cost: `Decoding.adaptive_batch = False` does without.

    Attributes:
      verified: programs that were tried, and whether they agreed.
    """

    def __init__(self) -> None:
        self.verified: dict[Hashable, bool] = {}
        self._missed: collections.Counter[Hashable] = collections.Counter()

    def decode(
        self,
        sizes: Sequence[int],
        busy: int,
        program: Callable[[int], Hashable],
        decode: Callable[[int], Chunk],
    ) -> Chunk:
        """Decodes one chunk.

        Args:
          sizes: numbers of slots that a chunk may have, ascending; the last is always trusted.
          busy: slots in use, of the busiest device group.
          program: returns the key of the program for that number of slots.
          decode: decodes the chunk with that number of slots; a repetition stores the same entries.
        """
        programs = {size: program(size) for size in sizes if size >= busy}
        full = sizes[-1]
        trusted = min(s for s, key in programs.items() if self.verified.get(key, s == full))
        smallest = min(s for s, key in programs.items() if self.verified.get(key, True))
        if smallest == trusted:
            return decode(trusted)
        self._missed[programs[smallest]] += 1
        patient = self._missed[programs[smallest]] <= PATIENCE
        if patient or 2 * busy <= smallest:  # so few slots would not prove much
            return decode(trusted)
        reference, trial = decode(trusted), decode(smallest)
        self.verified[programs[smallest]] = chunks_agree(reference, trial)
        return trial if self.verified[programs[smallest]] else decode(trusted)


def chunks_agree(one: Chunk, other: Chunk) -> bool:
    """Returns whether two chunks agree bit by bit."""
    pairs = zip([*one.tokens, *one.logprobs], [*other.tokens, *other.logprobs], strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)
