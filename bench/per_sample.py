"""Measures the cost per sample from 1 to 128 samples: python -m bench.per_sample

Workload A's prompts, 4 questions, 64 new tokens, with m samples a question. Prints one JSON object:
for each m the seconds of the whole run, prefill included, per sample and per useful token.
"""

import argparse
import dataclasses
import json
import time

from bench.machine import measure
from bench.peers.lmsi import prepare
from bench.workloads import WORKLOADS


def seconds(samples: int, options: argparse.Namespace) -> float:
    """Returns the least time of a few runs of workload A with `samples` samples per question."""
    count = WORKLOADS["A"].questions * samples
    workload = dataclasses.replace(WORKLOADS["A"], samples=samples, lengths=(64,) * count)
    ready = prepare(workload, options)
    ready.run(0)  # compiles
    times = []
    for seed in range(options.repeats):
        begin = time.perf_counter()
        ready.run(seed)
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    """Measures and prints."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--samples", default="1,2,4,8,16,32,64,128")
    flags.add_argument("--slots", type=int, default=128)
    flags.add_argument("--chunk", type=int, default=8)
    flags.add_argument("--dtype", default="float32")
    flags.add_argument("--repeats", type=int, default=2)
    options = flags.parse_args()
    rows = []
    for samples in map(int, options.samples.split(",")):
        taken, total = seconds(samples, options), 4 * samples
        rows.append(
            {
                "samples": samples,
                "seconds": round(taken, 3),
                "seconds_per_sample": round(taken / total, 4),
                "tokens_per_s": round(64 * total / taken),
            }
        )
    print(json.dumps({"machine": measure(), "dtype": options.dtype, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
