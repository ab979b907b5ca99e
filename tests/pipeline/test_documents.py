"""Pre-training documents: one format each, from the pretrain split alone, fixed by the seed."""

import collections
import itertools

import pytest

from lmsi_jax import answers
from lmsi_jax.pipeline.pretrain import FORMAT_SHARES, answer_text, documents
from lmsi_jax.prompts import STEP_BY_STEP, question_prompt, solution
from lmsi_jax.records import Exemplar
from lmsi_jax.tasks import registry

SHARES = {"purchases": 3.0, "claims": 1.0}
TASKS = {name: registry.get(name) for name in SHARES}
ROW = Exemplar(question="Q: How many?", reasoning="1 + 2 = 3.", answer="3")


def _documents(count=600, seed=0, hard=0.5, **kwargs):
    return list(itertools.islice(documents(TASKS, SHARES, seed=seed, hard=hard, **kwargs), count))


def _style(answer):
    if STEP_BY_STEP in answer:
        return "step_by_step"
    return "direct" if answer.startswith(" The answer is") else "cot"


def _name(document):
    return "claims" if document[0][0].startswith("Premise: ") else "purchases"


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("cot", " 1 + 2 = 3. The answer is 3."),
        ("direct", " The answer is 3."),
        ("step_by_step", " Let's think step by step. 1 + 2 = 3. The answer is 3."),
    ],
)
def test_the_styles_are_those_of_the_prompts(style, text):
    assert answer_text(ROW, style) == text
    trigger = f" {STEP_BY_STEP}" if style == "step_by_step" else ""
    reasoning = "" if style == "direct" else ROW.reasoning
    assert text == f"{trigger} {solution(reasoning, ROW.answer)}"


def test_a_row_without_reasoning_is_answered_at_once():
    bare = Exemplar(question="Q: How many?", reasoning="", answer="3")
    assert answer_text(bare, "cot") == " The answer is 3."
    assert answer_text(bare, "step_by_step") == f" {STEP_BY_STEP} The answer is 3."


def test_a_document_keeps_one_format_and_one_family():
    for document in _documents():
        assert len({_style(answer) for _, answer in document}) == 1
        kind = TASKS[_name(document)].kind
        for question, answer in document:
            assert question.startswith("Premise: ") == (kind == "nli")
            assert question == question_prompt(question.removesuffix("\nA:"))
            assert answers.path_key(answer, kind) is not None


def test_formats_families_and_lengths_come_at_their_shares():
    rows = _documents(2000)
    styles = collections.Counter(_style(document[0][1]) for document in rows)
    assert {k: n / 2000 for k, n in styles.items()} == pytest.approx(FORMAT_SHARES, abs=0.05)
    assert sum(_name(document) == "claims" for document in rows) / 2000 == pytest.approx(
        1 / 4, abs=0.05
    )
    lengths = collections.Counter(map(len, rows))
    assert {n: k / 2000 for n, k in lengths.items()} == pytest.approx(
        dict.fromkeys(range(1, 6), 1 / 5), abs=0.05
    )


@pytest.mark.parametrize(("hard", "least", "most"), [(0.0, 2, 3), (1.0, 4, 6)])
def test_the_share_of_hard_questions_is_kept_at_its_ends(hard, least, most):
    for document in _documents(100, hard=hard):
        if _name(document) == "purchases":
            for question, _ in document:
                assert least <= sum(word.isdigit() for word in question.split()) <= most


def test_documents_are_a_function_of_the_seed():
    assert _documents(50) == _documents(50)
    assert _documents(50) != _documents(50, seed=1)
    assert max(map(len, _documents(200, most_questions=2))) == 2


def test_no_train_or_test_question_is_in_a_document():
    seen = {question.removesuffix("\nA:") for document in _documents() for question, _ in document}
    for task in TASKS.values():
        for split, level in itertools.product(("train", "test"), ("easy", "hard")):
            texts = {q.text for q in task.questions(split, level, 300, 0)}
            assert not texts & seen
