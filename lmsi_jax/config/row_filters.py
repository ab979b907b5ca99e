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
    SEED,
    above,
    at_least,
    check_fields,
    fraction,
    positive_fraction,
    without_folder,
)
from lmsi_jax.errors import LmsiError

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
BASE_SHARES = "base_shares"
"""Share of the frozen base's vote on each question, a fact of the task: its votes of round 1."""
GOLD = "gold"
"""Right answers of the training questions, a fact of the task."""
FACTS = frozenset({BASE_SHARES, GOLD})
"""What filters read that nothing has to be computed for."""
SCORER = "scorer:"
"""Prefix of a scorer's number: "scorer:module:function"."""


class Filter(Protocol):
    """A filter of `Mixing.selection`."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the scores that the filter reads."""


def judges_all_answers(rule: Filter) -> bool:
    """Returns True if a filter makes no sense on the rows that agree with the vote alone."""
    if isinstance(rule, ClearVote):
        return rule.penalty > 0
    return isinstance(
        rule, (VoteShares, VoteReward, Extremes, SubgroupVotes, GoldLabels, RandomVote)
    )


def punishes(rule: Filter) -> bool:
    """Returns True if a filter may give rows a weight below 0."""
    return getattr(rule, "penalty", 0.0) > 0 and isinstance(rule, (VoteShares, ClearVote, Extremes))


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

    After Self-Filter (Chen et al. 2024, section 3, and its published code). A chosen row takes
    penalty * similarity**2 * (its difficulty then, its loss less what others took off) off each of
    its nearest neighbours. The time grows with the number of rows that
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoteShares:
    """Weighs each answer by its share of the votes (RESTRAIN, 2510.02172).

    Needs `Mixing.keep = 'parsed'`. A row with answer j of count c_j among n samples weighs
    u * g(c_j / n) / sum_l g(c_l / n), with g(x) = exp(-(x - center)**2 / (2 width**2)) and
    u = g(share of the frozen base's vote).
    """

    center: Annotated[float, fraction()] = 1.0
    """Share with the largest weight, the centre of g."""
    width: Annotated[float, above(0)] = 0.5
    """Standard deviation of g; a large one weighs all answers alike."""
    question_weight: bool = True
    """Weigh each question by g of the base's vote; False sets u = 1."""
    least: Annotated[float, fraction("0 for none")] = 0.0
    """Questions whose vote has a smaller share teach nothing, kappa; see `penalty`."""
    penalty: Annotated[float, at_least(0, note="they are left out")] = 0.0
    """Weight with which all answers to such questions are punished, delta; see `Loss.negatives`."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.penalty and not self.least:
            raise LmsiError(
                f"VoteShares.penalty = {self.penalty} punishes the answers to questions whose vote "
                "has a share below VoteShares.least; set VoteShares.least above 0"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Names of the scores that the filter reads."""
        return frozenset({BASE_SHARES} if self.question_weight else ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoteReward:
    """Weighs each row by a function g of its reward r (RoiRL, 2510.02892).

    Needs `Mixing.keep = 'parsed'`. r is 1 if the row agrees with the vote and 0 if not, or the
    share of its answer.
    """

    form: Literal["identity", "exp"] = "identity"
    """g(r): "identity" is r, "exp" is exp(r / beta), computed as exp((r - 1) / beta), since a
    constant factor of all weights changes nothing."""
    beta: Annotated[float, above(0)] = 1.0
    """Temperature of "exp": near 0 only the vote's answer counts, at a large one every answer
    alike."""
    reward: Literal["vote", "share"] = "vote"
    """r: 1 for the "vote"'s answer and 0 for others, as in the paper; or the "share" of the samples
    with the row's answer, which is ours."""
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClearVote:
    """Keeps the vote's answer where it is clear, and punishes rare ones (SCRL, 2603.19880).

    p1 and p2 are the shares of the two most frequent answers.
    """

    share: Annotated[float, fraction()] = 0.375
    """Smallest p1."""
    margin: Annotated[float, fraction()] = 0.125
    """p1 - p2 must be larger than this."""
    rare: Annotated[float, fraction()] = 0.125
    """Answers with a smaller share can be punished; with `Mixing.keep = 'parsed'` alone."""
    penalty: Annotated[float, at_least(0, note="none is punished")] = 0.0
    """Weight with which a rare answer's row is punished if its surprisal per token is not below the
    mean of its question's rows; see `Loss.negatives`. The paper compares entropies."""
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extremes:
    """Learns the most frequent answer and punishes the rarest, without the middle (DDRL).

    At most `share` of a question's samples are learnt, in their order, and no more are punished
    than are learnt. Needs `Mixing.keep = 'parsed'`.
    """

    share: Annotated[float, positive_fraction()] = 0.5
    """Largest share of a question's samples to learn, at least one sample."""
    penalty: Annotated[float, at_least(0, note="none is punished")] = 1.0
    """Weight of a punished row; see `Loss.negatives`."""
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubgroupVotes:
    """Weighs each row by the sub-groups whose confidence-weighted vote it agrees with (SCOPE).

    Each sub-group of a question's rows elects an answer by the sum of its rows' confidences. A row
    weighs the share of its places in sub-groups that elect its answer. Needs `Mixing.keep =
    'parsed'`.
    """

    groups: Annotated[int, at_least(1, unit="sub-groups")] = 8
    """Sub-groups of a question, drawn with replacement."""
    size: Annotated[float, positive_fraction()] = 0.5
    """Rows in a sub-group, as a share of the question's, rounded up."""
    step_tokens: Annotated[int, at_least(0, unit="tokens", note="the whole sample")] = 16
    """Tokens of a step. A row's confidence is the mean over its steps of exp(mean log-probability
    of the step's tokens); steps need `Sampling.token_logprobs`."""
    seed: Annotated[int, SEED] = 0
    """Fixes the sub-groups."""
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldLabels:
    """Keeps the rows whose answer is right by the labels: an upper bound, no self-improvement.

    With `Mixing.keep = 'parsed'`. Reports, records and studies mark runs that use it.
    """

    needs = frozenset({GOLD})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomVote:
    """Keeps random rows in place of the vote's, as many: a control for the vote.

    Needs `Mixing.keep = 'parsed'`.
    """

    of: Literal["samples", "answers"] = "samples"
    """What is drawn in each question: as many "samples" as agree with the vote; or one of its
    "answers", each alike, whose rows share the weight of those that agree with the vote."""
    seed: Annotated[int, SEED] = 0
    """Fixes what is drawn."""
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoteSized:
    """Keeps as many of a task's rows, drawn at random, as agree with the votes; all if fewer.

    Gives controls the number of rows that LMSI has: put it last.
    """

    seed: Annotated[int, SEED] = 0
    """Fixes which rows."""
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_fields(self)


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
    VoteShares,
    VoteReward,
    ClearVote,
    Extremes,
    SubgroupVotes,
    GoldLabels,
    RandomVote,
    VoteSized,
)
"""The filters of the package, in the order of the configuration reference."""
