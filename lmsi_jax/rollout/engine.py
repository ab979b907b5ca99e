"""The engine: questions in, paths out, with every row busy until a task's questions run out.

The host decides between chunks (`scheduler`), the device decodes chunks (`loop`). What a path says
depends on its question, its task prompt, its key and the compiled shapes, and on nothing else: not
on the order of the questions, the row, the refills, the process count or a restart.

One run over questions of one length bucket: the scheduler's decisions, carried out.

What an engine keeps on its devices from run to run, whatever is decoded.

What the host tells the device before a chunk: the scheduler's state as arrays. NumPy only.

One device group's arrays; those of several groups are joined along their first axis.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmsi_jax.config.architecture import ModelConfig
from lmsi_jax.config.sampling import Decoding, Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.attention import Cache
from lmsi_jax.models.params import Params
from lmsi_jax.models.sharding import DecodeMesh, decoding_weights, make_decode_mesh, slots_sharding
from lmsi_jax.models.tokenizers import Tokenizer, encode_first
from lmsi_jax.records import Sample
from lmsi_jax.rollout.decode_step import (
    SlotArrays,
    decode_chunk,
    keys_of_words,
    move_pages,
    prefill_prompt,
    prefill_questions,
    uid_words,
)
from lmsi_jax.rollout.kv_pages import PageTable, Pool, empty_segments, with_more
from lmsi_jax.rollout.scheduler import (
    Plan,
    Running,
    Scheduler,
    batch_sizes,
    check_fit,
    plan,
    prompt_bucket,
    question_bucket,
)
from lmsi_jax.rollout.stops import Ending, Stops

Chunk = tuple[np.ndarray, np.ndarray]
"""Tokens and their log-probabilities, [W, steps] each."""


class Device:
    """What stays on the devices from run to run.

    Attributes:
      config: the model's shape.
      decode_mesh: the mesh.
      weights: from `spread.decoding_weights`.
      decoding: the layout.
      verified_programs: programs of fewer rows that were tried, and whether they repeated a full
        chunk bit by bit.
      trace: a checksum of all chunks so far; processes that do the same have the same.
    """

    def __init__(
        self, config: ModelConfig, decode_mesh: DecodeMesh, weights: Params, decoding: Decoding
    ):
        self.config, self.decode_mesh, self.weights, self.decoding = (
            config,
            decode_mesh,
            weights,
            decoding,
        )
        self.verified_programs: dict[tuple, bool] = {}
        self.trace = 0

    def note(self, chunk: Chunk) -> None:
        """Adds a chunk to the trace."""
        for array in chunk:
            self.trace = zlib.crc32(array.tobytes(), self.trace)

    def zeros(self, shape: tuple[int, ...], dtype: str | None = None) -> jax.Array:
        """Zeros with `shape` in each device group; caches have their kv heads on axis 1."""
        shape = (self.decode_mesh.groups * shape[0], *shape[1:])
        kind = jnp.dtype(dtype or self.decoding.dtype)
        heads = shape[1] if len(shape) > 1 else 1
        return jnp.zeros(shape, kind, device=slots_sharding(self.decode_mesh, heads))


Arrays = dict[str, np.ndarray]


def slot_arrays(
    plan: Plan,
    active: Sequence[Running],
    targets: Sequence[tuple[int, int]],
    slots: int,
    prompts: Sequence[Sequence[int]],
    words: np.ndarray,
    before: int,
) -> Arrays:
    """Returns the arrays of `loop.Rows`, with `words` and `index` for its noise.

    Args:
      plan: the run's sizes.
      active: the paths, one for each of the first rows.
      targets: page and offset for each of them.
      slots: rows.
      prompts: tokens of each question's prompt.
      words: [questions, 2], see `keys.uid_words`.
      before: cached positions of the task prompt.
    """
    names = ("token", "length", "before", "slot_in_group", "index", "offset")
    arrays: Arrays = {name: np.zeros(slots, np.int32) for name in names}
    arrays["page"] = np.full(slots, -1, np.int32)
    arrays["words"] = np.zeros((slots, 2), np.uint32)
    slots_per_prompt = min(plan.slots_per_prompt, slots)
    arrays["group_slots"] = np.zeros((plan.prompt_slots, slots_per_prompt), np.int32)
    taken = [0] * plan.prompt_slots
    for row, (running, (page, offset)) in enumerate(zip(active, targets, strict=True)):
        prompt = prompts[running.question]
        arrays["token"][row] = running.tokens[-1] if running.tokens else prompt[-1]
        arrays["length"][row] = len(running.tokens)
        arrays["before"][row] = before + len(prompt) - 1
        arrays["sample_index"][row] = running.index
        arrays["words"][row] = words[running.question]
        arrays["page"][row], arrays["offset"][row] = page, offset
        arrays["slot_in_group"][row] = (
            running.prompt_slot * slots_per_prompt + taken[running.prompt_slot]
        )
        arrays["group_slots"][running.prompt_slot, taken[running.prompt_slot]] = row
        taken[running.prompt_slot] += 1
    return arrays


def page_table(plan: Plan, active: Sequence[Running], pages: int, slots: int, depth: int) -> Arrays:
    """Returns the arrays of `pages.Table`.

    Args:
      plan: the run's sizes; a segment has as many pages as there are rows.
      active: the paths, one for each of the first rows.
      pages: how many pages there are, free or not.
      slots: rows.
      depth: most pages of a path.
    """
    row, stored, first = (np.zeros(pages, np.int32) for _ in range(3))
    of_row, count = np.zeros((slots, depth), np.int32), np.zeros(slots, np.int32)
    for at, running in enumerate(active):
        length = len(running.tokens)
        own = running.pages[: -(-length // plan.page)]  # without one that is still empty
        count[at] = len(own)
        if own:
            of_row[at, : len(own)] = own
            begins = np.arange(len(own)) * plan.page
            row[own], first[own] = at, begins
            stored[own] = np.minimum(plan.page, length - begins)
    segments = (-1, plan.slots)
    return {
        "row": row.reshape(segments),
        "stored": stored.reshape(segments),
        "first": first.reshape(segments),
        "used": np.asarray(stored.reshape(segments).any(1)),
        "of_row": of_row,
        "count": count,
    }


def pad_sequences(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads rows: tokens [B, length] and lengths [B]."""
    batch = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        batch[i, : len(row)] = row
    return batch, np.array([len(row) for row in rows], np.int32)


