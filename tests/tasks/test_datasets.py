"""The published data sets: every layout in which their files come, TFDS, and real files."""

import contextlib
import gzip
import json
import pathlib
import re
import urllib.error
import urllib.request

import pytest
from shared_data import DATA, needed

from lmsi_jax import answers
from lmsi_jax.errors import LmsiError
from lmsi_jax.tasks import dataset, registry
from lmsi_jax.tasks.dataset import Dataset

PUBLISHED = [name for name in registry.NAMES if isinstance(registry.get(name), Dataset)]
_NLI_QUESTION = (
    'Premise:\n"It is  wet."\nBased on this premise, can we conclude the hypothesis "It rained." is'
    " true?"
).replace("  ", " ")
_OPTIONS = "\nOPTIONS:\n- yes\n- no\n- it is not possible to tell"
_CHOICES = [{"label": "A", "text": "ice"}, {"label": "B", "text": "a nail"}]
_ADAPTERS = (
    "Please choose the correct answer to the question: What  rusts?\n\nAnswer1: ice Answer2: a nail"
    "\n\nAnswer format: answer1/answer2"
)
_DROP = {
    "nfl_1": {
        "passage": "The Foxes won.",
        "qa_pairs": [
            {
                "question": "How many points?",
                "answer": {"number": "3", "date": {}, "spans": []},
                "validated_answers": [{"number": "4", "date": {}, "spans": []}],
            },
            {"question": "Who won?", "answer": {"number": "", "spans": ["the Foxes", "Ann"]}},
        ],
    },
    "history_2": {
        "passage": "Peace came in May.",
        "qa_pairs": [
            {
                "question": "When came peace?",
                "answer": {"number": "", "date": {"day": "3", "month": "May", "year": "1712"}},
            }
        ],
    },
}

# task, file, its text, (question, answer, other answers, kind)
FILES = [
    (
        "svamp",
        "SVAMP.json",
        json.dumps([{"Body": "Dan had $ 3 left", "Question": "How much?", "Answer": 1.0}]),
        [("Q: Dan had $ 3 left. How much?", "1", (), "number")],
    ),
    (
        "aqua",
        "test.json",
        json.dumps({"question": "How far?", "options": ["A)1 km", "B)2 (b) km"], "correct": "B"}),
        [("Q: How far?\nAnswer Choices: (a) 1 km (b) 2 (b) km", "(b)", (), "choice")],
    ),
    (
        "openbookqa",
        "test.jsonl",
        json.dumps({"question": {"stem": "What rusts?", "choices": _CHOICES}, "answerKey": "B"}),
        [("Q: What rusts?\n(a) ice (b) a nail", "(b)", (), "choice")],
    ),
    (
        "arc_challenge",
        "test.json",
        json.dumps([{"instruction": _ADAPTERS, "answer": "answer2"}]),
        [("Q: What rusts?\n(a) ice (b) a nail", "(b)", (), "choice")],
    ),
    (
        "arc_challenge",
        "ARC-Challenge-Test.jsonl",
        json.dumps(
            {
                "question": {
                    "stem": "What rusts?",
                    "choices": [{"label": "1", "text": "a nail"}, {"label": "2", "text": "ice"}],
                },
                "answerKey": "1",
            }
        ),
        [("Q: What rusts?\n(a) a nail (b) ice", "(a)", (), "choice")],
    ),
    (
        "anli_r2",
        "test.jsonl",
        json.dumps({"context": "It is wet.", "hypothesis": "It rained.", "label": "n"}),
        [(_NLI_QUESTION + _OPTIONS, "it is not possible to tell", (), "nli")],
    ),
    (
        "mnli_m",
        "multinli_1.0_dev_matched.jsonl",
        "\n".join(
            json.dumps({"sentence1": "It is wet.", "sentence2": "It rained.", "gold_label": label})
            for label in ("-", "contradiction")
        ),
        [(_NLI_QUESTION + _OPTIONS, "no", (), "nli")],
    ),
    (
        "mnli_mm",
        "dev_mismatched.tsv",
        'index\tsentence1\tsentence2\tgold_label\n0\tHe said "wet.\tIt rained.\tentailment\n',
        [(_NLI_QUESTION.replace("It is wet.", 'He said "wet.') + _OPTIONS, "yes", (), "nli")],
    ),
    (
        "rte",
        "val.jsonl",
        json.dumps(
            {"premise": "It is wet.", "hypothesis": "It rained.", "label": "not_entailment"}
        ),
        [(_NLI_QUESTION, "no", (), "yes_no")],
    ),
    (
        "strategyqa",
        "strategyqa_test.json",
        json.dumps([{"question": "Do ants fly?", "answer": True, "facts": ["Some do"]}]),
        [("Q: Yes or no: Do ants fly?", "yes", (), "yes_no")],
    ),
    (
        "drop_football",
        "drop_dataset_dev.json",
        json.dumps(_DROP, indent=2),
        [
            ("Passage: The Foxes won.\nQ: How many points?", "3", ("4",), "number"),
            (
                "Passage: The Foxes won.\nQ: Who won?",
                "the Foxes, Ann",
                ("the Foxes and Ann", "Ann, the Foxes", "Ann and the Foxes"),
                "span",
            ),
        ],
    ),
    (
        "drop_nonfootball",
        "drop_dataset_dev.json",
        json.dumps(_DROP),
        [("Passage: Peace came in May.\nQ: When came peace?", "3 May 1712", (), "span")],
    ),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "file", "text", "wanted"), FILES)
