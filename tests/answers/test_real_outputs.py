"""Real outputs of six language models and labelled solutions of four, by published figures."""

import itertools
import pathlib
import re

import pytest
from shared_data import DATA, needed

from bench import readings
from bench.real_outputs import CHAT, KINDS
from lmsi_jax import answers, voting
from lmsi_jax.records import Sample

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "answers.md"
pytestmark = needed("model_samples")


def _accuracy(name, model):
    read = readings.readings(DATA, name, model)
    assert {r.question.uid for r in read} == set(readings.questions(DATA, name))
    assert None not in {r.question.gold for r in read}
    return 100 * sum(r.key == r.question.gold for r in read) / len(read)


def _accuracies(name):
    return [_accuracy(name, model) for model in readings.MODELS]


def _accuracy_of_the_vote(name):
    texts = {}
    for model in readings.MODELS:
        for read in readings.readings(DATA, name, model):
            texts.setdefault(read.question, []).append(read.text)
    right = 0
    for question, own in texts.items():
        samples = [
            Sample(
                uid=question.uid, sample_index=k, text=text, tokens=1, logprob=-1.0, end="end_token"
            )
            for k, text in enumerate(own)
        ]
        right += voting.vote(question, samples).winner == question.gold
    return 100 * right / len(texts)


@pytest.mark.parametrize(
    ("name", "published"), [("GSM8K", 63.3), ("AQUA", 42.1), ("StrategyQA", 72.5)]
)
def test_accuracy_of_a_real_model_is_the_published_one(name, published):
    assert _accuracy(name, "code002") == pytest.approx(published, abs=0.5)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_vote_of_real_models_beats_their_mean_as_the_document_says(name):
    accuracies = _accuracies(name)
    mean, vote = sum(accuracies) / len(accuracies), _accuracy_of_the_vote(name)
    assert vote - mean > 10
    row = re.search(rf"^\| {name} \|([0-9.| ]+)\|$", DOCUMENT.read_text("utf-8"), re.M | re.I)
    written = [float(cell) for cell in row[1].split("|")]
    assert written == [round(figure, 1) for figure in (*accuracies, mean, vote)]


def test_labels_of_real_solutions_agree():
    agree = [ours == label for ours, label, _ in readings.labels(DATA)]
    assert len(agree) == 5276 and sum(agree) / len(agree) >= 0.998


@needed("chat_samples")
@pytest.mark.parametrize("name", sorted(CHAT))
def test_labels_of_chat_texts_are_met(name):
    met, count, apart = readings.agreement(DATA, name)
    assert count > 390 and met / count >= 0.993, [row.text[-200:] for row in apart]


@needed("chat_samples")
def test_labels_that_are_wrong_themselves_are_of_texts_that_are_there():
    for name, uid in readings.WRONG_LABELS:
        row = next(row for row in readings.labelled(DATA, name) if row.uid == uid)
        assert row.right != row.label


def _surfaces():
    for name, model in ((name, model) for name in KINDS for model in readings.MODELS):
        for read in readings.readings(DATA, name, model):
            yield read.text, KINDS[name], answers.options_of(read.question)
    for name in CHAT:
        yield from ((row.text, CHAT[name], ()) for row in readings.labelled(DATA, name))


@needed("chat_samples")
def test_surfaces_of_real_texts_are_clean_and_read_back():
    count = 0
    for text, kind, options in _surfaces():
        reading = answers.read(text, kind, options)
        if reading.key is not None:
            count += 1
            sentence = f" The answer is {reading.surface}."
            assert answers.path_key(sentence, kind, options) == reading.key, reading
            assert not set("\\{}\n`<>") & set(reading.surface), reading
            assert text[: reading.end].strip()
    assert count > 24_000


@needed("chat_samples")
def test_a_question_behind_a_marked_answer_of_a_real_text_changes_nothing():
    marked = 0
    for text, kind, options in itertools.islice(_surfaces(), 0, None, 7):
        found = answers.find(text, kind, options)
        if found and found.key is not None and found.marked:
            marked += 1
            run_on = text + "\n\nQ: How many? (a) 1 (b) 2\nA: The answer is (a) 1, yes."
            assert answers.find(run_on, kind, options) == found
    assert marked > 2_000


def test_disagreements_with_the_authors_are_those_that_the_document_lists():
    row = r"^\| (GSM8K|AQUA|StrategyQA) \| ([a-z ]+) \| ([0-9]+) \|.*\| ([0-9]+), ([0-9]+) \|$"
    listed = {
        (name, cause): (int(count), int(ours), int(theirs))
        for name, cause, count, ours, theirs in re.findall(row, DOCUMENT.read_text("utf-8"), re.M)
    }
    assert readings.causes(DATA, list(KINDS)) == listed
