"""The decode engine: requests in, samples out, with every slot busy until requests run out.

    engine = Engine(config, params, tokenizer, Decoding(slots=64))
    requests = [Request(uid="q1", prefix=few_shot, text="Q: 2 + 2?\nA:", sampling=Sampling())]
    for response in engine.generate(requests, seed=0, round_index=1):
        print(requests[response.number].uid, [sample.text for sample in response.samples])

Requests with one task prompt, one `Sampling` and texts of similar length are decoded together by a
`DecodeLoop`, which repeats three steps: `admit` questions and samples into free slots, `decode` a
chunk of steps on the devices, `collect` the samples that ended. The host decides between chunks
(`scheduler`), the devices compute within them (`decode_step`).

What a sample says depends on its prompt, its noise and the compiled shapes, and on nothing else:
not on the order of the requests, the slot, the refills, the process count or a restart.

The seam for other engines is `rollout.requests.Rollout`.
"""

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from lmsi_jax.config import Decoding, ModelConfig, Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.attention import Cache
from lmsi_jax.models.params import Params
from lmsi_jax.models.tokenizers import Tokenizer, encode_text
from lmsi_jax.records import Sample, Text
from lmsi_jax.rollout.decode_step import ChunkInputs, Program, decode_chunk
from lmsi_jax.rollout.device_caches import (
    Chunk,
    DeviceCaches,
    DeviceModel,
    EncodedQuestion,
    NoiseSource,
    join_groups,
    page_table,
    slot_arrays,
)
from lmsi_jax.rollout.requests import IsSettled, OnChunk, Request, Response, Rollout, Stats
from lmsi_jax.rollout.scheduler import (
    Running,
    Scheduler,
    batch_sizes,
    check_fit,
    plan,
    question_bucket,
)
from lmsi_jax.rollout.stops import Ending, Stops
from lmsi_jax.runtime.progress import doing


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Group:
    """Requests that share a task prompt, their `Sampling` and their number of samples.

    Attributes:
      prefix: the task prompt, "" for none.
      prefix_tokens: its tokens.
      sampling: with `num_samples` as requested.
      questions: in the order of the requests.
    """

    prefix: Text
    prefix_tokens: list[int]
    sampling: Sampling
    questions: list[EncodedQuestion]


