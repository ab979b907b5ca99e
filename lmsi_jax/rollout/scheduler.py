"""Scheduling in plain Python: samples into slots, questions into prompt slots, entries into pages.

A sample has no fixed place: between two chunks any slot may take any sample, and its pages are
wherever there was room. Nothing here changes what a sample says, only when it is decoded.

The sizes of a `Plan`, with the model, fix the compiled shapes. They follow from the configuration
alone, never from how much is left to do, so that a restart compiles, and computes, the same. Two
things may differ between programs of one run, and neither enters a slot's numbers: how many slots
there are (`chunks`) and how many segments of pages, each attended by itself.
"""

import dataclasses
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from lmsi_jax.config import Decoding, Sampling
from lmsi_jax.errors import LmsiError

_SHORTEST = 32  # questions are padded to a power of two of at least this many tokens
_FIRST_PART = 64  # positions in the first part of a question's cache
_SEGMENTS = 8  # of a pool, at most: each is compiled on its own in every layer
_FEWEST_SLOTS = 16  # fewer slots than this are not worth another compiled program


@dataclasses.dataclass
class Running:
    """A sample that is being decoded.

    Attributes:
      question: the question's number.
      index: the sample's position among the question's samples.
      prompt_slot: the question's prompt slot.
      limit: tokens after which it is cut.
      tokens: drawn so far.
      logprobs: of these tokens, at temperature 1.
      pages: the numbers of its pages.
    """

    question: int
    index: int
    prompt_slot: int
    limit: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    pages: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Resident:
    """A question whose cache is on the device."""

    question: int
    prompt_slot: int
    started: int = 0
    running: int = 0
    ended: set[int] = dataclasses.field(default_factory=set)
    allowed: int = 0  # samples that may be started


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes that stay the same through a run.

    Attributes:
      num_samples: most samples of a question.
      slots: most samples decoded at the same time.
      prompt_slots: questions whose caches are resident at the same time.
      slots_per_prompt: most slots of one question at the same time.
      chunk: decode steps between two visits of the host.
      page: positions in a page; a multiple of `chunk`.
      check_every: samples of a question that may start between two calls of `settled`; 0: all.
      segment_depth: pages of each slot in a segment of the pool.
    """

    num_samples: int
    slots: int
    prompt_slots: int
    slots_per_prompt: int
    chunk: int
    page: int
    check_every: int = 0
    segment_depth: int = 1

    @property
    def segment(self) -> int:
        """Pages in a segment."""
        return self.slots * self.segment_depth


def plan(decoding: Decoding, sampling: Sampling) -> Plan:
    """Returns the sizes of a run."""
    slots_per_prompt = min(sampling.num_samples, decoding.slots)
    check_every = 0
    if sampling.adaptive_consistency is not None:
        check_every = sampling.adaptive_consistency_every
        slots_per_prompt = min(slots_per_prompt, check_every)
    prompts = math.ceil(decoding.slots / slots_per_prompt)
    if sampling.num_samples > 1:
        prompts = math.ceil(prompts * decoding.prompt_cache_factor)
    return Plan(
        num_samples=sampling.num_samples,
        slots=decoding.slots,
        prompt_slots=prompts,
        slots_per_prompt=slots_per_prompt,
        chunk=decoding.chunk,
        page=decoding.page,
        check_every=check_every,
        segment_depth=-(-sampling.max_new_tokens // (decoding.page * _SEGMENTS)),
    )


def batch_sizes(decoding: Decoding) -> list[int]:
    """Returns the numbers of slots that a chunk may have: all of them, 3/4, 1/2, 3/8, 1/4, ..."""
    sizes = [decoding.slots]
    while decoding.adaptive_batch and sizes[-1] // 2 >= _FEWEST_SLOTS:
        sizes.append(sizes[-1] // 2)
    if len(sizes) > 1:
        sizes += [size * 3 // 4 for size in sizes if size * 3 // 4 >= _FEWEST_SLOTS]
    return sorted(sizes)


def question_bucket(tokens: int) -> int:
    """Returns the padded length of a question's prompt."""
    return max(_SHORTEST, 1 << (tokens - 1).bit_length())


def question_parts(longest: int) -> list[int]:
    """Returns the sizes of the parts of a question's cache: 64 positions, 64, 128, 256, ...

    A part begins at the same position whatever the longest question is.
    """
    sizes = [_FIRST_PART]
    while sum(sizes) < longest:
        sizes.append(sum(sizes))
    return sizes


def check_fit(lengths: Mapping[str, int], before: int, new: int, max_length: int) -> None:
    """Refuses prompts that cannot be continued, before anything is sampled.

    Args:
      lengths: tokens of each question, by uid.
      before: tokens of the task prompt.
      new: most tokens of a sample.
      max_length: the model's context.

    Raises:
      LmsiError: names the longest question that does not fit, or an empty one.
    """
    if not lengths:
        return
    uid = max(lengths, key=lambda uid: (lengths[uid], uid))
    needed = before + lengths[uid] + new
    if needed > max_length:
        raise LmsiError(
            f"question {uid} needs {needed} positions (task prompt {before}, question "
            f"{lengths[uid]}, new tokens {new}), the model has {max_length}; "
            "use fewer exemplars or fewer new tokens, or drop it"
        )
    empty = min(lengths, key=lambda uid: (lengths[uid], uid))
    if not lengths[empty]:
        raise LmsiError(f"question {empty} has an empty prompt; drop it")


