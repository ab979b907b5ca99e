"""Files of exemplars: their layout, this project's own, and what is no exemplar."""

import pytest
from shared_data import DATA, needed

from lmsi_jax import answers
from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import few_shot_prefix
from lmsi_jax.records import Exemplar
from lmsi_jax.tasks import exemplars, registry
from lmsi_jax.tasks.dataset import Dataset

PUBLISHED = [name for name in registry.NAMES if isinstance(registry.get(name), Dataset)]
REAL = DATA / "exemplars"


def test_a_file_is_read_item_by_item():
    text = (
        "# A note.\n\nQ: One?\n(a) x (b) y\nA: First.\nThen. The answer is (b).\n\n\n"
        "Q: Two?\nA: So the answer is 3\n"
    )
    assert exemplars.parse(text, "here") == (
        Exemplar(question="Q: One?\n(a) x (b) y", reasoning="First.\nThen.", answer="(b)"),
        Exemplar(question="Q: Two?", reasoning="", answer="3"),
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_task_has_as_many_exemplars_as_the_paper_and_their_prompt_reads_back(name):
    paper = {"gsm8k": 8, "svamp": 8, "aqua": 4, "openbookqa": 4, "arc_challenge": 4, "rte": 4}
    paper |= {"drop_football": 3, "drop_nonfootball": 3, "strategyqa": 6}
    task = registry.get(name)
    own = task.exemplars()
    assert len(own) == task.shots == paper.get(name, 6)
    assert exemplars.parse(few_shot_prefix(own, reasoning=True), "prompt") == own
    assert all(row.reasoning for row in own)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_answers_of_the_exemplars_are_found_in_their_solutions(name):
    task = registry.get(name)
    for row in task.exemplars():
        kind = "span" if name.startswith("drop") else task.kind
        path = f" {row.reasoning} The answer is {row.answer}."
        assert answers.path_key(path, kind) == answers.key(row.answer, kind) is not None
    assert exemplars.load_for_task(task.exemplar_file, task.kind)[: task.shots] == task.exemplars()


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        (
            "Q: One?\nA: So. The answer is 18. Because.",
            "number",
            "'18. Because' is not read as a num",
        ),
        ("Q: One?\nA: So. The answer is no.", "number", "'no' is not read as a number"),
        ("Q: One?\n(a) x (b) y\nA: So. The answer is (c).", "choice", "read as an option"),
        (
            "Q: One?\nA: So. The answer is 3.",
            "yes_no",
            "item 1: .* read as yes or no; end the item",
        ),
        ("Q: One?\nA: The answer is 3.", "number", "item 1 has no reasoning before the answer of"),
    ],
)
def test_an_answer_that_is_not_of_the_tasks_kind_is_named(tmp_path, item, kind, message):
    file = tmp_path / "own.txt"
    file.write_text(f"{item}\n")
    with pytest.raises(LmsiError, match=message):
        exemplars.load_for_task(str(file), kind)


def test_a_byte_order_mark_is_no_part_of_the_prompt_and_a_home_folder_is_found(
    tmp_path, monkeypatch
):
    (tmp_path / "own.txt").write_bytes("\ufeffQ: Seven?\nA: Yes. The answer is 7.\n".encode())
    monkeypatch.setenv("HOME", str(tmp_path))
    (row,) = exemplars.load("~/own.txt")
    assert row == Exemplar(question="Q: Seven?", reasoning="Yes.", answer="7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "here holds no exemplars"),
        ("# Only a note.\n", "here holds no exemplars"),
        ("Q: One?\nA: The answer is 1.\n\nQ: Two?", "here, item 2 is not a question"),
        ("Q: One?\nA: It is one.", "here, item 1 is not a question"),
    ],
)
def test_what_is_no_exemplar_is_named(text, message):
    with pytest.raises(LmsiError, match=message):
        exemplars.parse(text, "here")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LmsiError, match="cannot read the exemplars .*none.txt"):
        exemplars.load(str(tmp_path / "none.txt"))


def test_a_name_stands_for_a_file_of_this_project():
    assert exemplars.load("gsm8k_short") == exemplars.packaged("gsm8k_short")


@needed("exemplars")
@pytest.mark.parametrize(
    ("folder", "count", "kind"),
    [("GSM8K", 8, "number"), ("AQUA", 8, "choice"), ("StrategyQA", 6, "yes_no")],
)
def test_other_peoples_files_are_read(folder, count, kind):
    rows = exemplars.load(str(REAL / folder / "COT_prompt.txt"))
    bare = exemplars.load(str(REAL / folder / "standard_prompt.txt"))
    assert len(rows) == count
    assert [row.question for row in rows] == [row.question for row in bare]
    assert all(row.reasoning for row in rows) and not any(row.reasoning for row in bare)
    assert all(answers.key(row.answer, kind) for row in rows)
