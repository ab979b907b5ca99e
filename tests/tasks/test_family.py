"""A family's splits, labels and limits, on a toy generator whose questions can be counted."""

import itertools

import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Exemplar
from lmsi_jax.tasks.task import Family

_SIZE = 400


def _generate(rng, level):
    number = rng.randrange(_SIZE)
    return Exemplar(question=f"Q: {level} {number}?", reasoning="So.", answer=str(number))


TOY = Family(name="toy", kind="number", domain="in", generate=_generate, shots=2)


def _all(split, level="easy", seed=0):
    return [question.text for question in TOY.stream(split, level, seed)]


def test_the_splits_share_out_all_questions_without_overlap():
    texts = [_all(split) for split in ("test", "train", "pretrain")]
    assert len(set().union(*texts)) == sum(map(len, texts)) == _SIZE
    shares = [len(part) / _SIZE for part in texts]
    assert shares == pytest.approx([3 / 16, 5 / 16, 8 / 16], abs=0.08)


def test_another_seed_gives_another_order_of_the_same_split():
    assert _all("test", seed=0) != _all("test", seed=1)
    assert set(_all("test", seed=0)) == set(_all("test", seed=1))


def test_only_test_questions_carry_their_answer():
    assert all(q.gold is None for q in TOY.questions("train", "easy", 20, 0))
    for question in TOY.questions("test", "easy", 20, 0):
        assert question.text == f"Q: easy {question.gold}?"


def test_worked_questions_come_in_the_order_of_the_questions():
    worked = itertools.islice(TOY.worked("train", "hard", 3), 30)
    assert [row.question for row in worked] == [
        question.text for question in TOY.questions("train", "hard", 30, 3)
    ]


def test_a_shorter_list_is_the_beginning_of_a_longer_one():
    assert TOY.questions("test", "easy", 5, 7) == TOY.questions("test", "easy", 20, 7)[:5]


def test_uids_are_distinct_and_belong_to_the_text():
    first, second = (TOY.questions("test", "easy", 40, seed) for seed in (0, 1))
    by_text = {q.text: q.uid for q in first}
    assert len(set(by_text.values())) == 40
    assert all(by_text.get(q.text, q.uid) == q.uid for q in second)
    assert all(q.uid.startswith("toy-easy-") for q in first)


def test_a_generator_that_runs_dry_is_named_with_its_count():
    found = len(_all("test"))
    message = f"task 'toy' has only {found} distinct easy questions in its test split; ask for"
    with pytest.raises(LmsiError, match=message):
        TOY.questions("test", "easy", found + 1, 0)
    with pytest.raises(LmsiError, match=message):
        list(TOY.worked("test", "easy", 0))
    assert len(TOY.questions("test", "easy", found, 0)) == found


def test_unknown_splits_and_levels_are_named():
    with pytest.raises(LmsiError, match="unknown split 'dev'; choose one of test, train"):
        TOY.questions("dev", "easy", 1, 0)
    with pytest.raises(LmsiError, match="unknown level 'medium'; choose one of easy, hard"):
        TOY.questions("test", "medium", 1, 0)


def test_exemplars_are_fixed_and_from_the_pretraining_split():
    exemplars = TOY.exemplars()
    assert exemplars == TOY.exemplars() and len(exemplars) == TOY.shots
    assert {row.question for row in exemplars} <= set(_all("pretrain"))


def test_a_family_has_no_folder():
    assert TOY.from_folder("/anywhere") is TOY
