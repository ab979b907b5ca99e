"""Every filter against brute force; shares are exact; the order of the rows never matters."""

import dataclasses
import math
import pathlib
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_rows import LOSSES, exact_count, kept, lowest, row

from lmsi_jax import config
from lmsi_jax.config import (
    AnswerEntropy,
    Cap,
    Difficulty,
    DistinctReasoning,
    DistributionShift,
    ExternalScore,
    ImportanceWeights,
    InstructionFollowing,
    MinConfidence,
    Mixing,
    SelfRating,
)
from lmsi_jax.config.row_filters import FILTERS
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Question, Sample
from lmsi_jax.selection.filters import (
    equations,
    kept_count,
    rating_prompt,
    read_rating,
    reasoning,
    relative_entropy,
    select_hardest,
    word_pairs,
)
from lmsi_jax.selection.rows import NOTHING, Facts, judge, select
from lmsi_jax.voting import vote

EVERY = (
    MinConfidence(),
    Cap(num_samples=2),
    AnswerEntropy(),
    DistinctReasoning(),
    DistributionShift(validation="confident"),
    DistributionShift(),
    ImportanceWeights(),
    SelfRating(),
    ExternalScore(scorer="m:f"),
    InstructionFollowing(),
    Difficulty(),
)
FACTS = Facts(human_losses=(0.5, 1.5))


