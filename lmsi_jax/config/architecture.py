"""The decoder's shape.

How rotary positions are stretched to sequences longer than a model was first trained on.

Each class is one value of `ModelConfig.rope_scaling`; `positions` has the formulas.
"""

import dataclasses
import math
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions are divided by `factor` (Chen et al. 2023, section 2.3); Gemma 3's global layers.

    Raises:
      ValueError: a factor below 1.
    """

    factor: float
    kind: str = dataclasses.field(default="linear", init=False)

    def __post_init__(self) -> None:
        _check(self, self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's: low frequencies are divided by `factor`, high ones stay (Dubey et al. 2024).

    Attributes:
      factor: what low frequencies are divided by.
      low_freq_factor: frequencies of fewer turns than this in `original_length` are low.
      high_freq_factor: those of more are high; between the two the divisor is interpolated.
      original_length: tokens that the model was first trained on.

    Raises:
      ValueError: values out of range.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192
    kind: str = dataclasses.field(default="llama3", init=False)

    def __post_init__(self) -> None:
        _check(self, self.factor)
        _check_order(self, "low_freq_factor", "high_freq_factor")
        _check_length(self, self.original_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, section 3): interpolation by parts, and sharper attention.

    Attributes:
      factor: what low frequencies are divided by.
      original_length: tokens that the model was first trained on.
      beta_fast: frequencies of more turns than this in `original_length` stay.
      beta_slow: those of fewer are divided; between the two lies a ramp over the dimensions.
      attention_factor: queries and keys are multiplied by it; 0.0 stands for the paper's
        0.1 ln(factor) + 1.
      truncate: whether the ramp begins and ends at whole dimensions, as in the authors' code.

    Raises:
      ValueError: values out of range.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    truncate: bool = True
    kind: str = dataclasses.field(default="yarn", init=False)

    def __post_init__(self) -> None:
        _check(self, self.factor)
        _check_order(self, "beta_slow", "beta_fast")
        _check_length(self, self.original_length)
        if not 0 <= self.attention_factor < math.inf:
            raise ValueError(
                f"YarnScaling.attention_factor = {self.attention_factor} must be above 0, "
                "or 0.0 for the paper's"
            )


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


def from_json(fields: dict[str, Any]) -> RopeScaling:
    """Returns the scaling that `dataclasses.asdict` has written; its `kind` says which."""
    kinds: dict[str, type[RopeScaling]] = {
        one.kind: one for one in (LinearScaling, Llama3Scaling, YarnScaling)
    }
    values = dict(fields)
    return kinds[values.pop("kind")](**values)


def _check(scaling: object, factor: float) -> None:
    if not 1 <= factor < math.inf:
        raise ValueError(f"{type(scaling).__name__}.factor = {factor} must be at least 1")


def _check_order(scaling: object, low: str, high: str) -> None:
    if not 0 < getattr(scaling, low) < getattr(scaling, high):
        raise ValueError(f"{type(scaling).__name__}: {low} must be above 0 and below {high}")


def _check_length(scaling: object, length: int) -> None:
    if length < 1:
        raise ValueError(f"{type(scaling).__name__}.original_length = {length} must be at least 1")


MATRICES = ("query", "key", "value", "attention_out", "gate", "up", "down")
"""A layer's matrices, [in, out] each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder; what is not set is PaLM's (Chowdhery et al. 2022, section 2).

    That is: attention and gated MLP side by side, rotary positions, RMS norm, no biases, embeddings
    shared between input and output. Llama 3, Qwen 2.5, Qwen 3, Gemma 2 and Gemma 3 are other values
    of the same fields; `gin_configs/models/` has their published sizes, docs/models.md a table.

    Attributes:
      num_kv_heads: 1 is multi-query attention, `num_heads` multi-head.
      head_dim: of each head; need not be embed_dim / num_heads.
      max_length: longest sequence, prompt and continuation together, that the model may see.
      block: "parallel" adds attention and MLP of one normalised input (PaLM); "sequential"
        normalises before attention, adds it, normalises again before the MLP, adds that.
      post_norms: "sequential" only: attention's and the MLP's outputs are normalised too before
        they are added (Gemma 2).
      norm_plus_one: norms multiply by 1 + their weight (Gemma), not by the weight.
      qk_norm: each head's query and key are normalised before they are rotated (Qwen 3, Gemma 3).
      biases: the matrices, of `MATRICES`, whose products have a bias; Qwen 2.5's are query, key and
        value.
      activation: of the MLP's gate: "silu", or "gelu" in its tanh form (Gemma).
      query_scalar: attention scores are divided by its root; 0.0 stands for head_dim. Hugging
        Face's `query_pre_attn_scalar`.
      rope_theta: base of the rotary frequencies.
      rope_scaling: how they are stretched; None: not at all.
      local_rope_theta: base in layers with a window, where nothing is stretched (Gemma 3); 0.0:
        they are as the others.
      windows: sliding windows in tokens, cycled over the layers (Beltagy et al. 2020, section
        3.1). A query at position p sees the keys at positions above p - window, so `window` keys
        with its own, as `sliding_window` counts in Hugging Face's configurations; 0 sees all
        earlier keys. `(4096, 0)` is Gemma 2's pattern.
      attention_softcap: attention scores become cap * tanh(score / cap) before the mask (Gemma 2,
        Riviere et al. 2024, section 2); 0.0 leaves them alone.
      logits_softcap: the same for the scores of the tokens.
      tied_embeddings: whether tokens are scored with the embeddings, or with a table of their own.
      scale_embeddings: whether embeddings are multiplied by the root of embed_dim, rounded to their
        type (Gemma).
      remat: what training computes anew on the backward pass instead of keeping it: "none",
        "layer" (all but each layer's input; Chen et al. 2016) or "dots" (all but the layer's input
        and its products with weights).
      scan_layers: whether training runs the layers as a loop over their stacked weights, so that
        compilation takes no longer with depth; parameters and checkpoints stay by layer.
      query_block: queries that attention takes at once in training; 0: as the code sees fit, by
        shapes alone.

    Raises:
      ValueError: sizes that do not fit each other, a choice that does not exist, a window or a cap
        out of range.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_kv_heads: int = 1
    max_length: int = 1024
    block: Literal["parallel", "sequential"] = "parallel"
    post_norms: bool = False
    norm_epsilon: float = 1e-6
    norm_plus_one: bool = False
    qk_norm: bool = False
    biases: tuple[str, ...] = ()
    activation: Literal["silu", "gelu"] = "silu"
    query_scalar: float = 0.0
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float = 0.0
    windows: tuple[int, ...] = (0,)
    attention_softcap: float = 0.0
    logits_softcap: float = 0.0
    tied_embeddings: bool = True
    scale_embeddings: bool = False
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
        self._check_choices()
        self._check_attention()

    def _check_choices(self) -> None:
        choices = {
            "remat": ("none", "layer", "dots"),
            "block": ("parallel", "sequential"),
            "activation": ("silu", "gelu"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                *most, last = known
                raise ValueError(
                    f"ModelConfig.{name} = {getattr(self, name)!r}; use {', '.join(most)} or {last}"
                )
        if self.post_norms and self.block == "parallel":
            raise ValueError("ModelConfig.post_norms wants ModelConfig.block = 'sequential'")
        # A tuple, not a list: configurations are arguments of compiled functions and are hashed.
        if not isinstance(self.biases, tuple) or not set(self.biases) <= set(MATRICES):
            raise ValueError(
                f"ModelConfig.biases = {self.biases!r} must be a tuple of {', '.join(MATRICES)}"
            )

    def _check_attention(self) -> None:
        windows = self.windows
        if not isinstance(windows, tuple) or not windows:
            raise ValueError(
                f"ModelConfig.windows = {windows!r} must be a tuple, (0,) or (4096, 0)"
            )
        if any(type(window) is not int or window < 0 for window in windows):
            raise ValueError(f"ModelConfig.windows = {windows!r} must be whole numbers, 0 or above")
        for name in ("attention_softcap", "logits_softcap", "query_scalar", "local_rope_theta"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ValueError(f"ModelConfig.{name} = {value!r} must be above 0, or 0.0 for none")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ModelConfig":
        """Returns the configuration that `dataclasses.asdict` has written, through JSON or not."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        if values.get("rope_scaling") is not None:
            values["rope_scaling"] = from_json(values["rope_scaling"])
        return cls(**values)

    def window(self, layer: int) -> int:
        """Tokens that a query of the layer sees, its own included; 0 for all earlier ones."""
        return self.windows[layer % len(self.windows)]

    def is_local(self, layer: int) -> bool:
        """Whether the layer's rotary positions are those of `local_rope_theta`."""
        return self.local_rope_theta > 0 and self.window(layer) > 0

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        matrices = self.embed_dim * (2 * queries + 2 * keys + 3 * self.mlp_dim)
        widths = {"query": queries, "key": keys, "value": keys}
        widths |= {"gate": self.mlp_dim, "up": self.mlp_dim}
        biases = sum(widths.get(name, self.embed_dim) for name in set(self.biases))
        norms = 1 if self.block == "parallel" else 4 if self.post_norms else 2
        scales = norms * self.embed_dim + (2 * self.head_dim if self.qk_norm else 0)
        tables = (1 if self.tied_embeddings else 2) * self.vocab_size * self.embed_dim
        return tables + self.num_layers * (matrices + biases + scales) + self.embed_dim
