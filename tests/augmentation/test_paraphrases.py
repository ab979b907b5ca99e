"""Paraphrases: which texts can be asked, and the label that two phrasings give."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.augmentation import PARAPHRASED, paraphrase_request, paraphrased, parse_paraphrase
from lmsi_jax.config import Augmentation, ModelConfig, Preference, Run, Training, Voting
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline import vote as vote_stage
from lmsi_jax.records import Question, Sample
from lmsi_jax.voting import AnswerReader, harmonic_mean, vote, with_second_view

TEXT = "Q: Ann buys 3 pens and 1,200 cups. How many things does Ann buy?"
OTHER = "Q: How many things are there if Ann bought 1,200 cups and 3 pens?"


@pytest.mark.parametrize(
    "written, wanted",
    [
        (OTHER, OTHER),
        (OTHER.removeprefix("Q: "), OTHER),  # the opening word is added
        (f" {OTHER}\n\nQ: Another?", OTHER),
        (f"{OTHER}\nA: 1203.", OTHER),
        (TEXT, None),  # the same
        (TEXT.upper(), None),
        (OTHER.replace("3 pens", "4 pens"), None),
        (OTHER.replace("3 pens", "3 pens (of 3)"), None),  # a number that is not there
        ("Q: 3 and 1,200?", None),  # too short
        (OTHER + " " + "Really, how many?" * 9, None),
        ("", None),
    ],
)
def test_a_paraphrase_asks_for_the_same_in_other_words(written, wanted):
    assert parse_paraphrase(written, True, TEXT) == wanted


def test_a_text_that_was_cut_is_no_paraphrase():
    assert parse_paraphrase(OTHER, False, TEXT) is None


def test_options_have_to_stay():
    text = "Q: Which one is a metal?\n(a) iron (b) oak"
    kept = "Q: What here is a metal?\n(a) iron (b) oak"
    assert parse_paraphrase(kept, True, text) == kept
    assert parse_paraphrase(kept.replace("iron", "gold"), True, text) is None
    assert text in paraphrase_request(text)


def test_a_paraphrase_is_a_question_without_a_label():
    question = Question(uid="q7", task="t", text=TEXT, kind="number", gold="1203", also=("x",))
    other = paraphrased(question, OTHER)
    assert (other.uid, other.text, other.gold, other.also) == ("q7" + PARAPHRASED, OTHER, None, ())
    assert (other.kind, other.task) == ("number", "t")


def _samples(answers, uid="q"):
    return [
        Sample(
            uid=uid,
            sample_index=i,
            text="Hm." if answer is None else f"The answer is {answer}.",
            tokens=3,
            logprob=-1.0,
            end="end_token",
        )
        for i, answer in enumerate(answers)
    ]


def _vote(answers, uid="q"):
    question = Question(uid=uid, task="t", text=TEXT, kind="number")
    return vote(question, _samples(answers, uid))


def _views(first, second, rule):
    return with_second_view(_vote(first), _vote(second), range(len(first)), rule)


ANSWERS = st.lists(st.sampled_from((1, 2, 3, None)), min_size=1, max_size=9)


@given(ANSWERS, ANSWERS)
def test_the_harmonic_label_has_the_largest_harmonic_mean_of_shares(first, second):
    found = _views(first, second, "harmonic")
    p = {str(a): first.count(a) / len(first) for a in (1, 2, 3)}
    q = {str(a): second.count(a) / len(second) for a in (1, 2, 3)}
    scores = {a: 2 * p[a] * q[a] / (p[a] + q[a]) if p[a] * q[a] else 0.0 for a in p}
    best = max(scores.values())
    if best == 0:
        assert found == _vote(first)
        return
    assert scores[found.winner] == pytest.approx(best, rel=1e-12)
    assert found.confidence == pytest.approx(best, rel=1e-12)
    assert found.kept == tuple(i for i, a in enumerate(first) if str(a) == found.winner)
    assert set(found.tied) <= {a for a, score in scores.items() if np.isclose(score, best)}
    assert (found.keys, found.total, found.parsed) == (
        (same := _vote(first)).keys,
        same.total,
        same.parsed,
    )


def test_an_answer_that_one_phrasing_alone_likes_loses():
    first, second = (1, 1, 1, 1, 2, 2, 2), (2, 2, 2, 2, 1, 3, 3)
    assert _vote(first).winner == "1"
    found = _views(first, second, "harmonic")
    assert found.winner == "2" and found.kept == (4, 5, 6)
    assert found.confidence == pytest.approx(2 * (3 / 7) * (4 / 7) / (7 / 7))
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_the_cross_label_is_the_paraphrases():
    found = _views((1, 1, 1, 2), (2, 2, 3, None), "cross")
    assert (found.winner, found.kept, found.confidence) == ("2", (3,), 0.5)
    unknown = _views((1, 1), (3, 3), "cross")
    assert (unknown.winner, unknown.kept) == ("3", ())  # no sample of this view is learnt
    assert _views((1, 1), (None, None), "cross") == _vote((1, 1))


@pytest.mark.parametrize("rule", ["harmonic", "cross"])
def test_the_stage_takes_the_second_view_of_the_questions_that_have_one(rule, monkeypatch, capsys):
    questions = [Question(uid=uid, task="t", text=TEXT, kind="number") for uid in ("q", "p")]
    drawn = {"q-paraphrase": _samples((2, 2, 2), "q-paraphrase")}
    monkeypatch.setattr(
        vote_stage, "read_samples", lambda store, name: {"t-paraphrase": drawn}[name]
    )
    samples = {uid: _samples((1, 1, 2), uid) for uid in ("q", "p")}
    round = types.SimpleNamespace(
        index=1,
        settings=types.SimpleNamespace(augmentation=Augmentation(paraphrase=rule), voting=Voting()),
        reader=AnswerReader(),
        store=lambda stage: stage,
        paraphrases=lambda task: {"q": paraphrased(questions[0], OTHER)},
    )
    votes = [vote(question, samples[question.uid]) for question in questions]
    label, other = vote_stage._from_two_views(round, "t", votes, samples)
    assert (label.winner, label.kept, label.uid) == ("2", (2,), "q")
    assert other == votes[1]
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 questions of t have a second view, which changes 1 labels" in out


@pytest.mark.parametrize(
    "change, words",
    [
        ({"voting": Voting(rotate_options=True)}, "which Voting.rotate_options does not do"),
        ({"training": Training(preference=Preference())}, "which Training.preference does not do"),
    ],
)
def test_what_has_no_second_view_refuses_paraphrases(change, words):
    model = ModelConfig(
        vocab_size=8, embed_dim=4, num_layers=1, num_heads=1, head_dim=4, mlp_dim=4, max_length=8
    )
    with pytest.raises(LmsiError, match=words):
        Run(output_dir="x", model=model, augmentation=Augmentation(paraphrase="cross"), **change)
    with pytest.raises(LmsiError, match="Augmentation.prompts does not do"):
        Run(output_dir="x", model=model, augmentation=Augmentation(paraphrase="cross", prompts=2))
