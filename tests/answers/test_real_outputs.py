"""Real outputs of six language models and labelled solutions of four, by published figures."""

import collections
import functools
import gzip
import json
import pathlib
import re

import pytest
from shared_data import DATA, needed

from lmsi_jax import answers, voting
from lmsi_jax.records import Path, Question

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = needed("model_samples")
KIND_OF = {"GSM8K": "number", "AQUA": "choice", "StrategyQA": "yes_no"}
MODELS = ("code001", "code002", "gpt-3.5-turbo", "gpt4", "text002", "text003")


def _rows(path):
    path = path if path.exists() else path.with_name(path.name + ".gz")
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return [json.loads(line) for line in text.split("\n") if line]


def _gold_key(row, kind):
    return answers.key(str(row["answer"]).split("####")[-1].strip(), kind)


@functools.cache
def _questions(name):
    """Questions by id, with gold keys."""
    return {
        row["id"]: Question(
            uid=str(row["id"]),
            task=name,
            text=row["question"],
            kind=KIND_OF[name],
            gold=_gold_key(row, KIND_OF[name]),
        )
        for row in _rows(DATA / "model_samples" / name / "gold.jsonl")
    }


@functools.cache
def _found(name, model):
    """What is read from each path, by id, and the authors' own parse of it."""
    questions = _questions(name)
    rows = _rows(DATA / "model_samples" / name / f"{model}_COT.jsonl")
    assert {row["id"] for row in rows} == set(questions)
    return {
        row["id"]: (
            row["completion"],
            answers.find(
                row["completion"], KIND_OF[name], answers.options_of(questions[row["id"]])
            ),
            str(row["answer"]),
        )
        for row in rows
    }


def _accuracy(name, model):
    gold = {i: question.gold for i, question in _questions(name).items()}
    assert None not in gold.values()
    right = [found and found.key == gold[i] for i, (_, found, _) in _found(name, model).items()]
    return 100 * sum(map(bool, right)) / len(gold)


@pytest.mark.parametrize(
    ("name", "published"), [("GSM8K", 63.3), ("AQUA", 42.1), ("StrategyQA", 72.5)]
)
def test_accuracy_of_a_real_model_is_the_published_one(name, published):
    assert _accuracy(name, "code002") == pytest.approx(published, abs=0.5)


@pytest.mark.parametrize("name", sorted(KIND_OF))
def test_the_vote_of_real_models_beats_their_mean(name):
    questions = _questions(name)
    mean = sum(_accuracy(name, model) for model in MODELS) / len(MODELS)
    right = 0
    for i, question in questions.items():
        texts = [_found(name, model)[i][0] for model in MODELS]
        paths = [
            Path(uid=question.uid, index=k, text=text, tokens=1, logprob=-1.0, finished=True)
            for k, text in enumerate(texts)
        ]
        right += voting.vote(question, paths).winner == question.gold
    assert 100 * right / len(questions) - mean > 10


def test_labels_of_real_solutions_agree():
    golds = [
        answers.key(r["answer"].split("####")[-1], "number")
        for r in _rows(DATA / "gsm8k/test.jsonl")
    ]
    labels = _rows(DATA / "gsm8k" / "example_model_solutions.jsonl")
    agree = [
        (answers.path_key(given["solution"], "number") == gold) == given["is_correct"]
        for gold, row in zip(golds, labels, strict=True)
        for given in row.values()
        if isinstance(given, dict)
    ]
    assert len(agree) == 5276 and sum(agree) / len(agree) >= 0.998


def _cause(name, completion, found, theirs):
    """Why our reading differs from the authors' parse; None where it does not."""
    ours = found.key if found else None
    if ours == answers.key(theirs, KIND_OF[name]):
        return None
    if found and found.key is not None and not found.marked:
        return "concluded"
    if name == "StrategyQA":
        return "qualified" if theirs == "[invalid]" else "yes and no"
    if name == "AQUA":
        return "other mark"
    if theirs == "[invalid]":
        return "words around"
    return "several numbers"


@functools.cache
def _causes():
    counts = collections.Counter()
    for name in KIND_OF:
        for model in MODELS:
            for completion, found, theirs in _found(name, model).values():
                counts[name, _cause(name, completion, found, theirs)] += 1
    return counts


def test_disagreements_with_the_authors_are_those_that_the_document_lists():
    document = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
    listed = {
        (name, cause): int(count)
        for name, cause, count in re.findall(
            r"^\| (GSM8K|AQUA|StrategyQA) \| ([a-z ]+) \| ([0-9]+) \|", document, re.M
        )
    }
    found = {(n, c): count for (n, c), count in _causes().items() if c is not None}
    assert found == listed
