"""Defines the training benchmark: batches of random tokens, AdamW, and the roofline."""

import dataclasses

import numpy as np

from bench.workloads import LLAMA_1B, MODEL, QWEN25_05B, SMOLLM2_135M, Model

# AdamW with decoupled weight decay, constant rate, no clipping; the same for every system.
LEARNING_RATE = 1e-3
B1, B2, EPSILON = 0.9, 0.99, 1e-8
WEIGHT_DECAY = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """Optimiser steps over full rows, each row one text whose every next token is learnt.

    Attributes:
      name: how commands call it.
      model: the decoder's shape.
      rows: texts of one step.
      length: tokens of each.
    """

    name: str
    model: Model = MODEL
    rows: int = 16
    length: int = 512

    @property
    def tokens(self) -> int:
        """Tokens that one step reads."""
        return self.rows * self.length

    @property
    def predictions(self) -> int:
        """Tokens that one step learns: all but the first of each row."""
        return self.rows * (self.length - 1)


_SMALL = Model(layers=2, width=64, heads=2, kv_heads=2, head_dim=32, mlp=128, vocabulary=512)
STEPS = {
    steps.name: steps
    for steps in (
        Steps(name="train"),
        Steps(name="train_1b", model=LLAMA_1B, length=1024),
        Steps(name="train_d", model=SMOLLM2_135M),
        Steps(name="train_e", model=QWEN25_05B),
        # Not a measurement: seconds instead of minutes, to see that a system runs.
        Steps(name="smoke", model=_SMALL, rows=4, length=32),
    )
}


def batch(steps: Steps, number: int) -> np.ndarray:
    """Draws the token ids of a step, [rows, length] int32, without 0 and 1 (padding, end)."""
    rng = np.random.default_rng(number)
    size = (steps.rows, steps.length)
    return rng.integers(2, steps.model.vocabulary, size).astype(np.int32)


def flops_per_token(steps: Steps) -> float:
    """Returns the FLOPs of forward and backward pass per token, averaged over a row.

    6 for each weight that is multiplied: 2 forward, 4 backward. The lookup of embeddings multiplies
    nothing, the tied output does. Attention is causal: position p attends to p + 1, its own
    included, at 4 FLOPs per position and unit of width forward, and twice that backward.
    """
    model = steps.model
    weights = model.block_parameters + model.vocabulary * model.width
    inner = model.heads * model.head_dim
    return 6 * weights + 12 * model.layers * inner * (steps.length + 1) / 2


def roofline(steps: Steps, matmul_rate: float) -> dict[str, float]:
    """Returns the least time of a step on a machine with this matmul rate.

    Nothing is computed twice; the optimiser's own work and memory traffic are not counted. At
    485 GFLOP/s it is 2,028 tokens/s for the 37.7 M model and 512 tokens. With attention counted in
    full, masked half included, as is often done, it would be 1,927.

    Args:
      steps: what is trained.
      matmul_rate: FLOP/s in the type of the model's products.

    Returns:
      FLOPs and seconds of one step, and tokens/s.
    """
    flops = flops_per_token(steps) * steps.tokens
    seconds = flops / matmul_rate
    return {"flops": flops, "seconds": seconds, "tokens_per_s": steps.tokens / seconds}
