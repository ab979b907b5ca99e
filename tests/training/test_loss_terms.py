"""Each loss and its gradient, packed behind shared prefixes, against float64 loops over rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_losses as reference
from step_losses import loss_and_gradient, step_losses

from lmsi_jax.config import Loss
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.transformer import init_params
from lmsi_jax.training.losses import Teacher, negative_losses, taught, token_logits
from lmsi_jax.training.packing import (
    DistillationRow,
    Shape,
    batches,
    microbatches,
    weighted_row,
)
from lmsi_jax.training.scoring import with_top_k

K = 3
SHAPE = Shape(microbatches=1, rows=2, length=24, prefix_length=6)


def _rows(count=5):
    rng = np.random.default_rng(3)
    prefixes = [(), tuple(rng.integers(3, 300, 5).tolist())]
    return [
        weighted_row(
            prefixes[i % 2],
            rng.integers(3, 300, 2).tolist(),
            rng.integers(3, 300, rng.integers(1, 5)).tolist(),
            [0.5, 1.0, 4.0][i % 3],
            i % 2,
        )
        for i in range(count)
    ]


def _packed(rows, shape=SHAPE):
    ones = list(microbatches(rows, shape))
    assert max(one["segments"].max() for one in ones) > 1  # several examples share a sequence
    return {name: np.stack([one[name] for one in ones]) for name in ones[0]}


@pytest.fixture(scope="module")
def teacher(micro_config):
    """Wider than the student, and surer of itself than fresh weights are."""
    config = dataclasses.replace(micro_config, embed_dim=20, num_layers=1)
    params = init_params(config, jax.random.key(9))
    return Teacher(config=config, params=params | {"embedding": 4 * params["embedding"]})


def _assert_agrees(config, params, loss, rows, batch, token_loss, teacher=None):
    means, gradient = step_losses(config, params, batch, 2, loss, teacher)
    value = lambda p: reference.mean_loss(config, p, rows, token_loss)  # noqa: E731
    assert float(means.total) == pytest.approx(value(params), rel=1e-5)
    plain = reference.mean_loss(
        config, params, rows, lambda r, t, s, y: reference.cross_entropy(s, y)
    )
    assert float(means.cross_entropy) == pytest.approx(plain, rel=1e-5)
    direction = reference.random_direction(params)
    expected = reference.slope(value, params, direction)
    size = reference.dot(gradient, gradient) ** 0.5
    assert reference.dot(gradient, direction) == pytest.approx(expected, abs=2e-4 * size, rel=1e-4)
    return means


@pytest.mark.parametrize(
    "loss",
    [
        Loss(),
        pytest.param(Loss(z_loss=0.1), marks=pytest.mark.slow),
        pytest.param(Loss(label_smoothing=0.2), marks=pytest.mark.slow),
        Loss(label_smoothing=0.2, smoothing_constant=True, z_loss=0.01),
    ],
)
def test_smoothing_and_z_loss(micro_config, micro_params, loss):
    def token_loss(row, at, scores, target):
        s = loss.label_smoothing
        entropy = reference.smoothed(scores, target, s, loss.smoothing_constant) if s else None
        entropy = reference.cross_entropy(scores, target) if entropy is None else entropy
        return entropy + reference.z_term(scores, loss.z_loss)

    rows = _rows()
    means = _assert_agrees(micro_config, micro_params, loss, rows, _packed(rows), token_loss)
    assert (means.total == means.cross_entropy) == loss.plain


def _punishment(loss, q):
    """A punished token's loss and its derivative by the token's own logit, float64."""
    if loss.negatives == "unlikelihood":
        return -np.log(1 - q), q
    low = q < loss.least_probability
    return np.log(np.where(low, loss.least_probability, q)), np.where(low, 0.0, 1 - q)


@pytest.mark.parametrize(
    "loss",
    [
        Loss(negatives="unlikelihood"),
        Loss(negatives="advantage"),
        Loss(negatives="advantage", least_probability=0.3),
    ],
)
def test_the_loss_of_a_punished_token_is_bounded_and_so_is_its_gradient(loss):
    q = np.array([1e-9, 1e-4, 0.0099, 0.0101, 0.2999, 0.3001, 0.5, 0.9, 0.999])
    others = 1.0  # scores (z, 0): q = exp(z) / (exp(z) + 1)

    def of_logit(z):
        return negative_losses(jnp.logaddexp(z, jnp.log(others)) - z, loss)

    logits = jnp.asarray(np.log(q) - np.log1p(-q), jnp.float32)
    values, slopes = _punishment(loss, q)
    np.testing.assert_allclose(of_logit(logits), values, rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(jax.grad(of_logit))(logits), slopes, rtol=2e-3, atol=1e-6)
    certain = negative_losses(jnp.zeros(()), loss)
    assert np.isfinite(certain) and certain < 14
    assert np.isfinite(negative_losses(jnp.asarray(200.0), loss))


def test_punished_rows_count_with_the_size_of_their_weight(micro_config, micro_params):
    loss = Loss(negatives="unlikelihood")
    signs = [1, -1, 1, -1, -1]
    rows = [
        dataclasses.replace(row, weights=[sign * w for w in row.weights])
        for row, sign in zip(_rows(), signs, strict=True)
    ]

    def sums(params):
        """(optimised, cross entropy of the learnt, and the weights of both), float64."""
        found = np.zeros(4)
        for row in rows:
            for _, w, scores, y in reference.targets(micro_config, params, row):
                entropy = reference.cross_entropy(scores, y)
                punishment, _ = _punishment(loss, np.exp(-entropy))
                found += [
                    w * entropy if w > 0 else -w * punishment,
                    max(w, 0) * entropy,
                    abs(w),
                    max(w, 0),
                ]
        return found

    means, gradient = step_losses(micro_config, micro_params, _packed(rows), 2, loss)
    total, entropy, every, learnt = sums(micro_params)
    assert learnt < every
    assert float(means.total) == pytest.approx(total / every, rel=1e-5)
    assert float(means.cross_entropy) == pytest.approx(entropy / learnt, rel=1e-5)
    direction = reference.random_direction(micro_params)

    def value(params):
        total, _, every, _ = sums(params)
        return total / every

    size = reference.dot(gradient, gradient) ** 0.5
    assert reference.dot(gradient, direction) == pytest.approx(
        reference.slope(value, micro_params, direction), abs=2e-4 * size, rel=1e-4
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_teacher_in_memory(micro_config, micro_params, teacher, temperature):
    loss = Loss(distillation="model", distillation_weight=0.7, temperature=temperature, z_loss=0.01)
    rows = _rows()
    known = {
        (id(row), at): scores
        for row in rows
        for at, _, scores, _ in reference.targets(teacher.config, teacher.params, row)
    }

    def token_loss(row, at, scores, target):
        apart = reference.divergence(known[id(row), at], scores, temperature)
        entropy = reference.cross_entropy(scores, target)
        return 0.3 * entropy + 0.7 * apart + reference.z_term(scores, 0.01)

    _assert_agrees(micro_config, micro_params, loss, rows, _packed(rows), token_loss, teacher)


def test_the_teacher_is_left_after_some_steps(micro_config, micro_params, teacher):
    always = Loss(distillation="model", distillation_weight=0.7)
    some = dataclasses.replace(always, distillation_until=3)
    batch = _packed(_rows())
    count = len(batch["prefix"])
    for step, wanted, model in ((3, always, teacher), (4, Loss(), None)):
        given = batch | taught(some, step, count)
        found = step_losses(micro_config, micro_params, given, 2, some, teacher)
        expected = step_losses(micro_config, micro_params, batch, 2, wanted, model)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(LmsiError, match="leave it None"):
        step_losses(micro_config, micro_params, batch, 2, some, teacher)


@pytest.mark.parametrize(("rest", "temperature"), [("bucket", 1.0), ("drop", 1.0), ("drop", 2.0)])
def test_a_teachers_stored_tokens(micro_config, micro_params, teacher, rest, temperature):
    """One row has none: it keeps its cross entropy."""
    loss = Loss(
        distillation="top_k", distillation_weight=0.7, temperature=temperature, rest=rest, top_k=K
    )
    bare = _rows()
    rows = [bare[0], *with_top_k(teacher, bare[1:], SHAPE, K)]

    def token_loss(row, at, scores, target):
        entropy = reference.cross_entropy(scores, target)
        if not isinstance(row, DistillationRow):
            return entropy
        known = (row.teacher_ids[at], row.teacher_logprobs[at].astype(np.float64))
        return 0.3 * entropy + 0.7 * reference.top_k_divergence(*known, scores, temperature, rest)

    batch = _packed(rows, dataclasses.replace(SHAPE, top_k=K))
    _assert_agrees(micro_config, micro_params, loss, rows, batch, token_loss)


def test_rows_are_scored_as_each_stands_alone(micro_config, teacher):
    rows = _rows()
    for row, bare in zip(with_top_k(teacher, rows, SHAPE, K), rows, strict=True):
        assert (row.tokens, row.weights, row.group) == (bare.tokens, bare.weights, bare.group)
        scores = reference.reference_logits(
            teacher.config, teacher.params, [*row.prefix, *row.tokens]
        )
        assert np.isneginf(row.teacher_logprobs[0]).all()
        for at in range(1, len(row.tokens)):
            logprobs = reference.log_softmax(scores[len(row.prefix) + at - 1])
            best = np.argsort(-logprobs)[:K]
            assert row.teacher_ids[at].tolist() == best.tolist()
            np.testing.assert_allclose(
                row.teacher_logprobs[at], logprobs[best], rtol=1e-5, atol=1e-6
            )


@pytest.mark.slow
def test_all_tokens_stored_equal_a_teacher_in_memory(micro_config, micro_params, teacher):
    size = micro_config.vocab_size
    rows = with_top_k(teacher, _rows(), SHAPE, size)
    batch = _packed(rows, dataclasses.replace(SHAPE, top_k=size))
    stored, _ = step_losses(
        micro_config, micro_params, batch, 2, Loss(distillation="top_k", top_k=size)
    )
    loaded, _ = step_losses(
        micro_config, micro_params, _packed(_rows()), 2, Loss(distillation="model"), teacher
    )
    assert float(stored.total) == pytest.approx(float(loaded.total), rel=1e-5)


def test_a_sure_student_still_has_a_finite_gradient(micro_config, micro_params, teacher):
    """Its k tokens have all its probability in float32, where 1 minus their sum would be 0."""
    params = micro_params | {"embedding": 60 * micro_params["embedding"]}
    rows = with_top_k(teacher, _rows(), SHAPE, K)
    batch = _packed(rows, dataclasses.replace(SHAPE, top_k=K))
    means, gradient = step_losses(
        micro_config, params, batch, 2, Loss(distillation="top_k", top_k=K)
    )
    one = {name: value[0] for name, value in batch.items()}
    assert float(jnp.max(jax.nn.softmax(token_logits(micro_config, params, one)))) == 1.0
    assert np.isfinite(float(means.total))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_no_gradient_reaches_the_teacher(micro_config, micro_params, teacher):
    batch = _packed(_rows())

    def total(params):
        one = Teacher(config=teacher.config, params=params)
        return step_losses(micro_config, micro_params, batch, 2, Loss(distillation="model"), one)[
            0
        ].total

    gradient = jax.grad(total)(teacher.params)
    assert all(float(jnp.abs(leaf).max()) == 0.0 for leaf in jax.tree.leaves(gradient))


def test_batches_carry_no_teacher_unless_asked(teacher):
    rows = with_top_k(teacher, _rows(), SHAPE, K)
    assert not [name for name in next(batches(rows, SHAPE)) if "teacher" in name]


def test_the_three_values_are_those_of_the_step(micro_config, micro_params):
    batch, loss = _packed(_rows()), Loss(z_loss=0.1)
    value, gradient, by_group = loss_and_gradient(micro_config, micro_params, batch, 2, loss)
    means, whole = step_losses(micro_config, micro_params, batch, 2, loss)
    assert float(value) == float(means.cross_entropy) < float(means.total)
    np.testing.assert_array_equal(by_group, means.by_group)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), gradient, whole))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z_loss": -1.0}, "Loss.z_loss = -1.0; use 0 or more"),
        ({"label_smoothing": 1.0}, "Loss.label_smoothing"),
        ({"distillation": "topk"}, "Loss.distillation = 'topk'"),
        ({"distillation_weight": 1.5}, "Loss.distillation_weight"),
        ({"temperature": 0.0}, "Loss.temperature"),
        ({"distillation": "top_k", "temperature": 2.0}, "Loss.rest = 'drop'"),
        ({"distillation_until": 5}, "set Loss.distillation to 'model' or 'top_k'"),
        ({"top_k": 0}, "Loss.top_k"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    with pytest.raises(LmsiError, match=message):
        Loss(**changes)


def test_a_missing_or_foreign_teacher_is_named(micro_config, micro_params, teacher):
    batch = _packed(_rows())
    with pytest.raises(LmsiError, match="store them with the rows"):
        step_losses(micro_config, micro_params, batch, 2, Loss(distillation="top_k"))
    with pytest.raises(LmsiError, match="needs a teacher"):
        step_losses(micro_config, micro_params, batch, 2, Loss(distillation="model"))
    other = dataclasses.replace(teacher.config, vocab_size=300)
    foreign = Teacher(config=other, params=teacher.params)
    with pytest.raises(LmsiError, match="300 ids, the student's 320"):
        step_losses(micro_config, micro_params, batch, 2, Loss(distillation="model"), foreign)
