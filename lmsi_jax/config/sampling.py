"""Settings."""

import dataclasses

from lmsi_jax.errors import LmsiError, check_ranges
from lmsi_jax.prompts import STOP_STRINGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How paths are drawn.

    Attributes:
      num_samples: paths per question (m).
      temperature: 0 is greedy; 0.7 is the paper's for the base model.
      top_k: keep this many most likely tokens; 0 keeps all.
      top_p: keep the smallest set of tokens with this much probability; 1 keeps all.
      min_p: keep tokens with at least this share of the most likely one's probability; 0 keeps all.
      max_new_tokens: a path is cut, and marked unfinished, after this many tokens.
      stop: a path ends before the first of these strings.
      token_logprobs: whether each path keeps the log-probability of each of its tokens.
      adaptive_consistency: no further path of a question is started once its leading answer will
        stay ahead with this probability, above 0.5 and below 1 (`voting.samples_needed`; 0.95 is
        Aggarwal et al.'s); None: all paths are sampled. Sure questions then have fewer paths: their
        confidence is a share of these, and with Mixing.normalise = "path" they weigh less.
      adaptive_consistency_every: the rule is looked at after this many paths, twice as many, ...,
        in index order, so the outcome does not depend on which paths end first.
    """

    num_samples: int = 32
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = STOP_STRINGS
    token_logprobs: bool = False
    adaptive_consistency: float | None = None
    adaptive_consistency_every: int = 4

    def __post_init__(self) -> None:
        stops = self.stop
        if not (isinstance(stops, tuple) and all(isinstance(s, str) and s for s in stops)):
            raise LmsiError(
                f"Sampling.stop = {stops!r}; use a tuple of strings that are not empty, such as "
                "('\\n\\n',), or () for none"
            )
        chance = self.adaptive_consistency
        ranges = {
            "num_samples": (self.num_samples >= 1, "1 or more"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "a probability above 0, 1 for off"),
            "min_p": (0 <= self.min_p <= 1, "0 (off) to 1"),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "adaptive_consistency": (
                chance is None or 0.5 < chance < 1,
                "a probability above 0.5 and below 1 (0.95), or None for no adaptive consistency",
            ),
            "adaptive_consistency_every": (self.adaptive_consistency_every >= 1, "1 or more"),
        }
        check_ranges(self, ranges)

    @property
    def filters(self) -> "Filters":
        """What the loop is compiled for."""
        return Filters(self.temperature == 0, self.top_k, self.top_p, self.min_p)


@dataclasses.dataclass(frozen=True)
class Filters:
    """The part of `Sampling` that a loop is compiled for; temperature is an argument."""

    greedy: bool
    top_k: int
    top_p: float
    min_p: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the engine is laid out; with the model it fixes the compiled shapes.

    Attributes:
      slots: paths decoded at the same time (by each of `data` device groups).
      chunk: steps between two looks at the paths; a path that ends wastes half of it on average.
      page: positions in a page of a path's cache, a multiple of `chunk`.
      prefill_tokens: question tokens prefilled together, roughly.
      prompt_cache_factor: prompt slots, as a multiple of what fills all slots: paths end at
        different times, so the questions at hand overlap.
      adaptive_batch: run fewer rows once no more are needed, at the end of a task. A narrower
        program is used only after it has repeated a full chunk bit by bit.
      pool_bytes: memory for the paths' pages from the start; more is added when they need it.
      dtype: of weights and caches, "float32" or "bfloat16".
      data: device groups that decode side by side, each with its own slots.
      model: devices in a group: heads, MLP and vocabulary are split over them.
      fsdp: whether the weights are spread over the groups too, and gathered where they are used.
    """

    slots: int = 128
    chunk: int = 8
    page: int = 16
    prefill_tokens: int = 256
    prompt_cache_factor: float = 2.0
    adaptive_batch: bool = True
    pool_bytes: int = 256 * 2**20
    dtype: str = "float32"
    data: int = 1
    model: int = 1
    fsdp: bool = False

    def __post_init__(self) -> None:
        from_one = ("slots", "chunk", "page", "prefill_tokens", "prompt_cache_factor")
        ranges = {
            **{name: (getattr(self, name) >= 1, "1 or more") for name in from_one},
            "pool_bytes": (self.pool_bytes >= 0, "0 or more"),
            "dtype": (self.dtype in ("float32", "bfloat16"), "'float32' or 'bfloat16'"),
            **{name: (getattr(self, name) >= 1, "1 or more devices") for name in ("data", "model")},
        }
        check_ranges(self, ranges)
        if self.page % self.chunk:
            raise LmsiError(
                f"Decoding.page = {self.page} must be a multiple of Decoding.chunk = {self.chunk}"
            )
