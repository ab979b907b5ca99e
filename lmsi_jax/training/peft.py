"""Adapters in the layout of Hugging Face's PEFT: adapter_model.safetensors, adapter_config.json.

Matrices are named as in Llama's modules, which are our own matrices turned: theirs are [out, in].
"""

import importlib.util
from typing import Any

import numpy as np
from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.files import write_bytes, write_json
from lmsi_jax.models.params import Params
from lmsi_jax.training.lora import Lora

_MODULES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def check_installed() -> None:
    """Raises LmsiError where safetensors is missing."""
    if importlib.util.find_spec("safetensors") is None:
        raise LmsiError(
            "Lora.peft wants safetensors; pip install -e '.[hf]' in the checkout, or set it False"
        )


def peft_tensors(adapters: Params) -> dict[str, np.ndarray]:
    """Returns `lora.fresh_adapters`' tree as PEFT's tensors: A is [rank, in], B [out, rank]."""
    tensors = {}
    for layer, own in adapters.items():
        for name, factors in own.items():
            module = f"base_model.model.model.layers.{layer.removeprefix('layer_')}"
            for side, factor in factors.items():
                key = f"{module}.{_MODULES[name]}.lora_{side.upper()}.weight"
                tensors[key] = np.ascontiguousarray(np.asarray(factor).T)
    return tensors


def peft_config(lora: Lora, base: str) -> dict[str, Any]:
    """Returns adapter_config.json.

    Args:
      lora: rank, scale and targets.
      base: the base model's name or folder.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(_MODULES[name].rpartition(".")[2] for name in lora.targets),
        "inference_mode": True,
    }


def write_peft(lora: Lora, adapters: Params, directory: epath.PathLike, base: str) -> None:
    """Writes adapters where `peft.PeftModel.from_pretrained` reads them.

    Args:
      lora: rank, scale and targets.
      adapters: `lora.fresh_adapters`' tree.
      directory: gets the two files.
      base: the base model's name or folder.

    Raises:
      LmsiError: safetensors is missing, or the disk is full.
    """
    check_installed()
    from safetensors.numpy import save

    directory = epath.Path(directory)
    write_bytes(directory / "adapter_model.safetensors", save(peft_tensors(adapters)))
    write_json(directory / "adapter_config.json", peft_config(lora, base))
