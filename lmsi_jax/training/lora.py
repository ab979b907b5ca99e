"""LoRA (Hu et al. 2021): frozen matrices W, and trained W + alpha / rank * A B in their place.

A [in, rank] is drawn, B [rank, out] starts at zero, so a run starts exactly at the base model.
Training computes x W + alpha / rank * (x A) B and differentiates by A and B alone: neither the
product A B nor a gradient of W ever exists, nor an optimizer state for it.

`write_peft` writes adapters in the layout of Hugging Face's PEFT: adapter_model.safetensors and
adapter_config.json, named as in Llama's modules, whose matrices are ours transposed: [out, in].
"""

import contextlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import PartitionSpec

from lmsi_jax.config import Lora, ModelConfig
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.params import Params
from lmsi_jax.runtime.files import write_bytes, write_json
from lmsi_jax.training import checkpoints
from lmsi_jax.training.forward import Objective, accumulate_gradients, prepare_weights, with_angles


def fresh_adapters(lora: Lora, params: Params) -> Params:
    """Draws {layer: {target: {"a": [in, rank], "b": [rank, out]}}}, float32; b is zero."""
    key = jax.random.key(lora.seed)
    adapters: Params = {}
    for number, layer in enumerate(_layers(params)):
        adapters[layer] = {}
        for place, name in enumerate(sorted(lora.targets)):
            into, out = params[layer][name].shape
            matrix_key = jax.random.fold_in(jax.random.fold_in(key, number), place)
            normal = jax.random.normal(matrix_key, (into, lora.rank), jnp.float32)
            adapters[layer][name] = {
                "a": normal * into**-0.5,
                "b": jnp.zeros((lora.rank, out), jnp.float32),
            }
    return adapters


def _layers(params: Params) -> list[str]:
    return [f"layer_{n}" for n in range(len(params)) if f"layer_{n}" in params]


def merge_adapters(lora: Lora, base: Params, adapters: Params) -> Params:
    """Returns the plain parameter tree that is equivalent to the base with the adapters."""
    tree = dict(base)
    for layer, by_name in adapters.items():
        tree[layer] = dict(base[layer])
        for name, factors in by_name.items():
            change = (lora.alpha / lora.rank) * (factors["a"] @ factors["b"])
            tree[layer][name] = (base[layer][name] + change).astype(base[layer][name].dtype)
    return tree


def add_adapters(lora: Lora, weights: Params, adapters: Params) -> Params:
    """Returns weights with scaled adapters next to their matrices, as `packed_states` takes them.

    Args:
      lora: rank and scale.
      weights: of `forward.prepare_weights`.
      adapters: a tree like that of `fresh_adapters`.
    """
    tree = dict(weights)
    for layer, by_name in adapters.items():
        scaled = {
            name: {"a": factors["a"], "b": lora.alpha / lora.rank * factors["b"]}
            for name, factors in by_name.items()
        }
        tree[layer] = {**weights[layer], "adapters": scaled}
    return tree


def adapter_gradients(
    config: ModelConfig,
    lora: Lora,
    base: Params,
    adapters: Params,
    objective: Objective,
    batch: Any,
) -> tuple[Any, Params]:
    """Returns `accumulate_gradients` by the adapters.

    Args:
      config: the model's shape.
      lora: rank, scale and matrices.
      base: the frozen parameters.
      adapters: the trained tree, in the type of the computation.
      objective: a function of weights as of `forward.prepare_weights`.
      batch: a step's batch.
    """
    weights = prepare_weights(config, base)

    def adapted_objective(adapters: Params, microbatch: Any) -> tuple[jax.Array, Any]:
        return objective(add_adapters(lora, weights, adapters), microbatch)

    batch = with_angles(config, add_adapters(lora, weights, adapters), batch)
    return accumulate_gradients(adapted_objective, adapters, batch)


def adapter_specs(lora: Lora, specs: Any) -> Any:
    """Returns the adapters' tree with `PartitionSpec`s: outer axes as the matrix's, rank whole.

    Args:
      lora: the adapted matrices.
      specs: the parameter tree with `PartitionSpec`s.
    """

    def factors(spec: PartitionSpec) -> dict[str, PartitionSpec]:
        into, out = spec
        return {"a": PartitionSpec(into, None), "b": PartitionSpec(None, out)}

    return {
        layer: {name: factors(specs[layer][name]) for name in sorted(lora.targets)}
        for layer in _layers(specs)
    }


def export_adapters(source: epath.PathLike, directory: epath.PathLike, state: Any) -> epath.Path:
    """Writes the adapters of a LoRA run's newest checkpoint as a checkpoint of their own.

    Args:
      source: the run's folder.
      directory: gets `checkpoint_N`, whose parameters are the adapters' tree.
      state: the run's state or its shapes, `trainer.state_shapes`.

    Returns:
      The new folder.

    Raises:
      LmsiError: there is no checkpoint, or it is not of such a run.
    """
    step = int(checkpoints.find(source).name.rsplit("_", 1)[1])
    saved = checkpoints.load_state(source, {"adapters": state["adapters"]})
    with contextlib.closing(checkpoints.Checkpoints(directory)) as alone:
        alone.save(step, saved["adapters"])
    return checkpoints.find(directory)


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
    """Raises LmsiError if safetensors is missing."""
    if importlib.util.find_spec("safetensors") is None:
        raise LmsiError("Lora.peft needs safetensors: pip install 'lmsi_jax[hf]', or set it False")


def peft_tensors(adapters: Params) -> dict[str, np.ndarray]:
    """Returns the adapters as PEFT's tensors: A is [rank, in], B [out, rank]."""
    tensors = {}
    for layer, by_name in adapters.items():
        for name, factors in by_name.items():
            module = f"base_model.model.model.layers.{layer.removeprefix('layer_')}"
            for side, factor in factors.items():
                key = f"{module}.{_MODULES[name]}.lora_{side.upper()}.weight"
                tensors[key] = np.ascontiguousarray(np.asarray(factor).T)
    return tensors


def peft_config(lora: Lora, base: str) -> dict[str, Any]:
    """Returns the content of adapter_config.json.

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
    """Writes adapters for `peft.PeftModel.from_pretrained`.

    Args:
      lora: rank, scale and targets.
      adapters: a tree like that of `fresh_adapters`.
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
