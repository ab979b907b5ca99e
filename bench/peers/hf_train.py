"""HF transformers' Llama and PyTorch's AdamW: python -m bench.peers.hf_train --workload=train

--tuned also takes PyTorch's fused AdamW instead of the default, one tensor after the other.
"""

import argparse
import dataclasses
from typing import Any

import numpy as np

from bench import steps as adamw
from bench import tuning
from bench.peers.llama_of_hf import PACKAGES, device, load
from bench.peers.llama_weights import draw
from bench.peers.measure import add_dtype
from bench.peers.measure_steps import Ready, main, microbatches, parser
from bench.steps import Steps
from bench.workloads import Model

_NAMES = {
    **{part: f"self_attn.{part}_proj.weight" for part in "qkvo"},
    **{part: f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
}


def _set_weights(llama: Any, model: Model) -> None:
    """Puts `draw`'s weights into a `LlamaForCausalLM`, whose matrices are [out, in]."""
    import torch

    embedding, layers = draw(model)
    state = llama.state_dict()
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        state[key] = torch.from_numpy(embedding)
    for number, layer in enumerate(layers):
        for part, name in _NAMES.items():
            state[f"model.layers.{number}.{name}"] = torch.from_numpy(layer[part].T.copy())
    llama.load_state_dict(state, strict=True)


def prepare(steps: Steps, options: argparse.Namespace) -> Ready:
    """Builds the model; each microbatch's loss is its share of the batch's mean.

    Weights are float32; a bfloat16 shape is multiplied under autocast.
    """
    parts = microbatches(steps, options)
    llama = load(dataclasses.replace(steps.model, dtype="float32"), steps.length).train()
    import torch

    dtype = options.dtype or steps.model.dtype
    narrow = torch.autocast(device(), torch.bfloat16, enabled=dtype == "bfloat16")

    _set_weights(llama, steps.model)
    optimizer = torch.optim.AdamW(
        llama.parameters(),
        lr=adamw.LEARNING_RATE,
        betas=(adamw.B1, adamw.B2),
        eps=adamw.EPSILON,
        weight_decay=adamw.WEIGHT_DECAY,
        fused=True if options.tuned else None,
    )

    def step(tokens: np.ndarray) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for rows in np.array_split(tokens, parts):
            ids = torch.from_numpy(rows).long().to(device())
            with narrow:
                loss = llama(input_ids=ids, labels=ids, use_cache=False).loss / parts
            loss.backward()
            total += loss.item()
        optimizer.step()
        if device() == "cuda":
            torch.cuda.synchronize()
        return total

    return Ready(
        step=step,
        same_weights=dtype == steps.model.dtype,  # others round otherwise
        packages=PACKAGES,
        settings=tuning.settings(options)
        | {"microbatches": parts, "threads": torch.get_num_threads(), "dtype": dtype},
    )


if __name__ == "__main__":
    main(
        "hf",
        prepare,
        add_dtype(tuning.add_flags(parser(f"{__doc__}\n{tuning.EXPLAINED}", microbatches=1))),
    )
