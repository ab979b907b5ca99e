"""Prompt generation: usable answers, prompts of them, and which sample is drawn with which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.augmentation import FewShot, choose_asked, exemplar, few_shots, groups, prompt_of
from lmsi_jax.prompts import few_shot_prefix
from lmsi_jax.records import Exemplar, Question, Sample
from lmsi_jax.voting import read_answers

QUESTION = Question(uid="q", task="sums", text="Q: What is 4 + 5?", kind="number")
ONE = Exemplar(question="Q: ?", reasoning="So.", answer="1")


def _path(text):
    return Sample(uid="q", sample_index=0, text=text, tokens=3, logprob=-1.0, end="end_token")


def _made(count, shots):
    """Prompts whose exemplars are the questions 0, 1, 2, ..."""
    worked = [(str(n), ONE) for n in range(count * shots)]
    return few_shots(worked, count, shots)


@pytest.mark.parametrize(
    "text", [" 4 + 5 = 9. The answer is 9.", " 4 + 5 = 9. The answer is 9. I am sure of it."]
)
def test_a_usable_answer_stands_in_the_layout_of_a_prompt(text):
    found = exemplar(QUESTION, _path(text), *read_answers(QUESTION, [_path(text)]))
    assert found == Exemplar(question=QUESTION.text, reasoning="4 + 5 = 9.", answer="9")
    assert few_shot_prefix([found], True) == (
        "Q: What is 4 + 5?\nA: 4 + 5 = 9. The answer is 9.\n\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        " 4 + 5 = 9.",  # no answer sentence
        " The answer is 9.",  # no reasoning
        " 4 + 5 = 9. The answer is blue.",  # no number
        " 4 + 5 = 9. So the answer is 9.",  # another sentence than the layout's
        " 4 + 5\n\n= 9. The answer is 9.",  # a blank line would end the item
        "",
    ],
)
def test_other_answers_are_not_usable(text):
    (reading,) = read_answers(QUESTION, [_path(text)])
    assert exemplar(QUESTION, _path(text), reading) is None


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 5))
def test_prompts_take_the_exemplars_in_order_and_each_once(count, wanted, shots):
    worked = [(str(n), ONE) for n in range(count)]
    made = few_shots(worked, wanted, shots)
    assert len(made) == min(wanted, count // shots)
    assert all(len(prompt.uids) == len(prompt.exemplars) == shots for prompt in made)
    assert [uid for prompt in made for uid in prompt.uids] == [
        str(n) for n in range(len(made) * shots)
    ]


@given(st.sets(st.text()), st.integers(0, 9), st.randoms())
def test_who_is_asked_is_a_function_of_the_set_of_questions(uids, count, random):
    uids = sorted(uids)
    shuffled = list(uids)
    random.shuffle(shuffled)
    found = choose_asked(uids, count, (1, 2, "t"))
    assert found == choose_asked(shuffled, count, (1, 2, "t")) and set(found) <= set(uids)
    assert len(found) == min(count, len(uids))


@given(
    prompts=st.integers(2, 7),
    shots=st.integers(1, 3),
    questions=st.integers(1, 30),
    paths=st.integers(1, 40),
)
def test_every_sample_of_every_question_is_in_one_group_with_its_prompt(
    prompts, shots, questions, paths
):
    made = _made(prompts, shots)
    uids = [str(n) for n in range(questions)]  # the first of them are shown in prompts
    found = groups(uids, paths, made)
    pairs = [(uid, k, group.prompt) for group in found for uid in group.uids for k in group.numbers]
    assert sorted(pairs) == sorted(
        (uid, k, prompt_of(uid, k, made)) for uid in uids for k in range(paths)
    )
    assert all(uid not in made[prompt].uids for uid, _, prompt in pairs)
    assert all(
        prompt == k % prompts for uid, k, prompt in pairs if uid not in made[k % prompts].uids
    )
    names = [(group.prompt, group.standing_in) for group in found]
    assert len(names) == len(set(names))
    # No prompt has more than one sample of a question beyond the fewest, but where one stands in.
    for uid in uids[prompts * shots :]:
        loads = [sum(u == uid and p == n for u, _, p in pairs) for n in range(prompts)]
        assert max(loads) - min(loads) <= 1


def test_a_prompt_that_shows_the_question_is_passed_over():
    made = (FewShot(uids=("a",), exemplars=(ONE,)), FewShot(uids=("b",), exemplars=(ONE,)))
    assert [prompt_of("a", k, made) for k in range(4)] == [1, 1, 1, 1]
    assert [prompt_of("b", k, made) for k in range(4)] == [0, 0, 0, 0]
    assert [prompt_of("c", k, made) for k in range(4)] == [0, 1, 0, 1]