def _some(seed, n=20):
    draw = random.Random(seed)
    return [
        row(
            f"q{i // 4}",
            i % 4,
            confidence=(i // 4 % 3) / 4 + 0.25,
            entropy=(i // 4 % 3) / 2,
            logprob=-draw.randint(1, 3),
            text=f"{draw.randint(1, 3)} + 4 = 7. The answer is 7.",
            loss=draw.randint(1, 9) / 3,
            question_loss=draw.randint(1, 9) / 3,
            alone_loss=draw.randint(1, 9) / 3,
            rating=float(draw.randint(0, 10)),
            **{"scorer:m:f": draw.randint(-5, 5)},
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("one", EVERY, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_rows_does_not_matter(one, seed):
    rows = _some(seed)
    before = {r.name: v for r, v in zip(rows, judge(one, rows, FACTS), strict=True)}
    random.Random(seed).shuffle(rows)
    after = {r.name: v for r, v in zip(rows, judge(one, rows, FACTS), strict=True)}
    assert before == after
    assert all(v.reason for v in before.values() if not v.weight)


@pytest.mark.parametrize("one", EVERY, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("n", [0, 1])
def test_no_row_and_one_row_are_no_trouble(one, n):
    rows = [row(loss=1.0, question_loss=1.0, alone_loss=2.0, rating=3.0, **{"scorer:m:f": 1})][:n]
    assert kept(judge(one, rows, FACTS)) == [0][: n if one != MinConfidence(confidence=0.6) else 0]


@given(n=st.integers(0, 5000), percent=st.integers(1, 100))
def test_a_share_is_exact_for_every_number_of_rows(n, percent):
    assert kept_count(n, percent / 100) == exact_count(n, percent)


@given(losses=st.lists(LOSSES, max_size=30), percent=st.integers(1, 100))
def test_the_lowest_distribution_shifts_are_kept(losses, percent):
    rows = [row(f"q{i:02}", loss=loss) for i, loss in enumerate(losses)]
    validation = (0.5, 1.5, 2.5)
    found = judge(DistributionShift(share=percent / 100), rows, Facts(human_losses=validation))
    ratios = [np.mean(validation) / loss for loss in losses]
    expected = [ratio if ratio >= 1 else 1 / ratio for ratio in ratios]
    chosen = kept(found)
    assert len(chosen) == exact_count(len(losses), percent)
    left = [expected[i] for i in range(len(losses)) if i not in chosen]
    if left and chosen:
        assert max(expected[i] for i in chosen) <= min(left) * (1 + 1e-12)


@given(losses=st.lists(LOSSES, max_size=30), cap=st.floats(0.1, 5))
def test_importance_weights_are_the_capped_ratios(losses, cap):
    rows = [row(f"q{i:02}", loss=loss) for i, loss in enumerate(losses)]
    found = judge(ImportanceWeights(cap=cap), rows, FACTS)
    for loss, verdict in zip(losses, found, strict=True):
        assert verdict.weight == pytest.approx(min(1.0 / loss, cap), rel=1e-12)


def test_without_labels_the_surest_votes_are_the_validation_set():
    rows = [row(f"q{i}", j, confidence=i / 10, loss=1.0 + i) for i in range(10) for j in range(2)]
    found = judge(ImportanceWeights(validation="confident", surest=0.2, cap=99.0), rows, NOTHING)
    mean = np.mean([1.0 + 8, 1.0 + 9])
    for r, verdict in zip(rows, found, strict=True):
        assert verdict.weight == pytest.approx(mean / r.scores["loss"])


@given(
    counts=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=6),
    percent=st.integers(1, 100),
)
def test_the_entropy_filter_is_the_papers_formula(counts, percent):
    rows, expected = [], []
    for q, votes in enumerate(counts):
        question = Question(uid=f"q{q}", task="t", text="Q: ?", kind="number")
        texts = [f"The answer is {a}." for a, n in enumerate(votes) for _ in range(n)]
        samples = [
            Sample(uid=f"q{q}", sample_index=i, text=t, tokens=3, logprob=-1.0, end="end_token")
            for i, t in enumerate(texts)
        ]
        cast = vote(question, samples)
        m = len(samples)
        u = -sum(n / m * math.log(n / m) for n in votes) / math.log(m) if m > 1 else 0.0
        assert relative_entropy(cast) == pytest.approx(u, abs=1e-12)
        one = row(f"q{q}", entropy=cast.entropy, total=m)
        rows.append(one)
        expected.append(relative_entropy(one.vote))
    found = kept(judge(AnswerEntropy(share=percent / 100), rows, NOTHING))
    assert found == lowest(expected, percent)


@given(ratings=st.lists(st.none() | st.integers(0, 10), max_size=20), percent=st.integers(1, 100))
def test_the_highest_ratings_are_kept_and_unrated_rows_never(ratings, percent):
    rows = [
        row(f"q{i:02}", **({} if rating is None else {"rating": float(rating)}))
        for i, rating in enumerate(ratings)
    ]
    found = judge(SelfRating(share=percent / 100), rows, NOTHING)
    rated = sorted(
        (i for i, rating in enumerate(ratings) if rating is not None),
        key=lambda i: (-ratings[i], i),
    )
    assert kept(found) == sorted(rated[: exact_count(len(ratings), percent)])
    missing = [v.reason for v, rating in zip(found, ratings, strict=True) if rating is None]
    assert set(missing) <= {"no rating was given"}


@given(scores=st.lists(st.integers(-9, 9), max_size=20), percent=st.integers(1, 100))
def test_a_ranker_keeps_its_highest(scores, percent):
    rows = [row(f"q{i:02}", **{"scorer:m:f": score}) for i, score in enumerate(scores)]
    found = kept(judge(ExternalScore(scorer="m:f", share=percent / 100), rows, NOTHING))
    assert found == lowest([-score for score in scores], percent)


@given(
    losses=st.lists(st.tuples(LOSSES, LOSSES), max_size=20),
    percent=st.integers(1, 100),
)
def test_ifd_drops_above_one_and_keeps_the_highest(losses, percent):
    rows = [
        row(f"q{i:02}", question_loss=given, alone_loss=alone)
        for i, (given, alone) in enumerate(losses)
    ]
    found = judge(InstructionFollowing(share=percent / 100), rows, NOTHING)
    ratios = [given / alone for given, alone in losses]
    allowed = sorted((i for i, r in enumerate(ratios) if r <= 1), key=lambda i: (-ratios[i], i))
    assert kept(found) == sorted(allowed[: exact_count(len(rows), percent)])
    for ratio, verdict in zip(ratios, found, strict=True):
        assert (verdict.reason == "the question does not help") == (ratio > 1)


# --- distinct reasoning ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 x $1,500 = $3,000. The answer is 3000.", ("2*1500=3000",)),
        ("First 3 + 4 = 7. Then 7*2=14 pens. The answer is 14.", ("3+4=7", "7*2=14")),
        ("(5 - 2) × 4 = 12", ("(5-2)*4=12",)),
        ("10 ÷ 4 = 2.5 and 5 - 8 = -3", ("10/4=2.5", "5-8=-3")),
        ("No equation here, 7 legs.", ()),
    ],
)
def test_equations_are_read_as_a_person_writes_them(text, expected):
    assert equations(text) == expected


def test_one_sample_is_kept_of_each_list_of_equations_the_likeliest():
    texts = [
        "3 + 4 = 7. The answer is 7.",
        "Well, 3+4=7! So the answer is 7.",
        "4 + 3 = 7. The answer is 7.",
        "It is seven. The answer is 7.",
        "it is  seven. the answer is 7",
    ]
    rows = [row("q", i, text=t, logprob=-5.0 + i % 2) for i, t in enumerate(texts)]
    assert kept(judge(DistinctReasoning(), rows, NOTHING)) == [1, 2, 3]
    assert kept(judge(DistinctReasoning(form="text"), rows, NOTHING)) == [0, 1, 2, 3]
    other = [*rows, row("r", 0, text=texts[0]), row("q", 9, text=texts[0], key="8")]
    assert kept(judge(DistinctReasoning(), other, NOTHING)) == [1, 2, 3, 5, 6]


@given(st.text(max_size=300))
def test_hostile_text_has_a_way_of_reasoning_too(text):
    assert isinstance(reasoning(text, "equations"), tuple)
    assert reasoning(text, "text") == reasoning(f"  {text}\n", "text")


def test_a_long_chain_of_signs_is_read_in_linear_time():
    assert len(equations("1 + " * 5_000 + "= 3 " + "((" * 5_000 + "1" * 9_000)) <= 1


# --- difficulty -----------------------------------------------------------------------------------


def _reference(losses, features, count, neighbours, penalty):
    """The same rule over a dense matrix of similarities."""
    size = len(losses)
    near = np.array(
        [
            [
                len(a & b) / math.sqrt(len(a) * len(b)) if a and b and a & b else 0.0
                for b in features
            ]
            for a in features
        ]
    ).reshape(size, size)
    wanted, chosen = np.array(losses, float), []
    while len(chosen) < min(count, size):
        left = [i for i in range(size) if i not in chosen]
        at = max(left, key=lambda i: (wanted[i], -i))
        chosen.append(at)
        left.remove(at)
        for i in sorted(left, key=lambda i: (-near[at, i], i))[:neighbours]:
            if near[at, i] > 0:
                wanted[i] -= penalty * near[at, i] ** 2 * wanted[at]
    return chosen


@settings(max_examples=50)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 8), st.lists(st.sampled_from("abcd"), max_size=6)), max_size=12
    ),
    count=st.integers(0, 12),
    neighbours=st.integers(0, 4),
    penalty=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_hardest_are_chosen_as_over_a_dense_matrix(rows, count, neighbours, penalty):
    losses = [float(loss) for loss, _ in rows]
    features = [word_pairs(" ".join(words)) for _, words in rows]
    arguments = (losses, features, count, neighbours, penalty)
    assert select_hardest(*arguments) == _reference(*arguments)


