"""Accuracy of samples and votes against gold answers. PURE: records in, numbers out.

score                    a task's outcomes in one prompt style
accuracy_by_confidence   how often votes are right, given their confidence (LMSI, figure 2)
curve                    majority@k and pass@k by the number of samples
replay                   the effect of adaptive consistency on samples that were all drawn
best_drop_f1             the overlap of an answer's words with DROP's annotators'
"""

import bisect
import dataclasses
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence, Set
from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

import numpy as np

from lmsi_jax import voting
from lmsi_jax.config import Voting
from lmsi_jax.evaluation.statistics import bootstrap
from lmsi_jax.records import Question, Sample, Vote
from lmsi_jax.voting import EQUAL, right_keys

MOST_SUBSETS = 600
"""Up to this many subsets all are counted (k = 1, 2, m - 1 and m of 32 samples)."""
DRAWS = 400
"""Number of random subsets if there are more."""

Scorer = Callable[[Question, Sequence[Sample]], list[float] | None]
"""Returns a score of each of a question's samples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """Majority@k and pass@k for one k; intervals are bootstraps over questions, at 95 %.

    `majority_error` is the standard error that random subsets leave in `majority`; 0 if all subsets
    were counted.
    """

    k: int
    majority: float
    majority_low: float
    majority_high: float
    majority_error: float
    passed: float
    passed_low: float
    passed_high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskScore:
    """The outcomes of one task in one prompt style.

    Attributes:
      task: its name.
      prompt_style: "standard", "cot", "zero_shot_cot" (one sample) or "self_consistency" (a vote).
      temperature: of sampling.
      samples: samples per question.
      correct: 1 or 0 per question, in question order.
      confidence: of the vote, per question; () for one sample.
      parsed: share of samples with a parsed answer.
      tied: number of questions with a tied vote.
      single: accuracy of one sample, averaged over all of them.
      mean_tokens: tokens per sample.
      curve: majority@k and pass@k of self-consistency, for k = 1, 2, 4, ... and all samples.
      f1: DROP's F1 per question, in question order; () for other tasks.
      right_share: share of the samples that are right, per question.
      tokens: tokens of a sample, mean over the samples, per question.
      parsed_share, marked_share, finished_share: of the samples with an answer, that mark it, and
        that no token limit cut, per question.
    """

    task: str
    prompt_style: str
    temperature: float
    samples: int
    correct: tuple[int, ...]
    confidence: tuple[float, ...]
    parsed: float
    tied: int
    single: float
    mean_tokens: float
    curve: tuple[Point, ...] = ()
    f1: tuple[float, ...] = ()
    right_share: tuple[float, ...] = ()
    tokens: tuple[float, ...] = ()
    parsed_share: tuple[float, ...] = ()
    marked_share: tuple[float, ...] = ()
    finished_share: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of the questions that are answered right."""
        return sum(self.correct) / len(self.correct)


def score(
    questions: Sequence[Question],
    samples: Mapping[str, Sequence[Sample]],
    prompt_style: str,
    temperature: float,
    weights: Voting = EQUAL,
    scorer: Scorer | None = None,
) -> TaskScore:
    """Votes on each question's samples (a single one is its own vote) and compares with the gold.

    Args:
      questions: of one task, with gold answers.
      samples: of each question, by uid.
      prompt_style: of the samples.
      temperature: of the samples.
      weights: the weight of a sample in the vote.
      scorer: the scorer of `weights`, if it has one.
    """
    votes = []
    for question in questions:
        drawn = samples[question.uid]
        scores = scorer(question, drawn) if scorer else None
        votes.append(voting.cast(question, drawn, weights, scores))
    return score_votes(questions, samples, votes, prompt_style, temperature)


