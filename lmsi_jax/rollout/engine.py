"""The decode engine: requests in, samples out, with every slot busy until requests run out.

    engine = Engine(config, params, tokenizer, Decoding(slots=64))
    requests = [Request(uid="q1", prefix=few_shot, text="Q: 2 + 2?\nA:", sampling=Sampling())]
    for response in engine.generate(requests, seed=0, round_index=1):
        print(requests[response.number].uid, [sample.text for sample in response.samples])

Requests of one temperature, truncation and number of samples are decoded together, whatever their
task prompts, lengths and limits, by a `DecodeLoop`. It repeats three steps: `admit` questions and
samples into free slots, `decode` a chunk of steps on the devices, `collect` the samples that ended.
The host decides between chunks (`scheduler`), the devices compute within them (`decode_step`).

What a sample says depends on its prompt, its noise and the compiled shapes, and on nothing else:
not on the order of the requests, the slot, the refills, the process count or a restart.

The seam for other engines is `rollout.requests.Rollout`.
"""

import collections
import dataclasses
import functools
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from lmsi_jax.config import Decoding, ModelConfig, Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.params import Params
from lmsi_jax.models.tokenizers import Tokenizer, encode_text
from lmsi_jax.records import Sample, Text
from lmsi_jax.rollout.decode_step import ChunkInputs, Program, decode_chunk, program_count
from lmsi_jax.rollout.device_caches import (
    DeviceCaches,
    DeviceModel,
    DevicePrompts,
    EncodedQuestion,
    NoiseSource,
    join_groups,
    page_table,
    slot_arrays,
)
from lmsi_jax.rollout.fewer_slots import Chunk
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
from lmsi_jax.rollout.task_prompts import TaskPrompt
from lmsi_jax.runtime.progress import doing


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
        self._prompts = DevicePrompts(self._model)
        self._checksum = 0
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
        lengths = []
        for question in self._encoded(requests):
            plain = isinstance(question.request.text, str) and not question.prompt.text
            start = len(self.tokenizer.start_ids) if plain else 0
            lengths.append(len(question.tokens) - start)
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
        noise, stats, programs = NoiseSource(seed, round_index), Stats(), program_count()
        together: dict[Sampling, list[EncodedQuestion]] = {}
        for question in self._encoded(requests):
            together.setdefault(_shape(question.request), []).append(question)
        for sampling, questions in together.items():
            self._prompts.reserve(list(dict.fromkeys(one.prompt for one in questions)))
            loop = DecodeLoop(self._model, sampling, questions, self._prompts, noise, is_settled)
            while loop.admit():
                chunk = loop.decode()
                for array in (*chunk.tokens, *chunk.logprobs):
                    self._checksum = zlib.crc32(array.tobytes(), self._checksum)
                yield from loop.collect(chunk)
                # Last: a callback that raises does so after every complete response.
                if on_chunk is not None:
                    on_chunk(stats + loop.stats + Stats(programs=program_count() - programs))
            stats += loop.stats
            del loop  # its caches, before the next one's

    def _encoded(self, requests: Sequence[Request]) -> list[EncodedQuestion]:
        """Tokenizes the requests, and checks that they fit the model's context."""
        prompts: dict[Text, TaskPrompt] = {}
        for text in dict.fromkeys(request.prefix for request in requests):
            prompts[text] = TaskPrompt(text, tuple(encode_text(self.tokenizer, text)))
        questions = []
        for number, request in enumerate(requests):
            prompt, stops = prompts[request.prefix], self._stops(request.sampling.stop)
            tokens = encode_text(self.tokenizer, request.text, request.prefix)
            questions.append(EncodedQuestion(number, request, prompt, tokens, stops))
        members: dict[tuple[int, int], dict[str, int]] = {}
        for one in questions:
            sizes = len(one.prompt.tokens), one.request.sampling.max_new_tokens
            members.setdefault(sizes, {})[one.request.uid] = len(one.tokens)
        for (before, new), lengths in members.items():
            check_fit(lengths, before, new, self.config.max_length)
        return questions

    def _stops(self, strings: tuple[str, ...]) -> Stops:
        """Returns the finder of samples' ends; kept, because it reads the whole vocabulary."""
        if strings not in self._known_stops:
            with doing("reading the vocabulary for stop strings"):
                self._known_stops[strings] = Stops(self.tokenizer, strings)
        return self._known_stops[strings]


def _shape(request: Request) -> Sampling:
    """Returns the part of a request's `Sampling` that those decoded with it share."""
    shared = dataclasses.replace(
        request.sampling,
        num_samples=len(request.indices),
        max_new_tokens=1,
        stop=(),
        token_logprobs=False,
    )
    if shared.adaptive_consistency is None:
        return dataclasses.replace(shared, adaptive_consistency_every=1)
    return shared


