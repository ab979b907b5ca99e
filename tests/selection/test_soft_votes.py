"""Filters on all answers to a question, against NumPy in float64, and the vote's controls."""

import dataclasses
import random

import numpy as np
import pytest

from lmsi_jax.config import (
    ClearVote,
    Extremes,
    GoldLabels,
    Loss,
    Mixing,
    ModelConfig,
    RandomVote,
    Run,
    SubgroupVotes,
    Training,
    VoteReward,
    VoteShares,
    VoteSized,
)
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Question, Sample
from lmsi_jax.selection.rows import Facts, judge, select, voted_rows
from lmsi_jax.selection.soft_votes import step_confidence, subgroup_agreement
from lmsi_jax.voting import vote

SOFT = (
    VoteShares(center=0.6, width=0.3, least=0.4, penalty=0.5),
    VoteReward(form="exp", beta=0.4, reward="share"),
    ClearVote(penalty=0.7),
    Extremes(),
    SubgroupVotes(),
    GoldLabels(),
    RandomVote(),
    RandomVote(of="answers"),
    VoteSized(),
)


def _rows(answers, keep="parsed", uid="q", seed=0):
    """The rows of one question whose samples answer as listed; None: no answer."""
    draw = random.Random(f"{seed}{uid}")
    question = Question(uid=uid, task="t", text="Q: How many?", kind="number")
    samples = [
        Sample(
            uid=uid,
            sample_index=i,
            text="I do not know." if answer is None else f"Way {i}. The answer is {answer}.",
            tokens=4,
            logprob=-draw.uniform(0.5, 4.0),
            end="end_token",
            logprobs=tuple(-draw.uniform(0.1, 2.0) for _ in range(4)),
        )
        for i, answer in enumerate(answers)
    ]
    return voted_rows(question, samples, vote(question, samples), keep)


def _weights(rule, rows, facts=Facts()):  # noqa: B008
    return np.array([verdict.weight for verdict in judge(rule, rows, facts)])


ANSWERS = (7, 7, 7, 7, 3, 3, 5, None)  # shares of 8: 1/2, 1/4, 1/8


@pytest.mark.parametrize("center, width", [(1.0, 0.5), (0.5, 0.1), (0.0, 1.0)])
def test_restrain_weighs_answers_and_questions_by_the_gaussian_of_their_shares(center, width):
    rows = _rows(ANSWERS)
    share = np.array([4, 2, 1]) / 8.0
    bumps = np.exp(-((share - center) ** 2) / (2 * width**2))
    per_answer = dict(zip(("7", "3", "5"), bumps / bumps.sum(), strict=True))
    base = 0.3
    u = np.exp(-((base - center) ** 2) / (2 * width**2))
    expected = np.array([u * per_answer[row.key] for row in rows])
    found = _weights(VoteShares(center=center, width=width), rows, Facts(base_shares={"q": base}))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    alone = _weights(VoteShares(center=center, width=width, question_weight=False), rows)
    np.testing.assert_allclose(alone, expected / u, rtol=1e-12)


def test_restrain_punishes_all_answers_where_none_has_enough_votes():
    rows = _rows((1, 2, 3, 4, 5, 5))
    rule = VoteShares(least=0.5, penalty=0.25, question_weight=False)
    assert _weights(rule, rows).tolist() == [-0.25] * 6
    dropped = select(rows, [dataclasses.replace(rule, penalty=0.0)]).steps[0]
    assert (dropped.kept, dropped.dropped) == (0, {"no answer has enough votes": 6})