def score_votes(
    questions: Sequence[Question],
    samples: Mapping[str, Sequence[Sample]],
    votes: Sequence[Vote],
    prompt_style: str,
    temperature: float,
) -> TaskScore:
    """Compares votes with the gold answers; a question without a parsed answer counts as wrong.

    Args:
      questions: of one task, with gold answers.
      samples: of each question, by uid.
      votes: one on each question, in their order.
      prompt_style: of the samples.
      temperature: of the samples.
    """
    several = prompt_style == "self_consistency"
    by_question = [samples[question.uid] for question in questions]
    gold = [right_keys(question) for question in questions]
    right = [vote.winner in keys for vote, keys in zip(votes, gold, strict=True)]
    total = max(1, sum(vote.total for vote in votes))
    agreeing = sum(key in keys for vote, keys in zip(votes, gold, strict=True) for key in vote.keys)
    tokens = sum(sample.tokens for drawn in by_question for sample in drawn)
    return TaskScore(
        task=questions[0].task,
        prompt_style=prompt_style,
        temperature=temperature,
        samples=max(vote.total for vote in votes),
        correct=tuple(map(int, right)),
        confidence=tuple(round(vote.confidence, 6) for vote in votes) if several else (),
        parsed=sum(vote.parsed for vote in votes) / total,
        tied=sum(bool(vote.tied) for vote in votes),
        single=agreeing / total,
        mean_tokens=tokens / total,
        curve=tuple(curve(by_question, votes, gold)) if several else (),
        f1=tuple(
            best_drop_f1(_answer(vote), question.spans)
            for question, vote in zip(questions, votes, strict=True)
        )
        if all(question.spans for question in questions)
        else (),
        right_share=_shares(
            [sum(key in keys for key in vote.keys) for vote, keys in zip(votes, gold, strict=True)],
            votes,
        ),
        tokens=_shares([sum(one.tokens for one in drawn) for drawn in by_question], votes),
        parsed_share=_shares([vote.parsed for vote in votes], votes),
        marked_share=_shares([sum(vote.marked) for vote in votes], votes),
        finished_share=_shares([sum(one.finished for one in rows) for rows in by_question], votes),
    )


def _shares(counts: Sequence[int], votes: Sequence[Vote]) -> tuple[float, ...]:
    """Returns each question's count over its number of samples."""
    return tuple(
        round(count / max(1, vote.total), 4) for count, vote in zip(counts, votes, strict=True)
    )


def _answer(vote: Vote) -> str | None:
    """Returns the winner as the first sample writes it that agrees; None without a winner."""
    return None if vote.winner is None else vote.surfaces[vote.keys.index(vote.winner)]


class Bin(NamedTuple):
    """The votes with a confidence in [low, high); the last bin holds 1.0 too."""

    low: float
    high: float
    n: int
    correct: int
    mean_confidence: float
    """0.0 if the bin is empty."""


def accuracy_by_confidence(
    confidences: Sequence[float], correct: Sequence[bool], bins: int = 5
) -> list[Bin]:
    """Sorts votes into equally wide bins of confidence.

    Args:
      confidences: of each vote, in [0, 1].
      correct: True for each right vote, in the same order.
      bins: number of bins.

    Returns:
      All bins in rising order, empty ones too.

    Raises:
      ValueError: unequal lengths, a confidence outside [0, 1], or no bins.
    """
    if len(confidences) != len(correct):
        raise ValueError(f"{len(confidences)} confidences for {len(correct)} votes")
    if bins < 1:
        raise ValueError(f"{bins} bins; use 1 or more")
    if bad := [c for c in confidences if not 0 <= c <= 1]:
        raise ValueError(f"confidence {bad[0]} is outside [0, 1]")
    edges = [i / bins for i in range(bins + 1)]
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for confidence, right in zip(confidences, correct, strict=True):
        # Compared with the reported edges, so that rounding never puts 0.6 below 3/5.
        members[bisect.bisect_right(edges, confidence, 1, bins) - 1].append((confidence, right))
    return [
        Bin(
            low,
            high,
            len(votes),
            sum(bool(right) for _, right in votes),
            math.fsum(confidence for confidence, _ in votes) / len(votes) if votes else 0.0,
        )
        for low, high, votes in zip(edges[:-1], edges[1:], members, strict=True)
    ]


def expected_calibration_error(
    confidences: Sequence[float], correct: Sequence[bool], bins: int = 5
) -> float:
    """Returns the mean distance of accuracy from confidence over bins, weighted by their sizes.

    Naeini et al. 2015; 0.0 without votes. Arguments and errors as in `accuracy_by_confidence`.
    """
    table = accuracy_by_confidence(confidences, correct, bins)
    total = len(confidences) or 1
    return math.fsum(abs(b.correct - b.n * b.mean_confidence) for b in table) / total


def curve(
    samples: Sequence[Sequence[Sample]],
    votes: Sequence[Vote],
    right: Sequence[Set[str]],
    *,
    ks: Sequence[int] | None = None,
    seed: int = 0,
) -> list[Point]:
    """Returns majority@k and pass@k over questions.

    Both are unbiased estimates for k samples, from m >= k samples of each question: means over
    subsets of k samples, drawn without replacement.

    Args:
      samples: of each question, in any order.
      votes: on these, in the same order.
      right: the keys that count as right for each question.
      ks: numbers of samples; None: 1, 2, 4, ... and m. A k above the fewest samples of a question
        is left out.
      seed: of the random subsets and of the bootstrap.

    Raises:
      ValueError: a vote is over another number of samples.
    """
    fewest = min((vote.total for vote in votes), default=0)
    powers = {2**i for i in range(fewest.bit_length()) if 2**i <= fewest}
    usual = sorted(powers | ({fewest} if fewest else set()))
    chosen = usual if ks is None else [k for k in ks if 1 <= k <= fewest]
    rows = list(zip(samples, votes, right, strict=True))
    return [_point(k, rows, seed) for k in chosen]