class Engine(Rollout):
    """Samples from one set of parameters on the devices of this process, or of several.

    Args:
      config: the model's shape.
      params: its parameter tree: whole, or placed as `sharding.param_shardings` says.
      tokenizer: the one that the parameters were trained with.
      decoding: the layout.

    If the mesh spans several processes, all of them make the engine and the same calls.

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
        self.config, self.tokenizer = config, tokenizer
        self.decoding = decoding or Decoding()
        self._model = DeviceModel(config, params, self.decoding)
        self._checksum = 0
        self._prompt: tuple[Text, Cache | None] | None = None
        self._known_stops: dict[tuple[str, ...], Stops] = {}

    @property
    def shared_mesh(self) -> Mesh | None:
        """The mesh if it spans several processes, else None."""
        return self._model.mesh.multiprocess_mesh

    @property
    def checksum(self) -> int:
        """A checksum of all that has been decoded: the same in all processes of a mesh."""
        return self._checksum

    def prompt_lengths(self, requests: Sequence[Request]) -> list[int]:
        """Returns the tokens of each request's own text.

        Raises:
          LmsiError: a prompt and its new tokens do not fit the model's context.
        """
        lengths = [0] * len(requests)
        for group in self._groups(requests):
            for question in group.questions:
                plain = isinstance(question.request.text, str) and not group.prefix
                start = len(self.tokenizer.start_ids) if plain else 0
                lengths[question.number] = len(question.tokens) - start
        return lengths

    def generate(
        self,
        requests: Sequence[Request],
        *,
        seed: int,
        round_index: int,
        is_settled: IsSettled | None = None,
        on_chunk: OnChunk | None = None,
    ) -> Iterator[Response]:
        """Samples the requests; see `Rollout.generate`.

        Yields:
          one response for each request, as they are completed.

        Raises:
          LmsiError: a prompt and its new tokens do not fit the model's context; nothing has been
            sampled then.
        """
        noise, stats = NoiseSource(seed, round_index), Stats()
        for group in self._groups(requests):
            buckets: dict[int, list[EncodedQuestion]] = {}
            for question in group.questions:
                bucket = question_bucket(len(question.tokens) - 1)
                buckets.setdefault(bucket, []).append(question)
            stops, prompt = self._stops(group.sampling.stop), self._prompt_cache(group)
            for _, questions in sorted(buckets.items()):
                same_length = dataclasses.replace(group, questions=questions)
                loop = DecodeLoop(self._model, same_length, prompt, stops, noise, is_settled)
                while loop.admit():
                    chunk = loop.decode()
                    for array in (*chunk.tokens, *chunk.logprobs):
                        self._checksum = zlib.crc32(array.tobytes(), self._checksum)
                    yield from loop.collect(chunk)
                    # Last: a callback that raises does so after every complete response.
                    if on_chunk is not None:
                        on_chunk(stats + loop.stats)
                stats += loop.stats
                del loop  # its caches, before the next one's

    def _groups(self, requests: Sequence[Request]) -> list[_Group]:
        """Groups and tokenizes the requests, and checks that they fit the model's context."""
        members: dict[tuple[Text, Sampling], list[int]] = {}
        for number, request in enumerate(requests):
            count = len(request.indices)
            sampling = dataclasses.replace(request.sampling, num_samples=count)
            members.setdefault((request.prefix, sampling), []).append(number)
        groups = []
        for (prefix, sampling), numbers in members.items():
            prefix_tokens = encode_text(self.tokenizer, prefix)
            questions = []
            for number in numbers:
                tokens = encode_text(self.tokenizer, requests[number].text, prefix)
                questions.append(EncodedQuestion(number, requests[number], tokens))
            lengths = {question.request.uid: len(question.tokens) for question in questions}
            check_fit(lengths, len(prefix_tokens), sampling.max_new_tokens, self.config.max_length)
            groups.append(
                _Group(
                    prefix=prefix,
                    prefix_tokens=prefix_tokens,
                    sampling=sampling,
                    questions=questions,
                )
            )
        return groups

    def _stops(self, strings: tuple[str, ...]) -> Stops:
        """Returns the finder of samples' ends; kept, because it reads the whole vocabulary."""
        if strings not in self._known_stops:
            with doing("reading the vocabulary for stop strings"):
                self._known_stops[strings] = Stops(self.tokenizer, strings)
        return self._known_stops[strings]

    def _prompt_cache(self, group: _Group) -> Cache | None:
        """Returns the task prompt's cache; the last one is kept, for the next run of its task."""
        if self._prompt is None or self._prompt[0] != group.prefix:
            tokens = group.prefix_tokens
            with doing(f"prefill of a task prompt of {len(tokens):,} tokens"):
                cache = self._model.prefill_prompt(tokens) if tokens else None
                self._prompt = group.prefix, jax.block_until_ready(cache)
        return self._prompt[1]


