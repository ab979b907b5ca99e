"""A chunk of decode steps on the host: the arrays that it takes, and the program that decodes it.

`slot_arrays` and `page_table` describe the scheduler's state for one device group in NumPy;
`join_groups` joins those of all groups along their first axis. `ProgramCache` uses smaller programs
once they have been seen to repeat the full one's bits.
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from lmsi_jax.rollout.decode_step import SlotArrays
from lmsi_jax.rollout.kv_pages import PageTable
from lmsi_jax.rollout.requests import Request
from lmsi_jax.rollout.sampler import keys_of_words, uid_words
from lmsi_jax.rollout.scheduler import Plan, Running

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
