"""z-loss and label smoothing are T5X's own, value and gradient, on the same scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmsi_jax.config import Loss
from lmsi_jax.interop import t5x as lmsi_t5x
from lmsi_jax.training.losses import token_logits, token_losses
from lmsi_jax.training.packing import Shape, microbatches, weighted_row

if reason := lmsi_t5x.missing():
    pytest.skip(reason, allow_module_level=True)

from t5x import losses as t5x_losses

SHAPE = Shape(microbatches=1, rows=2, length=16, prefix_length=4)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    rows = [
        weighted_row((), rng.integers(3, 300, 2).tolist(), rng.integers(3, 300, 5).tolist(), weight)
        for weight in (0.5, 1.0, 3.0)
    ]
    (one,) = microbatches(rows, SHAPE)
    return one


def _t5x(scores, batch, loss):
    """T5X's weighted sum. Its smoothed loss has the target's entropy taken off."""
    total, _, _ = t5x_losses.compute_weighted_cross_entropy(
        scores,
        batch["tokens"][:, 1:],
        weights=batch["weights"][:, 1:],
        label_smoothing=loss.label_smoothing,
        z_loss=loss.z_loss,
    )
    return total


@pytest.mark.parametrize(
    "loss",
    [
        Loss(),
        Loss(z_loss=1e-2),
        Loss(label_smoothing=0.1, smoothing_constant=True),
        Loss(label_smoothing=0.1, smoothing_constant=True, z_loss=1e-2),
    ],
)
def test_values_and_gradients_are_t5xs(micro_config, micro_params, batch, loss):
    def ours(params):
        return (token_losses(micro_config, params, batch, loss)[0] * batch["weights"]).sum()

    def theirs(params):
        return _t5x(token_logits(micro_config, params, batch), batch, loss)

    (found, gradient), (wanted, expected) = (
        jax.jit(jax.value_and_grad(f))(micro_params) for f in (ours, theirs)
    )
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max() + 1e-3))


def test_without_the_constant_only_the_value_differs_by_the_targets_entropy(
    micro_config, micro_params, batch
):
    loss = Loss(label_smoothing=0.1)
    own = (token_losses(micro_config, micro_params, batch, loss)[0] * batch["weights"]).sum()
    scores = token_logits(micro_config, micro_params, batch)
    off = 0.1 / (micro_config.vocab_size - 1)
    entropy = -(0.9 * np.log(0.9) + (micro_config.vocab_size - 1) * off * np.log(off))
    more = float(entropy * batch["weights"].sum())
    assert float(own) == pytest.approx(float(_t5x(scores, batch, loss)) + more, rel=1e-5)