class Scheduler:
    """Decides, between two chunks, what each slot decodes.

    Args:
      plan: the sizes.
      questions: their numbers, in the order in which they are taken; several schedulers may take
        from one iterator.
      limit: `limit(q, k)` returns the most tokens of sample k of question q.
      settled: `settled(q, k)` returns whether question q needs no sample from k on; called once for
        each multiple of `plan.check_every`, when all samples below k have ended.
    """

    def __init__(
        self,
        plan: Plan,
        questions: Iterator[int],
        limit: Callable[[int, int], int],
        settled: Callable[[int, int], bool] = lambda question, samples: False,
    ):
        self.plan = plan
        self.pages = 0  # number of pages, free or not
        self.active: list[Running] = []
        self._limit, self._settled = limit, settled
        self._waiting = questions
        self._exhausted = False
        self._free_prompt_slots = list(range(plan.prompt_slots))
        self._free_pages: list[int] = []
        self._resident: list[_Resident] = []

    @property
    def done(self) -> bool:
        """True if nothing is left to decode."""
        return self._exhausted and not self.active and not self._resident

    @property
    def idle(self) -> int:
        """Slots that another question could fill now; 0 if there is no prompt slot for it."""
        if self._exhausted or not self._free_prompt_slots:
            return 0
        free = self.plan.slots - len(self.active)
        return max(0, free - sum(self._startable(resident) for resident in self._resident))

    def admit(self) -> tuple[int, int] | None:
        """Takes the next question into a prompt slot.

        Returns:
          (question, prompt slot), None if no question is left.
        """
        question = next(self._waiting, None)
        if question is None:
            self._exhausted = True
            return None
        prompt_slot = heapq.heappop(self._free_prompt_slots)
        allowed = min(self.plan.check_every or self.plan.num_samples, self.plan.num_samples)
        self._resident.append(_Resident(question, prompt_slot, allowed=allowed))
        return question, prompt_slot

    def start(self) -> None:
        """Starts samples in free slots, in the order of the questions."""
        for resident in self._resident:
            while self._startable(resident) and len(self.active) < self.plan.slots:
                index = resident.started
                limit = self._limit(resident.question, index)
                self.active.append(Running(resident.question, index, resident.prompt_slot, limit))
                resident.started += 1
                resident.running += 1

    def _startable(self, resident: _Resident) -> int:
        return min(
            resident.allowed - resident.started, self.plan.slots_per_prompt - resident.running
        )

    def missing_pages(self) -> int:
        """Returns how many pages the next chunk needs beyond those that are free."""
        needed = sum(self._needs_page(running) for running in self.active)
        return max(0, needed - len(self._free_pages))

    def add_pages(self, count: int) -> None:
        """Adds `count` free pages."""
        for page in range(self.pages, self.pages + count):
            heapq.heappush(self._free_pages, page)
        self.pages += count

    def compact(self, size: int) -> list[tuple[int, int]]:
        """Moves all pages into as few segments of `size` pages as will hold the next chunk.

        Returns:
          (from, to) pairs of page numbers, in the order of `to`; empty if no segment would become
          free.
        """
        needed = sum(self._needs_page(running) for running in self.active)
        owned = {page: running for running in self.active for page in running.pages}
        end = -(-(len(owned) + needed) // size) * size
        above = sorted(page for page in owned if page >= end)
        room = sorted(page for page in self._free_pages if page < end)
        moves = list(zip(above, room, strict=False))
        new = dict(moves)
        for running in {id(owned[page]): owned[page] for page in above}.values():
            running.pages = [new.get(page, page) for page in running.pages]
        free = set(self._free_pages) - set(new.values()) | set(new)
        self._free_pages = sorted(free)  # a sorted list is a heap
        return moves

    def _continues(self, running: Running) -> bool:
        """Returns whether the sample may need this chunk's entries later."""
        return len(running.tokens) + self.plan.chunk < running.limit

    def _needs_page(self, running: Running) -> bool:
        return self._continues(running) and len(running.tokens) % self.plan.page == 0

    def allot(self) -> list[tuple[int, int]]:
        """Returns the page and offset that take the next chunk's entries of each active sample.

        It is (-1, 0) for a sample that cannot continue after the chunk.
        """
        targets = []
        for running in self.active:
            if self._needs_page(running):
                running.pages.append(heapq.heappop(self._free_pages))
            if self._continues(running):
                targets.append((running.pages[-1], len(running.tokens) % self.plan.page))
            else:
                targets.append((-1, 0))
        return targets

    def end(self, finished: Sequence[Running]) -> Iterator[int]:
        """Removes finished samples; yields the questions that are complete by that."""
        keys = {(running.question, running.index) for running in finished}
        self.active = [r for r in self.active if (r.question, r.index) not in keys]
        by_question = {resident.question: resident for resident in self._resident}
        for running in finished:
            for page in running.pages:
                heapq.heappush(self._free_pages, page)
            resident = by_question[running.question]
            resident.running -= 1
            resident.ended.add(running.index)
            self._allow_more(resident)
        complete = [r for r in self._resident if not r.running and r.started == r.allowed]
        for resident in complete:
            self._resident.remove(resident)
            heapq.heappush(self._free_prompt_slots, resident.prompt_slot)
            yield resident.question

    def _allow_more(self, resident: _Resident) -> None:
        """Allows more samples if all allowed ones have ended and do not settle the question."""
        allowed, most = resident.allowed, self.plan.num_samples
        if allowed == most or len(resident.ended) < allowed:
            return
        if not self._settled(resident.question, allowed):
            resident.allowed = min(allowed + self.plan.check_every, most)
