"""The decoder's shape."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A PaLM-style decoder (Chowdhery et al. 2022, section 2).

    Parallel attention and gated MLP, rotary positions, RMS norm, no biases, embeddings shared
    between input and output. `num_kv_heads=1` is multi-query attention, `num_heads` multi-head.

    Attributes:
      max_length: longest sequence, prompt and continuation together, that the model may see.
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

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} must be even: rotary positions pair its halves"
            )

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        queries = self.num_heads * self.head_dim
        keys = 2 * self.num_kv_heads * self.head_dim
        per_layer = self.embed_dim * (2 * queries + keys + 3 * self.mlp_dim + 1)
        return self.vocab_size * self.embed_dim + self.num_layers * per_layer + self.embed_dim
