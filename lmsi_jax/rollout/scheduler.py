"""Who decodes next: paths into rows, questions into slots, entries into pages. Plain Python.

A path has no fixed place: between two chunks any row may take any path, and its pages lie wherever
there was room. Nothing here changes what a path says, only when it is decoded.

How the engine is laid out: what a person sets, and the sizes that follow from it.

With the model these fix the compiled shapes. They follow from the configuration alone, never from
how much is left to do, so that a restart compiles, and computes, the same. Two things may differ
between programs of one run, neither of which enters a row's numbers: how many rows there are
(`Decoding.adaptive_batch`, proven on the spot) and how many segments of pages, each attended by
itself.
"""

import dataclasses
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from lmsi_jax.config.sampling import Decoding, Sampling
from lmsi_jax.errors import LmsiError


@dataclasses.dataclass
class Running:
    """A path that is being decoded.

    Attributes:
      question: the question's number.
      index: k, the path's number.
      prompt_slot: the prompt slot.
      limit: tokens after which it is cut.
      tokens: drawn so far.
      logprobs: theirs, at temperature 1.
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
    allowed: int = 0  # paths that may be started


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes that stay the same through a run.

    Attributes:
      num_samples: most paths of a question.
      slots: most paths decoded at the same time.
      prompt_slots: questions whose caches are resident at the same time.
      slots_per_prompt: most rows of one question at the same time.
      chunk: steps between two looks at the paths.
      page: positions in a page; a multiple of `chunk`.
      check_every: paths of a question that may be started between two looks at `settled`; 0: all.
    """

    num_samples: int
    slots: int
    prompt_slots: int
    slots_per_prompt: int
    chunk: int
    page: int
    check_every: int = 0


class Scheduler:
    """Decides, between two chunks, what the rows decode.

    Args:
      plan: the sizes.
      questions: their numbers, in the order in which they are taken; several schedulers may take
        from one iterator.
      limit: tokens of path k of question q at most, as `limit(q, k)`.
      settled: whether question q needs no path from number k on, as `settled(q, k)`; asked once
        for each multiple of `plan.every`, when all paths below k have ended.
    """

    def __init__(
        self,
        plan: Plan,
        questions: Iterator[int],
        limit: Callable[[int, int], int],
        settled: Callable[[int, int], bool] = lambda question, paths: False,
    ):
        self.plan = plan
        self.pages = 0  # how many pages there are, free or not
        self.active: list[Running] = []
        self._limit, self._settled = limit, settled
        self._waiting = questions
        self._exhausted = False
        self._free_prompt_slots = list(range(plan.prompt_slots))
        self._free_pages: list[int] = []
        self._resident: list[_Resident] = []

    @property
    def done(self) -> bool:
        """Whether nothing is left to decode."""
        return self._exhausted and not self.active and not self._resident

    @property
    def idle(self) -> int:
        """Rows that another question could fill now; 0 where there is no slot for it either."""
        if self._exhausted or not self._free_prompt_slots:
            return 0
        room = self.plan.slots - len(self.active)
        return max(0, room - sum(self._startable(resident) for resident in self._resident))

    def admit(self) -> tuple[int, int] | None:
        """Takes the next question into a free slot: (question, slot); None where none is left."""
        question = next(self._waiting, None)
        if question is None:
            self._exhausted = True
            return None
        slot = heapq.heappop(self._free_prompt_slots)
        allowed = min(self.plan.check_every or self.plan.num_samples, self.plan.num_samples)
        self._resident.append(_Resident(question, slot, allowed=allowed))
        return question, slot

    def start(self) -> None:
        """Lets free rows take the next paths, in the order of the questions."""
        for resident in self._resident:
            while self._startable(resident) and len(self.active) < self.plan.slots:
                index = resident.started
                limit = self._limit(resident.question, index)
                self.active.append(Running(resident.question, index, resident.prompt_slot, limit))
                resident.started += 1
                resident.running += 1

    def _startable(self, resident: _Resident) -> int:
        """How many paths of a question may start now."""
        return min(
            resident.allowed - resident.started, self.plan.slots_per_prompt - resident.running
        )

    def missing_pages(self) -> int:
        """How many pages the next chunk needs beyond those that are free."""
        needed = sum(self._needs_page(running) for running in self.active)
        return max(0, needed - len(self._free_pages))

    def add_pages(self, count: int) -> None:
        """Says that `count` more pages exist."""
        for page in range(self.pages, self.pages + count):
            heapq.heappush(self._free_pages, page)
        self.pages += count

    def compact(self, size: int) -> list[tuple[int, int]]:
        """Brings all pages into as few segments of `size` pages as will hold the next chunk.

        Returns:
          (from, to) pairs of page numbers, in the order of `to`; empty where no segment would
          become free.
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

    def _goes_on(self, running: Running) -> bool:
        """Whether the path may need this chunk's entries later."""
        return len(running.tokens) + self.plan.chunk < running.limit

    def _needs_page(self, running: Running) -> bool:
        return self._goes_on(running) and len(running.tokens) % self.plan.page == 0

    def allot(self) -> list[tuple[int, int]]:
        """Returns, for each active path, the page and offset that take the next chunk's entries.

        (-1, 0) where none are kept: the path cannot go on after the chunk.
        """
        targets = []
        for running in self.active:
            if self._needs_page(running):
                running.pages.append(heapq.heappop(self._free_pages))
            going = self._goes_on(running)
            offset = len(running.tokens) % self.plan.page
            targets.append((running.pages[-1], offset) if going else (-1, 0))
        return targets

    def end(self, finished: Sequence[Running]) -> Iterator[int]:
        """Takes finished paths out; yields the questions that are complete by that."""
        gone = {(running.question, running.index) for running in finished}
        self.active = [p for p in self.active if (p.question, p.index) not in gone]
        of_question = {resident.question: resident for resident in self._resident}
        for running in finished:
            for page in running.pages:
                heapq.heappush(self._free_pages, page)
            resident = of_question[running.question]
            resident.running -= 1
            resident.ended.add(running.index)
            self._look(resident)
        for resident in [s for s in self._resident if self._complete(s)]:
            self._resident.remove(resident)
            heapq.heappush(self._free_prompt_slots, resident.prompt_slot)
            yield resident.question

    def _look(self, resident: _Resident) -> None:
        """Allows more paths where all that were allowed have ended and are not enough."""
        if resident.allowed == self.plan.num_samples or len(resident.ended) < resident.allowed:
            return
        if not self._settled(resident.question, resident.allowed):
            resident.allowed = min(resident.allowed + self.plan.check_every, self.plan.num_samples)

    def _complete(self, resident: _Resident) -> bool:
        return not resident.running and resident.started == resident.allowed


