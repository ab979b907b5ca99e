"""The seam between the pipeline and a decode engine: requests in, samples out. No JAX.

All that the pipeline asks of an engine is `Rollout`. `rollout.engine.Engine` implements it on the
devices of this process; another engine is one class:

    class ServerRollout(Rollout):
        def prompt_lengths(self, requests):
            return [len(request.text.split()) for request in requests]

        def generate(self, requests, *, seed, round_index, is_settled=None, on_chunk=None):
            stats = Stats()
            for number, request in enumerate(requests):
                prompt = plain_text(request.prefix) + plain_text(request.text)
                replies = self.client.complete(prompt, n=len(request.indices), seed=...)
                numbered = zip(request.indices, replies)
                samples = tuple(to_sample(request, k, reply) for k, reply in numbered)
                yield Response(number=number, samples=samples)
                stats += Stats(samples=len(samples), tokens=..., slot_steps=...)
                if on_chunk is not None:
                    on_chunk(stats)

A `Request` holds data. `is_settled` is the one policy: when a question has enough samples.
`on_chunk` is the one event: it reports progress, and may raise to leave the loop.

The contract on noise: sample k of a question is a function of (seed, round, uid, k) and the prompt
alone, not of the other requests, their order or a restart. A run that is repeated with an engine
that does not keep it gives other samples; nothing else breaks.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from lmsi_jax.config import Sampling
from lmsi_jax.records import Sample, Text

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One question and the samples to draw for it.

    Attributes:
      uid: the question's identifier; it enters the noise.
      prefix: the prompt that it shares with other requests ("" for none); an engine computes it
        once.
      text: the rest of the prompt.
      sampling: how samples are drawn.
      sample_indices: the numbers k of the samples, rising; None: 0 to `sampling.num_samples` - 1.
        The noise of sample k is the same whichever others are drawn with it.
      limits: most tokens of each of these samples, at most `sampling.max_new_tokens`; None: that
        many for all.

    Raises:
      ValueError: the numbers do not rise, or there are not as many limits as samples.
    """

    uid: str
    text: Text
    sampling: Sampling
    prefix: Text = ""
    sample_indices: tuple[int, ...] | None = None
    limits: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        indices = self.indices
        if list(indices) != sorted(set(indices)) or not indices or indices[0] < 0:
            raise ValueError(f"{list(indices)} are not rising sample indices")
        if self.limits is not None and len(self.limits) != len(indices):
            raise ValueError(f"{len(self.limits)} limits for {len(indices)} samples")

    @property
    def indices(self) -> Sequence[int]:
        """The numbers of the samples."""
        if self.sample_indices is None:
            return range(self.sampling.num_samples)
        return self.sample_indices

    def limit(self, position: int) -> int:
        """Returns the most tokens of the sample at a position of `indices`."""
        most = self.sampling.max_new_tokens
        return most if self.limits is None else min(most, self.limits[position])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """All samples of one request.

    Attributes:
      number: the position of the request among all that were passed.
      samples: in the order of their indices; fewer than requested if the question was settled.
    """

    number: int
    samples: tuple[Sample, ...]


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counts since a `generate` began.

    Attributes:
      samples: finished samples.
      tokens: tokens of all samples, finished or not, without those beyond their end.
      slot_steps: decode steps times slots, whether they gave such a token or not.
      programs: programs that this `generate` was the first to need: compiled, or read from the
        compilation cache.
    """

    samples: int = 0
    tokens: int = 0
    slot_steps: int = 0
    programs: int = 0

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            self.samples + other.samples,
            self.tokens + other.tokens,
            self.slot_steps + other.slot_steps,
            self.programs + other.programs,
        )

    @property
    def utilisation(self) -> float:
        """Share of the slot steps that gave a token."""
        return self.tokens / self.slot_steps if self.slot_steps else 0.0


IsSettled = Callable[[Request, Sequence[Sample]], bool]
"""Returns whether a question needs no samples beyond its first ones, given in index order."""

OnChunk = Callable[[Stats], None]
"""Takes the counts so far; may raise, after all complete responses have been yielded."""


class Rollout(Protocol):
    """A decode engine as the pipeline uses it."""

    def prompt_lengths(self, requests: Sequence[Request]) -> list[int]:
        """Returns the tokens of each request's own text; shards group texts of similar length.

        Raises:
          LmsiError: a request cannot be served, such as a prompt that does not fit the model.
        """
        ...

    def generate(
        self,
        requests: Sequence[Request],
        *,
        seed: int,
        round_index: int,
        is_settled: IsSettled | None = None,
        on_chunk: OnChunk | None = None,
    ) -> Iterator[Response]:
        """Samples the requests.

        Args:
          requests: in any order.
          seed: with the round, the uid and the index it fixes the noise of a sample.
          round_index: the round of self-improvement.
          is_settled: asked for each request with `Sampling.adaptive_consistency`, after every
            `Sampling.adaptive_consistency_every` samples.
          on_chunk: called often, such as after every few decode steps.

        Yields:
          one response for each request, as they are completed.

        Raises:
          LmsiError: a request cannot be served; nothing has been sampled then.
        """
        ...

    @property
    def shared_mesh(self) -> "Mesh | None":
        """The mesh if it spans several processes, which then make the same calls; else None."""
        return None

    @property
    def checksum(self) -> int:
        """A checksum of all decoded tokens: equal in all processes of `shared_mesh`."""
        return 0
