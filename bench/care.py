"""Measures how a round changes the way to work sums: python bench/care.py runs/quickstart ...

A sample is hasty if one of its steps adds or subtracts more than two numbers (except tens alone or
units alone, which is a way to take care), careful otherwise. Prints, for each run and trained task,
the careful share of the base's test samples, of the kept train samples, and of greedy samples
before and after; and how often careful and hasty samples of the base are right. As its last line,
JSON with the same numbers. Needs runs with self-consistency and chain-of-thought evaluation.
"""

import json
import pathlib
import re
import sys

from lmsi_jax import answers
from lmsi_jax.pipeline.context import read_samples
from lmsi_jax.records import Question, Sample, Vote
from lmsi_jax.runtime.store import ShardStore

_STEP = re.compile(r"((?:-?\d+ [+-] )+\d+) = ")


def is_careful(text: str) -> bool:
    """Returns True if no step of the sample takes more than two numbers at once."""
    for step in _STEP.findall(text):
        numbers = [int(n) for n in re.findall(r"\d+", step)]
        tens, units = all(n % 10 == 0 for n in numbers), all(n < 10 for n in numbers)
        if len(numbers) > 2 and not (tens or units):
            return False
    return True


def percent(values: list[bool]) -> float | None:
    """Returns the share of true values in percent, None for an empty list."""
    return round(100 * sum(values) / len(values), 1) if values else None


def task_figures(run: pathlib.Path, task: str, last: int) -> dict[str, float | None]:
    """Returns the figures of a task of a run."""

    def shards(folder: str, name: str) -> list[Sample]:
        rows = read_samples(ShardStore(run / folder), name)
        return [sample for samples in rows.values() for sample in samples]

    tests = [Question.from_json(r) for r in ShardStore(run / "questions").read(f"test-{task}")]
    gold = {q.uid: answers.key(q.gold or "", q.kind) for q in tests}
    kind = tests[0].kind
    sampled = shards("round_0/eval", f"{task}-self_consistency")
    votes = [Vote.from_json(row) for row in ShardStore(run / "round_1/vote").read(task)]
    kept = {vote.uid: set(vote.kept) for vote in votes}
    right: dict[bool, list[bool]] = {True: [], False: []}
    for sample in sampled:
        right[is_careful(sample.text)].append(
            answers.path_key(sample.text, kind) == gold[sample.uid]
        )
    trained_on = [p for p in shards("round_1/sample", task) if p.sample_index in kept[p.uid]]
    return {
        "careful, sampled": percent([is_careful(p.text) for p in sampled]),
        "careful, kept": percent([is_careful(p.text) for p in trained_on]),
        "careful, greedy before": percent(
            [is_careful(p.text) for p in shards("round_0/eval", f"{task}-cot")]
        ),
        "careful, greedy after": percent(
            [is_careful(p.text) for p in shards(f"round_{last}/eval", f"{task}-cot")]
        ),
        "careful samples right": percent(right[True]),
        "hasty samples right": percent(right[False]),
    }


def main() -> None:
    """Prints a table for each run and the JSON."""
    out = {}
    for folder in sys.argv[1:]:
        run = pathlib.Path(folder)
        summary = json.loads((run / "report.json").read_text())
        last = max(e["round"] for e in summary["evals"])
        tasks = [t["name"] for t in summary["tasks"] if t["domain"] == "in"]
        out[folder] = {task: task_figures(run, task, last) for task in tasks}
        names = list(out[folder][tasks[0]])
        print(f"{folder}\n| task | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
        for task, row in out[folder].items():
            print(f"| {task} | {' | '.join(str(row[name]) for name in names)} |")
    print(json.dumps(out))


if __name__ == "__main__":
    main()