_PROMPT_BUCKET = 64  # task prompts are padded to multiples of this many tokens
_BUCKETS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # then multiples of 1,024: questions
_LEAST_ROWS = 16  # fewer rows than this are not worth another compiled program


def prompt_bucket(tokens: int) -> int:
    """The padded length of a task prompt of so many tokens."""
    return -(-tokens // _PROMPT_BUCKET) * _PROMPT_BUCKET


def question_bucket(tokens: int) -> int:
    """The padded length of a question's prompt of so many tokens."""
    for bucket in _BUCKETS:
        if tokens <= bucket:
            return bucket
    return -(-tokens // _BUCKETS[-1]) * _BUCKETS[-1]


def check_fit(lengths: Mapping[str, int], before: int, new: int, max_length: int) -> None:
    """Refuses prompts that cannot be continued, before anything is sampled.

    Args:
      lengths: tokens of each question, by uid.
      before: tokens of the task prompt.
      new: tokens that a path may have.
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


def plan(decoding: Decoding, sampling: Sampling) -> Plan:
    """The sizes of a run."""
    slots_per_prompt = min(sampling.num_samples, decoding.slots)
    if sampling.adaptive_consistency is not None:
        slots_per_prompt = min(slots_per_prompt, sampling.adaptive_consistency_every)
    fill = math.ceil(decoding.slots / slots_per_prompt)
    return Plan(
        num_samples=sampling.num_samples,
        slots=decoding.slots,
        prompt_slots=fill
        if sampling.num_samples == 1
        else math.ceil(fill * decoding.prompt_cache_factor),
        slots_per_prompt=slots_per_prompt,
        chunk=decoding.chunk,
        page=decoding.page,
        check_every=sampling.adaptive_consistency_every
        if sampling.adaptive_consistency is not None
        else 0,
    )


def batch_sizes(decoding: Decoding) -> list[int]:
    """How many rows a chunk may have: all slots, 3/4 of them, 1/2, 1/4, and so on."""
    found = [decoding.slots]
    while decoding.adaptive_batch and found[-1] // 2 >= _LEAST_ROWS:
        found.append(found[-1] // 2)
    if len(found) > 1:
        found.append(decoding.slots * 3 // 4)
    return sorted(found)