def test_a_twin_of_a_chosen_row_gives_way_to_an_easier_one():
    losses, features = [5.0, 4.9, 1.0], [word_pairs(t) for t in ("a b c", "a b c", "x y")]
    assert select_hardest(losses, features, 2, 1, 1.0) == [0, 2]
    assert select_hardest(losses, features, 2, 1, 0.0) == [0, 1]


def test_a_lowered_row_lowers_its_neighbours_by_what_is_left_of_it():
    # Cosine 0.75: 8 - 0.75**2 * 10 = 2.375 is left of the second row, and it takes 0.75**2 * 2.375
    # off the third. Its own 8 would leave less of that one than the last row has.
    texts = ("a b c d e", "z b c d e", "z b c d y", "k l m")
    losses, features = [10.0, 8.0, 2.0, 0.5], [word_pairs(text) for text in texts]
    assert select_hardest(losses, features, 4, 1, 1.0) == [0, 1, 2, 3]


# --- rating ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        (" 8.", 8.0),
        (" 7/10", 7.0),
        (" about 9.5 of 10", 9.5),
        (" 0", 0.0),
        (" 10.", 10.0),
        (" 11.", None),
        (" -3", None),
        (" good", None),
        ("", None),
        ("\n5", None),
    ],
)
def test_a_rating_is_a_number_of_0_to_10(text, rating):
    assert read_rating(text) == rating


def test_the_rating_prompt_shows_question_and_solution():
    prompt = rating_prompt("Q: What is 3 + 4?", "3 + 4 = 7. The answer is 7.")
    assert prompt.startswith("Q: What is 3 + 4?\nA: 3 + 4 = 7. The answer is 7.\n\nQ: ")
    assert prompt.endswith("\nA: The rating is")


@pytest.mark.parametrize(
    "make",
    [
        lambda: AnswerEntropy(share=0.0),
        lambda: DistributionShift(share=1.2),
        lambda: DistributionShift(validation="mine"),
        lambda: ImportanceWeights(cap=0.0),
        lambda: ImportanceWeights(surest=0.0),
        lambda: ExternalScore(scorer="no function"),
        lambda: Mixing(selection=(ExternalScore(scorer="/a/m:f"), ExternalScore(scorer="/b/m:f"))),
        lambda: Cap(num_samples=0),
        lambda: MinConfidence(confidence=2.0),
        lambda: DistinctReasoning(form="words"),
        lambda: Difficulty(neighbours=-1),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(LmsiError):
        make()


def test_without_given_solutions_the_remedy_is_named():
    with pytest.raises(LmsiError, match="use 'confident'"):
        judge(DistributionShift(), [row(loss=1.0)], NOTHING)


def test_the_documents_example_of_a_filter_judges_rows():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "selection.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names = {"__name__": "my_filters"}
    exec(compile(code, "docs/selection.md", "exec"), names)
    rows = [row("q0", 0, text="It is 7."), row("q0", 1, text="It is 7. " * 40)]
    step = select(rows, [names["ShortEnough"]()]).steps[0]
    assert (step.filter, step.kept, step.dropped) == ("ShortEnough", 1, {"the solution is long": 1})


@pytest.mark.parametrize("cls", FILTERS, ids=lambda cls: cls.__name__)
def test_a_filter_of_the_package_is_exported_judges_and_is_documented(cls):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "selection.md").read_text(encoding="utf-8")
    assert getattr(config, cls.__name__) is cls and cls.__name__ in config.__all__
    assert judge.dispatch(cls) is not judge.dispatch(object)
    assert f"| `{cls.__name__}{'.' if dataclasses.fields(cls) else '()'}" in page