def test_a_file_as_published_is_read(tmp_path, name, file, text, wanted, packed):
    if packed:
        (tmp_path / f"{file}.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (tmp_path / file).write_text(text, encoding="utf-8")
    rows = registry.get(name, str(tmp_path)).stream("test", "hard", 0)
    assert sorted((r.text, r.gold, r.also, r.kind) for r in rows) == sorted(wanted)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_of_another_layout_is_named(tmp_path, name):
    task = registry.get(name, str(tmp_path))
    file = task.file_names["test"][0]
    (tmp_path / file).write_text(json.dumps([{"one": 1}]))
    with pytest.raises(LmsiError, match=rf"{name}: .*{file}, row 1 is not \{{"):
        task.questions("test", "hard", 1, 0)


def test_files_may_lie_in_a_folder_of_the_tasks_name(tmp_path):
    (tmp_path / "svamp").mkdir()
    (tmp_path / "svamp" / "SVAMP.json").write_text(FILES[0][2])
    assert len(registry.get("svamp", str(tmp_path)).questions("test", "hard", 1, 0)) == 1


def test_a_task_with_test_questions_alone_says_so(tmp_path):
    with pytest.raises(LmsiError, match="svamp has no train questions"):
        registry.get("svamp", str(tmp_path)).questions("train", "hard", 1, 0)


def test_what_tfds_does_not_have_asks_for_files():
    with pytest.raises(
        LmsiError, match=r"aqua \(test\) is read from files: set Questions.data_dir"
    ):
        registry.get("aqua").questions("test", "hard", 1, 0)


def test_human_solutions_lose_their_last_words(tmp_path):
    row = {"question": "How far?", "options": ["A)1", "B)2"], "correct": "B"}
    row["rationale"] = "It is 1 + 1\n= 2\nThe correct answer is B"
    (tmp_path / "train.json").write_text(json.dumps(row))
    worked = next(registry.get("aqua", str(tmp_path)).worked("train", "hard", 0))
    assert (worked.reasoning, worked.answer) == ("It is 1 + 1. = 2.", "(b)")


@pytest.mark.parametrize("name", [name for name in PUBLISHED if registry.get(name).tfds])
def test_tfds_has_the_fields_that_are_read(name, monkeypatch):
    """TFDS makes rows up by its own description of the data set; labels are random."""
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(dataset, "_check_network", lambda: None)  # nothing is downloaded
    task = registry.get(name)
    read = 0
    with tfds.testing.mock_data(num_examples=30):
        for split in ("train", "test"):
            for _, row in task._rows(split):
                # A text without "####", a label without an option: what chance makes.
                with contextlib.suppress(ValueError):
                    task.parse(row)
                read += 1
    assert read == 60


def test_without_a_network_tfds_is_not_asked_to_download(monkeypatch, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    def fail(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setattr(tfds, "load", lambda *args, **kwargs: pytest.fail("it was asked"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(LmsiError, match="there is no network: Name or service") as raised:
        registry.get("gsm8k").questions("test", "hard", 1, 0)
    assert "Questions.data_dir" in str(raised.value) and "data_dirs" in str(raised.value)


REAL = [
    ("gsm8k", "gsm8k", {"train": 7473, "test": 1319}),
    ("svamp", "svamp", {"test": 1000}),
    ("aqua", "aqua", {"test": 254}),
    ("strategyqa", "strategyqa", {"train": 1290, "test": 2289}),  # one of 2,290 stands there twice
    ("openbookqa", "choice_qa", {"train": 4952, "test": 500}),  # five stand there twice
    ("arc_challenge", "choice_qa", {"train": 1118, "test": 1172}),
]


@needed()
@pytest.mark.parametrize(("name", "folder", "counts"), REAL)
def test_real_files_are_read_whole_and_their_labels_have_keys(name, folder, counts):
    task = registry.get(name, str(DATA / folder))
    for split, count in counts.items():
        rows = list(task.stream(split, "hard", 0))
        assert len(rows) == count
        if split == "test":
            assert all(answers.key(row.gold, row.kind) for row in rows)
        else:
            assert not any(row.gold for row in rows)


@needed()
def test_real_drop_passages_are_told_apart(tmp_path):
    text = (DATA / "drop" / "drop_sample.json").read_text()
    (tmp_path / "drop_dataset_dev.json").write_text(text)
    counts = {
        name: len(list(registry.get(name, str(tmp_path)).stream("test", "hard", 0)))
        for name in ("drop_football", "drop_nonfootball")
    }
    # One of the 15 questions about football is asked twice.
    assert counts == {"drop_football": 14, "drop_nonfootball": 4}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_documents_list_the_files_of_each_data_set(name):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    _, _, folder, train, test, tfds, _ = (cell.strip() for cell in row.split("|"))
    task = registry.get(name)
    assert folder.strip("`") == (task.folder or task.name)
    for split, cell in (("train", train), ("test", test)):
        assert tuple(re.findall("`([^`]+)`", cell)) == tuple(task.file_names.get(split, ()))
    assert tfds.strip("`") == task.tfds.get("train", "no").partition(":")[0]
