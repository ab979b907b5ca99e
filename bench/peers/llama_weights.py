"""One set of random Llama weights that every peer of this architecture starts its training from."""

import numpy as np

from bench.workloads import Model

Layer = dict[str, np.ndarray]


def draw(model: Model) -> tuple[np.ndarray, list[Layer]]:
    """Draws the weights; all norms' scales are one.

    Returns:
      The tied embedding [vocabulary, width], and for each layer q [width, heads * head_dim], k, v
      [width, kv_heads * head_dim], o [heads * head_dim, width], gate, up [width, mlp] and down
      [mlp, width], all float32. A state x of width D times q is the queries of all heads, one head
      after the other. Rotary positions turn the first half of a head against its second, with base
      10,000.
    """
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int, scale: float) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    inner, width = model.heads * model.head_dim, model.width
    outputs = {
        "q": inner,
        "k": model.kv_heads * model.head_dim,
        "v": model.kv_heads * model.head_dim,
    }
    deep = (2 * model.layers) ** -0.5  # what is added to the residual stream starts smaller
    embedding = matrix(model.vocabulary, width, width**-0.5)
    layers = [
        {name: matrix(width, outputs[name], width**-0.5) for name in ("q", "k", "v")}
        | {"o": matrix(inner, width, inner**-0.5 * deep)}
        | {name: matrix(width, model.mlp, width**-0.5) for name in ("gate", "up")}
        | {"down": matrix(model.mlp, width, model.mlp**-0.5 * deep)}
        for _ in range(model.layers)
    ]
    return embedding, layers
