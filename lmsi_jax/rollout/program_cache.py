"""Smaller decode programs, used once they have been seen to repeat the full one's bits."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np


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
          program: returns what a chunk of so many slots is compiled for.
          decode: decodes the chunk with so many slots; repeating it stores the same entries.
        """
        programs = {size: program(size) for size in sizes if size >= busy}
        full = sizes[-1]
        trusted = min(s for s, key in programs.items() if self.verified.get(key, s == full))
        smallest = min(s for s, key in programs.items() if self.verified.get(key, True))
        if smallest == trusted or 2 * busy <= smallest:  # so few slots would not prove much
            return decode(trusted)
        reference, trial = decode(trusted), decode(smallest)
        self.verified[programs[smallest]] = chunks_agree(reference, trial)
        return trial if self.verified[programs[smallest]] else decode(trusted)


def chunks_agree(one: Chunk, other: Chunk) -> bool:
    """Returns whether two chunks agree bit by bit."""
    pairs = zip([*one.tokens, *one.logprobs], [*other.tokens, *other.logprobs], strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)
