"""One run over questions of one length bucket: the scheduler's decisions, carried out."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from lmsi_jax.decoding.device import Chunk, Device
from lmsi_jax.decoding.feed import Arrays, joined, padded, rows_of, table_of
from lmsi_jax.decoding.keys import keys_of_words, uid_words
from lmsi_jax.decoding.layout import plan, widths
from lmsi_jax.decoding.loop import Rows, decode_chunk, move_pages, seat_questions
from lmsi_jax.decoding.pages import Pool, Table, empty_segments, with_more
from lmsi_jax.decoding.prefix import Cache
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.decoding.scheduler import Running, Scheduler
from lmsi_jax.decoding.stops import Ending, Stops
from lmsi_jax.records import Path

Limit = Callable[[str, int], int]
Settled = Callable[[str, Sequence[Path]], bool]


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
        self._numbers = np.arange(sampling.paths) if numbers is None else np.asarray(numbers)
        self._plan = plan(device.decoding, sampling)
        self._depth = -(-sampling.max_new_tokens // self._plan.page)  # most pages of a path
        self._done: list[dict[int, Path]] = [{} for _ in questions]
        self._before = 0 if shared is None else int(np.asarray(shared.lengths)[0])
        self._widths = widths(device.decoding)
        waiting = iter(range(len(questions)))
        self._groups = [
            Scheduler(self._plan, waiting, self._most, self._is_settled)
            for _ in range(device.spread.groups)
        ]
        self._caches = self._empty_caches()
        self._pool = self._first_pool()

    @property
    def done(self) -> bool:
        """Whether nothing is left to decode."""
        return all(group.done for group in self._groups)

    def step(self) -> tuple[list[tuple[str, list[Path]]], tuple[int, int, int]]:
        """Decodes one chunk.

        Returns:
          the questions that are complete by it, each with its paths in index order; and how many
          paths ended, tokens came that count, and row steps were run.
        """
        self._seat(self._seated())
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
                paths, self._done[question] = self._done[question], {}
                complete.append((self._uids[question], [paths[k] for k in sorted(paths)]))
        return complete, (ended, useful, chunk[0].size)

    def _take(
        self, group: Scheduler, tokens: np.ndarray, logprobs: np.ndarray
    ) -> tuple[list[Running], int]:
        """Adds a chunk to the paths; returns those that ended, and how many tokens count."""
        finished, useful = [], 0
        for path, new, scores in zip(group.active, tokens, logprobs, strict=True):
            before = len(path.tokens)
            path.tokens += new.tolist()
            path.logprobs += scores.tolist()
            ending = self._stops.ending(path.tokens, len(new), path.limit)
            useful += (ending.used if ending else len(path.tokens)) - before
            if ending:
                finished.append(path)
                self._keep(path, ending)
        return finished, useful

    def _keep(self, path: Running, ending: Ending) -> None:
        scores = np.asarray(path.logprobs[: ending.used], np.float64)
        self._done[path.question][path.index] = Path(
            uid=self._uids[path.question],
            index=int(self._numbers[path.index]),
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
        paths = self._done[question]
        return self._settled(self._uids[question], [paths[k] for k in range(count)])

    def _empty_caches(self) -> Cache:
        config, slots = self._device.config, self._plan.slots
        layers, groups, width = range(config.num_layers), config.num_kv_heads, config.head_dim
        zeros = self._device.zeros
        return Cache(
            [zeros((slots, groups, self._bucket, width)) for _ in layers],
            [zeros((slots, groups, self._bucket, width)) for _ in layers],
            zeros((slots,), "int32"),
        )

    def _seated(self) -> list[list[tuple[int, int]]]:
        """Deals questions out, each to the group with the most idle rows; pairs for each group."""
        pairs: list[list[tuple[int, int]]] = [[] for _ in self._groups]
        while True:
            number = max(range(len(pairs)), key=lambda n: self._groups[n].idle)
            pair = self._groups[number].seat() if self._groups[number].idle else None
            if pair is None:
                return pairs
            pairs[number].append(pair)

    def _seat(self, pairs: list[list[tuple[int, int]]]) -> None:
        """Caches all but the last token of each question; its paths start from that one."""
        size = max(1, self._device.decoding.prefill_tokens // self._bucket)
        for begin in range(0, max(map(len, pairs)), size):
            rows: list[list[int]] = []
            slots: list[int] = []
            for group in pairs:
                some = group[begin : begin + size]
                rows += [self._prompts[question][:-1] for question, _ in some]
                rows += [[]] * (size - len(some))
                slots += [slot for _, slot in some] + [self._plan.slots] * (size - len(some))
            batch, lengths = padded(rows, self._bucket)
            self._caches = seat_questions(
                self._device.config,
                self._device.spread,
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
        size = entry * plan.page * plan.rows * jnp.dtype(decoding.dtype).itemsize
        return self._segments(max(1, min(self._depth, decoding.pool_bytes // size)))

    def _segments(self, count: int) -> Pool:
        config, plan = self._device.config, self._plan
        shape = (plan.rows, config.num_kv_heads, plan.page, config.head_dim)
        for group in self._groups:
            group.add_pages(count * plan.rows)
        return empty_segments(config.num_layers, count, lambda: self._device.zeros(shape))

    def _grow(self) -> None:
        """Doubles the pool until the next chunk fits: few sizes, so few compilations."""
        while any(group.missing_pages() for group in self._groups):
            now = self._groups[0].pages // self._plan.rows
            assert now < self._depth, "every path has all pages that it can need"
            self._pool = with_more(self._pool, self._segments(min(now, self._depth - now)))

    def _compact(self) -> None:
        """Leaves as few segments in use as hold the pages: a step reads each of them whole."""
        size = self._plan.rows
        moves: dict[tuple[int, int], list[list[tuple[int, int]]]] = {}
        for number, group in enumerate(self._groups):
            for begin, end in group.compact(size):
                pair = moves.setdefault((begin // size, end // size), [[] for _ in self._groups])
                pair[number].append((begin % size, end % size))
        for (source, target), groups in sorted(moves.items()):
            self._move(source, target, groups)

    def _move(self, source: int, target: int, groups: list[list[tuple[int, int]]]) -> None:
        """Copies pages from one segment to another, (from, to) pairs for each device group."""
        places = np.zeros((2, len(groups), self._plan.rows), np.int32)
        for number, pairs in enumerate(groups):
            for i, pair in enumerate(pairs):
                places[:, number, i] = pair
        pool = self._pool
        layers = [*pool.keys, *pool.values]
        new = move_pages(
            self._device.spread,
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
        proven, full = self._device.proven, self._plan.rows
        busiest = max(len(group.active) for group in self._groups)
        keys = {width: self._program(width) for width in self._widths if width >= busiest}
        sure = min(width for width, key in keys.items() if proven.get(key, width == full))
        width = min(width for width, key in keys.items() if proven.get(key, True))
        if width == sure or 2 * busiest <= width:  # so few rows would not prove much
            return self._run(targets, sure)
        wide = self._run(targets, sure)
        # The same chunk again: it reads what was stored before it, and stores the same entries.
        narrow = self._run(targets, width)
        proven[keys[width]] = self._alike(wide, narrow)
        return narrow if proven[keys[width]] else self._run(targets, sure)

    def _program(self, width: int) -> tuple:
        """What a chunk of so many rows is compiled for, and how many pages paths have, roughly.

        A chunk of short paths says little of long ones, so those are proven anew.
        """
        prompt = None if self._shared is None else self._shared.keys[0].shape[2]
        segments = self._groups[0].pages // self._plan.rows
        filters = self._sampling.filters
        longest = max(len(path.pages) for group in self._groups for path in group.active)
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
        rows = joined(
            [
                rows_of(
                    self._plan, group.active, target, width,
                    self._prompts, self._words, self._before,
                )
                for group, target in zip(self._groups, targets, strict=True)
            ]
        )  # fmt: skip
        tables = [
            table_of(self._plan, group.active, group.pages, width, self._depth)
            for group in self._groups
        ]
        tokens, logprobs, self._pool = decode_chunk(
            device.config,
            device.spread,
            self._sampling.filters,
            self._plan.chunk,
            device.weights,
            self._shared,
            self._caches,
            self._pool,
            Table(**joined(tables)),  # type: ignore[arg-type]
            self._rows(rows),
            self._sampling.temperature,
        )
        chunk = np.asarray(tokens), np.asarray(logprobs)
        device.note(chunk)
        return chunk

    def _rows(self, arrays: Arrays) -> Rows:
        words, index = arrays.pop("words"), arrays.pop("index")
        noise = keys_of_words(*self._noise, words, self._numbers[index].astype(np.uint32))
        return Rows(noise=noise, **arrays)  # type: ignore[arg-type]
