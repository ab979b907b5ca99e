"""Tasks by name and through SeqIO: registered once, under one name, never at import time."""

import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys

import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Question
from lmsi_jax.tasks import registry
from lmsi_jax.tasks.task import Family

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAMILIES = [name for name in registry.NAMES if isinstance(registry.get(name), Family)]


@pytest.fixture
def gsm8k(tmp_path):
    lines = [{"question": f"How much is {n}?", "answer": f"#### {n}"} for n in range(5)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for split in registry.SPLITS:
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return str(tmp_path)


def _registered():
    import seqio

    return sorted(n for n in seqio.TaskRegistry.names() if not n.startswith("lmsi_examples"))


def test_every_name_has_a_task_of_that_name():
    assert [registry.get(name).name for name in registry.NAMES] == list(registry.NAMES)


def test_an_unknown_task_is_named_with_the_nearest():
    with pytest.raises(LmsiError, match="'purchase'; did you mean 'purchases'. the tasks are "):
        registry.get("purchase")
    with pytest.raises(LmsiError, match="there is no task 'zzz'; the tasks are purchases, legs"):
        registry.get("zzz")


def test_importing_registers_nothing_and_loads_neither_seqio_nor_tensorflow():
    code = (
        "import sys, lmsi_jax.tasks.registry as r; [r.get(n) for n in r.NAMES];"
        "print(sorted({'seqio', 'tensorflow', 'jax', 'reasoning_gym'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_folder_s_own_name_finds_the_same_tasks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    second = importlib.import_module("tasks.registry")
    assert [second.get(name) for name in second.NAMES] == [
        registry.get(name) for name in registry.NAMES
    ]


def test_registering_again_changes_nothing():
    import seqio

    registry.register()
    tasks = {name: seqio.TaskRegistry.get(name) for name in _registered()}
    registry.register()
    assert {name: seqio.TaskRegistry.get(name) for name in _registered()} == tasks
    wanted = {f"lmsi_{name}_{level}" for name in FAMILIES for level in ("easy", "hard")}
    published = set(registry.NAMES) - set(FAMILIES)
    assert set(tasks) >= wanted | {f"lmsi_{name}" for name in published}


def _through_seqio(task, split, level, count, seed):
    """Reads the questions of a registered SeqIO task."""
    import seqio

    source = seqio.TaskRegistry.get(registry.seqio_name(task, level)).source
    rows = source.get_dataset(split=split, shuffle=False, seed=seed).take(count)
    questions = []
    for row in rows.as_numpy_iterator():
        fields = {name: value.decode() for name, value in row.items()}
        labels = {"gold": fields["answer"] or None, "also": tuple(fields["also"].splitlines())}
        texts = {name: fields[name] for name in ("uid", "kind")}
        questions.append(Question(task=task.name, text=fields["question"], **texts, **labels))
    return questions


@pytest.mark.parametrize("name", FAMILIES)
def test_seqio_yields_the_questions_that_the_loop_reads(name):
    registry.register((name,))
    for split, level, seed in [("train", "hard", 3), ("test", "easy", 0)]:
        loaded = registry.get(name).questions(split, level, 15, seed)
        assert loaded == _through_seqio(registry.get(name), split, level, 15, seed)
        assert [row.gold is not None for row in loaded] == [split == "test"] * 15


def test_seqio_reads_the_folder_that_was_registered_last(gsm8k, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "test.jsonl").write_text('{"question": "How?", "answer": "#### 7"}')
    for folder, count in ((gsm8k, 5), (str(other), 1)):
        registry.register(("gsm8k",), folder)
        task = registry.get("gsm8k", folder)
        loaded = task.questions("test", "easy", count, 1)
        assert loaded == task.questions("test", "hard", count, 1), "there is one level"
        assert loaded == _through_seqio(task, "test", "easy", count, 1)
    assert [question.gold for question in loaded] == ["7"]


def test_other_answers_that_count_as_right_come_through_seqio(tmp_path):
    answer = {"number": "", "date": {}, "spans": ["Ann", "Ben"]}
    pair = {"query_id": "q", "question": "Who won?", "answer": answer}
    rows = json.dumps({"nfl_1": {"passage": "They won.", "qa_pairs": [pair]}})
    for file in ("drop_dataset_dev.json", "drop_dataset_train.json"):
        (tmp_path / file).write_text(rows)
    registry.register(("drop_football",), str(tmp_path))
    task = registry.get("drop_football", str(tmp_path))
    loaded = task.questions("test", "easy", 1, 0)
    (through,) = _through_seqio(task, "test", "easy", 1, 0)
    assert through.also and through == dataclasses.replace(loaded[0], spans=())  # F1 is ours


def test_reading_questions_loads_neither_seqio_nor_tensorflow(gsm8k):
    code = (
        "import sys, lmsi_jax.tasks.registry as r;"
        f"[r.get(n, {gsm8k!r}).questions('test', 'hard', 5, 0) for n in ('legs', 'gsm8k')];"
        "print(sorted({'seqio', 'tensorflow', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_too_few_questions_are_counted(gsm8k):
    with pytest.raises(LmsiError, match="only 5 questions in its train split; ask for fewer"):
        registry.get("gsm8k", gsm8k).questions("train", "easy", 6, 0)


@pytest.mark.parametrize(
    ("split", "level", "message"),
    [
        ("dev", "easy", "unknown split 'dev'; choose one of test, train, pretrain"),
        ("train", "medium", "unknown level 'medium'; choose one of easy, hard"),
    ],
)
def test_mistaken_requests_are_named(split, level, message):
    with pytest.raises(LmsiError, match=message):
        registry.get("legs").questions(split, level, 1, 0)


@pytest.mark.parametrize(("split", "labelled"), [("train", False), ("test", True)])
def test_the_seqio_task_yields_the_zero_shot_direct_format(split, labelled):
    import seqio

    registry.register()
    task = seqio.TaskRegistry.get("lmsi_choices_easy")
    dataset = task.get_dataset(None, split, shuffle=False, seed=2).take(4)
    questions = registry.get("choices").questions(split, "easy", 4, 2)
    decode = task.output_features["inputs"].vocabulary.decode
    for row, question in zip(dataset.as_numpy_iterator(), questions, strict=True):
        assert decode(row["inputs"].tolist()) == f"{question.text}\nA:"
        assert row["uid"].decode() == question.uid
        answer = f" The answer is {question.gold}." if labelled else ""
        assert row["targets_pretokenized"].decode() == answer
        assert row["targets"][-1] == 1, "the end of the sequence"


def test_seqio_may_shuffle_and_mix_the_tasks():
    import seqio

    registry.register()
    mixture = seqio.MixtureRegistry.add("test_mixture_of_tasks", ["lmsi_legs_easy"], default_rate=1)
    lengths = {"inputs": 512, "targets": 32}
    try:
        rows = mixture.get_dataset(lengths, "train", shuffle=True, seed=0, num_epochs=1).take(3)
        assert len({row["inputs"].tobytes() for row in rows.as_numpy_iterator()}) == 3
    finally:
        seqio.MixtureRegistry.remove("test_mixture_of_tasks")