def test_a_bump_narrower_than_all_shares_leaves_the_nearest_answer():
    found = _weights(VoteShares(center=0.3, width=1e-3, question_weight=False), _rows(ANSWERS))
    assert found.tolist() == [0, 0, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("reward", ["vote", "share"])
def test_roirl_weighs_by_the_reward_or_its_exponential(beta, reward):
    rows = _rows(ANSWERS)
    shares = {"7": 4 / 8, "3": 2 / 8, "5": 1 / 8}
    r = np.array([shares[o.key] if reward == "share" else float(o.key == "7") for o in rows])
    np.testing.assert_allclose(_weights(VoteReward(reward=reward), rows), r, rtol=1e-12)
    found = _weights(VoteReward(form="exp", beta=beta, reward=reward), rows)
    raw = np.exp(r / beta)
    np.testing.assert_allclose(found / found.sum(), raw / raw.sum(), rtol=1e-12)


def test_roirls_identity_on_all_rows_is_the_majority_vote():
    kept = select(_rows(ANSWERS), [VoteReward()])
    assert [row.name for row in kept.rows] == [row.name for row in _rows(ANSWERS, "majority")]
    assert set(kept.weights) == {1.0}


@pytest.mark.parametrize(
    "answers, learnt",
    [
        ((7, 7, 7, 3, 2, 4, 5, 6), True),  # 3/8 and 1/8: a margin of 1/4
        ((7, 7, 3, 2, 4, 5, 6, 8), False),  # 2/8 is below 3/8
        ((7, 7, 7, 3, 3, 4, 5, 6), False),  # a margin of 1/8 is not above 1/8
        ((7, 7, 7, None, None, None, None, None), True),
    ],
)
def test_scrl_learns_the_vote_where_share_and_margin_are_large(answers, learnt):
    rows = _rows(answers)
    found = _weights(ClearVote(), rows)
    assert [w == 1.0 for w in found] == [learnt and row.key == "7" for row in rows]


def test_scrl_punishes_rare_answers_that_surprise_the_model():
    rows = _rows((7,) * 9 + (1, 2, 3, 4, 5, 5, 5))
    surprise = np.array([-row.sample.logprob / row.sample.tokens for row in rows])
    shares = np.array([{"7": 9, "5": 3}.get(row.key, 1) / 16 for row in rows])
    expected = np.where((shares < 0.125) & (surprise >= surprise.mean()), -0.7, 0.0)
    expected[:9] = 1.0
    assert (expected < 0).any() and (expected[9:13] == 0).any()
    np.testing.assert_array_equal(_weights(ClearVote(penalty=0.7), rows), expected)


def test_ddrl_learns_the_frequent_punishes_the_rare_and_drops_the_middle():
    rows = _rows((7, 7, 7, 7, 3, 3, 5, 4, None, None))
    judged = judge(Extremes(share=0.2), rows, Facts())
    found = {row.name[1]: one.weight for row, one in zip(rows, judged, strict=True)}
    # 2 of 10 samples are learnt; the rarest are 4 and 5, once each; 3 is the middle.
    assert found == {0: 1, 1: 1, 2: 0, 3: 0, 4: 0, 5: 0, 6: -1, 7: -1}
    tie = _weights(Extremes(), _rows((7, 3)))
    assert sorted(tie) == [0, 1]  # an answer as frequent as the vote's is not rare


def test_a_steps_confidence_is_the_mean_over_steps_of_the_geometric_mean():
    p = np.array([0.9, 0.5, 0.2, 0.6, 0.7])
    sample = Sample(
        uid="q",
        sample_index=0,
        text="x",
        tokens=5,
        logprob=float(np.log(p).sum()),
        end="end_token",
        logprobs=tuple(np.log(p).tolist()),
    )
    steps = [p[:2].prod() ** 0.5, p[2:4].prod() ** 0.5, p[4]]
    assert step_confidence(sample, 2) == pytest.approx(np.mean(steps), rel=1e-12)
    whole = p.prod() ** 0.2
    assert step_confidence(sample, 0) == pytest.approx(whole, rel=1e-12)
    bare = dataclasses.replace(sample, logprobs=None)
    assert step_confidence(bare, 2) == pytest.approx(whole, rel=1e-12)


def test_a_row_weighs_the_share_of_its_subgroups_that_elect_its_answer():
    keys, confidences = ["a", "a", "b", "c"], [0.3, 0.3, 0.5, 0.2]
    groups = [[0, 2, 2], [0, 1, 2], [3, 3, 2], [0, 0, 1]]
    # b has 1.0 of 1.3; a has 0.6 of 1.1; b has 0.5 of 0.9; a alone.
    assert subgroup_agreement(keys, confidences, groups) == ([3, 2, 3, 0], [4, 2, 4, 2])
    rows = _rows((7, 7, 7, 3))
    found = _weights(SubgroupVotes(groups=400, size=1.0, step_tokens=0), rows)
    assert 0 < found[3] < found[:3].min() <= 1
    again = _weights(SubgroupVotes(groups=400, size=1.0, step_tokens=0, seed=1), rows)
    assert not np.array_equal(found, again)


def test_gold_labels_keep_what_is_right_whatever_the_vote_says():
    rows = _rows(ANSWERS) + _rows(ANSWERS, uid="unknown")
    found = _weights(GoldLabels(), rows, Facts(right={"q": {"3"}}))
    assert [row.name for row, w in zip(rows, found, strict=True) if w] == [("q", 4), ("q", 5)]
    with pytest.raises(LmsiError, match="no answer to the training questions of 't' is known"):
        judge(GoldLabels(), rows, Facts())


@pytest.mark.parametrize("seed", range(5))
def test_a_random_vote_has_the_votes_size_and_asks_no_vote(seed):
    rows = _rows(ANSWERS) + _rows((1, 2, 2, 3), uid="p")
    found = _weights(RandomVote(seed=seed), rows)
    assert found[:7].sum() == 4 and found[7:].sum() == 2 and set(found) == {0.0, 1.0}
    by_answer = _weights(RandomVote(of="answers", seed=seed), rows)
    assert by_answer[:7].sum() == pytest.approx(4) and by_answer[7:].sum() == pytest.approx(2)
    assert len({row.key for row, w in zip(rows[:7], by_answer[:7], strict=True) if w}) == 1


def test_random_samples_are_drawn_from_all_answers():
    rows = _rows(ANSWERS)
    drawn = sum(_weights(RandomVote(seed=seed), rows) for seed in range(400)) / 400
    np.testing.assert_allclose(drawn, 4 / 7, atol=0.1)


def test_vote_sized_keeps_as_many_rows_of_the_task_as_the_votes_do():
    rows = _rows(ANSWERS, "all") + _rows((1, 2, 2, 3), uid="p")
    assert _weights(VoteSized(), rows).sum() == 6
    few = [row for row in rows if row.key == "3"]
    assert _weights(VoteSized(), few, Facts(voted_rows=6)).sum() == len(few) == 3
    step = select(rows, [VoteSized()]).steps[0]
    assert step.dropped == {"more rows than the vote keeps": 6}


@pytest.mark.parametrize("rule", SOFT, ids=lambda rule: type(rule).__name__)
def test_the_order_of_the_rows_never_matters(rule):
    rows = _rows(ANSWERS) + _rows((1, 2, 2, 3, 9, 9, 9), uid="p")
    facts = Facts(right={"q": {"7"}, "p": {"2"}}, base_shares={"q": 0.5, "p": 0.2})
    found = {row.name: w for row, w in zip(rows, _weights(rule, rows, facts), strict=True)}
    turned = rows[::-1]
    again = {row.name: w for row, w in zip(turned, _weights(rule, turned, facts), strict=True)}
    assert found == again


def test_the_funnel_counts_the_punished_apart_from_the_right():
    rows = _rows((7, 7, 7, 3, 3, 5, 4, 2))
    (step,) = select(rows, [Extremes(share=0.25)], answers={"q": {"4"}}).steps
    assert (step.kept, step.punished, step.weight) == (4, 2, 4.0)
    assert (step.right, step.wrong, step.punished_right) == (0, 2, 1)


def test_all_keeps_what_has_no_answer_but_not_what_was_cut():
    question = Question(uid="q", task="t", text="Q: How many?", kind="number")
    texts = ("Two. The answer is 2. More.", "Hm, no idea.", "It may be", "")
    samples = [
        Sample(uid="q", sample_index=i, text=text, tokens=3, logprob=-1.0, end=end)
        for i, (text, end) in enumerate(
            zip(texts, ("end_token", "stop", "limit", "stop"), strict=True)
        )
    ]
    rows = voted_rows(question, samples, vote(question, samples), "all")
    assert [(row.solution, row.key) for row in rows] == [
        ("Two. The answer is 2.", "2"),
        ("Hm, no idea.", None),
    ]
    unread = voted_rows(question, samples[1:2], vote(question, samples[1:2]), "all")
    assert [row.answer for row in unread] == [None]


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: Mixing(selection=(Extremes(),)), "Extremes judges all answers.*keep = 'parsed'"),
        (lambda: Mixing(selection=(GoldLabels(),)), "GoldLabels judges all answers"),
        (lambda: VoteShares(penalty=0.1), "set VoteShares.least above 0"),
        (lambda: VoteShares(width=0.0), "VoteShares.width = 0.0; use a number above 0"),
        (lambda: VoteReward(form="log"), "VoteReward.form = 'log'; use 'identity' or 'exp'"),
        (lambda: ClearVote(margin=2.0), "ClearVote.margin = 2.0; use a share, 0 to 1"),
        (lambda: SubgroupVotes(groups=0), "SubgroupVotes.groups = 0; use 1 or more"),
        (lambda: Loss(negatives="maximise"), "Loss.negatives = 'maximise'; use 'refuse'"),
        (lambda: Loss(least_probability=1.0), "Loss.least_probability = 1.0; use a probability"),
        (lambda: Loss(negatives="advantage", distillation="model"), "Loss.distillation = 'seq"),
        (lambda: _run(Extremes(), Loss()), "Extremes.penalty = 1.0 punishes rows; set Training"),
        (
            lambda: _run(Extremes(), Loss(negatives="advantage"), formats=("zero_shot_direct",)),
            "Extremes punishes reasoning, which Mixing.formats",
        ),
        (
            lambda: _run(Extremes(), Loss(negatives="advantage"), validation_count=3),
            "Training.validation_count to 0",
        ),
    ],
)
def test_a_bad_setting_is_named_with_its_remedy(build, words):
    with pytest.raises(LmsiError, match=words):
        build()


def _run(rule, loss, formats=("zero_shot_cot",), **training):
    model = ModelConfig(
        vocab_size=8, embed_dim=4, num_layers=1, num_heads=1, head_dim=4, mlp_dim=4, max_length=8
    )
    return Run(
        output_dir="x",
        model=model,
        mixing=Mixing(keep="parsed", selection=(rule,), formats=formats),
        training=Training(loss=loss, **training),
    )


def test_penalties_of_nothing_need_no_loss():
    assert _run(Extremes(penalty=0.0), Loss()).mixing.selection
    assert Mixing(selection=(ClearVote(),)).keep == "majority"
