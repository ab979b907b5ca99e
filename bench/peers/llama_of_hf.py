"""The benchmark's model as a `LlamaForCausalLM`, and what all uses of `generate` share."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from bench.peers.measure import require
from bench.workloads import MODEL, Workload

PACKAGES = ("torch", "transformers")
TUNED = """\
--tuned only labels the figures: the settings are the environment's, because they must be there
before Python starts. bench/decode.py gives a tuned run those of bench/tuning.py: LD_PRELOAD with
tcmalloc or jemalloc where one is found, MKL's fast kernels on AMD, threads bound to cores."""


def add_flags(flags: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds --tuned."""
    flags.add_argument("--tuned", action="store_true", help="label the run as tuned; see above")
    return flags


def load(workload: Workload) -> Any:
    """Random float32 weights of the benchmark's shape."""
    require(*PACKAGES, remedy="pip install torch transformers")
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=MODEL.vocabulary,
        hidden_size=MODEL.width,
        intermediate_size=MODEL.mlp,
        num_hidden_layers=MODEL.layers,
        num_attention_heads=MODEL.heads,
        num_key_value_heads=MODEL.heads,
        head_dim=MODEL.head_dim,
        max_position_embeddings=workload.prompt + workload.max_new,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config).to(torch.float32).eval()


def _ending(prompt: int, lengths: Sequence[int]) -> Callable[..., Any]:
    """A stopping criterion that tells for each row whether it has its tokens."""
    import torch

    wanted = torch.tensor(list(lengths))

    def ended(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """[rows]: True where nothing more is needed."""
        return input_ids.shape[1] - prompt >= wanted

    return ended


def sample(
    model: Any, workload: Workload, ids: Any, lengths: Sequence[int], **more: Any
) -> list[int]:
    """Calls `generate` on prompts [rows, prompt]; returns the useful tokens of each path."""
    most = max(lengths)
    made = model.generate(
        ids,
        do_sample=True,
        temperature=workload.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=most,
        stopping_criteria=[] if len(set(lengths)) == 1 else [_ending(ids.shape[1], lengths)],
        **more,
    )
    drawn = made.shape[1] - ids.shape[1]
    return [min(drawn, length) for length in lengths]


def settings(options: argparse.Namespace, group: int) -> dict[str, object]:
    """What the figures depend on, the environment's part included."""
    names = ("LD_PRELOAD", "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if "LD_PRELOAD" in given:
        libraries = given["LD_PRELOAD"].replace(":", " ").split()
        given["LD_PRELOAD"] = " ".join(os.path.basename(library) for library in libraries)
    return {"tuned": options.tuned, "questions_at_once": group, "environment": given}
