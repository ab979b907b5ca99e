"""Tasks by name and through SeqIO: registered once, under one name, never at import time."""

import importlib
import json
import pathlib
import subprocess
import sys

import pytest

from lmsi_jax.errors import LmsiError
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


@pytest.mark.parametrize("name", FAMILIES)
def test_questions_through_seqio_are_those_of_the_family(name):
    for split, level, seed in [("train", "hard", 3), ("test", "easy", 0)]:
        loaded = registry.load_questions(name, split, level, 15, seed)
        assert loaded == registry.get(name).questions(split, level, 15, seed)


def test_gsm8k_comes_from_the_folder_that_is_given(gsm8k, tmp_path):
    loaded = registry.load_questions("gsm8k", "test", "hard", 5, 1, data_dir=gsm8k)
    assert loaded == registry.get("gsm8k", gsm8k).questions("test", "easy", 5, 1)
    assert loaded == registry.load_questions("gsm8k", "test", "easy", 5, 1, data_dir=gsm8k)
    other = tmp_path / "other"
    other.mkdir()
    (other / "test.jsonl").write_text('{"question": "How?", "answer": "#### 7"}')
    (question,) = registry.load_questions("gsm8k", "test", "easy", 1, 1, data_dir=str(other))
    assert question.gold == "7"


def test_too_few_questions_are_counted(gsm8k):
    with pytest.raises(LmsiError, match="only 5 questions in its train split; ask for fewer"):
        registry.load_questions("gsm8k", "train", "easy", 6, 0, data_dir=gsm8k)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("leggs", "train", "easy", 1, 0), "did you mean 'legs'"),
        (("legs", "pretrain", "easy", 1, 0), "unknown split 'pretrain'; choose one of train, test"),
        (("legs", "train", "medium", 1, 0), "unknown level 'medium'; choose one of easy, hard"),
        (("legs", "train", "easy", 0, 0), "0 questions of task 'legs' were asked for"),
    ],
)
def test_mistaken_requests_are_named(arguments, message):
    with pytest.raises(LmsiError, match=message):
        registry.load_questions(*arguments)


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
