"""The vote step: what reaches its shards if a reader has a defect."""

import types

import pytest

from lmsi_jax.answers import reader
from lmsi_jax.config import Augmentation, Voting
from lmsi_jax.pipeline.vote import VoteStep
from lmsi_jax.records import Question, Sample, Vote
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.voting import AnswerReader

TEXTS = {
    "a": (
        " The answer is 5.",
        " Five chalks. The answer is 5.",
        " The answer is 6.",
        " \\boxed{5}",
    ),
    "b": (" Chalk! The answer is 7.",),
}


@pytest.fixture
def round_of_samples():
    """A round as the step sees it: two questions of one task, and their samples."""
    questions = [Question(uid=uid, task="sums", text="Q: ?", kind="number") for uid in TEXTS]
    samples = {
        uid: [
            Sample(uid=uid, sample_index=i, text=text, tokens=4, logprob=-1.0, end="end_token")
            for i, text in enumerate(texts)
        ]
        for uid, texts in TEXTS.items()
    }
    return types.SimpleNamespace(
        questions={"sums": questions},
        samples=lambda task: samples,
        settings=types.SimpleNamespace(voting=Voting(), augmentation=Augmentation()),
        reader=AnswerReader(),
    )


def _votes(round_of_samples, folder):
    store = ShardStore(folder)
    VoteStep().write(round_of_samples, store)
    return {row["uid"]: Vote.from_json(row) for row in store.read("sums")}


def test_a_reader_that_raises_costs_its_samples_and_not_the_run(
    round_of_samples, tmp_path, monkeypatch, caplog
):
    sound = reader.marks.first_solution

    def broken(text):
        if "halk" in text:
            raise IndexError("a defect")
        return sound(text)

    monkeypatch.setattr(reader.marks, "first_solution", broken)
    votes = _votes(round_of_samples, tmp_path)
    assert votes["a"].keys == ("5", None, "6", "5") and votes["a"].winner == "5"
    assert votes["a"].kept == (0, 3) and votes["a"].confidence == 0.5
    assert votes["b"].keys == (None,) and votes["b"].winner is None
    assert caplog.text.count("IndexError: a defect") == 2
    assert "Five chalks" in caplog.text and "Chalk!" in caplog.text


def test_without_a_defect_the_same_samples_all_vote(round_of_samples, tmp_path):
    votes = _votes(round_of_samples, tmp_path)
    assert votes["a"].keys == ("5", "5", "6", "5") and votes["b"].winner == "7"
