"""Micro models of each family, and one that has what no family has; windows are a few tokens."""

import dataclasses

import pytest

from lmsi_jax.config import MATRICES, LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling

_GEMMA = {
    "block": "sequential",
    "post_norms": True,
    "norm_plus_one": True,
    "activation": "gelu",
    "query_scalar": 9.0,
    "scale_embeddings": True,
}
FAMILIES = {
    "llama": {
        "block": "sequential",
        "norm_epsilon": 1e-5,
        "rope_scaling": Llama3Scaling(factor=8.0, original_length=400),
        "tied_embeddings": False,
    },
    "qwen2": {
        "block": "sequential",
        "biases": ("query", "key", "value"),
        "rope_scaling": YarnScaling(factor=4.0, original_length=200),
    },
    "qwen3": {"block": "sequential", "qk_norm": True},
    "gemma2": _GEMMA | {"windows": (5, 0), "attention_softcap": 2.0, "logits_softcap": 3.0},
    "gemma3": _GEMMA
    | {
        "qk_norm": True,
        "windows": (4, 0),
        "rope_theta": 1e6,
        "local_rope_theta": 1e4,
        "rope_scaling": LinearScaling(factor=8.0),
    },
    "smollm3": {"block": "sequential", "rotary_layers": (True, False), "windows": (5,)},
    "olmo2": {
        "block": "sequential",
        "pre_norms": False,
        "post_norms": True,
        "qk_norm": True,
        "joint_qk_norm": True,
    },
    "granite": {
        "block": "sequential",
        "query_scalar": 5.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_divisor": 2.5,
    },
    "phi4": {
        "block": "sequential",
        "rotary_dim": 4,
        "rope_scaling": LongRopeScaling(divisors=(1.5, 3.0), attention_factor=1.2),
    },
    "parallel, all biases": {
        "biases": MATRICES,
        "qk_norm": True,
        "norm_plus_one": True,
        "activation": "gelu",
        "tied_embeddings": False,
    },
}

# Gemma 3 and the last have all that the others have; those take their turn with the slow tests.
_OTHERS = set(FAMILIES) - {"gemma3", "parallel, all biases"}
FEW_FAST = [
    pytest.param(name, marks=pytest.mark.slow) if name in _OTHERS else name for name in FAMILIES
]


def of_family(config, family):
    """A configuration's sizes with a family's features."""
    return dataclasses.replace(config, **FAMILIES[family])
