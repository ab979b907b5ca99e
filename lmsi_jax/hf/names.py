"""Our parameters and Hugging Face's tensors: names, shapes, and which are transposed.

Ours are [in, out] as they multiply rows; torch's `Linear.weight` is [out, in]. Heads lie in the
same order and rotary positions pair the same dimensions, so nothing else is rearranged.
"""

import dataclasses

import jax

from lmsi_jax.models.config import MATRICES, ModelConfig
from lmsi_jax.models.decoder import parameter_shapes

_TABLES = {
    "embedding": "model.embed_tokens.weight",
    "lm_head": "lm_head.weight",
    "final_norm.scale": "model.norm.weight",
}
_MODULES = {
    **{"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"},
    "attention_out": "self_attn.o_proj",
    **{"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"},
    **{"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"},
    "attention_norm": "input_layernorm",
}
_TWO_NORMS = {"mlp_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a Hugging Face model, and the parameter that it is.

    Attributes:
      name: in its safetensors file.
      path: of our parameter in the tree, its keys.
      shape: as Hugging Face stores it.
      transposed: whether ours has its two axes exchanged.
    """

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool


def tensors(config: ModelConfig) -> list[Tensor]:
    """Returns all tensors of a model, in the order of its parameters."""
    flat, _ = jax.tree_util.tree_flatten_with_path(parameter_shapes(config))
    return [_tensor(config, tuple(key.key for key in path), leaf.shape) for path, leaf in flat]


def _tensor(config: ModelConfig, path: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
    *first, last = path
    if first and first[0].startswith("layer_"):
        matrix = last.removesuffix("_bias")
        modules = _MODULES | (_FOUR_NORMS if config.post_norms else _TWO_NORMS)
        kind = "bias" if last.endswith("_bias") else "weight"
        layer = first[0].removeprefix("layer_")
        name = f"model.layers.{layer}.{modules[matrix]}.{kind}"
        turned = last in MATRICES
    else:
        name, turned = _TABLES[".".join(path)], False
    return Tensor(name=name, path=path, shape=shape[::-1] if turned else shape, transposed=turned)
