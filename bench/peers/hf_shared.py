"""HF transformers with the prefix shared by hand: python -m bench.peers.hf_shared --workload=A

The shared prompt is prefilled once, its cache is repeated for the questions, which are prefilled
together, and theirs is repeated for the samples that `generate` then continues.
"""

import argparse
import copy
from collections.abc import Sequence
from typing import Any

from bench import tuning
from bench.peers.llama_of_hf import Decode, ready, sample
from bench.peers.measure import Ready, add_dtype, main, parser
from bench.workloads import Workload


def _prompt_cache(model: Any, ids: Any) -> Any:
    """Returns the cache of the shared prompt, ids [1, shared]."""
    return model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values


def _question_cache(model: Any, shared: Any, ids: Any, samples: int) -> Any:
    """Returns the cache of questions [n, question] after the shared prompt, once per sample.

    The last token of each is left to `generate`, which needs its logits.
    """
    cache = copy.deepcopy(shared)
    cache.batch_repeat_interleave(len(ids))
    model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(samples)
    return cache


def prepare(workload: Workload, options: argparse.Namespace) -> Ready:
    """Builds the model."""

    def begin(model: Any, ids: Any) -> Decode:
        shared = _prompt_cache(model, ids[:1, : workload.shared])

        def decode(own: Any, lengths: Sequence[int]) -> list[int]:
            cache = _question_cache(model, shared, own[:, workload.shared :], workload.samples)
            repeated = own.repeat_interleave(workload.samples, dim=0)
            return sample(model, workload, repeated, lengths, past_key_values=cache)

        return decode

    note = "each sample has its own copy of the prompt's cache; waits for the longest sample"
    return ready(workload, options, begin, note)


if __name__ == "__main__":
    main(
        "hf_shared", prepare, add_dtype(tuning.add_flags(parser(f"{__doc__}\n{tuning.EXPLAINED}")))
    )