class DecodeLoop:
    """One group of questions of similar length on its way through the devices.

    Each device group has a `Scheduler`, and all take their questions from one queue.

    Args:
      model: the model.
      group: the questions.
      prompt: the task prompt's cache, or None.
      stops: finds the ends of samples.
      noise: seed and round.
      is_settled: see `Rollout.generate`.

    Attributes:
      stats: counts so far.
    """

    def __init__(
        self,
        model: DeviceModel,
        group: _Group,
        prompt: Cache | None,
        stops: Stops,
        noise: NoiseSource,
        is_settled: IsSettled | None,
    ):
        self.stats = Stats()
        self._model, self._stops, self._noise, self._is_settled = model, stops, noise, is_settled
        self._questions, self._sampling = group.questions, group.sampling
        self._plan = plan(model.decoding, group.sampling)
        self._depth = -(-group.sampling.max_new_tokens // self._plan.page)  # most pages of a sample
        self._bucket = question_bucket(max(len(q.tokens) for q in group.questions) - 1)
        self._sizes = batch_sizes(model.decoding)
        self._program = Program(
            model.config, model.mesh, self._sampling.truncation, self._plan.chunk
        )
        waiting = iter(range(len(self._questions)))
        self._schedulers = [
            Scheduler(self._plan, waiting, self._limit, self._settled)
            for _ in range(model.mesh.data)
        ]
        self._caches = DeviceCaches(model, prompt, self._schedulers, self._bucket, self._depth)
        # By question, the samples that ended, by their position in `Request.indices`.
        self._ended: list[dict[int, Sample]] = [{} for _ in self._questions]

    def admit(self) -> bool:
        """Fills free slots with questions and their samples; returns False if all is decoded.

        Each question goes to the device group with the most idle slots.
        """
        admitted: list[list[tuple[list[int], int]]] = [[] for _ in self._schedulers]
        while True:
            number = max(range(len(admitted)), key=lambda n: self._schedulers[n].idle)
            scheduler = self._schedulers[number]
            pair = scheduler.admit() if scheduler.idle else None
            if pair is None:
                break
            question, prompt_slot = pair
            admitted[number].append((self._questions[question].tokens, prompt_slot))
        self._caches.prefill(admitted)
        for scheduler in self._schedulers:
            scheduler.start()
        return any(scheduler.active for scheduler in self._schedulers)

    def decode(self) -> Chunk:
        """Decodes one chunk for all active samples."""
        self._caches.reserve()
        targets = [scheduler.allot() for scheduler in self._schedulers]
        busy = max(len(scheduler.active) for scheduler in self._schedulers)
        decode = functools.partial(self._decode, targets)
        return self._model.programs.decode(self._sizes, busy, self._program_key, decode)

    def collect(self, chunk: Chunk) -> list[Response]:
        """Adds a chunk to its samples; returns the questions that are complete by it."""
        responses, ended, useful = [], 0, 0
        for scheduler, tokens, logprobs in zip(
            self._schedulers, chunk.tokens, chunk.logprobs, strict=True
        ):
            finished = []
            for running, new, scores in zip(scheduler.active, tokens, logprobs, strict=True):
                before = len(running.tokens)
                running.tokens += new.tolist()
                running.logprobs += scores.tolist()
                ending = self._stops.ending(running.tokens, len(new), running.limit)
                useful += (ending.used if ending else len(running.tokens)) - before
                if ending:
                    finished.append(running)
                    sample = self._sample(running, ending)
                    self._ended[running.question][running.index] = sample
            ended += len(finished)
            for question in scheduler.end(finished):
                samples, self._ended[question] = self._ended[question], {}
                responses.append(
                    Response(
                        number=self._questions[question].number,
                        samples=tuple(samples[k] for k in sorted(samples)),
                    )
                )
        self.stats += Stats(ended, useful, chunk.slot_steps)
        return responses

    def _sample(self, running: Running, ending: Ending) -> Sample:
        request = self._questions[running.question].request
        logprobs = np.asarray(running.logprobs[: ending.used], np.float64)
        return Sample(
            uid=request.uid,
            sample_index=request.indices[running.index],
            text=ending.text,
            tokens=ending.used,
            logprob=round(float(logprobs.sum()), 4),
            end=ending.end,
            logprobs=tuple(logprobs.round(6).tolist()) if self._sampling.token_logprobs else None,
        )

    def _limit(self, question: int, index: int) -> int:
        return self._questions[question].request.limit(index)

    def _settled(self, question: int, count: int) -> bool:
        if self._is_settled is None:
            return False
        samples = [self._ended[question][k] for k in range(count)]
        return self._is_settled(self._questions[question].request, samples)

    def _program_key(self, slots: int) -> tuple:
        """Returns the key of a chunk's program: its shapes, and roughly the length of its samples.

        Equality that was seen on short samples says little of long ones, so the number of pages of
        the longest sample enters as a power of two.
        """
        shared = self._caches.prompts.shared
        prompt = None if shared is None else shared.keys[0].shape[2]
        longest = max(len(running.pages) for s in self._schedulers for running in s.active)
        shapes = (slots, self._bucket, prompt, self._depth, self._caches.segments)
        return self._program, self._plan, shapes, longest.bit_length()

    def _decode(self, targets: list[list[tuple[int, int]]], slots: int) -> Chunk:
        """Decodes one chunk with this number of slots in each device group."""
        arrays, tables = [], []
        for scheduler, target in zip(self._schedulers, targets, strict=True):
            active, shared_length = scheduler.active, self._caches.shared_length
            arrays.append(
                slot_arrays(self._plan, active, target, slots, self._questions, shared_length)
            )
            tables.append(page_table(self._plan, active, scheduler.pages, slots, self._depth))
        table, state = join_groups(arrays, tables, self._noise)
        temperature = np.float32(self._sampling.temperature)
        inputs = ChunkInputs(table=table, slots=state, temperature=temperature)
        *results, self._caches.pool = decode_chunk(
            self._program, self._model.weights, self._caches.prompts, self._caches.pool, inputs
        )
        tokens, logprobs = (self._by_scheduler(np.asarray(result), slots) for result in results)
        return Chunk(tokens, logprobs, slot_steps=results[0].size)

    def _by_scheduler(self, result: np.ndarray, slots: int) -> list[np.ndarray]:
        """Returns each scheduler's rows [active, T] of a result [schedulers * slots, T]."""
        groups = result.reshape(len(self._schedulers), slots, -1)
        return [
            rows[: len(scheduler.active)]
            for rows, scheduler in zip(groups, self._schedulers, strict=True)
        ]
