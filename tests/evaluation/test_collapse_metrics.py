"""Metrics of a round against NumPy and plain loops, and their invariances."""

import collections
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax import voting
from lmsi_jax.evaluation.collapse import EASY, measure
from lmsi_jax.records import Example, Question, Sample

WORDS = ("3", "+", "4", "is", "7", ".", "so", "she", "has")


def _round(seed, questions=12, m=8, gold=True):
    """Random questions, samples, votes and rows of a round; some samples do not parse."""
    draw = random.Random(seed)
    asked, paths, rows = [], {}, []
    for number in range(questions):
        uid, skill = f"q{number}", draw.random()
        asked.append(
            Question(uid=uid, task="t", text="Q: ?", kind="number", gold="7" if gold else None)
        )
        own = []
        for index in range(m):
            text = " ".join(draw.choices(WORDS, k=draw.randint(0, 9)))
            answer = "7" if draw.random() < skill else str(draw.randint(1, 6))
            if draw.random() < 0.9:
                text += f" The answer is {answer}."
            own.append(_path(uid, index, text, draw.randint(1, 40)))
        paths[uid] = own
    votes = [voting.vote(question, paths[question.uid]) for question in asked]
    for vote in votes[:-2]:
        rows += [_row(vote.uid, draw.random()) for _ in vote.kept]
    return asked, paths, votes, [*rows, _row("human-t-0", 5.0)]


def _path(uid, index, text, tokens=3):
    return Sample(
        uid=uid, sample_index=index, text=text, tokens=tokens, logprob=-1.0, end="end_token"
    )


def _row(uid, weight):
    texts = {"prefix": "", "inputs": "Q", "targets": "A"}
    return Example(
        uid=uid, task="t", format="few_shot_cot", source="self_generated", weight=weight, **texts
    )


def _words(text):
    words, word = [], ""
    for char in text + " ":
        if char.isalnum() or char == "_":
            word += char
            continue
        if word:
            words.append(word)
        word = ""
        if not char.isspace():
            words.append(char)
    return words


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_those_of_plain_loops(seed):
    asked, paths, votes, rows = _round(seed)
    metrics = measure(asked, paths, votes, rows)
    keys = np.array([[key or "" for key in vote.keys] for vote in votes])
    m = keys.shape[1]
    shares, entropies, passed, right = [], [], [], []
    for own in keys:
        counts = collections.Counter(key for key in own if key)
        p = np.array(list(counts.values()), float) / max(1, sum(counts.values()))
        entropies.append(float(-(p * np.log(p)).sum()) / math.log(m) if counts else 0.0)
        shares.append(max(counts.values(), default=0) / m)
        passed.append("7" in counts)
        right.append(np.mean(own == "7"))
    assert metrics.questions == len(asked) and metrics.samples == keys.size
    assert metrics.confidence == pytest.approx(np.mean(shares))
    assert metrics.entropy == pytest.approx(np.mean(entropies))
    assert metrics.unparsed == pytest.approx(np.mean(keys == ""))
    assert metrics.easy == pytest.approx(np.mean(np.array(shares) > EASY))
    assert metrics.length == pytest.approx(np.mean([p.tokens for o in paths.values() for p in o]))
    assert metrics.scored.passed == pytest.approx(np.mean(passed))
    assert metrics.scored.single == pytest.approx(np.mean(right))
    assert metrics.scored.majority == pytest.approx(np.mean([v.winner == "7" for v in votes]))
    assert metrics.empty == pytest.approx(np.mean([not any(own) for own in keys]))
    ways = [len({p.text for p in paths[v.uid] if p.sample_index in v.kept}) for v in votes]
    assert metrics.distinct_kept == pytest.approx(np.mean(ways))
    own = [row for row in rows if row.uid in paths]
    easy = {v.uid for v in votes if v.confidence > EASY}
    weights = [sum(r.weight for r in own if r.uid in easy), sum(r.weight for r in own)]
    assert (metrics.rows, metrics.kept) == (len(own), len({r.uid for r in own}) / len(asked))
    assert metrics.easy_weight == pytest.approx(weights[0] / weights[1])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_is_the_share_of_different_n_grams_of_a_question(n):
    asked, paths, votes, _ = _round(4)
    shares = []
    for own in paths.values():
        grams = []
        for path in own:
            words = _words(path.text)
            grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        shares.append(len(set(grams)) / len(grams))
    assert measure(asked, paths, votes).distinct[n - 1] == pytest.approx(np.mean(shares))


