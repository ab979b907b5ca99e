"""The engine: groups of questions through the jitted loop, lanes laid out as [questions, paths].

The composition of a group depends only on the order of the questions, so a group that is decoded
again after a restart gives the same bytes.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmsi_jax.decoding.keys import path_keys
from lmsi_jax.decoding.loop import Lanes, decode_chunk, prefill_jit, start
from lmsi_jax.decoding.prefix import Cache
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.decoder import Params, fuse
from lmsi_jax.models.tokenizer import Tokenizer
from lmsi_jax.records import Path

# Prompts are padded to multiples of these many tokens: few shapes, so few compilations.
_PREFIX_BUCKET = 160
_QUESTION_BUCKET = 80
_PREFILL_ROWS = 32  # questions cached at a time; their attention scores take the most memory
_CHUNK = 16  # steps between two looks at the text for stop strings


@dataclasses.dataclass(frozen=True)
class Stats:
    """What a run of the engine has done so far.

    Attributes:
      paths: paths that are complete.
      tokens: their tokens.
      lane_steps: steps that the lanes took, summed over the lanes.
      busy_lane_steps: those of them that drew a token of a path.
    """

    paths: int
    tokens: int
    lane_steps: int
    busy_lane_steps: int


class Engine:
    """Samples paths from one set of parameters.

    Args:
      config: the model's shape.
      params: its parameter tree.
      tokenizer: the one that the parameters were trained with.
      lanes: paths decoded at the same time.

    Raises:
      LmsiError: the tokenizer has more ids than the model has rows.
    """

    def __init__(self, config: ModelConfig, params: Params, tokenizer: Tokenizer, lanes: int = 256):
        if tokenizer.vocab_size > config.vocab_size:
            raise LmsiError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary only "
                f"{config.vocab_size}; name the tokenizer that the checkpoint was trained with"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.lanes = lanes
        self._fused = jax.jit(fuse, static_argnums=0)(config, params)
        self._prompt: tuple[str, Cache | None] | None = None

    def questions_per_group(self, sampling: Sampling) -> int:
        """How many questions are decoded at the same time, at least one."""
        return max(1, self.lanes // sampling.paths)

    def generate(
        self,
        prefix: str,
        questions: Sequence[tuple[str, str]],
        sampling: Sampling,
        *,
        seed: int,
        round_index: int,
    ) -> list[Path]:
        """Samples all paths of one group of questions that share a task prompt.

        Args:
          prefix: the task prompt ("" for none).
          questions: (uid, text) pairs, at most `questions_per_group`.
          sampling: how paths are drawn.
          seed: with the round, the uid and the path's index it fixes the noise of a path.
          round_index: the round of self-improvement.

        Returns:
          The paths, question by question, each question's in index order.

        Raises:
          LmsiError: a prompt and `max_new_tokens` do not fit the model's context.
        """
        slots = self.questions_per_group(sampling)
        encoded = [self.tokenizer.encode(text) for _, text in questions]
        shared = self._shared(prefix)
        before = int(shared.lengths[0]) if shared else 0
        self._check_fit(questions, encoded, before, sampling)
        cache, last = self._questions(encoded, slots, shared)
        uids = [uid for uid, _ in questions] + [""] * (slots - len(questions))
        noise = path_keys(
            seed,
            round_index,
            [uid for uid in uids for _ in range(sampling.paths)],
            list(range(sampling.paths)) * slots,
        )
        done = jnp.repeat(jnp.arange(slots) >= len(questions), sampling.paths)
        last = jnp.repeat(last, sampling.paths)
        lanes = start(self.config, last, noise, done, sampling.max_new_tokens)
        lanes = self._run(sampling, shared, cache, lanes)
        return list(self._paths(questions, sampling, lanes))

    def prompt_tokens(self, text: str) -> int:
        """Returns the number of tokens of a text."""
        return len(self.tokenizer.encode(text))

    def run(
        self,
        prefix: str,
        questions: Sequence[tuple[str, str]],
        sampling: Sampling,
        *,
        seed: int,
        round_index: int,
        settled: Callable[[str, Sequence[Path]], bool] | None = None,
        watch: Callable[[Stats], None] | None = None,
    ) -> Iterator[tuple[str, list[Path]]]:
        """Samples all paths of any number of questions that share a task prompt.

        Args:
          prefix: the task prompt ("" for none).
          questions: (uid, text) pairs.
          sampling: how paths are drawn.
          seed: with the round, the uid and the path's index it fixes the noise of a path.
          round_index: the round of self-improvement.
          settled: says that a question needs no further paths; all are started at once here, so it
            is not asked.
          watch: called between two chunks, after the questions that a chunk completed.

        Yields:
          A question's uid and its paths in index order, as questions complete.

        Raises:
          LmsiError: a prompt and `max_new_tokens` do not fit the model's context.
        """
        del settled
        encoded = [self.tokenizer.encode(text) for _, text in questions]
        self._check_fit(questions, encoded, self.prompt_tokens(prefix), sampling)
        # A group's shape must not depend on who else is in it, or a path's last bits would.
        buckets = [-(-(len(row) - 1) // _QUESTION_BUCKET) for row in encoded]
        size, counts = self.questions_per_group(sampling), [0, 0, 0]
        for bucket in sorted(set(buckets)):
            rows = [q for q, own in zip(questions, buckets, strict=True) if own == bucket]
            for group in (rows[at : at + size] for at in range(0, len(rows), size)):
                paths = self.generate(prefix, group, sampling, seed=seed, round_index=round_index)
                for uid, _ in group:
                    yield uid, [path for path in paths if path.uid == uid]
                tokens = sum(path.tokens for path in paths)
                steps = max(path.tokens for path in paths) * size * sampling.paths
                counts = [a + b for a, b in zip(counts, (len(paths), tokens, steps), strict=True)]
                if watch is not None:
                    watch(Stats(counts[0], counts[1], counts[2], counts[1]))

    def _run(self, sampling: Sampling, shared: Cache | None, cache: Cache, lanes: Lanes) -> Lanes:
        """Runs chunks until every lane is done or out of tokens."""
        stops = self._stops(sampling.stop)
        while True:
            lanes = decode_chunk(
                self.config,
                sampling.filters,
                _CHUNK,
                self._fused,
                shared,
                cache,
                lanes,
                stops,
                sampling.temperature,
            )
            done = np.asarray(lanes.done)
            if done.all() or int(lanes.step) >= sampling.max_new_tokens:
                return lanes
            tokens, upto = np.asarray(lanes.tokens), int(lanes.step)
            tails = tokens[:, max(0, upto - 2 * _CHUNK) : upto]
            late = [
                not over and any(s in self.tokenizer.decode(tail) for s in sampling.stop)
                for over, tail in zip(done, tails, strict=True)
            ]
            if any(late):
                lanes = dataclasses.replace(lanes, done=lanes.done | jnp.asarray(late))

    def _shared(self, prefix: str) -> Cache | None:
        """Caches the task prompt; the last one is kept, for the next groups of its task."""
        if self._prompt is None or self._prompt[0] != prefix:
            self._prompt = prefix, self._prefilled(self.tokenizer.encode(prefix))
        return self._prompt[1]

    def _prefilled(self, tokens: list[int]) -> Cache | None:
        if not tokens:
            return None
        batch, lengths = _padded([tokens], 1, _PREFIX_BUCKET)
        return prefill_jit(self.config, self._fused, batch, lengths, None)

    def _questions(
        self, encoded: list[list[int]], slots: int, shared: Cache | None
    ) -> tuple[Cache, jax.Array]:
        """Caches all but the last token of each question; the lanes start from that one."""
        rows = encoded + [encoded[0]] * (slots - len(encoded))
        batch, lengths = _padded([row[:-1] for row in rows], slots, _QUESTION_BUCKET)
        parts = [
            prefill_jit(self.config, self._fused, batch[i:end], lengths[i:end], shared)
            for i in range(0, slots, _PREFILL_ROWS)
            for end in [min(i + _PREFILL_ROWS, slots)]
        ]
        cache = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        return cache, jnp.asarray([row[-1] for row in rows], jnp.int32)

    def _stops(self, strings: Sequence[str]) -> jax.Array:
        sequences = [[self.tokenizer.eos_id], *(self.tokenizer.encode(s) for s in strings)]
        width = max(map(len, sequences))
        return jnp.asarray([[-1] * (width - len(s)) + s for s in sequences], jnp.int32)

    def _check_fit(
        self,
        questions: Sequence[tuple[str, str]],
        encoded: list[list[int]],
        before: int,
        sampling: Sampling,
    ) -> None:
        for (uid, _), ids in zip(questions, encoded, strict=True):
            needed = before + len(ids) + sampling.max_new_tokens
            if needed > self.config.max_length:
                raise LmsiError(
                    f"question {uid} needs {needed} positions (task prompt {before}, question "
                    f"{len(ids)}, new tokens {sampling.max_new_tokens}), the model has "
                    f"{self.config.max_length}; use fewer exemplars or fewer new tokens, or drop it"
                )

    def _paths(
        self, questions: Sequence[tuple[str, str]], sampling: Sampling, lanes: Lanes
    ) -> Iterator[Path]:
        tokens, logprobs = np.asarray(lanes.tokens), np.asarray(lanes.logprobs, np.float64)
        lengths = np.asarray(lanes.lengths)
        for slot, (uid, _) in enumerate(questions):
            for index in range(sampling.paths):
                row = slot * sampling.paths + index
                ids = tokens[row, : lengths[row]].tolist()
                text, used, finished = self._cut(ids, sampling.stop)
                logprob = round(float(logprobs[row, :used].sum()), 4)
                yield Path(
                    uid=uid, index=index, text=text, tokens=used, logprob=logprob, finished=finished
                )

    def _cut(self, ids: list[int], stops: Sequence[str]) -> tuple[str, int, bool]:
        """Returns the text before the first stop, the tokens it took with the stop, and whether."""
        if self.tokenizer.eos_id in ids:
            ids = ids[: ids.index(self.tokenizer.eos_id)]
            ended = 1
        else:
            ended = 0
        text = self.tokenizer.decode(ids)
        at = _first_stop(text, stops)
        if at is None:
            return text, len(ids) + ended, bool(ended)
        used = len(ids)
        while used > 1 and _first_stop(self.tokenizer.decode(ids[: used - 1]), stops) is not None:
            used -= 1
        return text[:at], used, True


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return min(found, default=None)


def _padded(rows: list[list[int]], count: int, bucket: int) -> tuple[jax.Array, jax.Array]:
    """Right-pads rows to a multiple of `bucket`: tokens [count, L] and lengths [count]."""
    longest = max(1, *map(len, rows)) if len(rows) > 1 else max(1, len(rows[0]))
    length = -(-longest // bucket) * bucket
    batch = np.zeros((count, length), np.int32)
    for i, row in enumerate(rows):
        batch[i, : len(row)] = row
    return jnp.asarray(batch), jnp.asarray([len(row) for row in rows], jnp.int32)
