"""Faults of data files: named with the file, the row, the column and a remedy, or read as meant."""

import json

import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.tasks import registry

AQUA = {"question": "How far?", "options": ["A)1 km", "B)2 km"], "correct": "B"}
GSM8K = {"question": "How many?", "answer": "Two.\n#### 2"}
STRATEGYQA = {"question": "Do ants fly?", "answer": True, "facts": "Some ants fly. Queens do"}
ARC = {
    "question": {"stem": "What?", "choices": [{"label": "A", "text": "x"}]},
    "answerKey": "A",
}


@pytest.fixture
def read(tmp_path):
    """Reads a test file of one row, or of a text; returns its questions."""

    def questions(name, row):
        file = tmp_path / registry.get(name).file_names["test"][0]
        text = row if isinstance(row, str) else json.dumps(row)
        file.write_text(text, encoding="utf-8")
        return list(registry.get(name, str(tmp_path)).stream("test", "hard", 0))

    return questions


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("aqua", {**AQUA, "correct": ""}, """\"correct\" is '', none of its letters AB"""),
        ("aqua", {**AQUA, "correct": "AB"}, """\"correct\" is 'AB', none of its letters AB"""),
        ("aqua", {**AQUA, "correct": "C"}, """\"correct\" is 'C', none of its letters AB"""),
        ("aqua", {**AQUA, "options": ["A. 1", "B. 2"]}, "its options do not begin with A), B)"),
        ("aqua", {**AQUA, "options": ["A)1", "A)2"]}, "its options do not begin with A), B)"),
        ("aqua", {**AQUA, "options": ["A)", "B)2"]}, "option 1 has no text"),
        ("arc_challenge", {**ARC, "answerKey": "B"}, "'B' is not in list"),
        ("gsm8k", {**GSM8K, "answer": "#### 3,5"}, "has the label '3,5', which is no number"),
        ("gsm8k", {**GSM8K, "answer": "It is 2."}, 'its answer has no "####"'),
        ("gsm8k", {"answer": "#### 2"}, "it has no 'question'"),
        ("gsm8k", {**GSM8K, "question": " "}, "an empty text in 'Q: '"),
        ("gsm8k", {**GSM8K, "question": "How \ud83d many?"}, "half a character, '\\ud83d', in"),
        ("gsm8k", {**GSM8K, "answer": "\ud83d #### 2"}, "half a character"),
        ("strategyqa", {**STRATEGYQA, "answer": "maybe"}, "the label 'maybe' is none of"),
        (
            "anli_r1",
            {"context": "x", "hypothesis": "y", "label": "z"},
            "the label 'z' is none of e",
        ),
        ("rte", {"premise": " ", "hypothesis": "y", "label": 0}, "an empty text in"),
        ("gsm8k", '{"question": "a\tb"}', "line 1 is not one JSON object (Invalid control char"),
        ("gsm8k", '{"question": "ab",}', "property name enclosed in double quotes, column 19)"),
        ("svamp", "[3]", "row 1 is not a JSON object but '3'"),
        ("svamp", '[\n{"a": 1},\n{"b" 2}]', "line 3 column 6"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_the_fault(read, name, row, message):
    with pytest.raises(LmsiError) as error:
        read(name, row)
    text = str(error.value)
    assert message in text and registry.get(name).file_names["test"][0] in text
    assert "correct or remove it" in text or "copy it anew" in text


@pytest.mark.parametrize(
    ("name", "row", "gold"),
    [
        ("gsm8k", {**GSM8K, "answer": "#### 1,234,567"}, "1234567"),
        ("gsm8k", {**GSM8K, "answer": "#### $1,000.50"}, "$1000.50"),
        ("svamp", {"Body": "x", "Question": "y", "Answer": 12345678901234.0}, "12345678901234"),
        ("svamp", {"Body": "x", "Question": "y", "Answer": 0.1}, "0.1"),
        ("strategyqa", {**STRATEGYQA, "answer": "True"}, "yes"),
        ("anli_r1", {"context": "x", "hypothesis": "y", "label": "Entailment"}, "yes"),
        ("anli_r1", {"context": "x", "hypothesis": "y", "label": "2"}, "no"),
        (
            "drop_nonfootball",
            {"passage": "x", "question": "How many?", "answer": {"number": 0, "spans": []}},
            "0",
        ),
        ("aqua", {**AQUA, "options": ["(A) 1", " B) 2"]}, "(b)"),
    ],
)
def test_a_row_that_is_clear_is_read(read, name, row, gold):
    (question,) = read(name, row)
    assert question.gold == gold


def test_facts_in_one_text_are_its_sentences(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(STRATEGYQA))
    worked = next(registry.get("strategyqa", str(tmp_path)).worked("train", "hard", 0))
    assert worked.reasoning == "Some ants fly. Queens do."


@pytest.mark.parametrize("spans", [["a", "b"], ["a", "b", "c"]])
def test_a_list_of_drop_is_right_in_any_order(read, spans):
    from itertools import permutations

    from lmsi_jax import answers, voting

    row = {"passage": "x", "question": "Which?", "answer": {"number": "", "spans": spans}}
    (question,) = read("drop_nonfootball", row)
    assert question.spans == ("\n".join(spans),)
    right = voting.right_keys(question)
    for order in permutations(spans):
        for written in (", ".join(order), f"{', '.join(order[:-1])} and {order[-1]}"):
            assert answers.key(written, "span") in right, written


def test_training_questions_do_not_carry_the_spans_of_their_answers(tmp_path):
    row = {"passage": "x", "question": "Which?", "answer": {"number": "", "spans": ["a"]}}
    (tmp_path / "train.json").write_text(json.dumps(row))
    (question,) = registry.get("drop_nonfootball", str(tmp_path)).questions("train", "hard", 1, 0)
    assert (question.gold, question.also, question.spans) == (None, (), ())


def test_the_label_of_a_training_question_of_drop_does_not_tell_its_kind(tmp_path):
    asked = "How many yards was the goal?"
    kinds = {}
    for number, spans in (("41", []), ("", ["a yard or so"])):
        row = {"passage": "x", "question": asked, "answer": {"number": number, "spans": spans}}
        for split, file in (("train", "train.json"), ("test", "dev.json")):
            (tmp_path / file).write_text(json.dumps(row))
            task = registry.get("drop_nonfootball", str(tmp_path))
            (question,) = task.questions(split, "hard", 1, 0)
            (labelled,) = task.labelled(split, "hard", 0)
            kinds[split, number] = (question.kind, labelled.kind)
    assert kinds["train", "41"] == kinds["train", ""] == ("number", "number")
    assert (kinds["test", "41"], kinds["test", ""]) == (("number",) * 2, ("span",) * 2)


def test_a_folder_may_be_below_home_and_a_file_is_none(tmp_path, monkeypatch):
    (tmp_path / "test.jsonl").write_text(json.dumps(GSM8K))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    task = registry.get("gsm8k", f"~/{tmp_path.name}")
    assert len(task.questions("test", "hard", 1, 0)) == 1
    with pytest.raises(LmsiError, match="test.jsonl is a file; set data_dir to its folder"):
        registry.get("gsm8k", str(tmp_path / "test.jsonl")).questions("test", "hard", 1, 0)
