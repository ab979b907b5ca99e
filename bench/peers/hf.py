"""HF transformers, `generate(num_return_sequences=...)`: python -m bench.peers.hf --workload=A"""

import argparse

from bench.peers.llama_of_hf import PACKAGES, TUNED, add_flags, load, sample, settings
from bench.peers.measure import Ready, groups, main, parser
from bench.workloads import MODEL, Workload, prompts


def prepare(workload: Workload, options: argparse.Namespace) -> Ready:
    """Builds the model; `generate` copies each prompt for each of its samples."""
    model = load(workload)
    import torch

    ids = torch.from_numpy(prompts(MODEL, workload)).long()
    parts = groups(workload, options.group)

    def decode(lengths: tuple[int, ...]) -> list[int]:
        got: list[int] = []
        for part in parts:
            rows = slice(part.start * workload.samples, part.stop * workload.samples)
            got += sample(
                model,
                workload,
                ids[part.start : part.stop],
                lengths[rows],
                num_return_sequences=workload.samples,
            )
        return got

    def run(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return decode(workload.lengths)

    return Ready(
        run=run,
        warm_up=lambda: decode(tuple(min(length, 2) for length in workload.lengths)),
        packages=PACKAGES,
        notes=["each sample prefills its own copy of the prompt; waits for the longest sample"],
        settings=settings(options, len(parts[0])),
    )


if __name__ == "__main__":
    main("hf", prepare, add_flags(parser(f"{__doc__}\n\n{TUNED}")))
