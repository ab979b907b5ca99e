"""Filters: which of a task's rows training learns, by their vote, their scores or their reasoning.

By the vote: `MinConfidence`, `AnswerEntropy` (IWSI's Entropy-filter). By scores: `SelfRating` (the
model as its own judge), `ExternalScore` (a reward model or any function), `InstructionFollowing`
(IFD). By what the rows are like: `Cap`, `DistinctReasoning` (RFT), and `Difficulty` (after
Self-Filter, Chen et al. 2024, whose score net is trained with the model; here the difficulty is the
base model's loss, and the features are pairs of neighbouring words).

By IWSI's distribution shift weight (Jiang et al. 2024, section 3), to filter and to weigh:

    w'_i = mean over v in D_v of L(x_v) / L(x_i)        how much likelier than the base model thinks
    w_i  = w'_i if w'_i >= 1, else 1 / w'_i             1 and more; 1: no shift

L is the base model's mean loss over the solution's tokens, so w'_i is the estimated importance
weight of row i. D_v, the validation set, are human solutions; or, without any label, the rows of
the surest votes.

A share of the rows is kept exactly: 80 % of 10 rows are 8, of 1 row 1, of none none.
"""

import collections
import heapq
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

from lmsi_jax.config import (
    AnswerEntropy,
    Cap,
    Difficulty,
    DistinctReasoning,
    DistributionShift,
    ExternalScore,
    ImportanceWeights,
    InstructionFollowing,
    MinConfidence,
    SelfRating,
)
from lmsi_jax.config.row_filters import ALONE_LOSS, LOSS, QUESTION_LOSS, RATING
from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import PLAIN, PromptWriter
from lmsi_jax.records import Text, Vote
from lmsi_jax.selection.rows import (
    KEPT,
    Facts,
    Row,
    Verdict,
    judge,
    rows_with_scores,
)


def kept_count(count: int, share: float) -> int:
    """Returns how many of `count` rows a share keeps, rounded up: in [0, count] for every count.

    The share is the decimal that was written: 0.1 of 10 is 1, though the float is a little more.
    """
    return min(count, math.ceil(Fraction(repr(share)) * count))


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


