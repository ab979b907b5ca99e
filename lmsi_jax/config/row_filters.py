"""Set the filters of `Mixing.selection`, which drop or weigh voted samples before training.

Each class holds one filter's settings and names the scores that it needs; `lmsi_jax.selection`
computes the verdicts. A filter of your own is a frozen dataclass with `needs` and a method
`judge(rows, facts)`, as `lmsi_jax.selection.rows` describes.
"""

import dataclasses
from typing import Annotated, Literal, Protocol

from lmsi_jax.config.sampling import check_scorer
from lmsi_jax.config.value_checks import (
    OBJECT,
    above,
    at_least,
    check_fields,
    fraction,
    positive_fraction,
    without_folder,
)

LOSS = "loss"
"""Mean cross entropy (nats) of the solution's tokens after exemplars and question, base model."""
QUESTION_LOSS = "question_loss"
"""The same after the question alone."""
ALONE_LOSS = "alone_loss"
"""The same after "A:" alone, without a question."""
RATING = "rating"
"""The model's own rating of the solution, 0 to 10."""
HUMAN_LOSSES = "human_losses"
"""`LOSS` of human solutions, a score of the task instead of a row."""
SCORER = "scorer:"
"""Prefix of a scorer's number: "scorer:module:function"."""


class Filter(Protocol):
    """A filter of `Mixing.selection`."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the scores that the filter reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinConfidence:
    """Keeps the rows of questions whose vote is confident enough."""

    confidence: Annotated[float, fraction()] = 0.5
    """Smallest share of a question's samples that agree with its vote."""
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cap:
    """Keeps the first distinct solutions of a question, in the samples' order, with all copies."""

    num_samples: Annotated[int, at_least(1, unit="solutions")] = 10
    """Distinct solutions kept per question."""
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerEntropy:
    """Keeps the rows of the questions whose answers differ least (Entropy-filter, IWSI, table 1).

    u = -sum p log p / log m over the question's answers, with m its number of samples.
    """

    share: Annotated[float, positive_fraction()] = 0.8
    """Share of the rows to keep, k."""
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difficulty:
    """Keeps the hardest rows, one at a time; each choice lowers the rows that resemble it.

    After Self-Filter (Chen et al. 2024, section 3). A chosen row takes penalty * similarity**2 *
    (its own loss) off each of its nearest neighbours. The time grows with the number of rows that
    share word pairs, at worst with the square of the number of rows.
    """

    share: Annotated[float, positive_fraction()] = 0.8
    """Share of the rows to keep."""
    neighbours: Annotated[int, at_least(0, unit="rows")] = 10
    """Nearest rows that a choice lowers."""
    penalty: Annotated[float, at_least(0)] = 1.0
    """Strength of the penalty; 0 keeps the hardest rows, however similar."""
    needs = frozenset({LOSS})

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistinctReasoning:
    """Keeps the likeliest sample of each way of reasoning (RFT, Yuan et al. 2023, section 3.3)."""

    form: Literal["equations", "text"] = "equations"
    """What tells two ways of reasoning apart: their list of "equations", in order, or the text if a
    sample has none; or always the "text", its words without case, spacing and punctuation."""
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfRating:
    """Keeps the rows that the model itself rates highest (Self-filter, IWSI, table 1)."""

    share: Annotated[float, positive_fraction()] = 0.8
    """Share of the rows to keep, k."""
    needs = frozenset({RATING})

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExternalScore:
    """Keeps the rows with the best external score, such as a reward model's (RM-filter in IWSI)."""

    scorer: Annotated[str, OBJECT]
    """Function "module:function" of a `Question` and a `Sample` that returns a number, higher is
    better."""
    share: Annotated[float, positive_fraction()] = 0.8
    """Share of the rows to keep, k."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_scorer("ExternalScore.scorer", self.scorer)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the scores that the filter reads."""
        return frozenset({SCORER + without_folder(self.scorer)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionFollowing:
    """Keeps the rows whose question helps least, but does help (IFD, Li et al. 2023, section 2).

    IFD = L(solution given the question) / L(solution alone). Above 1 the question makes the
    solution less likely: the two do not belong together, and the row is dropped.
    """

    share: Annotated[float, positive_fraction()] = 0.8
    """Share of the rows to keep: those with the highest ratio of at most 1."""
    needs = frozenset({QUESTION_LOSS, ALONE_LOSS})

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Validated:
    """The validation set D_v of IWSI (Jiang et al. 2024), which both of its variants need."""

    validation: Literal["human", "confident"] = "human"
    """D_v: "human" takes the `Mixing.human_examples` human solutions of the task; "confident" the
    rows of its most confident votes, which needs no labels."""
    surest: Annotated[float, positive_fraction()] = 0.05
    """With "confident": share of the questions in D_v."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the scores that the filter reads."""
        return frozenset({LOSS, HUMAN_LOSSES} if self.validation == "human" else {LOSS})


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionShift(_Validated):
    """IWSI: keeps the rows with the smallest distribution-shift weight."""

    share: Annotated[float, positive_fraction()] = 0.8
    """Share of the rows to keep, k."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceWeights(_Validated):
    """IWSI-w: keeps all rows, each with min(w', C) as a factor of its loss weight."""

    cap: Annotated[float, above(0)] = 2.0
    """C."""


FILTERS: tuple[type, ...] = (
    MinConfidence,
    Cap,
    AnswerEntropy,
    DistinctReasoning,
    DistributionShift,
    ImportanceWeights,
    SelfRating,
    ExternalScore,
    InstructionFollowing,
    Difficulty,
)
"""The filters of the package, in the order of the configuration reference."""
