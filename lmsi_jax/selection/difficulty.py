"""The hardest rows, spread out: near neighbours of a chosen row become less wanted.

After Self-Filter (Chen et al. 2024, section 3). Its score net is trained with the model; here the
difficulty is the base model's loss, and the features are pairs of neighbouring words.
"""

import collections
import dataclasses
import heapq
import math
import re
from collections.abc import Mapping, Sequence

from lmsi_jax.errors import LmsiError
from lmsi_jax.selection.rows import KEPT, LOSS, Facts, Row, Verdict, scored
from lmsi_jax.selection.shares import check_share, kept_of

_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difficulty:
    """Keeps the hardest rows, one after the other; each lowers those that resemble it.

    A chosen row takes penalty * similarity**2 * (its own loss) off each of its nearest neighbours.
    The time grows with the rows that share word pairs, at worst with the square of their number.

    Attributes:
      share: of the rows that is kept.
      neighbours: how many of the nearest rows are lowered.
      penalty: 0 keeps the hardest rows, whatever they resemble.
    """

    share: float = 0.8
    neighbours: int = 10
    penalty: float = 1.0
    needs = frozenset({LOSS})

    def __post_init__(self) -> None:
        check_share("Difficulty.share", self.share)
        if self.neighbours < 0 or not 0 <= self.penalty < math.inf:
            raise LmsiError(
                f"Difficulty.neighbours = {self.neighbours}, Difficulty.penalty = {self.penalty}; "
                "use finite numbers of 0 or more"
            )

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        known = sorted(scored(rows, LOSS), key=lambda i: rows[i].name)
        losses = [rows[i].scores[LOSS] for i in known]
        features = [word_pairs(f"{rows[i].question.text} {rows[i].solution}") for i in known]
        count = kept_of(len(rows), self.share)
        found = hardest(losses, features, count, self.neighbours, self.penalty)
        chosen = {known[j] for j in found}
        easy = Verdict(0.0, "easy, or like a chosen row")
        missing = Verdict(0.0, "not scored: longer than the batch shape")
        return [
            KEPT if i in chosen else easy if LOSS in row.scores else missing
            for i, row in enumerate(rows)
        ]


def word_pairs(text: str) -> frozenset[tuple[str, str]]:
    """Returns the pairs of neighbouring words in a text, without case."""
    words = [word.casefold() for word in _WORD.findall(text)]
    return frozenset(zip(words, words[1:], strict=False))


def hardest(
    losses: Sequence[float],
    features: Sequence[frozenset[tuple[str, str]]],
    count: int,
    neighbours: int,
    penalty: float,
) -> list[int]:
    """Returns which rows are chosen, in the order of choice; of equals the first.

    Args:
      losses: difficulty of each row.
      features: of each row; similarity is the cosine of two sets.
      count: how many to choose, at most.
      neighbours: how many rows that are not chosen yet each choice lowers, the most similar ones.
      penalty: see `Difficulty`.
    """
    having: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    for i, own in enumerate(features):
        for pair in own:
            having[pair].append(i)
    wanted = dict(enumerate(losses))
    queue = [(-loss, i) for i, loss in wanted.items()]
    heapq.heapify(queue)
    chosen: list[int] = []
    while len(chosen) < count and wanted:
        value, at = heapq.heappop(queue)
        if wanted.get(at) != -value:
            continue  # chosen, or lowered since
        del wanted[at]
        chosen.append(at)
        if not penalty:
            continue
        near = _similarities(at, features, having, wanted)
        for i in heapq.nsmallest(neighbours, near, key=lambda i: (-near[i], i)):
            wanted[i] -= penalty * near[i] ** 2 * losses[at]
            heapq.heappush(queue, (-wanted[i], i))
    return chosen


def _similarities(
    at: int,
    features: Sequence[frozenset[tuple[str, str]]],
    having: Mapping[tuple[str, str], Sequence[int]],
    wanted: Mapping[int, float],
) -> dict[int, float]:
    """Cosine with each row that is still wanted and shares something."""
    shared = collections.Counter(i for pair in features[at] for i in having[pair] if i in wanted)
    size = len(features[at])
    return {i: n / math.sqrt(size * len(features[i])) for i, n in shared.items()}
