"""The known faults of IWSI's published code, each absent here."""

import ast
import math
import pathlib
import random

import numpy as np
import pytest
from hypothesis import given
from selection_rows import LOSSES, exact_count, kept, row
from step_losses import step_losses

from lmsi_jax import voting
from lmsi_jax.config import DistributionShift, ImportanceWeights
from lmsi_jax.models.transformer import fresh_params
from lmsi_jax.records import Question, Sample
from lmsi_jax.selection.filters import importance, shift
from lmsi_jax.selection.rows import Facts, judge, voted_rows
from lmsi_jax.training.losses import token_losses
from lmsi_jax.training.packing import Shape, batches, weighted_row
from lmsi_jax.training.scoring import target_losses

ONE = Facts(human_losses=(1.0,))
SHAPE = Shape(microbatches=1, rows=2, length=24, prefix_length=8)


def _means(*asked):
    return [float(losses.mean()) for losses in target_losses(*asked)]


# 1. `min(2, w)` and then `max(w, 2)`: every weight was 2.0.
def test_the_weights_of_different_losses_differ_and_none_is_lifted_to_the_cap():
    rows = [row(f"q{i}", loss=loss) for i, loss in enumerate((0.25, 0.8, 1.0, 2.0, 4.0))]
    found = [v.weight for v in judge(ImportanceWeights(cap=2.0), rows, ONE)]
    assert found == [2.0, 1.25, 1.0, 0.5, 0.25]


# 2. The two directions had different caps, 2 and 5.
@given(loss=LOSSES, other=LOSSES)
def test_the_shift_is_the_same_in_both_directions(loss, other):
    up, down = shift(importance([other], loss)), shift(importance([loss], other))
    assert up == pytest.approx(down, rel=1e-12) and up >= 1
    assert shift(1000.0) == shift(1 / 1000.0) == 1000.0


def test_no_shift_is_one_and_nothing_is_capped():
    assert shift(1.0) == 1.0
    assert shift(0.0) == shift(math.inf) == math.inf
    assert importance([2.0], 0.0) == math.inf and importance([0.0], 0.0) == 1.0


# 3. The default percentile's index was out of range.
@pytest.mark.parametrize("percent", [1, 50, 80, 99, 100])
def test_any_share_of_any_number_of_rows_is_kept(percent):
    for n in range(60):
        rows = [row(f"q{i:02}", loss=1.0 + i) for i in range(n)]
        found = judge(DistributionShift(share=percent / 100), rows, ONE)
        assert len(kept(found)) == exact_count(n, percent)


# 4. The loss had the question's tokens in it, and an EOS stood before the answer.
def test_the_loss_is_that_of_the_answers_tokens_alone(micro_config):
    params = fresh_params(micro_config, 3)
    draw = random.Random(0)
    tokens = [draw.randrange(5, micro_config.vocab_size) for _ in range(18)]
    prefix, inputs, targets = tokens[:5], tokens[5:11], tokens[11:]
    row_ = weighted_row(prefix, inputs, targets, 1.0)
    (found,) = _means(micro_config, params, [row_], SHAPE)
    # The same tokens as one row without a prefix: nothing stands between question and answer.
    whole = weighted_row([], tokens, [], 0.0)
    (batch,) = batches([whole], SHAPE)
    one = {name: value[0] for name, value in batch.items()}
    entropies = np.asarray(token_losses(micro_config, params, one)[1])[0]
    assert found == pytest.approx(entropies[11:18].mean(), rel=1e-4)
    assert found != pytest.approx(entropies[1:18].mean(), rel=1e-3)


def test_the_stage_puts_nothing_between_question_and_answer_nor_behind_it():
    from lmsi_jax.pipeline.score import tokenize_solution

    class Letters:
        start_ids, eos_id = (), 1

        def encode(self, text):
            return [ord(letter) for letter in text]

    made = tokenize_solution(Letters(), "ab", "Q: ?\nA:", "yes")
    assert list(made.prefix) == [ord(c) for c in "ab"]
    assert made.tokens == [ord(c) for c in "Q: ?\nA: yes"]
    assert made.weights == [0.0] * len("Q: ?\nA:") + [1.0] * len(" yes")
    assert 1 not in made.tokens


@pytest.mark.parametrize("padding", [0, 5])
def test_rows_are_scored_as_if_alone(micro_config, padding):
    params = fresh_params(micro_config, 3)
    rows = [weighted_row([7, 8], [9, 10 + i], [11, 12, 13 + i], 1.0) for i in range(5)]
    together = _means(micro_config, params, rows, SHAPE)
    wide = Shape(microbatches=1, rows=1, length=24 + padding, prefix_length=8 + padding)
    alone = [_means(micro_config, params, [one], wide)[0] for one in rows]
    assert together == pytest.approx(alone, rel=1e-5)