def _point(k: int, rows: Sequence[tuple[Sequence[Sample], Vote, Set[str]]], seed: int) -> Point:
    shares, total_variance, passed = [], 0.0, []
    for i, (samples, vote, right) in enumerate(rows):
        share, variance = majority_at_k(vote, samples, right, k, seed + i)
        shares.append(share)
        total_variance += variance
        passed.append(pass_at_k(vote.total, sum(key in right for key in vote.keys), k))
    n = len(rows)
    low, high = bootstrap(shares, seed)
    passed_low, passed_high = bootstrap(passed, seed)
    return Point(
        k=k,
        majority=math.fsum(shares) / n,
        majority_low=low,
        majority_high=high,
        majority_error=math.sqrt(total_variance) / n,
        passed=math.fsum(passed) / n,
        passed_low=passed_low,
        passed_high=passed_high,
    )


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns the chance that k of n samples, drawn without replacement, hold one of c right ones.

    The unbiased estimate of Chen et al. 2021 ("Evaluating Large Language Models Trained on Code"),
    computed exactly.

    Raises:
      ValueError: not 0 <= c <= n, or not 1 <= k <= n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"cannot draw {k} of {n} samples with {c} right ones")
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def majority_at_k(
    vote: Vote, samples: Sequence[Sample], right: Set[str], k: int, seed: int = 0
) -> tuple[float, float]:
    """Returns the chance that the vote on k of a question's samples is right, and its variance.

    The rule of `vote` decides, weights and ties included; a subset without a parsed sample is
    wrong.

    Args:
      vote: on all of `samples`.
      samples: the question's, in any order.
      right: the keys that count as right.
      k: samples of a subset, 1 to m.
      seed: of the random subsets, if there are more than `MOST_SUBSETS`.

    Returns:
      The share of subsets with a right winner, and the variance of this estimate: 0.0 if all
      subsets were counted.

    Raises:
      ValueError: not 1 <= k <= m, or the vote is over another number of samples.
    """
    m = vote.total
    if len(samples) != m or not 1 <= k <= m:
        raise ValueError(f"{vote.uid!r}: cannot draw {k} of {len(samples)} samples, {m} voted")
    if right.isdisjoint(vote.keys):
        return 0.0, 0.0
    if k == m:
        return float(vote.winner in right), 0.0
    exact = math.comb(m, k) <= MOST_SUBSETS
    members = _all_subsets(m, k) if exact else _random_subsets(m, k, seed)
    share = float(np.mean(_right_winners(members, vote, samples, right)))
    return share, 0.0 if exact else share * (1 - share) / DRAWS


def _right_winners(
    members: np.ndarray, vote: Vote, samples: Sequence[Sample], right: Set[str]
) -> np.ndarray:
    """Votes on each subset: members [S, m] with 1.0 for each sample of a subset -> [S] bool."""
    keys = sorted({key for key in vote.keys if key is not None})
    one_hot = np.array([[float(key == k) for k in keys] for key in vote.keys])  # [m, answers]
    weights = np.ones(vote.total) if vote.weights is None else np.array(vote.weights)
    ordered = sorted(samples, key=lambda sample: sample.sample_index)
    logprobs = np.array([sample.logprob for sample in ordered])
    # Rounded, so that sums that differ only in the order of their terms tie, as with `fsum`.
    votes = np.round(members @ (one_hot * weights[:, None]), 12)
    mass = np.round(members @ (one_hot * logprobs[:, None]), 9)
    present = members @ one_hot > 0
    votes = np.where(present, votes, -np.inf)
    leading = votes == votes.max(axis=1, keepdims=True)
    # argmax takes the first of equals: the smaller key.
    winner = np.argmax(np.where(leading & present, mass, -np.inf), axis=1)
    return present.any(axis=1) & np.array([key in right for key in keys])[winner]


def _all_subsets(m: int, k: int) -> np.ndarray:
    rows = list(combinations(range(m), k))
    members = np.zeros((len(rows), m))
    members[np.arange(len(rows))[:, None], rows] = 1.0
    return members


