"""Rotated options: what is shown, how letters are mapped back, and what a vote over them is."""

import collections
import dataclasses
import types

import pytest

from lmsi_jax import answers, mixing, voting
from lmsi_jax.config import Augmentation, ModelConfig, Preference, Run, Sampling, Training, Voting
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.context import read_samples
from lmsi_jax.pipeline.sample import make_jobs
from lmsi_jax.prompts import PLAIN
from lmsi_jax.records import CustomRules, Exemplar, Question, Sample
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.selection.rows import voted_rows

ARC = "Q: Which is a metal?\n(a) iron, of course (b) oak (c) wool (d) glass"
AQUA = "Q: How far?\nAnswer Choices: (a) 10 km (b) 12 km (c) 14 km (d) 15 km (e) 18 km"
WHO = "Q: Who has more?\n(a) Eva (b) June (c) both the same"
LINES = "Q: Pick one.\nA. red\nB. green\nC. blue"
EXEMPLARS = (Exemplar(question="Q: 1 or 2?\n(a) 1 (b) 2", reasoning="One.", answer="(a)"),)
ROTATING = Voting(rotate_options=True)


def _question(text=ARC, uid="q", **more):
    return Question(uid=uid, task="t", text=text, kind="choice", **more)


def _sample(index, text, uid="q"):
    return Sample(uid=uid, sample_index=index, text=text, tokens=3, logprob=-1.0, end="end_token")


@pytest.mark.parametrize("text", [ARC, AQUA, LINES, WHO])
def test_a_rotation_moves_the_texts_of_the_options_and_nothing_else(text):
    question = _question(text, gold="(a)", also=("(b)",))
    own = answers.options_of(question)
    assert answers.rotations(question) == len(own)
    for by in range(2 * len(own)):
        asked = answers.rotate(question, by)
        turn = by % len(own)
        assert answers.options_of(asked) == own[turn:] + own[:turn]
        assert collections.Counter(asked.text) == collections.Counter(text)
        assert asked.text[:10] == text[:10] and asked.uid == "q"
        assert (asked.gold, asked.also) == ((None, ()) if turn else ("(a)", ("(b)",)))
        for place, option in enumerate(answers.options_of(asked)):
            letter = answers.unrotated_letter("abcde"[place], turn, len(own))
            assert own["abcde".index(letter)] == option


@pytest.mark.parametrize(
    "options",
    [
        "(a) one (b) two (c) both (a) and (b)",
        "(a) one (b) two (c) none of the above",
        "(a) one (b) two (c) neither of them",
        "(a) one (b) two (c) A and B",
        "(a) one",
        "",
    ],
)
def test_options_that_name_others_keep_their_order(options):
    question = _question(f"Q: Which?\n{options}")
    assert answers.rotations(question) == 1 and answers.rotate(question, 1) is question


def test_other_kinds_and_a_users_equality_are_not_rotated():
    assert answers.rotations(dataclasses.replace(_question(), kind="number")) == 1
    ruled = dataclasses.replace(_question(), rules=CustomRules(equal=str.__eq__))
    assert answers.rotations(ruled) == 1
    assert answers.rotations(dataclasses.replace(_question(), rules=CustomRules())) == 4


def _cast(question, texts, rule=ROTATING):
    samples = [_sample(k, text) for k, text in enumerate(texts)]
    reader = voting.AnswerReader(rule.conclusions, rule.rotate_options)
    readings = reader.read(question, samples)
    assert readings == reader.read(question, samples)  # also those that it remembers
    return samples, voting.cast(question, samples, rule, readings=readings)


def test_a_model_that_likes_a_place_gives_no_option_more_votes():
    texts = ["The answer is (a)."] * 8
    _, biased = _cast(_question(), texts, Voting())
    assert (biased.winner, biased.confidence) == ("a", 1.0)
    _, fair = _cast(_question(), texts)
    assert collections.Counter(fair.keys) == dict.fromkeys("abcd", 2)
    assert fair.surfaces == ("(a)",) * 8


