"""Filters that judge all answers to a question, not the vote's alone, and the vote's controls.

Weights by the shares of the answers: `VoteShares` (RESTRAIN), `VoteReward` (RoiRL),
`SubgroupVotes` (SCOPE). Rows to punish beside rows to learn, with negative weights: `VoteShares`,
`ClearVote` (SCRL) and `Extremes` (DDRL). Controls: `GoldLabels`, `RandomVote`, `VoteSized`.

A share c_j / n is of all n samples of a question, unparsed ones too, or of all weights of a
weighted vote. What is drawn is a function of the seed and the rows' names.
"""

import collections
import math
import random
from collections.abc import Mapping, Sequence

from lmsi_jax import voting
from lmsi_jax.config import (
    ClearVote,
    Extremes,
    GoldLabels,
    RandomVote,
    SubgroupVotes,
    VoteReward,
    VoteShares,
    VoteSized,
)
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Sample, Vote
from lmsi_jax.selection.rows import KEPT, Facts, Row, Verdict, judge

_OTHER = Verdict(0.0, "another answer than the vote's")


def shares(vote: Vote) -> dict[str, float]:
    """Returns each answer's share of a question's samples, or of their weights."""
    sums, total = voting.tally(vote)
    return {key: value / total if total else 0.0 for key, value in sums.items()}


