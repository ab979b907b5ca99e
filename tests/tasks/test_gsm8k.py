"""GSM8K from local files: gold, layout, order, and errors that name file, line and remedy."""

import gzip
import itertools
import json
import os
import re

import pytest
from shared_data import DATA, needed

from lmsi_jax import answers
from lmsi_jax.errors import LmsiError
from lmsi_jax.tasks import exemplars
from lmsi_jax.tasks.math_word_problems import GSM8K, one_line

REAL = DATA / "gsm8k"
ROWS = [
    {"question": "Ada has 2 jars.  How many?", "answer": "She has 1+1=<<1+1=2>>2\nSo two.\n#### 2"},
    {
        "question": "What is 600 times 2?",
        "answer": "It is 600*2=<<600*2=1200>>1,200.\n\n#### 1,200",
    },
    {"question": "Who owes 3?", "answer": "Ben owes 3\n#### -3"},
]


def _write(folder, rows=ROWS, name="test.jsonl"):
    data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    packed = gzip.compress(data.encode()) if name.endswith(".gz") else data.encode()
    (folder / name).write_bytes(packed)
    return GSM8K.from_folder(str(folder))


@pytest.mark.parametrize("name", ["test.jsonl", "test.jsonl.gz"])
def test_gold_is_what_stands_after_the_marks(tmp_path, name):
    questions = _write(tmp_path, name=name).questions("test", "hard", 3, 0)
    assert {q.text: q.gold for q in questions} == {
        "Q: Ada has 2 jars. How many?": "2",
        "Q: What is 600 times 2?": "1200",
        "Q: Who owes 3?": "-3",
    }
    assert all((q.task, q.kind) == ("gsm8k", "number") for q in questions)


def test_train_questions_are_unlabelled_but_their_solutions_can_be_had(tmp_path):
    task = _write(tmp_path, name="train.jsonl")
    questions = task.questions("train", "easy", 3, 0)
    worked = list(itertools.islice(task.worked("train", "easy", 0), 3))
    assert [q.gold for q in questions] == [None] * 3
    assert worked == list(itertools.islice(task.worked("pretrain", "easy", 0), 3))
    assert [row.question for row in worked] == [q.text for q in questions]
    assert {(row.reasoning, row.answer) for row in worked} == {
        ("She has 1+1=2. So two.", "2"),
        ("It is 600*2=1,200.", "1200"),
        ("Ben owes 3.", "-3"),
    }


def test_annotations_go_and_comparisons_stay():
    assert one_line("It costs 5+4=$<<5+4=9>>9\n\n  9 < 10 ,  3 > 2 \n") == (
        "It costs 5+4=$9. 9 < 10 , 3 > 2."
    )


def test_order_and_uids_depend_on_seed_and_text_not_on_level_or_line(tmp_path):
    rows = [{"question": f"How much is {n}?", "answer": f"#### {n}"} for n in range(30)]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    task, backwards = _write(tmp_path / "a", rows), _write(tmp_path / "b", rows[::-1])
    first = task.questions("test", "easy", 30, 0)
    assert first == task.questions("test", "hard", 30, 0)
    assert first != task.questions("test", "easy", 30, 1)
    assert first[:7] == task.questions("test", "easy", 7, 0)
    uids = {q.text: q.uid for q in first}
    assert uids == {q.text: q.uid for q in backwards.questions("test", "easy", 30, 5)}
    assert len(set(uids.values())) == 30


def test_a_repeated_question_is_one_question(tmp_path):
    task = _write(tmp_path, [*ROWS, ROWS[0], ""])
    assert len(task.questions("test", "easy", 3, 0)) == 3
    with pytest.raises(LmsiError, match="task 'gsm8k' has only 3 questions in its test split; ask"):
        task.questions("test", "easy", 4, 0)
    with pytest.raises(LmsiError, match="only 3 questions"):
        list(task.worked("test", "easy", 0))


def test_a_line_separator_within_a_text_is_no_new_line(tmp_path):
    text = '{"question": "How\u2028many?", "answer": "#### 1"}'
    (question,) = _write(tmp_path, [text]).questions("test", "easy", 1, 0)
    assert question.text == "Q: How many?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not one JSON object"),
        ("[]", "line 2 is not one JSON object"),
        ("3", "line 2 is not one JSON object"),
        ('{"question": "How many?"}', "line 2 is not"),
        ('{"question": "How many?", "answer": "Five."}', "line 2 is not"),
        ('{"question": null, "answer": "#### 5"}', "line 2 is not"),
        (
            '{"question": "How many?", "answer": "#### "}',
            "line 2 has the label '', which is no number",
        ),
        (
            '{"question": "How many?", "answer": "#### few"}',
            "line 2 has the label 'few', which is no number",
        ),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    task = _write(tmp_path, [ROWS[0], line])
    with pytest.raises(LmsiError) as error:
        task.stream("test", "easy", 0)
    assert f"{tmp_path / 'test.jsonl'}, {message}" in str(error.value)
    assert "correct or remove it" in str(error.value)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(LmsiError, match="there is no folder .*nowhere; correct data_dir"):
        GSM8K.from_folder(str(tmp_path / "nowhere")).questions("test", "easy", 1, 0)
    with pytest.raises(LmsiError, match=r"has no train.jsonl \(or .gz\)"):
        _write(tmp_path).questions("train", "easy", 1, 0)
    with pytest.raises(LmsiError, match="no split 'pretrain'; choose train or test"):
        _write(tmp_path).questions("pretrain", "easy", 1, 0)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("test.jsonl.gz", b"not gzip"),
        ("test.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-12]),
        ("test.jsonl", b"\xff\xfe"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LmsiError, match=f"cannot read .*{name} .*copy it anew"):
        GSM8K.from_folder(str(tmp_path)).questions("test", "easy", 1, 0)


@pytest.mark.parametrize("name", ["test.jsonl", "test.jsonl.gz"])
def test_a_pipe_in_place_of_a_file_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(LmsiError, match=f"{name} is no regular file"):
        GSM8K.from_folder(str(tmp_path)).questions("test", "easy", 1, 0)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"question": ' + "[" * 100_000])
def test_values_that_are_nested_without_end_are_named(tmp_path, text):
    (tmp_path / "test.jsonl").write_text(text)
    with pytest.raises(LmsiError, match=r"test.jsonl.* nested too deeply"):
        GSM8K.from_folder(str(tmp_path)).questions("test", "easy", 1, 0)


def test_what_is_worked_out_in_the_exemplars_is_right():
    equations = 0
    for exemplar in (*exemplars.packaged("gsm8k"), *exemplars.packaged("gsm8k_short")):
        for left, right in re.findall(r"([0-9 */+-]+) = ([0-9]+)", exemplar.reasoning):
            assert eval(left) == int(right), exemplar  # our own text: digits and signs alone
            equations += 1
        assert exemplar.reasoning.rstrip(".").split(" = ")[-1].split()[0] == exemplar.answer
    assert equations > 15


@needed("gsm8k")
@pytest.mark.parametrize("split", ["test", "train"])
def test_the_real_files_parse_and_their_gold_answers_have_keys(split):
    task = GSM8K.from_folder(str(REAL))
    size = {"test": 1319, "train": 7473}[split]
    questions = task.questions(split, "easy", size, 0)
    assert len({q.uid for q in questions}) == size
    assert {q.gold is None for q in questions} == {split == "train"}
    for row in itertools.islice(task.worked(split, "easy", 0), 200):
        assert answers.key(row.answer, "number") is not None
        assert "<<" not in row.reasoning and "\n" not in row.reasoning + row.question
        assert row.question not in {e.question for e in task.exemplars()}