def test_a_model_that_knows_the_option_is_unanimous_by_letter_and_by_text():
    question = _question()
    texts = []
    for k in range(8):
        place = answers.options_of(answers.rotate(question, k)).index("wool")
        by_letter = f"The answer is ({'abcd'[place]})."
        texts.append(by_letter if k % 3 else "The answer is wool.")
    _, vote = _cast(question, texts)
    assert (vote.winner, vote.confidence) == ("c", 1.0)


def test_a_letter_after_the_last_option_stays_unread():
    _, vote = _cast(_question(), ["The answer is (f).", "The answer is (b)."])
    assert vote.keys == (None, "c")


def test_a_sample_is_learnt_after_the_order_in_which_it_was_asked():
    question = _question()
    samples, vote = _cast(
        question, ["The answer is (b).", "The answer is (a).", "The answer is (c)."]
    )
    assert vote.winner == "b" and vote.kept == (0, 1)
    rows = [
        dataclasses.replace(row, question=voting.as_asked(row.question, row.sample, ROTATING))
        for row in voted_rows(question, samples, vote)
    ]
    examples = mixing.examples(question, [(row, 1.0) for row in rows], EXEMPLARS)
    assert len(examples) == 8  # two rotations in four formats
    for example in examples:
        letter = example.targets[-3]
        asked = _question(example.inputs.split("\nA:")[0])
        assert answers.options_of(asked)["abcd".index(letter)] == "oak"


def test_jobs_share_each_questions_samples_over_its_rotations(tmp_path):
    questions = [_question(uid="four"), _question(LINES, uid="three"), _question("Q: ?", uid="no")]
    settings = types.SimpleNamespace(voting=ROTATING)
    round = types.SimpleNamespace(settings=settings, context=types.SimpleNamespace(prompts=PLAIN))
    jobs = make_jobs(round, "t-cot", questions, EXEMPLARS, "cot", Sampling(num_samples=6))
    drawn = collections.defaultdict(list)
    store = ShardStore(tmp_path)
    for job in jobs:
        for uid, text in job.questions.items():
            whole = next(question for question in questions if question.uid == uid)
            numbers = range(6) if job.numbers is None else job.numbers
            for k in numbers:
                assert text.startswith(answers.rotate(whole, k).text)
            drawn[uid] += numbers
        rows = [_sample(k, "x", uid) for uid in job.questions for k in job.numbers or range(6)]
        store.write(f"{job.name}-00000-of-00001", [row.to_json() for row in rows])
    assert {uid: sorted(numbers) for uid, numbers in drawn.items()} == dict.fromkeys(
        ("four", "three", "no"), list(range(6))
    )
    read = read_samples(store, "t-cot")
    assert {uid: [s.sample_index for s in rows] for uid, rows in read.items()} == dict.fromkeys(
        ("four", "three", "no"), list(range(6))
    )
    assert read_samples(store, "t") == {}
    settings.voting = Voting()
    (plain,) = make_jobs(round, "t-cot", questions, EXEMPLARS, "cot", Sampling(num_samples=6))
    assert (plain.name, plain.numbers, len(plain.questions)) == ("t-cot", None, 3)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"augmentation": Augmentation(prompts=2)}, "Augmentation.prompts; set one of them"),
        ({"sampling": Sampling(adaptive_consistency=0.95)}, "adaptive_consistency judges samples"),
        ({"training": Training(preference=Preference())}, "both members of a pair follow one"),
    ],
)
def test_what_needs_one_prompt_refuses_rotations(change, words):
    model = ModelConfig(
        vocab_size=8, embed_dim=4, num_layers=1, num_heads=1, head_dim=4, mlp_dim=4, max_length=8
    )
    with pytest.raises(LmsiError, match=words):
        Run(output_dir="x", model=model, voting=ROTATING, **change)
