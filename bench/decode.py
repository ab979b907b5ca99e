"""Decoding beside its peers and beside the machine's floor: python bench/decode.py

Measures the machine, then runs each system in its own process, one after the other, on each
workload, and prints one JSON object: the machine's rates, the roofline of each workload, and for
each system its figures, its ratio to the roofline and ours to it. A peer that is not installed is
reported as skipped with the reason, one that fails with the last lines of its error.
bench/README.md says what is measured and how to install the peers. Run it on a machine that does
nothing else.
"""

import pathlib
import sys

# Run as a file, Python looks in bench/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from bench import driver  # noqa: E402
from bench.workloads import WORKLOADS, best_roofline  # noqa: E402


def _roofline(workload: str, machine: dict) -> dict[str, float]:
    rates, bandwidth = machine["matmul_flops_per_s"], machine["read_bytes_per_s"]
    return best_roofline(WORKLOADS[workload], rates, bandwidth)


BENCH = driver.Bench(
    systems={
        driver.OURS: ("lmsi",),
        "lmsi_bfloat16": ("lmsi", "--dtype=bfloat16"),
        "llama_cpp": ("llama_cpp",),
        "llama_cpp_f16": ("llama_cpp", "--weights=F16"),
        "llama_cpp_q8_0": ("llama_cpp", "--weights=Q8_0"),
        "llama_cpp_q4_0": ("llama_cpp", "--weights=Q4_0"),
        "t5x_loop": ("t5x_loop",),
        "hf_shared_bfloat16": ("hf_shared", "--tuned", "--dtype=bfloat16"),
        "hf_shared_tuned": ("hf_shared", "--tuned"),
        "hf_tuned": ("hf", "--tuned"),
        "hf_shared": ("hf_shared",),
        "hf": ("hf",),
        "tunix_sampler": ("tunix_sampler",),
    },
    workloads=tuple(WORKLOADS),
    chosen="A,B",
    roofline=_roofline,
)

if __name__ == "__main__":
    options = driver.flags(__doc__, BENCH).parse_args()
    parameters = {name: workload.model.parameters for name, workload in WORKLOADS.items()}
    driver.main(BENCH, options, {"parameters": parameters})