# 5. Answers went through int(float(x)) and a regex that lost the minus sign.
@pytest.mark.parametrize(("one", "other"), [("3.7", "3.2"), ("-5", "5"), ("3", "3.2")])
def test_different_numbers_never_vote_together(one, other):
    question = Question(uid="q", task="t", text="Q: ?", kind="number")
    samples = [
        Sample(
            uid="q",
            sample_index=i,
            text=f" The answer is {a}.",
            tokens=4,
            logprob=-1.0,
            end="end_token",
        )
        for i, a in enumerate((one, other, one))
    ]
    found = voting.vote(question, samples)
    assert found.kept == (0, 2) and len(set(found.keys)) == 2
    assert [r.answer for r in voted_rows(question, samples, found)] == [one, one]


# 6. The weighted loss was a mean over padding too, and not over the weights.
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.25, 2.0)])
def test_the_weighted_loss_is_a_mean_over_the_targets_weights(weights, micro_setup):
    config, params = micro_setup
    rows = [
        weighted_row([7], [9, 10], [11, 12], weights[0]),
        weighted_row([7], [14], [15, 16, 17, 18], weights[1]),
    ]
    (batch,) = batches(rows, SHAPE)
    found = float(step_losses(config, params, batch, 1)[0].cross_entropy)
    means = _means(config, params, rows, SHAPE)
    tokens = [weights[0] * 2, weights[1] * 4]
    expected = sum(t * mean for t, mean in zip(tokens, means, strict=True)) / sum(tokens)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def micro_setup(micro_config):
    return micro_config, fresh_params(micro_config, 3)


# 7. Gradient accumulation wrapped the whole epoch.
def test_a_step_is_its_own_microbatches_however_the_rows_are_cut(micro_setup):
    import jax

    config, params = micro_setup
    rows = [weighted_row([7], [9], [11, 12 + i], 0.5 + i) for i in range(4)]
    found = []
    for count in (1, 2):  # each packed sequence has room for one row
        shape = Shape(microbatches=count, rows=4 // count, length=3, prefix_length=2)
        (batch,) = batches(rows, shape)
        found.append(step_losses(config, params, batch, 1))
    (one, gradient), (two, other) = found
    assert float(one.cross_entropy) == pytest.approx(float(two.cross_entropy), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-3, atol=1e-5)


# 8. Seeds came from the clock.
def test_selection_is_a_function_of_its_rows():
    rows = [row(f"q{i}", loss=1.0) for i in range(10)]  # all equal: ties everywhere
    first = judge(DistributionShift(), rows, ONE)
    assert kept(first) == list(range(8))
    assert all(judge(DistributionShift(), rows, ONE) == first for _ in range(3))


def test_no_module_of_selection_knows_a_clock_or_chance():
    import lmsi_jax.selection

    (folder,) = lmsi_jax.selection.__path__
    files = list(pathlib.Path(folder).glob("*.py"))
    assert files
    for file in files:
        tree = ast.parse(file.read_text())
        assert not _imported(tree) & {"time", "datetime", "secrets"}, file
        assert not _unseeded(tree), file


def _unseeded(tree: ast.Module) -> list[str]:
    """Returns uses of `random` other than drawing from a generator with a seed."""
    plain = {"import random"}
    imports = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and "random" in ast.unparse(node)
    ]
    seeded = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and (node.args or node.keywords)
    }
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    uses = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random"
    ]
    wrong = [
        ast.unparse(node)
        for node in uses
        if node.attr != "Random" or (id(node) in called and id(node) not in seeded)
    ]
    return [*(one for one in imports if one not in plain), *wrong]


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("import random\nx = random.Random('a seed').random()", 0),
        ("import random\nx = random.Random()", 1),
        ("import random\nx = random.random()", 1),
        ("from random import shuffle", 1),
        ("import os, random as r", 1),
    ],
)
def test_a_generator_without_a_seed_is_seen(source, wrong):
    assert len(_unseeded(ast.parse(source))) == wrong


@pytest.mark.parametrize(
    "source", ["import random", "from random import shuffle", "import os.path, random as r"]
)
def test_chance_is_seen_however_it_is_imported(source):
    assert "random" in _imported(ast.parse(source))


def _imported(tree):
    """The top-level modules that a syntax tree imports, in either form."""
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}