def _random_subsets(m: int, k: int, seed: int) -> np.ndarray:
    """The first k of random orders, so that the subsets of rising k grow by one sample each."""
    ranks = np.random.default_rng(seed).random((DRAWS, m)).argsort(axis=1).argsort(axis=1)
    return (ranks < k).astype(float)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """Adaptive consistency on one set of questions; every tuple is in their order.

    Attributes:
      taken: samples that the rule takes of each question.
      same: 1 if the vote on these has the winner of the vote on all samples, else 0.
      correct: 1 if the vote on all samples is right, else 0; () without gold answers.
      correct_stopped: the same for the vote on the samples that the rule takes.
    """

    taken: tuple[int, ...]
    same: tuple[int, ...]
    correct: tuple[int, ...]
    correct_stopped: tuple[int, ...]


def replay(
    questions: Sequence[Question],
    votes: Sequence[Vote],
    samples: Mapping[str, Sequence[Sample]],
    threshold: float,
    every: int,
) -> Replay:
    """Applies `voting.samples_needed` to votes on all samples, and votes again on those it takes.

    A vote without a winner is wrong, and the same as another one without.

    Args:
      questions: with gold answers, or at least one without (then nothing is compared with them).
      votes: on all samples of each question, in the same order.
      samples: by question uid.
      threshold: required probability that the leading answer stays ahead, in (0.5, 1).
      every: samples between two checks of the rule.

    Raises:
      ValueError: there are more or fewer votes than questions, or a vote is not over its question's
        samples.
    """
    taken = [voting.samples_needed(vote.keys, threshold, every) for vote in votes]
    winners = [
        voting.winner_of_first(vote, samples[question.uid], count)
        for question, vote, count in zip(questions, votes, taken, strict=True)
    ]
    return Replay(
        taken=tuple(taken),
        same=tuple(int(w == vote.winner) for w, vote in zip(winners, votes, strict=True)),
        correct=_right(questions, [vote.winner for vote in votes]),
        correct_stopped=_right(questions, winners),
    )


def _right(questions: Sequence[Question], winners: Sequence[str | None]) -> tuple[int, ...]:
    if any(question.gold is None for question in questions):
        return ()
    gold = [right_keys(question) for question in questions]
    return tuple(int(winner in keys) for winner, keys in zip(winners, gold, strict=True))


# --- DROP's F1 ------------------------------------------------------------------------------------
# Dua et al. 2019, section 5. An answer is a list of spans, and a span is a set of words. Spans are
# paired one to one so that the sum of their F1 is largest, a pair without a common number counts 0
# if the gold span has numbers, and the sum is divided by the larger number of spans. Of several
# annotators the best counts. A model writes a list as one text: it is divided at commas, semicolons
# and "and" for an annotator with several spans, and is one span for an annotator with one.

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_LIST = re.compile(r"\s*[,;]\s*(?:and\s+)?|\s+and\s+")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def best_drop_f1(answer: str | None, annotators: Sequence[str]) -> float:
    """Returns the F1 of an answer with the annotator that it agrees with most.

    Args:
      answer: what the model answered; None without an answer, which scores 0.
      annotators: of each annotator the spans, one a line (`Question.spans`); at least one.
    """
    if answer is None:
        return 0.0
    scores = []
    for spans in annotators:
        gold = spans.split("\n")
        scores.append(drop_f1(_LIST.split(answer) if len(gold) > 1 else [answer], gold))
    return max(scores)


def drop_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Returns the F1 of predicted spans with an annotator's, in [0, 1], to two decimals.

    Args:
      predicted: at least one span.
      gold: at least one span.
    """
    from scipy.optimize import linear_sum_assignment  # a quarter of a command's start

    predicted_bags, gold_bags = (
        [_words(span) for span in predicted],
        [_words(span) for span in gold],
    )
    scores = np.array([[_overlap(bag, right) for bag in predicted_bags] for right in gold_bags])
    rows, columns = linear_sum_assignment(scores, maximize=True)
    by_span = np.zeros(max(scores.shape))  # spans without a partner count 0
    by_span[rows] = scores[rows, columns]
    return float(np.round(np.mean(by_span), 2))


def _overlap(predicted: set[str], gold: set[str]) -> float:
    numbers = set(filter(_is_number, gold))
    if numbers and numbers.isdisjoint(predicted):
        return 0.0
    if not predicted or not gold:  # nothing but articles and punctuation
        return float(predicted == gold)
    common = len(predicted & gold)
    precision, recall = common / len(predicted), common / len(gold)
    # In this order of operations, because the result is rounded.
    return 2 * precision * recall / (precision + recall) if common else 0.0


def _words(span: str) -> set[str]:
    """Returns the words of a span: small letters, no articles or punctuation, numbers as floats."""
    words: list[str] = []
    for token in re.split("[ -]", span.lower()):
        bare = token if _is_number(token) else token.translate(_NO_PUNCTUATION)
        number = str(float(bare)) if _is_number(bare) else bare
        words += _ARTICLES.sub(" ", number).split()
    return set(words)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
