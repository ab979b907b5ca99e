"""The decoder's shape."""

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A PaLM-style decoder (Chowdhery et al. 2022, section 2).

    Parallel attention and gated MLP, rotary positions, RMS norm, no biases, embeddings shared
    between input and output. `num_kv_heads=1` is multi-query attention, `num_heads` multi-head.

    Attributes:
      max_length: longest sequence, prompt and continuation together, that the model may see.
      windows: sliding windows in tokens, cycled over the layers (Beltagy et al. 2020, section
        3.1). A query at position p sees the keys at positions above p - window, so `window` keys
        with its own, as `sliding_window` counts in Hugging Face's configurations; 0 sees all
        earlier keys. `(4096, 0)` is Gemma 2's pattern.
      attention_softcap: attention scores become cap * tanh(score / cap) before the mask (Gemma 2,
        Riviere et al. 2024, section 2); 0.0 leaves them alone.
      logits_softcap: the same for the scores of the tokens.
      remat: what training computes anew on the backward pass instead of keeping it: "none",
        "layer" (all but each layer's input; Chen et al. 2016) or "dots" (all but the layer's input
        and its products with weights).
      scan_layers: whether training runs the layers as a loop over their stacked weights, so that
        compilation takes no longer with depth; parameters and checkpoints stay by layer.
      query_block: queries that attention takes at once in training; 0: as the code sees fit, by
        shapes alone.

    Raises:
      ValueError: sizes that do not fit each other, a window or a cap out of range.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_kv_heads: int = 1
    max_length: int = 1024
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-6
    windows: tuple[int, ...] = (0,)
    attention_softcap: float = 0.0
    logits_softcap: float = 0.0
    remat: Literal["none", "layer", "dots"] = "none"
    scan_layers: bool = False
    query_block: int = 0

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} must be even: rotary positions pair its halves"
            )
        if self.remat not in ("none", "layer", "dots"):
            raise ValueError(f"ModelConfig.remat = {self.remat!r}; use none, layer or dots")
        self._check_attention()

    def _check_attention(self) -> None:
        windows = self.windows
        # A tuple, not a list: configurations are arguments of compiled functions and are hashed.
        if not isinstance(windows, tuple) or not windows:
            raise ValueError(
                f"ModelConfig.windows = {windows!r} must be a tuple, (0,) or (4096, 0)"
            )
        if any(type(window) is not int or window < 0 for window in windows):
            raise ValueError(f"ModelConfig.windows = {windows!r} must be whole numbers, 0 or above")
        for name in ("attention_softcap", "logits_softcap"):
            cap = getattr(self, name)
            if not (isinstance(cap, (int, float)) and 0 <= cap < math.inf):
                raise ValueError(f"ModelConfig.{name} = {cap!r} must be above 0, or 0.0 for none")

    def window(self, layer: int) -> int:
        """Tokens that a query of the layer sees, its own included; 0 for all earlier ones."""
        return self.windows[layer % len(self.windows)]

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        queries = self.num_heads * self.head_dim
        keys = 2 * self.num_kv_heads * self.head_dim
        per_layer = self.embed_dim * (2 * queries + keys + 3 * self.mlp_dim + 1)
        return self.vocab_size * self.embed_dim + self.num_layers * per_layer + self.embed_dim
