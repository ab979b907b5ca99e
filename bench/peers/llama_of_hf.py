"""Builds the benchmark's model as a `LlamaForCausalLM`, with the parts shared by its uses."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from bench import tuning
from bench.peers.measure import Ready, groups, require
from bench.workloads import Model, Workload, prompts

PACKAGES = ("torch", "transformers")
_GROUP = {"C": 16}  # on an accelerator 512 rows cost little more than 32
# (prompts [questions, prompt], lengths) -> useful tokens of each sample
Decode = Callable[[Any, Sequence[int]], list[int]]


def load(model: Model, positions: int) -> Any:
    """Returns a model with random weights, on the accelerator if PyTorch has one.

    Args:
      model: the shape.
      positions: tokens of the longest text.
    """
    require(*PACKAGES, remedy="pip install torch transformers")
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=model.vocabulary,
        hidden_size=model.width,
        intermediate_size=model.mlp,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    llama = transformers.LlamaForCausalLM(config).to(getattr(torch, model.dtype)).eval()
    return llama.to(device())


def device() -> str:
    """Returns PyTorch's accelerator, or "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _ending(prompt: int, lengths: Sequence[int]) -> Callable[..., Any]:
    """Returns a stopping criterion that ends each row at its length."""
    import torch

    targets = torch.tensor(list(lengths), device=device())

    def ended(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids.shape[1] - prompt >= targets

    return ended


def sample(
    model: Any, workload: Workload, ids: Any, lengths: Sequence[int], **more: Any
) -> list[int]:
    """Calls `generate` on prompts [rows, prompt]; returns the useful tokens of each sample."""
    most = max(lengths)
    made = model.generate(
        ids,
        **(
            {"do_sample": True, "temperature": workload.temperature, "top_k": 0, "top_p": 1.0}
            if workload.temperature
            else {"do_sample": False}
        ),
        max_new_tokens=most,
        stopping_criteria=[] if len(set(lengths)) == 1 else [_ending(ids.shape[1], lengths)],
        **more,
    )
    drawn = made.shape[1] - ids.shape[1]
    return [min(drawn, length) for length in lengths]


def ready(
    workload: Workload,
    options: argparse.Namespace,
    begin: Callable[[Any, Any], Decode],
    note: str,
) -> Ready:
    """Returns the measured system for either way to use `generate`.

    Args:
      workload: what is decoded.
      options: the command line's.
      begin: is called once per run with the model and all prompts [questions, prompt]; returns what
        decodes a group of questions.
      note: what a reader must know about the figures.
    """
    shape = dataclasses.replace(workload.model, dtype=options.dtype or workload.model.dtype)
    model = load(shape, workload.prompt + workload.max_new)
    import torch

    ids = torch.from_numpy(prompts(workload)).long().to(device())
    parts = groups(workload, options.group or _GROUP.get(workload.name, 0))

    def decode(lengths: tuple[int, ...]) -> list[int]:
        got: list[int] = []
        with torch.inference_mode():
            one = begin(model, ids)
            for part in parts:
                rows = slice(part.start * workload.samples, part.stop * workload.samples)
                got += one(ids[part.start : part.stop], lengths[rows])
        if device() == "cuda":
            torch.cuda.synchronize()
        return got

    def run(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return decode(workload.lengths)

    return Ready(
        run=run,
        warm_up=lambda: decode(tuple(min(length, 2) for length in workload.lengths)),
        packages=PACKAGES,
        notes=[note],
        settings=tuning.settings(options)
        | {"questions_at_once": len(parts[0]), "device": device(), "dtype": shape.dtype},
    )