class DecodeLoop:
    """Questions that are decoded together, on their way through the devices.

    Each device group has a `Scheduler`, and all take their questions from one queue: by task
    prompt, and then by length, so that those in flight together are of similar length.

    Args:
      model: the model.
      sampling: what the questions share of it.
      questions: the questions.
      prompts: their task prompts' caches.
      noise: seed and round.
      is_settled: see `Rollout.generate`.

    Attributes:
      stats: counts so far.
    """

    def __init__(
        self,
        model: DeviceModel,
        sampling: Sampling,
        questions: Sequence[EncodedQuestion],
        prompts: DevicePrompts,
        noise: NoiseSource,
        is_settled: IsSettled | None,
    ):
        self.stats = Stats()
        self._model, self._noise, self._is_settled = model, noise, is_settled
        self._questions, self._sampling, self._prompts = questions, sampling, prompts
        slots = model.slots_for(sum(len(one.request.indices) for one in questions))
        tokens = max(one.request.sampling.max_new_tokens for one in questions)
        self._plan = plan(
            dataclasses.replace(model.decoding, slots=slots),
            dataclasses.replace(sampling, max_new_tokens=tokens),
        )
        self._depth = -(-tokens // self._plan.page)  # most pages of a sample
        self._sizes = [size for size in batch_sizes(model.decoding) if size <= slots]
        self._program = Program(model.config, model.mesh, sampling.truncation, self._plan.chunk)
        order = {prompt: n for n, prompt in enumerate(dict.fromkeys(q.prompt for q in questions))}

        def place(number: int) -> tuple[int, int]:
            question = questions[number]
            return order[question.prompt], question_bucket(len(question.tokens) - 1)

        self._waiting = collections.deque(sorted(range(len(questions)), key=place))
        self._schedulers = [
            Scheduler(self._plan, self._queue(), self._limit, self._settled)
            for _ in range(model.mesh.data)
        ]
        longest = max(len(one.tokens) for one in questions) - 1
        self._caches = DeviceCaches(model, prompts, self._schedulers, longest, self._depth)
        # By question, the samples that ended, by their position in `Request.indices`.
        self._ended: list[dict[int, Sample]] = [{} for _ in questions]

    def _queue(self) -> Iterator[int]:
        while self._waiting:
            yield self._waiting.popleft()

    def admit(self) -> bool:
        """Fills free slots with questions and their samples; returns False if all is decoded.

        Each question goes to the device group with the most idle slots. One whose task prompt has
        no room waits, with those after it, until the prompts before it are out of use.
        """
        admitted: list[list[tuple[EncodedQuestion, int]]] = [[] for _ in self._schedulers]
        while self._waiting:
            number = max(range(len(admitted)), key=lambda n: self._schedulers[n].idle)
            scheduler, prompt = self._schedulers[number], self._questions[self._waiting[0]].prompt
            if not scheduler.idle or not self._prompts.admit(prompt):
                break
            pair = scheduler.admit()
            assert pair is not None, "a question waits"
            question, prompt_slot = pair
            admitted[number].append((self._questions[question], prompt_slot))
        self._caches.prefill(admitted)
        for scheduler in self._schedulers:
            scheduler.start()
        active = any(scheduler.active for scheduler in self._schedulers)
        assert active or not self._waiting, "any prompt has room once no other is in use"
        return active

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
                stops = self._questions[running.question].stops
                ending = stops.ending(running.tokens, len(new), running.limit)
                useful += (ending.used if ending else len(running.tokens)) - before
                if ending:
                    finished.append(running)
                    sample = self._sample(running, ending)
                    self._ended[running.question][running.index] = sample
            ended += len(finished)
            for question in scheduler.end(finished):
                samples, self._ended[question] = self._ended[question], {}
                self._prompts.leave(self._questions[question].prompt)
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
            logprobs=tuple(logprobs.round(6).tolist()) if request.sampling.token_logprobs else None,
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
        longest = max(len(running.pages) for s in self._schedulers for running in s.active)
        return self._program, self._plan, slots, self._caches.shapes, longest.bit_length()

    def _decode(self, targets: list[list[tuple[int, int]]], slots: int) -> Chunk:
        """Decodes one chunk with this number of slots in each device group."""
        arrays, tables, parts = [], [], []
        for scheduler, target in zip(self._schedulers, targets, strict=True):
            active, number = scheduler.active, self._prompts.number
            arrays.append(slot_arrays(self._plan, active, target, slots, self._questions, number))
            tables.append(page_table(self._plan, active, scheduler.pages, slots, self._depth))
            lengths = (len(self._questions[running.question].tokens) - 1 for running in active)
            parts.append(self._caches.parts_used(max(lengths, default=0)))
        table, state = join_groups(arrays, tables, self._noise)
        temperature = np.float32(self._sampling.temperature)
        inputs = ChunkInputs(
            table=table,
            blocks=self._prompts.table,
            question_parts=np.concatenate(parts),  # type: ignore[arg-type]
            slots=state,
            temperature=temperature,
        )
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