def _by_question(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Returns the places of each question's rows, by sample index."""
    places: dict[str, list[int]] = collections.defaultdict(list)
    for i in sorted(range(len(rows)), key=lambda i: rows[i].name):
        places[rows[i].question.uid].append(i)
    return places


def bump(share: float, center: float, width: float) -> float:
    """Returns RESTRAIN's g: exp(-(share - center)**2 / (2 width**2))."""
    return math.exp(-((share - center) ** 2) / (2 * width**2))


def answer_weights(vote: Vote, center: float, width: float) -> dict[str, float]:
    """Returns w_j = g(c_j / n) / sum_l g(c_l / n) of each answer; they sum to 1.

    If all g are below the smallest number, the answers nearest to the centre share the weight.
    """
    exponents = {k: -((s - center) ** 2) / (2 * width**2) for k, s in shares(vote).items()}
    most = max(exponents.values(), default=0.0)
    bumps = {key: math.exp(exponent - most) for key, exponent in exponents.items()}
    total = math.fsum(bumps.values())
    return {key: value / total for key, value in bumps.items()}


@judge.register
def _vote_shares(rule: VoteShares, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    verdicts = []
    weights: dict[str, Mapping[str, float]] = {}
    for row in rows:
        uid = row.question.uid
        if max(shares(row.vote).values(), default=0.0) < rule.least:
            verdicts.append(Verdict(-rule.penalty, "no answer has enough votes"))
            continue
        if uid not in weights:
            weights[uid] = answer_weights(row.vote, rule.center, rule.width)
        of_question = 1.0
        if rule.question_weight:
            # A question that the model wrote in a later round has no vote of the base.
            share = facts.base_shares.get(uid, row.vote.confidence)
            of_question = bump(share, rule.center, rule.width)
        verdicts.append(Verdict(of_question * weights[uid].get(row.key or "", 0.0), "weighs 0"))
    return verdicts


@judge.register
def _vote_reward(rule: VoteReward, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    verdicts = []
    for row in rows:
        if rule.reward == "vote":
            reward = float(row.key is not None and row.key == row.vote.winner)
        else:
            reward = shares(row.vote).get(row.key or "", 0.0)
        weight = reward if rule.form == "identity" else math.exp((reward - 1) / rule.beta)
        verdicts.append(Verdict(weight, "another answer than the vote's"))
    return verdicts


def surprisal(sample: Sample) -> float:
    """Returns the mean of -log p over a sample's tokens, nats: its expectation is the entropy."""
    return -sample.logprob / max(1, sample.tokens)


@judge.register
def _clear_vote(rule: ClearVote, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    verdicts = [_OTHER] * len(rows)
    unclear = Verdict(0.0, "the vote is not clear")
    for places in _by_question(rows).values():
        vote = rows[places[0]].vote
        of_answer = shares(vote)
        first, second = (*sorted(of_answer.values(), reverse=True), 0.0, 0.0)[:2]
        clear = first >= rule.share and first - second > rule.margin
        surprisals = {i: surprisal(rows[i].sample) for i in places}
        mean = math.fsum(surprisals.values()) / len(places)
        for i in places:
            key = rows[i].key
            if key == vote.winner:
                verdicts[i] = KEPT if clear else unclear
            elif of_answer.get(key or "", 0.0) < rule.rare and surprisals[i] >= mean:
                verdicts[i] = Verdict(-rule.penalty, "a rare answer")
    return verdicts


@judge.register
def _extremes(rule: Extremes, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    verdicts = [Verdict(0.0, "neither frequent nor rare")] * len(rows)
    for places in _by_question(rows).values():
        vote = rows[places[0]].vote
        of_answer = shares(vote)
        most = max(1, math.floor(rule.share * vote.total))
        learnt = [i for i in places if rows[i].key == vote.winner][:most]
        top = of_answer.get(vote.winner or "", 0.0)
        rare = [i for i in places if of_answer.get(rows[i].key or "", 0.0) < top]
        rare.sort(key=lambda i: (of_answer.get(rows[i].key or "", 0.0), rows[i].key, rows[i].name))
        for i in learnt:
            verdicts[i] = KEPT
        for i in rare[: len(learnt)]:
            verdicts[i] = Verdict(-rule.penalty, "a rare answer")
    return verdicts


def step_confidence(sample: Sample, step_tokens: int) -> float:
    """Returns the mean over a sample's steps of exp(mean log-probability of the step's tokens).

    Args:
      sample: with its tokens' log-probabilities; without them it is one step.
      step_tokens: tokens of a step, the last one may be shorter; 0 for one step.
    """
    logprobs = sample.logprobs
    if not logprobs or not step_tokens:
        return math.exp(min(0.0, -surprisal(sample)))
    steps = [logprobs[at : at + step_tokens] for at in range(0, len(logprobs), step_tokens)]
    return math.fsum(math.exp(math.fsum(step) / len(step)) for step in steps) / len(steps)


def _draw(kind: str, seed: int, uid: str) -> random.Random:
    return random.Random(f"{kind}/{seed}/{uid}")


@judge.register
def _subgroup_votes(rule: SubgroupVotes, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    verdicts = [Verdict(0.0, "in no sub-group")] * len(rows)
    for uid, places in _by_question(rows).items():
        keys = [rows[i].key or "" for i in places]
        confidences = [step_confidence(rows[i].sample, rule.step_tokens) for i in places]
        size = math.ceil(rule.size * len(places))
        draw = _draw("sub-groups", rule.seed, uid)
        groups = [draw.choices(range(len(places)), k=size) for _ in range(rule.groups)]
        agreeing, drawn = subgroup_agreement(keys, confidences, groups)
        for i, agree, count in zip(places, agreeing, drawn, strict=True):
            if count:
                verdicts[i] = Verdict(agree / count, "its sub-groups elect other answers")
    return verdicts


def subgroup_agreement(
    keys: Sequence[str], confidences: Sequence[float], groups: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """Returns how often each row is in a sub-group that elects its answer, and in any sub-group.

    Args:
      keys: each row's answer.
      confidences: each row's weight in a vote.
      groups: places of the rows in each sub-group; a row may be in one several times. An answer is
        elected by its summed confidence, of equals the smaller key.
    """
    agreeing, drawn = [0] * len(keys), [0] * len(keys)
    for group in groups:
        given: dict[str, list[float]] = collections.defaultdict(list)
        for i in group:
            given[keys[i]].append(confidences[i])
        elected = min(given, key=lambda key: (-math.fsum(given[key]), key))
        for i in group:
            drawn[i] += 1
            agreeing[i] += keys[i] == elected
    return agreeing, drawn


@judge.register
def _gold_labels(rule: GoldLabels, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    if rows and not any(row.question.uid in facts.right for row in rows):
        raise LmsiError(
            f"GoldLabels keeps the rows that are right, and no answer to the training questions of "
            f"{rows[0].question.task!r} is known; leave the task out of Questions.train"
        )
    unknown = Verdict(0.0, "its question has no label")
    wrong = Verdict(0.0, "wrong by the label")
    return [
        unknown
        if row.question.uid not in facts.right
        else KEPT
        if row.key in facts.right[row.question.uid]
        else wrong
        for row in rows
    ]


@judge.register
def _random_vote(rule: RandomVote, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    verdicts = [Verdict(0.0, "not drawn")] * len(rows)
    for uid, places in _by_question(rows).items():
        count = len(rows[places[0]].vote.kept)
        draw = _draw("random vote", rule.seed, uid)
        if rule.of == "samples":
            for i in draw.sample(places, min(count, len(places))):
                verdicts[i] = KEPT
            continue
        chosen = draw.choice(sorted({rows[i].key or "" for i in places}))
        members = [i for i in places if (rows[i].key or "") == chosen]
        for i in members:
            verdicts[i] = Verdict(count / len(members))
    return verdicts


@judge.register
def _vote_sized(rule: VoteSized, rows: Sequence[Row], facts: Facts) -> list[Verdict]:
    count = facts.voted_rows
    if count is None:
        votes = {row.question.uid: row.vote for row in rows}
        count = sum(len(vote.kept) for vote in votes.values())
    order = sorted(range(len(rows)), key=lambda i: rows[i].name)
    task = rows[0].question.task if rows else ""
    chosen = set(_draw("vote-sized", rule.seed, task).sample(order, min(count, len(order))))
    more = Verdict(0.0, "more rows than the vote keeps")
    return [KEPT if i in chosen else more for i in range(len(rows))]
