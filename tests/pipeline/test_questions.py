"""Drawing a run's questions: files where they lie, exemplars by name, overlaps with the test."""

import json

import pytest

from lmsi_jax.config import ModelConfig, Questions, Run
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.context import Context
from lmsi_jax.pipeline.questions import draw_questions
from lmsi_jax.prompts import few_shot_prefix
from lmsi_jax.tasks import exemplars

_LONG = "Ann has 3 red pens and 4 blue pens and gives 2 of them to Ben, who has"


@pytest.fixture
def files(tmp_path):
    """GSM8K with two train and two test questions; one of each side has 13 words in common."""
    rows = {"train": [f"{_LONG} none. How many?", "Two?"], "test": [f"{_LONG} 9. Sum?", "Three?"]}
    folder = tmp_path / "data"
    folder.mkdir()
    for split, texts in rows.items():
        lines = [json.dumps({"question": text, "answer": "It is.\n#### 5"}) for text in texts]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def _context(tmp_path, stages=("sample", "eval"), **questions):
    config = ModelConfig(
        vocab_size=8, num_layers=1, embed_dim=4, num_heads=1, head_dim=2, mlp_dim=4
    )
    settings = {"train": ("gsm8k",), "test": ("gsm8k",), "train_count": 2, "test_count": 2}
    run = Run(
        output_dir=str(tmp_path / "run"),
        model=config,
        questions=Questions(**{**settings, **questions}),
    )
    return Context(run, frozenset(stages))


def test_a_task_is_read_from_its_own_folder(tmp_path, files):
    context = _context(tmp_path, data_dirs=(("gsm8k", str(files)),), contamination="allow")
    draw_questions(context)
    train = context.load_questions("train")["gsm8k"]
    assert {row.text for row in train} == {f"Q: {_LONG} none. How many?", "Q: Two?"}
    assert not any(row.gold for row in train)
    assert {row.gold for row in context.load_questions("test")["gsm8k"]} == {"5"}


@pytest.mark.parametrize("stage", ["generate", "prompts", "sample"])
def test_what_asks_training_questions_is_refused_without_any(tmp_path, files, stage):
    context = _context(tmp_path, stages=(stage,), train=(), data_dir=str(files))
    with pytest.raises(LmsiError, match=r"there are no questions: set Questions\.train"):
        draw_questions(context)


def test_a_task_of_which_nothing_is_left_is_refused_and_named(tmp_path, files):
    context = _context(tmp_path, data_dir=str(files), contamination="drop")
    (files / "train.jsonl").write_text((files / "test.jsonl").read_text())
    with pytest.raises(LmsiError, match="all 2 training questions of 'gsm8k' are also among"):
        draw_questions(context)


def test_a_training_question_of_the_test_is_refused_and_named(tmp_path, files):
    context = _context(tmp_path, data_dir=str(files))
    with pytest.raises(
        LmsiError,
        match=r"1 training questions of 'gsm8k' are also among the test questions: gsm8k-\w{12} "
        r"as gsm8k-\w{12} \(13 equal words in a row\); set Questions.contamination to 'drop'",
    ):
        draw_questions(context)


def test_dropped_overlaps_leave_the_other_questions(tmp_path, files):
    context = _context(tmp_path, data_dir=str(files), contamination="drop")
    draw_questions(context)
    assert [row.text for row in context.load_questions("train")["gsm8k"]] == ["Q: Two?"]


def test_an_exemplar_of_the_test_is_refused(tmp_path, files):
    own = tmp_path / "own.txt"
    own.write_text(
        f"Q: Seven?\nA: Yes. The answer is 7.\n\nQ: {_LONG} 7?\nA: So. The answer is 1.\n"
    )
    context = _context(
        tmp_path, data_dir=str(files), contamination="drop", exemplars=(("gsm8k", str(own)),)
    )
    with pytest.raises(LmsiError, match="1 exemplars of 'gsm8k' .*: number 2 as .*name another"):
        draw_questions(context)


@pytest.fixture
def shown(tmp_path):
    """A file of exemplars, of which the second is also a training question."""
    own = tmp_path / "own.txt"
    own.write_text("Q: Seven?\nA: Yes. The answer is 7.\n\nQ: Two?\nA: It is. The answer is 5.\n")
    return (("gsm8k", str(own)),)


def test_a_training_question_whose_prompt_shows_its_answer_is_refused(tmp_path, files, shown):
    (files / "train.jsonl").write_text('{"question": "TWO", "answer": "It is.\\n#### 5"}')
    context = _context(tmp_path, data_dir=str(files), exemplars=shown, train_count=1)
    with pytest.raises(
        LmsiError,
        match=r"1 training questions of 'gsm8k' are also exemplars of its prompt.*: gsm8k-\w{12} "
        r"as exemplar 2 \(the same question\); name another file in Questions.exemplars, set",
    ):
        draw_questions(context)


def test_a_training_question_whose_prompt_shows_its_answer_can_be_dropped(tmp_path, files, shown):
    (files / "test.jsonl").write_text('{"question": "Four?", "answer": "#### 4"}')
    settings = {"data_dir": str(files), "exemplars": shown, "test_count": 1}
    context = _context(tmp_path, contamination="drop", **settings)
    draw_questions(context)
    train = context.load_questions("train")["gsm8k"]
    assert [row.text for row in train] == [f"Q: {_LONG} none. How many?"]


def test_the_run_keeps_the_exemplars_that_it_was_given(tmp_path, files):
    context = _context(
        tmp_path, data_dir=str(files), contamination="drop", exemplars=(("gsm8k", "gsm8k_short"),)
    )
    draw_questions(context)
    assert context.exemplars("gsm8k") == exemplars.packaged("gsm8k_short")
    assert few_shot_prefix(context.exemplars("gsm8k"), True).startswith("Q: Mia bakes 24")


def test_exemplars_without_reasoning_are_refused(tmp_path, files):
    own = tmp_path / "own.txt"
    own.write_text("Q: Seven?\nA: The answer is 7.\n")
    context = _context(
        tmp_path, data_dir=str(files), contamination="drop", exemplars=(("gsm8k", str(own)),)
    )
    with pytest.raises(LmsiError, match="item 1 has no reasoning before the answer of 'Q: Seven"):
        draw_questions(context)


def test_a_misspelt_task_of_a_pair_is_named(tmp_path, files):
    with pytest.raises(LmsiError, match="no task 'gsm8'; did you mean 'gsm8k'"):
        draw_questions(_context(tmp_path, data_dirs=(("gsm8", str(files)),)))


def test_a_policy_that_does_not_exist_is_refused():
    with pytest.raises(
        LmsiError, match="Questions.contamination = 'maybe'; use 'refuse', 'drop' or 'allow'"
    ):
        Questions(train=(), test=(), contamination="maybe")