def test_distinct_n_of_texts_counted_by_hand():
    assert _distinct(["a b a", "a b"]) == (2 / 5, 2 / 3, 1.0)
    assert _distinct(["1+1=2", "1 + 1 = 2"])[2] == 1 / 2
    assert _distinct(["", "a"]) == (1.0, 0.0, 0.0)  # without any n-gram of two words
    assert _distinct(["a b a", "a b"], ["", "a"]) == (
        7 / 10,
        2 / 3,
        1.0,
    )  # questions without one are left out


def _distinct(*questions):
    """Distinct-n of the given samples, one list a question."""
    asked = [
        Question(uid=f"q{i}", task="t", text="Q: ?", kind="number") for i in range(len(questions))
    ]
    paths = {
        q.uid: [_path(q.uid, k, text) for k, text in enumerate(texts)]
        for q, texts in zip(asked, questions, strict=True)
    }
    votes = [voting.vote(question, paths[question.uid]) for question in asked]
    return measure(asked, paths, votes).distinct


@given(st.integers(0, 10**6))
def test_neither_the_order_of_the_samples_nor_of_the_questions_matters(seed):
    asked, paths, votes, rows = _round(seed, questions=5, m=4)
    draw = random.Random(seed)
    order = draw.sample(range(5), 5)
    mixed = {uid: draw.sample(own, len(own)) for uid, own in paths.items()}
    again = [voting.vote(asked[i], mixed[asked[i].uid]) for i in order]
    metrics = measure([asked[i] for i in order], mixed, again, draw.sample(rows, len(rows)))
    before = measure(asked, paths, votes, rows)
    for name in ("questions", "samples", "easy", "kept", "rows"):
        assert getattr(metrics, name) == getattr(before, name)
    assert metrics.entropy == pytest.approx(before.entropy)
    assert metrics.distinct == pytest.approx(before.distinct)


@given(st.integers(0, 10**6))
def test_all_shares_are_shares_and_accuracies_are_in_order(seed):
    metrics = measure(*_round(seed, questions=5, m=4))
    shares = (
        metrics.confidence,
        metrics.entropy,
        *metrics.distinct,
        metrics.unparsed,
        metrics.easy,
    )
    assert all(0 <= share <= 1 for share in (*shares, metrics.kept, metrics.easy_weight))
    assert metrics.scored.single <= metrics.scored.passed
    assert metrics.scored.majority <= metrics.scored.passed


def test_without_gold_rows_or_anything_at_all():
    asked, paths, votes, _ = _round(1, gold=False)
    metrics = measure(asked, paths, votes)
    assert (metrics.scored, metrics.kept, metrics.rows, metrics.easy_weight) == (
        None,
        None,
        None,
        None,
    )
    assert measure(asked, paths, votes, []).kept == 0.0
    nothing = measure([], {}, [])
    assert (nothing.questions, nothing.confidence, nothing.length) == (0, 0.0, 0.0)


def test_equal_samples_have_the_smallest_distinct_n():
    question = Question(uid="q", task="t", text="Q: ?", kind="number")
    paths = [_path("q", i, "1 + 1 is 2. The answer is 2.") for i in range(5)]
    metrics = measure([question], {"q": paths}, [voting.vote(question, paths)])
    assert (metrics.confidence, metrics.entropy, metrics.easy) == (1.0, 0.0, 1.0)
    one = measure([question], {"q": paths[:1]}, [voting.vote(question, paths[:1])])
    assert metrics.distinct[1] == pytest.approx(one.distinct[1] / 5)
