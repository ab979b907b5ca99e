"""HF transformers, `generate(num_return_sequences=...)`: python -m bench.peers.hf --workload=A"""

import argparse
from typing import Any

from bench import tuning
from bench.peers.llama_of_hf import Decode, ready, sample
from bench.peers.measure import Ready, add_dtype, main, parser
from bench.workloads import Workload


def prepare(workload: Workload, options: argparse.Namespace) -> Ready:
    """Builds the model; `generate` copies each prompt for each of its samples."""

    def begin(model: Any, ids: Any) -> Decode:
        return lambda own, lengths: sample(
            model, workload, own, lengths, num_return_sequences=workload.samples
        )

    note = "each sample prefills its own copy of the prompt; waits for the longest sample"
    return ready(workload, options, begin, note)


if __name__ == "__main__":
    main("hf", prepare, add_dtype(tuning.add_flags(parser(f"{__doc__}\n\n{tuning.EXPLAINED}"))))
