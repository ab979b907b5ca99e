"""HF transformers with the prefix shared by hand: python -m bench.peers.hf_shared --workload=A

The shared prompt is prefilled once, its cache is repeated for the questions, which are prefilled
together, and theirs is repeated for the samples that `generate` then continues.
"""

import argparse
import copy
from typing import Any

from bench.peers.llama_of_hf import PACKAGES, TUNED, add_flags, load, sample, settings
from bench.peers.measure import Ready, groups, main, parser
from bench.workloads import MODEL, Workload, prompts


def _prompt_cache(model: Any, ids: Any) -> Any:
    """The shared prompt's cache: ids [1, shared]."""
    return model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values


def _question_cache(model: Any, shared: Any, ids: Any, samples: int) -> Any:
    """The cache of questions [n, question] after the shared prompt, once for each sample.

    The last token of each is left to `generate`, which needs its logits.
    """
    cache = copy.deepcopy(shared)
    cache.batch_repeat_interleave(len(ids))
    model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(samples)
    return cache


def prepare(workload: Workload, options: argparse.Namespace) -> Ready:
    """Builds the model."""
    model = load(workload)
    import torch

    ids = torch.from_numpy(prompts(MODEL, workload)).long()
    parts = groups(workload, options.group)

    def decode(lengths: tuple[int, ...]) -> list[int]:
        got: list[int] = []
        with torch.inference_mode():
            shared = _prompt_cache(model, ids[:1, : workload.shared])
            for part in parts:
                own = ids[part.start : part.stop]
                rows = slice(part.start * workload.samples, part.stop * workload.samples)
                cache = _question_cache(model, shared, own[:, workload.shared :], workload.samples)
                repeated = own.repeat_interleave(workload.samples, dim=0)
                got += sample(model, workload, repeated, lengths[rows], past_key_values=cache)
        return got

    def run(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return decode(workload.lengths)

    return Ready(
        run=run,
        warm_up=lambda: decode(tuple(min(length, 2) for length in workload.lengths)),
        packages=PACKAGES,
        notes=["each sample has its own copy of the prompt's cache; waits for the longest sample"],
        settings=settings(options, len(parts[0])),
    )


if __name__ == "__main__":
    main("hf_shared", prepare, add_flags(parser(f"{__doc__}\n{TUNED}")))
