"""Diversity against plain loops over records; when each stop rule speaks."""

import dataclasses
import math

import pytest

from lmsi_jax.records import Path, Question
from lmsi_jax.selection.diversity import Diversity, StopRules, alarms, measure
from lmsi_jax.voting import vote

TEXTS = {
    "a": [
        "1 + 1 = 2. The answer is 2.",
        "The answer is 2.",
        "The answer is 2.",
        "The answer is 3.",
    ],
    "b": ["no idea", "none", "", "?"],
    "c": ["The answer is 5.", "The answer is 5.", "five, I think", "The answer is 5."],
}


def _records():
    paths = {
        uid: [
            Path(uid=uid, index=i, text=text, tokens=3, logprob=-1.0, finished=True)
            for i, text in enumerate(texts)
        ]
        for uid, texts in TEXTS.items()
    }
    questions = [Question(uid=uid, task="t", text="Q: ?", kind="number") for uid in TEXTS]
    return [vote(question, paths[question.uid]) for question in questions], paths


def test_a_round_is_measured_as_by_hand():
    votes, paths = _records()
    found = measure(votes, paths)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.questions == 3
    assert found.mean_confidence == pytest.approx((0.75 + 0.0 + 0.75) / 3)
    assert found.mean_entropy == pytest.approx(entropy / 3)
    assert found.distinct_kept == pytest.approx((2 + 0 + 1) / 3)
    assert found.empty == pytest.approx(1 / 3)


def test_nothing_measures_as_zero():
    found = measure([], {})
    assert found == Diversity(
        questions=0, mean_confidence=0.0, mean_entropy=0.0, distinct_kept=0.0, empty=0.0
    )


HEALTHY = Diversity(
    questions=9, mean_confidence=0.6, mean_entropy=0.9, distinct_kept=6.0, empty=0.1
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"mean_confidence": 0.96}, []),  # sure, and still many ways
        ({"distinct_kept": 1.5}, []),  # few ways, and still unsure
        ({"mean_confidence": 0.96, "distinct_kept": 1.5}, ["the votes are sure"]),
        ({"mean_entropy": 0.01}, ["the answers hardly differ"]),
        ({"empty": 0.95}, ["95 % of the questions have no parsed answer"]),
        ({"empty": 1.0, "mean_entropy": 0.0}, ["100 % of the questions"]),
    ],
)
def test_each_rule_speaks_for_itself(changes, said):
    found = alarms(dataclasses.replace(HEALTHY, **changes), StopRules())
    assert len(found) == len(said)
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True))


def test_zero_turns_a_rule_off():
    collapsed = Diversity(
        questions=9, mean_confidence=1.0, mean_entropy=0.0, distinct_kept=1.0, empty=0.95
    )
    assert len(alarms(collapsed, StopRules())) == 3
    off = StopRules(max_confidence=0.0, min_entropy=0.0, max_empty=0.0)
    assert alarms(collapsed, off) == []
