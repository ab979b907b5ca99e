"""Before and after, over finished runs: python bench/seeds.py runs/seed0 runs/seed1 ...

Prints a Markdown table (accuracy in percent, base -> last round: means over tasks for each run,
single tasks averaged over the runs) and, as its last line, JSON with every number, the mean change
over the runs and McNemar's exact p for each run.
"""

import json
import pathlib
import sys

from lmsi_jax.evaluation.statistics import mcnemar

PROMPTINGS = ("standard", "cot", "zero_shot_cot", "self_consistency")


def collect(folder: str) -> tuple[dict, list[str], float]:
    """Reads a run's 0/1 answers by (task, prompting, round), in-domain tasks and minutes."""
    summary = json.loads((pathlib.Path(folder) / "report.json").read_text())
    correct = {(e["task"], e["prompting"], e["round"]): e["correct"] for e in summary["evals"]}
    inside = [t["name"] for t in summary["tasks"] if t["domain"] == "in"]
    stages = pathlib.Path(folder).glob("**/stage.json")
    seconds = sum(json.loads(path.read_text())["seconds"] for path in stages)
    return correct, inside, seconds / 60


def row(runs: list[dict], tasks: list[str], prompting: str) -> dict:
    """Accuracy before and after, the mean over tasks, and a pooled paired test, for each run."""
    last = max(key[2] for key in runs[0])
    out: dict = {"before": [], "after": [], "p": []}
    for correct in runs:
        sides = [[correct[t, prompting, r] for t in tasks] for r in (0, last)]
        means = [100 * sum(sum(c) / len(c) for c in side) / len(side) for side in sides]
        before, after = ([bool(x) for c in side for x in c] for side in sides)
        out["before"].append(round(means[0], 1))
        out["after"].append(round(means[1], 1))
        out["p"].append(float(f"{mcnemar(before, after):.2g}"))
    changes = [a - b for a, b in zip(out["after"], out["before"], strict=True)]
    out["change"] = round(sum(changes) / len(changes), 1)
    return out


def _cell(row: dict, each: bool) -> str:
    """One cell of the table: every run, or their average."""
    before, after = row["before"], row["after"]
    if not each:
        before, after = [sum(before) / len(before)], [sum(after) / len(after)]
    pairs = "; ".join(f"{b:.1f} → {a:.1f}" for b, a in zip(before, after, strict=True))
    return f"{pairs} ({row['change']:+.1f})"


def main() -> None:
    """Prints the table and the JSON."""
    runs, insides, minutes = zip(*map(collect, sys.argv[1:]), strict=True)
    inside = insides[0]
    outside = sorted({key[0] for key in runs[0]} - set(inside))
    groups = {"in-domain, mean": inside, **{t: [t] for t in inside}}
    groups |= {"out-of-domain, mean": outside, **{t: [t] for t in outside}}
    table = {
        name: {prompting: row(list(runs), tasks, prompting) for prompting in PROMPTINGS}
        for name, tasks in groups.items()
    }
    print(f"| task | {' | '.join(PROMPTINGS)} |\n|---|{'---|' * len(PROMPTINGS)}")
    for name, cells in table.items():
        shown = [_cell(c, each=name.endswith("mean")) for c in cells.values()]
        print(f"| {name} | {' | '.join(shown)} |")
    print(json.dumps({"minutes": [round(m, 1) for m in minutes], "table": table}))


if __name__ == "__main__":
    main()
