"""Arrays that the host sends to the devices before a chunk: the state of the scheduler.

`slot_arrays` and `page_table` describe one device group in NumPy; `join_groups` joins those of all
groups along their first axis.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmsi_jax.rollout.decode_step import SlotArrays
from lmsi_jax.rollout.kv_pages import PageTable
from lmsi_jax.rollout.noise import keys_of_words, uid_words
from lmsi_jax.rollout.requests import Request
from lmsi_jax.rollout.scheduler import Plan, Running

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class NoiseSource:
    """The part of the noise that all samples of a run share."""

    seed: int
    round_index: int


class Question:
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
    questions: Sequence[Question],
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
