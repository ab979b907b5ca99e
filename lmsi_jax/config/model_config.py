"""Set the decoder's shape: sizes, attention pattern, rotary positions, and how training runs it."""

import dataclasses
import math
from typing import Annotated, Any, Literal

from lmsi_jax.config.value_checks import above, at_least, check_fields
from lmsi_jax.errors import LmsiError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Linear position interpolation (Chen et al. 2023, section 2.3); Gemma 3's global layers.

    A value of `ModelConfig.rope_scaling`.
    """

    factor: Annotated[float, at_least(1)]
    """All positions are divided by this."""
    kind: str = dataclasses.field(default="linear", init=False)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's scaling: low frequencies are divided, high ones are kept (Dubey et al. 2024).

    A value of `ModelConfig.rope_scaling`.
    """

    factor: Annotated[float, at_least(1)]
    """Divisor of the low frequencies."""
    low_freq_factor: Annotated[float, above(0, unit="turns")] = 1.0
    """Frequencies of fewer turns than this in `original_length` are low."""
    high_freq_factor: Annotated[float, above(0, unit="turns")] = 4.0
    """Frequencies of more turns than this are high; in between, the divisor is interpolated."""
    original_length: Annotated[int, at_least(1, unit="tokens")] = 8192
    """Context length that the model was first trained on."""
    kind: str = dataclasses.field(default="llama3", init=False)

    def __post_init__(self) -> None:
        check_fields(self)
        _check_order(self, "low_freq_factor", "high_freq_factor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, section 3): interpolation by parts and sharper attention.

    A value of `ModelConfig.rope_scaling`.
    """

    factor: Annotated[float, at_least(1)]
    """Divisor of the low frequencies."""
    original_length: Annotated[int, at_least(1, unit="tokens")]
    """Context length that the model was first trained on."""
    beta_fast: Annotated[float, above(0, unit="turns")] = 32.0
    """Frequencies of more turns than this in `original_length` are kept."""
    beta_slow: Annotated[float, above(0, unit="turns")] = 1.0
    """Frequencies of fewer turns than this are divided; in between there is a ramp over the
    dimensions."""
    attention_factor: Annotated[float, at_least(0, note="the paper's")] = 0.0
    """Queries and keys are multiplied by this; 0.0 means the paper's 0.1 ln(factor) + 1."""
    truncate: bool = True
    """Round the ramp's ends to whole dimensions, as the authors' code does."""
    kind: str = dataclasses.field(default="yarn", init=False)

    def __post_init__(self) -> None:
        check_fields(self)
        _check_order(self, "beta_slow", "beta_fast")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): a divisor found by search for each frequency; Phi-3 and 4.

    A value of `ModelConfig.rope_scaling`. Its models have two sets, one for contexts as long as in
    the first training and one for longer ones; this is one of the two.
    """

    divisors: tuple[float, ...]
    """Divisor of each rotary frequency, the fastest first."""
    attention_factor: Annotated[float, above(0)] = 1.0
    """Queries and keys are multiplied by this."""
    kind: str = dataclasses.field(default="longrope", init=False)

    def __post_init__(self) -> None:
        check_fields(self)
        divisors = self.divisors
        if not isinstance(divisors, tuple) or not all(
            type(each) in (int, float) and 0 < each < math.inf for each in divisors
        ):
            raise LmsiError(
                f"LongRopeScaling.divisors = {divisors!r} must be a tuple of numbers above 0"
            )


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


def _check_order(scaling: Llama3Scaling | YarnScaling, low: str, high: str) -> None:
    if not getattr(scaling, low) < getattr(scaling, high):
        raise LmsiError(f"{type(scaling).__name__}: {low} must be below {high}")


def rope_scaling_from_json(fields: dict[str, Any]) -> RopeScaling:
    """Returns the scaling that `dataclasses.asdict` wrote; its `kind` names the class."""
    classes: dict[str, type[RopeScaling]] = {
        cls.kind: cls for cls in (LinearScaling, Llama3Scaling, YarnScaling, LongRopeScaling)
    }
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return classes[values.pop("kind")](**values)


MATRICES = ("query", "key", "value", "attention_out", "gate", "up", "down")
"""Names of a layer's weight matrices, each [in, out]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder-only transformer; the defaults are PaLM's.

    That is (Chowdhery et al. 2022, section 2): attention and gated MLP in parallel, rotary
    positions, RMS norm, no biases, embeddings shared between input and output. Llama 3, Qwen
    2.5 and 3, Gemma 1 to 3, Mistral, SmolLM3, OLMo 2, Granite and Phi 3 are other values of the
    same fields: docs/models.md has a table, `gin_configs/models/` published sizes.
    """

    vocab_size: Annotated[int, at_least(1, unit="ids")]
    """Rows of the embedding table. Hugging Face models often have more than their tokenizer has
    ids, so that the table divides evenly."""
    num_layers: Annotated[int, at_least(1, unit="layers")]
    """Transformer layers."""
    embed_dim: Annotated[int, at_least(1)]
    """Width of the residual stream."""
    num_heads: Annotated[int, at_least(1, unit="heads")]
    """Query heads per layer."""
    head_dim: Annotated[int, at_least(2)]
    """Width of each head, an even number; it need not be embed_dim / num_heads."""
    mlp_dim: Annotated[int, at_least(1)]
    """Hidden width of the gated MLP."""
    num_kv_heads: Annotated[int, at_least(1, unit="heads")] = 1
    """Key and value heads, a divisor of `num_heads`: 1 is multi-query attention, `num_heads`
    multi-head attention."""
    max_length: Annotated[int, at_least(1, unit="tokens")] = 1024
    """Longest sequence that the model sees, prompt and continuation together."""
    block: Literal["parallel", "sequential"] = "parallel"
    """With "parallel", attention and MLP of one normalized input are added (PaLM); "sequential"
    normalizes before attention, adds it, normalizes before the MLP and adds that (Llama)."""
    pre_norms: bool = True
    """Normalize the inputs of attention and MLP; False, in OLMo 2, needs `post_norms`."""
    post_norms: bool = False
    """Also normalize the outputs of attention and MLP before adding them (Gemma 2); needs
    `block = 'sequential'`."""
    norm_epsilon: Annotated[float, at_least(0)] = 1e-6
    """Added to the mean square in RMS norms."""
    norm_plus_one: bool = False
    """Norms multiply by 1 + weight (Gemma) instead of by the weight."""
    qk_norm: bool = False
    """Normalize each head's query and key before the rotary embedding (Qwen 3, Gemma 3)."""
    joint_qk_norm: bool = False
    """With `qk_norm`, normalize the queries of all heads as one vector, and the keys of all heads
    likewise (OLMo 2)."""
    biases: tuple[str, ...] = ()
    """Matrices whose products have a bias, of query, key, value, attention_out, gate, up and down;
    Qwen 2.5 has ('query', 'key', 'value')."""
    activation: Literal["silu", "gelu"] = "silu"
    """Activation of the MLP's gate; "gelu" is the tanh approximation (Gemma)."""
    query_scalar: Annotated[float, at_least(0, note="head_dim")] = 0.0
    """Attention logits are divided by the square root of this; 0.0 means `head_dim`. Hugging Face's
    `query_pre_attn_scalar`."""
    rope_theta: Annotated[float, above(0)] = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Stretches rotary positions beyond the context length of the first training: @LinearScaling(),
    @Llama3Scaling(), @YarnScaling() or @LongRopeScaling(); None leaves them alone."""
    local_rope_theta: Annotated[float, at_least(0, note="as the others")] = 0.0
    """Base of the rotary frequencies in layers with a sliding window, which are never stretched
    (Gemma 3); 0.0 treats these layers like the others."""
    rotary_layers: tuple[bool, ...] = (True,)
    """Layers with rotary positions, cycled over the layers. The others know of positions by the
    causal mask alone (Kazemnejad et al. 2023); (True, True, True, False) is SmolLM3's pattern."""
    rotary_dim: Annotated[int, at_least(0, note="head_dim")] = 0
    """Dimensions of each head that rotate, the first ones, an even number (Phi-4-mini); 0 means
    `head_dim`."""
    windows: tuple[int, ...] = (0,)
    """Sliding windows in tokens, cycled over the layers (Beltagy et al. 2020, section 3.1). A query
    at position p sees the keys at positions above p - window, so `window` keys including its own,
    as Hugging Face's `sliding_window` counts; 0 sees all earlier keys. (4096, 0) is Gemma 2's
    pattern."""
    attention_softcap: Annotated[float, at_least(0, note="off")] = 0.0
    """Attention logits become cap * tanh(logit / cap) before the mask (Gemma 2, Riviere et al.
    2024, section 2)."""
    logits_softcap: Annotated[float, at_least(0, note="off")] = 0.0
    """The same for the token logits."""
    logits_divisor: Annotated[float, above(0)] = 1.0
    """Token logits are divided by this before the cap (Granite)."""
    residual_multiplier: Annotated[float, above(0)] = 1.0
    """Outputs of attention and MLP are multiplied by this before adding them (Granite); needs
    `block = 'sequential'`."""
    embedding_multiplier: Annotated[float, above(0)] = 1.0
    """Embeddings are multiplied by this (Granite)."""
    tied_embeddings: bool = True
    """Compute token logits with the embedding table; False uses a table of their own."""
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(embed_dim), rounded to their type (Gemma)."""
    remat: Literal["none", "layer", "dots"] = "none"
    """Activations that training recomputes in the backward pass: "layer" keeps each layer's input
    only (Chen et al. 2016), "dots" also keeps its products with weights."""
    scan_layers: bool = False
    """Run the layers in training as one loop over stacked weights, so that compilation time does
    not grow with depth. Parameters and checkpoints stay one tree per layer."""
    query_block: Annotated[int, at_least(0, unit="tokens", note="automatic")] = 0
    """Queries that training's attention handles at once; 0 chooses by the shapes alone."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_heads % self.num_kv_heads:
            raise LmsiError(
                f"ModelConfig.num_heads = {self.num_heads} must be a multiple of "
                f"ModelConfig.num_kv_heads = {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise LmsiError(
                f"ModelConfig.head_dim = {self.head_dim} must be even: rotary positions pair its "
                "halves"
            )
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise LmsiError(
                f"ModelConfig.rotary_dim = {self.rotary_dim} must be an even number up to "
                f"ModelConfig.head_dim = {self.head_dim}"
            )
        scaling, rotary = self.rope_scaling, self.rotary_dim or self.head_dim
        if isinstance(scaling, LongRopeScaling) and len(scaling.divisors) != rotary // 2:
            raise LmsiError(
                f"LongRopeScaling.divisors has {len(scaling.divisors)} numbers; {rotary} rotary "
                f"dimensions need {rotary // 2}"
            )
        if self.block == "parallel" and (self.post_norms or self.residual_multiplier != 1.0):
            name = "post_norms" if self.post_norms else "residual_multiplier"
            raise LmsiError(f"ModelConfig.{name} needs ModelConfig.block = 'sequential'")
        for name, needed in (("pre_norms", "post_norms"), ("joint_qk_norm", "qk_norm")):
            changed = getattr(self, name) != type(self).__dataclass_fields__[name].default
            if changed and not getattr(self, needed):
                raise LmsiError(
                    f"ModelConfig.{name} = {getattr(self, name)} needs ModelConfig.{needed} = True"
                )
        # Tuples, not lists: configurations are hashed as static arguments of compiled functions.
        if not isinstance(self.biases, tuple) or not set(self.biases) <= set(MATRICES):
            raise LmsiError(
                f"ModelConfig.biases = {self.biases!r} must be a tuple of {', '.join(MATRICES)}"
            )
        windows = self.windows
        if not isinstance(windows, tuple) or not windows:
            raise LmsiError(f"ModelConfig.windows = {windows!r} must be a tuple, (0,) or (4096, 0)")
        if any(type(window) is not int or window < 0 for window in windows):
            raise LmsiError(f"ModelConfig.windows = {windows!r} must be whole numbers, 0 or above")
        layers = self.rotary_layers
        if not isinstance(layers, tuple) or not layers or not set(map(type, layers)) <= {bool}:
            raise LmsiError(
                f"ModelConfig.rotary_layers = {layers!r} must be a tuple of True and False"
            )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ModelConfig":
        """Returns the configuration that `dataclasses.asdict` wrote, before or after JSON."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        if values.get("rope_scaling") is not None:
            values["rope_scaling"] = rope_scaling_from_json(values["rope_scaling"])
        return cls(**values)

    def window(self, layer: int) -> int:
        """Returns the layer's sliding window in tokens, 0 for full attention."""
        return self.windows[layer % len(self.windows)]

    def is_rotary(self, layer: int) -> bool:
        """Tells if the layer has rotary positions."""
        return self.rotary_layers[layer % len(self.rotary_layers)]

    @property
    def layer_cycle(self) -> int:
        """Number of layers after which windows and rotary positions repeat."""
        return math.lcm(len(self.windows), len(self.rotary_layers))

    def is_local(self, layer: int) -> bool:
        """Tells if the layer's rotary frequencies are those of `local_rope_theta`."""
        return self.local_rope_theta > 0 and self.window(layer) > 0

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        matrices = self.embed_dim * (2 * queries + 2 * keys + 3 * self.mlp_dim)
        widths = {"query": queries, "key": keys, "value": keys}
        widths |= {"gate": self.mlp_dim, "up": self.mlp_dim}
        biases = sum(widths.get(name, self.embed_dim) for name in set(self.biases))
        norms = 1 if self.block == "parallel" else 2 * (self.pre_norms + self.post_norms)
        heads = (self.num_heads + self.num_kv_heads) if self.joint_qk_norm else 2
        scales = norms * self.embed_dim + (heads * self.head_dim if self.qk_norm else 0)
        tables = (1 if self.tied_embeddings else 2) * self.vocab_size * self.embed_dim
        return tables + self.num_layers * (matrices + biases + scales) + self.embed_dim
