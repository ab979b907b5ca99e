"""How the engine is laid out: what a person sets, and the sizes that follow from it.

With the model these fix the compiled shapes. They follow from the configuration alone, never from
how much is left to do, so that a restart compiles, and computes, the same. Two things may differ
between programs of one run, neither of which enters a row's numbers: how many rows there are
(`Decoding.shrink`, proven on the spot) and how many segments of pages, each attended by itself.
"""

import dataclasses
import math
from collections.abc import Mapping

from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.decoding.scheduler import Plan
from lmsi_jax.errors import LmsiError, check_ranges

_PROMPT_BUCKET = 64  # task prompts are padded to multiples of this many tokens
_BUCKETS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # then multiples of 1,024: questions
_LEAST_ROWS = 16  # fewer rows than this are not worth another compiled program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the engine is laid out; with the model it fixes the compiled shapes.

    Attributes:
      lanes: paths decoded at the same time (by each of `data` device groups).
      chunk: steps between two looks at the paths; a path that ends wastes half of it on average.
      page: positions in a page of a path's cache, a multiple of `chunk`.
      prefill_tokens: question tokens prefilled together, roughly.
      resident: question slots, as a multiple of what fills all lanes: paths end at different times,
        so the questions at hand overlap.
      shrink: run fewer rows once no more are needed, at the end of a task. A narrower program is
        used only after it has repeated a full chunk bit by bit.
      pool_bytes: memory for the paths' pages from the start; more is added when they need it.
      dtype: of weights and caches, "float32" or "bfloat16".
      data: device groups that decode side by side, each with its own lanes.
      model: devices in a group: heads, MLP and vocabulary are split over them.
      fsdp: whether the weights are spread over the groups too, and gathered where they are used.
    """

    lanes: int = 128
    chunk: int = 8
    page: int = 16
    prefill_tokens: int = 256
    resident: float = 2.0
    shrink: bool = True
    pool_bytes: int = 256 * 2**20
    dtype: str = "float32"
    data: int = 1
    model: int = 1
    fsdp: bool = False

    def __post_init__(self) -> None:
        from_one = ("lanes", "chunk", "page", "prefill_tokens", "resident")
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
    places = min(sampling.paths, decoding.lanes)
    if sampling.early_stop is not None:
        places = min(places, sampling.early_stop_every)
    fill = math.ceil(decoding.lanes / places)
    return Plan(
        paths=sampling.paths,
        rows=decoding.lanes,
        slots=fill if sampling.paths == 1 else math.ceil(fill * decoding.resident),
        places=places,
        chunk=decoding.chunk,
        page=decoding.page,
        every=sampling.early_stop_every if sampling.early_stop is not None else 0,
    )


def widths(decoding: Decoding) -> list[int]:
    """How many rows a chunk may have: all lanes, 3/4 of them, 1/2, 1/4, and so on."""
    found = [decoding.lanes]
    while decoding.shrink and found[-1] // 2 >= _LEAST_ROWS:
        found.append(found[-1] // 2)
    if len(found) > 1:
        found.append(decoding.lanes * 3 // 4)
    return sorted(found)
