"""How rotary positions are stretched to sequences longer than a model was first trained on.

Each class is one value of `ModelConfig.rope_scaling`; `positions` has the formulas.
"""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions are divided by `factor` (Chen et al. 2023, section 2.3); Gemma 3's global layers.

    Raises:
      ValueError: a factor below 1.
    """

    factor: float
    kind: str = dataclasses.field(default="linear", init=False)

    def __post_init__(self) -> None:
        _check(self, self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's: low frequencies are divided by `factor`, high ones stay (Dubey et al. 2024).

    Attributes:
      factor: what low frequencies are divided by.
      low_freq_factor: frequencies of fewer turns than this in `original_length` are low.
      high_freq_factor: those of more are high; between the two the divisor is interpolated.
      original_length: tokens that the model was first trained on.

    Raises:
      ValueError: values out of range.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192
    kind: str = dataclasses.field(default="llama3", init=False)

    def __post_init__(self) -> None:
        _check(self, self.factor)
        _check_order(self, "low_freq_factor", "high_freq_factor")
        _check_length(self, self.original_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, section 3): interpolation by parts, and sharper attention.

    Attributes:
      factor: what low frequencies are divided by.
      original_length: tokens that the model was first trained on.
      beta_fast: frequencies of more turns than this in `original_length` stay.
      beta_slow: those of fewer are divided; between the two lies a ramp over the dimensions.
      attention_factor: queries and keys are multiplied by it; 0.0 stands for the paper's
        0.1 ln(factor) + 1.
      truncate: whether the ramp begins and ends at whole dimensions, as in the authors' code.

    Raises:
      ValueError: values out of range.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    truncate: bool = True
    kind: str = dataclasses.field(default="yarn", init=False)

    def __post_init__(self) -> None:
        _check(self, self.factor)
        _check_order(self, "beta_slow", "beta_fast")
        _check_length(self, self.original_length)
        if not 0 <= self.attention_factor < math.inf:
            raise ValueError(
                f"YarnScaling.attention_factor = {self.attention_factor} must be above 0, "
                "or 0.0 for the paper's"
            )


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


def from_json(fields: dict[str, Any]) -> RopeScaling:
    """Returns the scaling that `dataclasses.asdict` has written; its `kind` says which."""
    kinds: dict[str, type[RopeScaling]] = {
        one.kind: one for one in (LinearScaling, Llama3Scaling, YarnScaling)
    }
    values = dict(fields)
    return kinds[values.pop("kind")](**values)


def _check(scaling: object, factor: float) -> None:
    if not 1 <= factor < math.inf:
        raise ValueError(f"{type(scaling).__name__}.factor = {factor} must be at least 1")


def _check_order(scaling: object, low: str, high: str) -> None:
    if not 0 < getattr(scaling, low) < getattr(scaling, high):
        raise ValueError(f"{type(scaling).__name__}: {low} must be above 0 and below {high}")


def _check_length(scaling: object, length: int) -> None:
    if length < 1:
        raise ValueError(f"{type(scaling).__name__}.original_length = {length} must be at least 1")
