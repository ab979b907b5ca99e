"""Filters on the vote alone: its confidence, its entropy, and how many paths a question gives.

The hardest rows, spread out: near neighbours of a chosen row become less wanted.

After Self-Filter (Chen et al. 2024, section 3). Its score net is trained with the model; here the
difficulty is the base model's loss, and the features are pairs of neighbouring words.

One path for each distinct way of reasoning (RFT, Yuan et al. 2023, section 3.3).

Filters by one score of a row: the model's own rating, any scorer's, or its difficulty ratio.

The model as its own judge: a prompt that asks for 0 to 10, and what its answer says.

Keeping a share of the rows, exactly: 80 % of 10 rows are 8, of 1 row 1, of none none.
"""

import collections
import dataclasses
import heapq
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

from lmsi_jax.errors import LmsiError, check_scorer
from lmsi_jax.prompts import SEPARATOR, question_prompt
from lmsi_jax.records import Vote
from lmsi_jax.selection.rows import (
    ALONE_LOSS,
    KEPT,
    LOSS,
    QUESTION_LOSS,
    RATING,
    SCORER,
    Facts,
    Row,
    Verdict,
    rows_with_scores,
)


def kept_count(count: int, share: float) -> int:
    """Returns how many of `count` rows a share keeps, rounded up: in [0, count] for every count.

    The share is the decimal that was written: 0.1 of 10 is 1, though the float is a little more.
    """
    return min(count, math.ceil(Fraction(repr(share)) * count))


def check_share(name: str, share: float) -> None:
    """Raises LmsiError where a share is none."""
    if not 0 < share <= 1:
        raise LmsiError(f"{name} = {share}; use a share above 0, up to 1")