@judge.register
def _min_confidence(rule: MinConfidence, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    unsure = Verdict(0.0, "the vote is not sure enough")
    return [KEPT if row.vote.confidence >= rule.confidence else unsure for row in rows]


@judge.register
def _cap(rule: Cap, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    first: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row.name):
        texts = first.setdefault(row.question.uid, [])
        if row.solution not in texts and len(texts) < rule.num_samples:
            texts.append(row.solution)
    more = Verdict(0.0, "the question has enough samples")
    return [KEPT if row.solution in first[row.question.uid] else more for row in rows]


@judge.register
def _answer_entropy(rule: AnswerEntropy, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    values = {i: relative_entropy(row.vote) for i, row in enumerate(rows)}
    return keep_lowest(rows, values, rule.share, "the answers differ too much", "")


def relative_entropy(vote: Vote) -> float:
    """Returns the entropy of a question's answers over log m, its maximum; 0 for one sample.

    p are shares of the parsed answers; unparsed samples count in m.
    """
    return vote.entropy / math.log(vote.total) if vote.total > 1 else 0.0


_WORD = re.compile(r"\w+")


@judge.register
def _difficulty(rule: Difficulty, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    known = sorted(rows_with_scores(rows, LOSS), key=lambda i: rows[i].name)
    losses = [rows[i].scores[LOSS] for i in known]
    features = [word_pairs(f"{rows[i].question.text} {rows[i].solution}") for i in known]
    count = kept_count(len(rows), rule.share)
    hardest = select_hardest(losses, features, count, rule.neighbours, rule.penalty)
    chosen = {known[j] for j in hardest}
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
    rows_with: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    for i, pairs in enumerate(features):
        for pair in pairs:
            rows_with[pair].append(i)
    candidates = dict(enumerate(losses))
    queue = [(-loss, i) for i, loss in candidates.items()]
    heapq.heapify(queue)
    chosen: list[int] = []
    while len(chosen) < count and candidates:
        value, at = heapq.heappop(queue)  # minus the current difficulty
        if candidates.get(at) != -value:
            continue  # chosen, or lowered since
        del candidates[at]
        chosen.append(at)
        if not penalty:
            continue
        shared = collections.Counter(
            i for pair in features[at] for i in rows_with[pair] if i in candidates
        )
        size = len(features[at])
        cosine = {i: n / math.sqrt(size * len(features[i])) for i, n in shared.items()}
        for i in heapq.nsmallest(neighbours, cosine, key=lambda i: (-cosine[i], i)):
            candidates[i] += penalty * cosine[i] ** 2 * value
            heapq.heappush(queue, (-candidates[i], i))
    return chosen


Form = Literal["equations", "text"]

# Every repetition is bounded, so that the time is linear in the length of the text.
_NUMBER = r"[-+]?[$€£]?\d[\d,]{0,30}(?:\.\d{1,30})?%?"
_OPERAND = rf"[(\s]{{0,4}}{_NUMBER}[)\s]{{0,4}}"
_EQUATION = re.compile(rf"{_OPERAND}(?:[-+*/x×÷]{_OPERAND}){{0,20}}={_OPERAND}")
_SIGNS = str.maketrans({"x": "*", "×": "*", "÷": "/"})
_TOKEN = re.compile(r"\w+(?:[.,]\d+)*|[-+*/=<>]")


@judge.register
def _distinct_reasoning(
    rule: DistinctReasoning, rows: Sequence[Row], facts: Facts
) -> list[Verdict]:
    ways = [(row.question.uid, row.key, reasoning(row.solution, rule.form)) for row in rows]
    best: dict[object, int] = {}
    order = sorted(range(len(rows)), key=lambda i: (-rows[i].sample.logprob, rows[i].name))
    for i in order:
        best.setdefault(ways[i], i)
    chosen = set(best.values())
    again = Verdict(0.0, "reasons as another sample does")
    return [KEPT if i in chosen else again for i in range(len(rows))]


def reasoning(solution: str, form: Form) -> tuple[str, ...]:
    """Returns the form of a solution's reasoning: equal for two that reason in the same way."""
    steps = equations(solution) if form == "equations" else ()
    return steps or tuple(word.casefold() for word in _TOKEN.findall(solution))


def equations(solution: str) -> tuple[str, ...]:
    """Returns a solution's equations in order, without spaces, units and thousands separators.

    "2 x $1,500 = $3,000" becomes "2*1500=3000".
    """
    return tuple(
        re.sub(r"[\s,$€£%]", "", equation.translate(_SIGNS))
        for equation in _EQUATION.findall(solution)
    )


@judge.register
def _self_rating(rule: SelfRating, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    values = {i: -rows[i].scores[RATING] for i in rows_with_scores(rows, RATING)}
    return keep_lowest(rows, values, rule.share, "the rating is low", "no rating was given")


@judge.register
def _external_score(rule: ExternalScore, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    (name,) = rule.needs
    values = {i: -rows[i].scores[name] for i in rows_with_scores(rows, name)}
    return keep_lowest(rows, values, rule.share, "the scorer likes others better", "not scored")


@judge.register
def _instruction_following(
    rule: InstructionFollowing, rows: Sequence[Row], facts: Facts
) -> list[Verdict]:
    ratios = {
        i: instruction_following_difficulty(rows[i]) for i in rows_with_scores(rows, *rule.needs)
    }
    values = {i: -ratio for i, ratio in ratios.items() if ratio <= 1}
    verdicts = keep_lowest(rows, values, rule.share, "the question says it all", "")
    why = {True: "the question does not help", False: "not scored: longer than the batch shape"}
    return [
        verdict if i in values else Verdict(0.0, why[i in ratios])
        for i, verdict in enumerate(verdicts)
    ]


def instruction_following_difficulty(row: Row) -> float:
    """Returns a row's IFD; without a loss alone infinity, or 1 if neither has any."""
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


def rating_prompt(question: str, solution: str, writer: PromptWriter = PLAIN) -> Text:
    """Returns a prompt whose continuation is a rating of the solution."""
    return writer.judgement(question, solution, _ASK, "The rating is")


def read_rating(text: str) -> float | None:
    """Returns the rating from 0 to 10 that a continuation begins with, or None."""
    match = _RATING.match(text)
    rating = float(match[1]) if match else -1.0
    return rating if 0 <= rating <= _MOST else None


_MISSING = "not scored: longer than the batch shape"


def importance(validation: Sequence[float], loss: float) -> float:
    """Returns w' of a row; infinite if the row has no loss and the validation set has some.

    Args:
      validation: losses of D_v, in nats, at least one.
      loss: the row's.

    Raises:
      ValueError: a negative loss, or no validation set.
    """
    if not validation or min(loss, *validation) < 0:
        raise ValueError("importance weights need losses of 0 or more, and a validation set")
    mean = math.fsum(validation) / len(validation)
    if loss == 0:
        return math.inf if mean > 0 else 1.0
    return mean / loss


def shift(weight: float) -> float:
    """Returns the DS weight of w': the same for w' and 1 / w', without any cap."""
    if weight >= 1:
        return weight
    return 1 / weight if weight > 0 else math.inf


def importances(
    rule: DistributionShift | ImportanceWeights, rows: Sequence[Row], facts: Facts
) -> dict[int, float]:
    """Returns w' of the rows that have a loss, by place.

    Raises:
      LmsiError: no human solution has a loss.
    """
    known = rows_with_scores(rows, LOSS)
    if not known:
        return {}
    validation = _validation_losses(rule, [rows[i] for i in known], facts)
    return {i: importance(validation, rows[i].scores[LOSS]) for i in known}


def _validation_losses(
    rule: DistributionShift | ImportanceWeights, rows: Sequence[Row], facts: Facts
) -> Sequence[float]:
    if rule.validation == "confident":
        return confident_losses(rows, rule.surest)
    if not facts.human_losses:
        raise LmsiError(
            f"{type(rule).__name__}.validation = 'human', but no human solution fits "
            "Training.sequence_length and Training.max_prefix_length; raise these, or use "
            "'confident'"
        )
    return facts.human_losses


def confident_losses(rows: Sequence[Row], surest: float) -> list[float]:
    """Returns the losses of the rows of the surest questions, at least one question's.

    A row counts once: the losses' order, and so their sum, does not depend on that of the rows.

    Args:
      rows: all of them with a loss.
      surest: share of the questions.
    """
    confidence = {row.question.uid: row.vote.confidence for row in rows}
    order = sorted(confidence, key=lambda uid: (-confidence[uid], uid))
    chosen = set(order[: kept_count(len(order), surest)])
    return [row.scores[LOSS] for row in rows if row.question.uid in chosen]


@judge.register
def _distribution_shift(
    rule: DistributionShift, rows: Sequence[Row], facts: Facts
) -> list[Verdict]:
    values = {i: shift(weight) for i, weight in importances(rule, rows, facts).items()}
    return keep_lowest(rows, values, rule.share, "the distribution shift is large", _MISSING)


@judge.register
def _importance_weights(
    rule: ImportanceWeights, rows: Sequence[Row], facts: Facts
) -> list[Verdict]:
    weights = importances(rule, rows, facts)
    return [
        Verdict(min(weights[i], rule.cap), "weighs nothing")
        if i in weights
        else Verdict(0.0, _MISSING)
        for i in range(len(rows))
    ]
