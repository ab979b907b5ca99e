"""Training steps beside their peers and beside the machine's floor: python bench/train.py

Measures the machine, then runs each system in its own process, one after the other, and prints one
JSON object: the machine's rates, the roofline, and for each system its figures, its losses, its
ratio to the roofline and ours to it. A peer that is not installed is reported as skipped with the
reason, one that fails, or whose losses are not what they must be, as failed. bench/README.md says
what is measured and how to install the peers. Run it on a machine that does nothing else.
"""

import math
import pathlib
import sys

# Run as a file, Python looks in bench/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from bench import driver  # noqa: E402
from bench.steps import STEPS, Steps, roofline  # noqa: E402

_FROM_CHANCE = 1.0  # nats that a fresh model's loss may be off that of guessing
_APART = 1e-3  # nats between systems that started from the same weights


def check(workload: str, results: list[dict]) -> None:
    """Adds the distance of its losses to each result, and "failed" to wrong ones.

    A fresh model's first loss is near ln(vocabulary), that of guessing. Systems with the same
    weights must have the same losses, and after the first step that tells of their gradients and
    optimisers too; they are compared with the first of them.
    """
    chance = math.log(STEPS[workload].model.vocabulary)
    reference: dict | None = None
    for result in results:
        losses = result.get("losses")
        if not losses:
            continue
        result["loss_above_chance"] = losses[0] - chance
        if not abs(losses[0] - chance) < _FROM_CHANCE:
            result["failed"] = f"its first loss is {losses[0]:.4f}, guessing has {chance:.4f}"
        if not result.get("same_weights"):
            continue
        reference = reference or result
        pairs = list(zip(losses, reference["losses"], strict=False))
        result["losses_apart"] = max(abs(own - other) for own, other in pairs)
        if not result["losses_apart"] < _APART:
            result["failed"] = f"its losses are not those of {reference['system']}: {pairs}"


def _roofline(steps: Steps, machine: dict) -> dict[str, float]:
    rates = machine["matmul_flops_per_s"]
    return roofline(steps, max(rates["float32"], rates["bfloat16"]))


BENCH = driver.Bench(
    systems={
        driver.OURS: ("lmsi_train",),
        "lmsi_tuned": ("lmsi_train", "--tuned"),
        "lmsi_bfloat16": ("lmsi_train", "--tuned", "--dtype=bfloat16"),
        "hf_tuned": ("hf_train", "--tuned"),
        "hf_bfloat16": ("hf_train", "--tuned", "--dtype=bfloat16"),
        "hf": ("hf_train",),
        "t5x": ("t5x_train",),
        "t5x_whole": ("t5x_train", "--microbatches=1"),
        "tunix": ("tunix_train",),
    },
    workloads=tuple(STEPS),
    chosen="train",
    roofline=lambda workload, machine: _roofline(STEPS[workload], machine),
    check=check,
)

if __name__ == "__main__":
    options = driver.flags(__doc__, BENCH).parse_args()
    driver.main(BENCH, options, {})