def keep_lowest(
    rows: Sequence[Row], values: Mapping[int, float], share: float, reason: str, missing: str
) -> list[Verdict]:
    """Keeps a share of the rows, those with the lowest values.

    Args:
      rows: a task's rows.
      values: of some rows, by their place; the others are dropped, and count for the share.
      share: of all rows, in (0, 1].
      reason: why a row with too high a value is dropped.
      missing: why one without is.
    """
    order = sorted(values, key=lambda i: (values[i], rows[i].name))
    chosen = set(order[: kept_count(len(rows), share)])
    return [
        KEPT if i in chosen else Verdict(0.0, reason if i in values else missing)
        for i in range(len(rows))
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinConfidence:
    """Keeps the rows of questions whose vote is sure enough.

    Attributes:
      confidence: least share of the question's paths that agree with its vote.
    """

    confidence: float = 0.5
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise LmsiError(f"MinConfidence.confidence = {self.confidence}; use a share, 0 to 1")

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        unsure = Verdict(0.0, "the vote is not sure enough")
        return [KEPT if row.vote.confidence >= self.confidence else unsure for row in rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cap:
    """Keeps the first distinct solutions of a question, by path index, with all their copies.

    Attributes:
      num_samples: how many distinct ones.
    """

    num_samples: int = 10
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise LmsiError(f"Cap.num_samples = {self.num_samples}; use 1 or more")

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        first: dict[str, list[str]] = {}
        for row in sorted(rows, key=lambda row: row.name):
            texts = first.setdefault(row.question.uid, [])
            if row.solution not in texts and len(texts) < self.num_samples:
                texts.append(row.solution)
        more = Verdict(0.0, "the question has enough paths")
        return [KEPT if row.solution in first[row.question.uid] else more for row in rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerEntropy:
    """Keeps the rows of the questions whose answers differ least (Entropy-filter in IWSI, table 1).

    u = -sum p log p / log m over the question's answers, m its number of paths.

    Attributes:
      share: of the rows that is kept, k.
    """

    share: float = 0.8
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        check_share("AnswerEntropy.share", self.share)

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        values = {i: relative_entropy(row.vote) for i, row in enumerate(rows)}
        return keep_lowest(rows, values, self.share, "the answers differ too much", "")


def relative_entropy(vote: Vote) -> float:
    """Returns the entropy of a question's answers over the largest possible, log m; 0 of one path.

    p are shares of the parsed answers; unparsed paths count in m.
    """
    return vote.entropy / math.log(vote.total) if vote.total > 1 else 0.0


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
        known = sorted(rows_with_scores(rows, LOSS), key=lambda i: rows[i].name)
        losses = [rows[i].scores[LOSS] for i in known]
        features = [word_pairs(f"{rows[i].question.text} {rows[i].solution}") for i in known]
        count = kept_count(len(rows), self.share)
        found = select_hardest(losses, features, count, self.neighbours, self.penalty)
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


def select_hardest(
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


Form = Literal["equations", "text"]

# Every repetition is bounded, so that the time is linear in the length of the text.
_NUMBER = r"[-+]?[$€£]?\d[\d,]{0,30}(?:\.\d{1,30})?%?"
_OPERAND = rf"[(\s]{{0,4}}{_NUMBER}[)\s]{{0,4}}"
_EQUATION = re.compile(rf"{_OPERAND}(?:[-+*/x×÷]{_OPERAND}){{0,20}}={_OPERAND}")
_SIGNS = str.maketrans({"x": "*", "×": "*", "÷": "/"})
_WORD_distinct = re.compile(r"\w+(?:[.,]\d+)*|[-+*/=<>]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistinctReasoning:
    """Keeps the likeliest path of each way of reasoning to a question's answer.

    Attributes:
      form: what tells two ways apart: their list of "equations", in order; where a path has none,
        its text. Or always the "text": its words, without case, spacing and punctuation.
    """

    form: Form = "equations"
    needs = frozenset[str]()

    def __post_init__(self) -> None:
        if self.form not in ("equations", "text"):
            raise LmsiError(f"DistinctReasoning.form = {self.form!r}; use 'equations' or 'text'")

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        ways = [(row.question.uid, row.key, reasoning(row.solution, self.form)) for row in rows]
        best: dict[object, int] = {}
        order = sorted(range(len(rows)), key=lambda i: (-rows[i].sample.logprob, rows[i].name))
        for i in order:
            best.setdefault(ways[i], i)
        chosen = set(best.values())
        again = Verdict(0.0, "reasons as another path does")
        return [KEPT if i in chosen else again for i in range(len(rows))]


def reasoning(solution: str, form: Form) -> tuple[str, ...]:
    """Returns what two solutions share that reason in the same way."""
    found = equations(solution) if form == "equations" else ()
    return found or tuple(word.casefold() for word in _WORD_distinct.findall(solution))


def equations(solution: str) -> tuple[str, ...]:
    """Returns a solution's equations in order, without spaces, units and thousands separators.

    "2 x $1,500 = $3,000" becomes "2*1500=3000".
    """
    return tuple(_plain(found) for found in _EQUATION.findall(solution))


def _plain(equation: str) -> str:
    return re.sub(r"[\s,$€£%]", "", equation.translate(_SIGNS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfRating:
    """Keeps the rows that the model itself rates highest (Self-filter in IWSI, table 1).

    Attributes:
      share: of the rows that is kept, k.
    """

    share: float = 0.8
    needs = frozenset({RATING})

    def __post_init__(self) -> None:
        check_share("SelfRating.share", self.share)

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        values = {i: -rows[i].scores[RATING] for i in rows_with_scores(rows, RATING)}
        return keep_lowest(rows, values, self.share, "the rating is low", "no rating was given")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExternalScore:
    """Keeps the rows that a scorer likes best: a reward model (RM-filter in IWSI), or any function.

    Attributes:
      scorer: "module:function"; the function takes a `Question` and a `Sample` and returns a
        number, the higher the better.
      share: of the rows that is kept, k.
    """

    scorer: str
    share: float = 0.8

    def __post_init__(self) -> None:
        check_share("ExternalScore.share", self.share)
        check_scorer("ExternalScore.scorer", self.scorer)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the scores that it reads."""
        return frozenset({SCORER + self.scorer})

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        (name,) = self.needs
        values = {i: -rows[i].scores[name] for i in rows_with_scores(rows, name)}
        return keep_lowest(rows, values, self.share, "the scorer likes others better", "not scored")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionFollowing:
    """Keeps the rows whose question helps least, but does help (IFD, Li et al. 2023, section 2).

    IFD = L(solution given the question) / L(solution alone). Above 1 the question makes the
    solution less likely: the two do not belong together, and the row is dropped.

    Attributes:
      share: of the rows that is kept, those with the highest ratio of at most 1.
    """

    share: float = 0.8
    needs = frozenset({QUESTION_LOSS, ALONE_LOSS})

    def __post_init__(self) -> None:
        check_share("InstructionFollowing.share", self.share)

    def judge(self, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
        """See `rows.Filter`."""
        ratios = {
            i: instruction_following_difficulty(rows[i])
            for i in rows_with_scores(rows, *self.needs)
        }
        values = {i: -ratio for i, ratio in ratios.items() if ratio <= 1}
        found = keep_lowest(rows, values, self.share, "the question says it all", "")
        why = {True: "the question does not help", False: "not scored: longer than the batch shape"}
        return [
            one if i in values else Verdict(0.0, why[i in ratios]) for i, one in enumerate(found)
        ]


def instruction_following_difficulty(row: Row) -> float:
    """Returns a row's IFD; without a loss alone infinity, or 1 where neither has any."""
    given, alone = row.scores[QUESTION_LOSS], row.scores[ALONE_LOSS]
    if alone == 0:
        return 1.0 if given == 0 else float("inf")
    return given / alone


_ASK = (
    "Q: How good is the solution above? Give it 0 if it is wrong and 10 if it is right in every "
    "step."
)
_RATING = re.compile(r"[^\d\n-]{0,30}(\d{1,3}(?:\.\d+)?)(?![\d,])")
_MOST = 10.0


def rating_prompt(question: str, solution: str) -> str:
    """Returns a document that goes on with a rating of the solution."""
    return f"{question_prompt(question)} {solution}{SEPARATOR}{question_prompt(_ASK)} The rating is"


def read_rating(text: str) -> float | None:
    """Returns the rating that a continuation begins with; None where it gives none of 0 to 10."""
    found = _RATING.match(text)
    rating = float(found[1]) if found else -1.0
    return rating if 0 <= rating <= _MOST else None
