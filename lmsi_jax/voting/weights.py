"""How much a path's vote counts."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Path

Weights = Literal["none", "logprob", "normalised_logprob", "softmax", "ranker"]
Ties = Literal["logprob", "ranker"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voting:
    """How much a path's vote counts. Log-probabilities are the model's own, at temperature 1.

    Attributes:
      weights: "none": each path counts 1 (LMSI). "logprob": its probability, relative to that of
        the question's likeliest path. "normalised_logprob": its probability per token, the
        geometric mean (both: Wang et al. 2022, table 1, weighted sums). "softmax": the softmax over
        the question's paths of the probability per token, over `temperature` (CISC, Taubenfeld et
        al. 2025, section 3, response probability). "ranker": what `ranker` says, 0 or more.
      temperature: of the softmax; near 0 the surest path decides, at infinity each path counts
        the same.
      conclusions: whether a path that marks no answer votes for what it concludes with
        (`answers.conclusions`). A strong model's conclusions are as good as its marked answers, a
        weak model's are worse: docs/answers.md has figures. The paper reads marked answers alone.
      ties: what a tie goes by: the summed "logprob" of the answer's paths, or the "ranker"'s best
        score of one of them, then the log-probability.
      ranker: "module:function" of a `Question` and a `Path` that gives a number, the higher the
        better; None without one.
    """

    weights: Weights = "none"
    temperature: float = 1.0
    conclusions: bool = True
    ties: Ties = "logprob"
    ranker: str | None = None

    @property
    def ranks(self) -> bool:
        """Whether the ranker is asked."""
        return "ranker" in (self.weights, self.ties)

    def __post_init__(self) -> None:
        if self.weights not in get_args(Weights):
            names = ", ".join(get_args(Weights))
            raise LmsiError(f"Voting.weights = {self.weights!r}; choose from {names}")
        if self.ties not in get_args(Ties):
            raise LmsiError(f"Voting.ties = {self.ties!r}; use 'logprob' or 'ranker'")
        if self.ranks and not self.ranker:
            raise LmsiError("set Voting.ranker to 'module:function', or weigh without a ranker")
        if self.ranker is not None:
            check_ranker("Voting.ranker", self.ranker)
        if not self.temperature > 0:
            raise LmsiError(f"Voting.temperature = {self.temperature}; use a number above 0")


def check_ranker(parameter: str, ranker: str) -> None:
    """Raises LmsiError where a name is not "module:function"."""
    module, _, function = ranker.partition(":")
    if not (module and function.isidentifier()):
        raise LmsiError(f"{parameter} = {ranker!r}; write 'module:function'")


EQUAL = Voting()
"""One path, one vote."""


def weigh(
    paths: Sequence[Path], voting: Voting, ranks: Sequence[float] | None = None
) -> list[float] | None:
    """Returns the weight of each path, in [0, 1] or a ranker's; None where each path counts 1.

    A path that is exp(-745) times as likely as the likeliest weighs 0.

    Args:
      paths: of a question.
      voting: the rule.
      ranks: what its ranker says of each path; None where it is not asked.

    Raises:
      ValueError: the ranker is to be asked, and was not.
    """
    if voting.weights == "none" or not paths:
        return None
    if voting.weights == "ranker":
        if ranks is None:
            raise ValueError("Voting.weights = 'ranker' wants what the ranker says of each path")
        return list(ranks)
    if voting.weights == "logprob":
        return _relative([path.logprob for path in paths])
    per_token = [math.exp(min(0.0, path.logprob / max(1, path.tokens))) for path in paths]
    if voting.weights == "normalised_logprob":
        return per_token
    relative = _relative([p / voting.temperature for p in per_token])
    total = math.fsum(relative)
    return [weight / total for weight in relative]


def _relative(logs: Sequence[float]) -> list[float]:
    """exp of each, divided by the largest."""
    most = max(logs)
    return [math.exp(log - most) if log > -math.inf else 0.0 for log in logs]
