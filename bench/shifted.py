"""Measures which ways to work sums IWSI's weights prefer: python bench/shifted.py RUN

RUN is one of `lmsi study shift`, such as runs/studies/shift/rows/seed0. For each trained task: the
mean loss of the careful and of the hasty voted samples (`bench/care.py`), and the careful share of
all of them, of them as IWSI-w weighs them (the importance w', at most --cap), and of the --share
with the lowest distribution shift, which IWSI keeps. Prints a table, and JSON as its last line.
"""

import argparse
import json
import pathlib
import statistics
import sys

# Run as a file, Python looks in bench/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from bench.care import is_careful  # noqa: E402
from lmsi_jax.pipeline.context import read_samples
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.selection.filters import (
    importance,
    shift,
)


def task_figures(run: pathlib.Path, task: str, cap: float, share: float) -> dict[str, float]:
    """Returns the figures of a task; shares in percent, losses in nats per token."""
    scores = ShardStore(run / "round_1/filter_scores")

    def scored(kind: str) -> list[dict]:
        prefix = f"{kind}-{task}-"
        names = [name for name in scores.names() if f"{name}-".startswith(prefix)]
        rows = [row for name in names for row in scores.read(name)]
        return [row for row in rows if row["loss"] is not None]

    validation = [row["loss"] for row in scored("human")]
    samples = read_samples(ShardStore(run / "round_1/sample"), task)
    careful = {
        (p.uid, p.sample_index): is_careful(p.text) for group in samples.values() for p in group
    }
    rows = [
        (careful[row["uid"], row["sample_index"]], row["loss"], importance(validation, row["loss"]))
        for row in scored("loss")
    ]
    weights = [min(weight, cap) for _, _, weight in rows]
    kept = sorted(rows, key=lambda row: shift(row[2]))[: round(share * len(rows))]
    return {
        "rows": len(rows),
        "loss, careful": statistics.mean(loss for is_care, loss, _ in rows if is_care),
        "loss, hasty": statistics.mean(loss for is_care, loss, _ in rows if not is_care),
        "loss, given": statistics.mean(validation),
        "careful": 100 * statistics.mean(is_care for is_care, _, _ in rows),
        "careful, weighed": 100
        * sum(weight for (is_care, _, _), weight in zip(rows, weights, strict=True) if is_care)
        / sum(weights),
        "careful, filtered": 100 * statistics.mean(is_care for is_care, _, _ in kept),
    }


def main() -> None:
    """Prints the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--cap", type=float, default=2.0, help="ImportanceWeights.cap")
    parser.add_argument("--share", type=float, default=0.8, help="DistributionShift.share")
    options = parser.parse_args()
    store = ShardStore(options.run / "round_1/vote")
    figures = {
        task: task_figures(options.run, task, options.cap, options.share) for task in store.names()
    }
    names = list(next(iter(figures.values())))
    print(f"| task | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for task, row in figures.items():
        print(f"| {task} | {' | '.join(f'{value:.4g}' for value in row.values())} |")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