def concatenate_groups(groups: Sequence[Arrays]) -> Arrays:
    """Joins the arrays of several device groups along their first axis."""
    if len(groups) == 1:
        return groups[0]
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}


Limit = Callable[[str, int], int]
Settled = Callable[[str, Sequence[Sample]], bool]


class Stream:
    """Questions of one bucket on their way through the engine.

    Args:
      device: the model.
      stops: finds where paths end.
      shared: the task prompt's cache, or None.
      questions: (uid, prompt tokens) pairs.
      bucket: the padded length of their prompts.
      sampling: how paths are drawn.
      noise: (seed, round).
      settled: see `Engine.run`.
      limit: see `Engine.run`.
      numbers: see `Engine.run`; the scheduler counts places from 0, and place i is path numbers[i].
    """

    def __init__(
        self,
        device: Device,
        stops: Stops,
        shared: Cache | None,
        questions: Sequence[tuple[str, list[int]]],
        bucket: int,
        sampling: Sampling,
        noise: tuple[int, int],
        settled: Settled | None,
        limit: Limit | None,
        numbers: Sequence[int] | None = None,
    ):
        self._device, self._stops, self._shared = device, stops, shared
        self._uids = [uid for uid, _ in questions]
        self._prompts = [tokens for _, tokens in questions]
        self._words = np.array([uid_words(uid) for uid in self._uids], np.uint32)
        self._sampling, self._noise, self._bucket = sampling, noise, bucket
        self._settled, self._limit = settled, limit
        self._numbers = np.arange(sampling.num_samples) if numbers is None else np.asarray(numbers)
        self._plan = plan(device.decoding, sampling)
        self._depth = -(-sampling.max_new_tokens // self._plan.page)  # most pages of a path
        self._done: list[dict[int, Sample]] = [{} for _ in questions]
        self._before = 0 if shared is None else int(np.asarray(shared.lengths)[0])
        self._batch_sizes = batch_sizes(device.decoding)
        waiting = iter(range(len(questions)))
        self._groups = [
            Scheduler(self._plan, waiting, self._most, self._is_settled)
            for _ in range(device.decode_mesh.groups)
        ]
        self._caches = self._empty_caches()
        self._pool = self._first_pool()

    @property
    def done(self) -> bool:
        """Whether nothing is left to decode."""
        return all(group.done for group in self._groups)

    def step(self) -> tuple[list[tuple[str, list[Sample]]], tuple[int, int, int]]:
        """Decodes one chunk.

        Returns:
          the questions that are complete by it, each with its paths in index order; and how many
          paths ended, tokens came that count, and row steps were run.
        """
        self._prefill(self._admitted())
        for group in self._groups:
            group.start()
        if not any(group.active for group in self._groups):
            return [], (0, 0, 0)  # the last questions were complete before anybody knew
        self._grow()
        self._compact()
        chunk = self._decode()
        complete, ended, useful = [], 0, 0
        for number, group in enumerate(self._groups):
            per = len(chunk[0]) // len(self._groups)
            own = slice(number * per, number * per + len(group.active))
            finished, tokens = self._take(group, chunk[0][own], chunk[1][own])
            ended, useful = ended + len(finished), useful + tokens
            for question in group.end(finished):
                samples, self._done[question] = self._done[question], {}
                complete.append((self._uids[question], [samples[k] for k in sorted(samples)]))
        return complete, (ended, useful, chunk[0].size)

    def _take(
        self, group: Scheduler, tokens: np.ndarray, logprobs: np.ndarray
    ) -> tuple[list[Running], int]:
        """Adds a chunk to the paths; returns those that ended, and how many tokens count."""
        finished, useful = [], 0
        for running, new, scores in zip(group.active, tokens, logprobs, strict=True):
            before = len(running.tokens)
            running.tokens += new.tolist()
            running.logprobs += scores.tolist()
            ending = self._stops.ending(running.tokens, len(new), running.limit)
            useful += (ending.used if ending else len(running.tokens)) - before
            if ending:
                finished.append(running)
                self._keep(running, ending)
        return finished, useful

    def _keep(self, running: Running, ending: Ending) -> None:
        scores = np.asarray(running.logprobs[: ending.used], np.float64)
        self._done[running.question][running.index] = Sample(
            uid=self._uids[running.question],
            sample_index=int(self._numbers[running.index]),
            text=ending.text,
            tokens=ending.used,
            logprob=round(float(scores.sum()), 4),
            finished=ending.finished,
            logprobs=tuple(scores.round(6).tolist()) if self._sampling.token_logprobs else None,
        )

    def _most(self, question: int, index: int) -> int:
        most = self._sampling.max_new_tokens
        if self._limit is None:
            return most
        return min(most, self._limit(self._uids[question], int(self._numbers[index])))

    def _is_settled(self, question: int, count: int) -> bool:
        if self._settled is None:
            return False
        samples = self._done[question]
        return self._settled(self._uids[question], [samples[k] for k in range(count)])

    def _empty_caches(self) -> Cache:
        config, slots = self._device.config, self._plan.prompt_slots
        layers, groups, width = range(config.num_layers), config.num_kv_heads, config.head_dim
        zeros = self._device.zeros
        return Cache(
            [zeros((slots, groups, self._bucket, width)) for _ in layers],
            [zeros((slots, groups, self._bucket, width)) for _ in layers],
            zeros((slots,), "int32"),
        )

    def _admitted(self) -> list[list[tuple[int, int]]]:
        """Deals questions out, each to the group with the most idle rows; pairs for each group."""
        pairs: list[list[tuple[int, int]]] = [[] for _ in self._groups]
        while True:
            number = max(range(len(pairs)), key=lambda n: self._groups[n].idle)
            pair = self._groups[number].admit() if self._groups[number].idle else None
            if pair is None:
                return pairs
            pairs[number].append(pair)

    def _prefill(self, pairs: list[list[tuple[int, int]]]) -> None:
        """Caches all but the last token of each question; its paths start from that one."""
        size = max(1, self._device.decoding.prefill_tokens // self._bucket)
        for begin in range(0, max(map(len, pairs)), size):
            rows: list[list[int]] = []
            slots: list[int] = []
            for group in pairs:
                some = group[begin : begin + size]
                rows += [self._prompts[question][:-1] for question, _ in some]
                rows += [[]] * (size - len(some))
                slots += [slot for _, slot in some] + [self._plan.prompt_slots] * (size - len(some))
            batch, lengths = pad_sequences(rows, self._bucket)
            self._caches = prefill_questions(
                self._device.config,
                self._device.decode_mesh,
                self._device.weights,
                self._caches,
                self._shared,
                batch,
                lengths,
                np.array(slots, np.int32),
            )

    def _first_pool(self) -> Pool:
        config, plan, decoding = self._device.config, self._plan, self._device.decoding
        entry = 2 * config.num_kv_heads * config.head_dim * config.num_layers
        size = entry * plan.page * plan.slots * jnp.dtype(decoding.dtype).itemsize
        return self._segments(max(1, min(self._depth, decoding.pool_bytes // size)))

    def _segments(self, count: int) -> Pool:
        config, plan = self._device.config, self._plan
        shape = (plan.slots, config.num_kv_heads, plan.page, config.head_dim)
        for group in self._groups:
            group.add_pages(count * plan.slots)
        return empty_segments(config.num_layers, count, lambda: self._device.zeros(shape))

    def _grow(self) -> None:
        """Doubles the pool until the next chunk fits: few sizes, so few compilations."""
        while any(group.missing_pages() for group in self._groups):
            now = self._groups[0].pages // self._plan.slots
            assert now < self._depth, "every path has all pages that it can need"
            self._pool = with_more(self._pool, self._segments(min(now, self._depth - now)))

    def _compact(self) -> None:
        """Leaves as few segments in use as hold the pages: a step reads each of them whole."""
        size = self._plan.slots
        moves: dict[tuple[int, int], list[list[tuple[int, int]]]] = {}
        for number, group in enumerate(self._groups):
            for begin, end in group.compact(size):
                pair = moves.setdefault((begin // size, end // size), [[] for _ in self._groups])
                pair[number].append((begin % size, end % size))
        for (source, target), groups in sorted(moves.items()):
            self._move(source, target, groups)

    def _move(self, source: int, target: int, groups: list[list[tuple[int, int]]]) -> None:
        """Copies pages from one segment to another, (from, to) pairs for each device group."""
        places = np.zeros((2, len(groups), self._plan.slots), np.int32)
        for number, pairs in enumerate(groups):
            for i, pair in enumerate(pairs):
                places[:, number, i] = pair
        pool = self._pool
        layers = [*pool.keys, *pool.values]
        new = move_pages(
            self._device.decode_mesh,
            [layer[source] for layer in layers],
            [layer[target] for layer in layers],
            *places.reshape(2, -1),
            np.array([len(pairs) for pairs in groups], np.int32),
        )
        for layer, array in zip(layers, new, strict=True):
            layer[target] = array

    def _decode(self) -> Chunk:
        """Decodes one chunk: tokens and log-probabilities, the rows of each group in turn."""
        targets = [group.allot() for group in self._groups]
        verified_programs, full = self._device.verified_programs, self._plan.slots
        busiest = max(len(group.active) for group in self._groups)
        keys = {width: self._program(width) for width in self._batch_sizes if width >= busiest}
        verified = min(
            width for width, key in keys.items() if verified_programs.get(key, width == full)
        )
        width = min(width for width, key in keys.items() if verified_programs.get(key, True))
        if width == verified or 2 * busiest <= width:  # so few rows would not prove much
            return self._run(targets, verified)
        wide = self._run(targets, verified)
        # The same chunk again: it reads what was stored before it, and stores the same entries.
        narrow = self._run(targets, width)
        verified_programs[keys[width]] = self._alike(wide, narrow)
        return narrow if verified_programs[keys[width]] else self._run(targets, verified)

    def _program(self, width: int) -> tuple:
        """What a chunk of so many rows is compiled for, and how many pages paths have, roughly.

        A chunk of short paths says little of long ones, so those are proven anew.
        """
        prompt = None if self._shared is None else self._shared.keys[0].shape[2]
        segments = self._groups[0].pages // self._plan.slots
        filters = self._sampling.filters
        longest = max(len(running.pages) for group in self._groups for running in group.active)
        shapes = (width, self._bucket, prompt, self._plan, self._depth, segments, filters)
        return *shapes, longest.bit_length()

    def _alike(self, one: Chunk, other: Chunk) -> bool:
        """Whether two chunks agree bit by bit in the rows that count."""
        groups = len(self._groups)
        pairs = [
            [a.reshape(groups, -1, a.shape[-1]) for a in (first, second)]
            for first, second in zip(one, other, strict=True)
        ]
        return all(
            np.array_equal(a[number, : len(group.active)], b[number, : len(group.active)])
            for a, b in pairs
            for number, group in enumerate(self._groups)
        )

    def _run(self, targets: list[list[tuple[int, int]]], width: int) -> Chunk:
        device = self._device
        rows = concatenate_groups(
            [
                slot_arrays(
                    self._plan, group.active, target, width,
                    self._prompts, self._words, self._before,
                )
                for group, target in zip(self._groups, targets, strict=True)
            ]
        )  # fmt: skip
        tables = [
            page_table(self._plan, group.active, group.pages, width, self._depth)
            for group in self._groups
        ]
        tokens, logprobs, self._pool = decode_chunk(
            device.config,
            device.decode_mesh,
            self._sampling.filters,
            self._plan.chunk,
            device.weights,
            self._shared,
            self._caches,
            self._pool,
            PageTable(**concatenate_groups(tables)),  # type: ignore[arg-type]
            self._rows(rows),
            self._sampling.temperature,
        )
        chunk = np.asarray(tokens), np.asarray(logprobs)
        device.note(chunk)
        return chunk

    def _rows(self, arrays: Arrays) -> SlotArrays:
        words, index = arrays.pop("words"), arrays.pop("index")
        noise = keys_of_words(*self._noise, words, self._numbers[index].astype(np.uint32))
        return SlotArrays(noise=noise, **arrays)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Stats:
    """What a run has done so far.

    Attributes:
      samples: finished paths.
      tokens: tokens of all paths, finished or not, that count.
      slot_steps: steps times rows, whether they gave such a token or not.
    """

    samples: int = 0
    tokens: int = 0
    slot_steps: int = 0

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            self.samples + other.samples,
            self.tokens + other.tokens,
            self.slot_steps + other.slot_steps,
        )

    @property
    def utilisation(self) -> float:
        """Share of the row steps that gave a token that counts."""
        return self.tokens / self.slot_steps if self.slot_steps else 0.0


OnChunk = Callable[[Stats], None]


class Engine:
    """Samples paths from one set of parameters.

    Args:
      config: the model's shape.
      params: its parameter tree: whole, or where `spread.param_shardings` says.
      tokenizer: the one that the parameters were trained with.
      decoding: the layout.

    Where the mesh spans several processes, all of them make it and run it with the same arguments.

    Raises:
      LmsiError: the tokenizer has more ids than the model has rows, or the mesh cannot be made.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        decoding: Decoding | None = None,
    ):
        if tokenizer.vocab_size > config.vocab_size:
            raise LmsiError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary only "
                f"{config.vocab_size}; name the tokenizer that the checkpoint was trained with"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.decoding = decoding = decoding or Decoding()
        decode_mesh = make_decode_mesh(decoding.data, decoding.model, decoding.fsdp)
        weights = decoding_weights(config, params, jnp.dtype(decoding.dtype), decode_mesh)
        self._device = Device(config, decode_mesh, weights, decoding)
        self._prompt: tuple[str, Cache | None] | None = None
        self._found: dict[tuple[str, ...], Stops] = {}

    @property
    def shared(self) -> Mesh | None:
        """The mesh where it spans several processes, else None."""
        return self._device.decode_mesh.shared

    @property
    def trace(self) -> int:
        """A checksum of all that has been decoded: the same in all processes of a mesh."""
        return self._device.trace

    def prompt_tokens(self, text: str) -> int:
        """Returns the number of tokens of a text; those of the start are not counted."""
        return len(self.tokenizer.encode(text))

    def run(
        self,
        prefix: str,
        questions: Sequence[tuple[str, str]],
        sampling: Sampling,
        *,
        seed: int,
        round_index: int,
        settled: Settled | None = None,
        limit: Limit | None = None,
        numbers: Sequence[int] | None = None,
        on_chunk: OnChunk | None = None,
    ) -> Iterator[tuple[str, list[Sample]]]:
        """Samples the paths of questions that share a task prompt.

        Args:
          prefix: the task prompt ("" for none).
          questions: (uid, text) pairs.
          sampling: how paths are drawn.
          seed: with the round, the uid and the path's index it fixes the noise of a path.
          round_index: the round of self-improvement.
          settled: whether a question needs no more paths, given those it has, in index order;
            asked after every `sampling.adaptive_consistency_every` paths where
            `sampling.adaptive_consistency` is set.
          limit: most tokens of path k of a uid; `sampling.max_new_tokens` for all by default.
          numbers: the numbers of the paths to sample, rising, `sampling.paths` of them; 0, 1,
            2, ... by default. The noise of path k is the same whichever others are sampled with it.
          on_chunk: called after every chunk with what has been done.

        Yields:
          (uid, its paths in index order), as questions are completed.

        Raises:
          LmsiError: a prompt and `max_new_tokens` do not fit the model's context; nothing has been
            sampled then.
          ValueError: `numbers` are not `sampling.paths` rising ones.
        """
        if numbers is not None:
            _check_numbers(numbers, sampling.num_samples)
        encode = self.tokenizer.encode
        prompt = encode_first(self.tokenizer, prefix) if prefix else []
        first = [] if prefix else [*self.tokenizer.start_ids]
        encoded = [[*first, *encode(text)] for _, text in questions]
        lengths = {uid: len(ids) for (uid, _), ids in zip(questions, encoded, strict=True)}
        check_fit(lengths, len(prompt), sampling.max_new_tokens, self.config.max_length)
        buckets: dict[int, list[tuple[str, list[int]]]] = {}
        for (uid, _), ids in zip(questions, encoded, strict=True):
            buckets.setdefault(question_bucket(len(ids) - 1), []).append((uid, ids))
        shared = self._shared(prefix, prompt) if questions else None
        stops = self._stops(sampling.stop)
        noise = (seed, round_index)
        stats = Stats()
        for bucket, some in sorted(buckets.items()):
            stream = Stream(
                *(self._device, stops, shared, some, bucket, sampling, noise),
                *(settled, limit, numbers),
            )
            while not stream.done:
                complete, counts = stream.step()
                stats += Stats(*counts)
                yield from complete
                # Last: whoever leaves here has been given everything that is complete.
                if on_chunk is not None:
                    on_chunk(stats)
            del stream  # its caches, before the next one's

    def _stops(self, strings: tuple[str, ...]) -> Stops:
        """Finds the ends of paths; kept, for it looks at the whole vocabulary."""
        if strings not in self._found:
            self._found[strings] = Stops(self.tokenizer, strings)
        return self._found[strings]

    def _shared(self, prefix: str, tokens: list[int]) -> Cache | None:
        """Caches the task prompt; the last one is kept, for the next run of its task."""
        if self._prompt is None or self._prompt[0] != prefix:
            cache = None
            if tokens:
                batch, lengths = pad_sequences([tokens], prompt_bucket(len(tokens)))
                device = self._device
                cache = prefill_prompt(
                    self.config, device.decode_mesh, device.weights, batch, lengths
                )
            self._prompt = prefix, cache
        return self._prompt[1]


def _check_numbers(numbers: Sequence[int], paths: int) -> None:
    """Raises ValueError where they are not so many rising numbers of paths."""
    if len(numbers) != paths or list(numbers) != sorted(set(numbers)) or min(numbers) < 0:
        raise ValueError(f"{list(numbers)} are not {paths} rising numbers of paths")
